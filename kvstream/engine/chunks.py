"""The stretches in which texts are replayed. Where one ends decides roundings, so on CPUs it is the same in all sweeps.

A GPU with kernels takes several at once, as many as its memory is worth: see `chunk_choice`.
"""

CHUNK_SIZE = 512  # tokens that pass through the model at once
PART_TOKENS = 128 * CHUNK_SIZE  # of a long text, between two commits
