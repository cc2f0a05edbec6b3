"""Checkpoint files: find them, read their headers, check them, rewrite them byte by byte."""
