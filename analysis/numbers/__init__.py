"""SQL over checked records, and the statistics of its results."""
