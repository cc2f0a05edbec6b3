"""Is it worth it, for this model, on this data? Arms trained alike, and what came of them."""
