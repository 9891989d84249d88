"""A records folder → checked rows."""
