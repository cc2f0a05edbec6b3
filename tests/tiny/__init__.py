"""Tiny models of every family, built offline."""
