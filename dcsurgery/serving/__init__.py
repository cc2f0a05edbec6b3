"""What engines other than transformers are given, and whether they compute the same."""
