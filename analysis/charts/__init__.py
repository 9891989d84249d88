"""One look, and every chart in it."""
