"""The demo's full run: everything from nothing with fresh seeds, and the table it ends in."""
