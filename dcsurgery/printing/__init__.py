"""Text for people: numbers and units, tables, the wiring, and plans that print themselves."""
