"""Training data, the engine that trains a connector, and what it writes down."""
