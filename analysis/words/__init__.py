"""Numbers → sentences."""
