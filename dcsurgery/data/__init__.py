"""What the user gave, as a model reads it: rows, pictures, conversations, prompts, batches."""
