"""Surgery on checkpoints: look, plan, convert, export. Nothing here imports torch."""
