"""Which hidden states would help a model, told from gradients alone: nothing is trained."""
