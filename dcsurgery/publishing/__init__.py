"""Publish a converted model on the Hub: one commit, with a card that says what was done."""

from __future__ import annotations
