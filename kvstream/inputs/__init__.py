"""Models and texts, by name."""
