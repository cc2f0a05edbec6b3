"""Measure models on held-out data, and ask them."""
