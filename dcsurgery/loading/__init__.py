"""Models in memory: load_model, and the names of their parameters in a checkpoint."""
