"""Axes → cells with content-derived keys; flags; preflight."""
