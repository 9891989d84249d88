"""The stretches in which texts are replayed. Where one ends decides roundings, so it is fixed for all sweeps."""

CHUNK_SIZE = 512  # tokens that pass through the model at once
PART_TOKENS = 128 * CHUNK_SIZE  # of a long text, between two commits
