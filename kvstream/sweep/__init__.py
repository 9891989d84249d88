"""Cells fan out over the machines there are: the only folder that knows Ray."""
