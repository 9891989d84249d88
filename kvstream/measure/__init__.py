"""One cell → rows: quality by replay, latency by decoding. Knows no Ray, no files."""
