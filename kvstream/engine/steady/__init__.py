"""A decoding step that is the same operations on the same memory each time, so that a device can record and repeat it.

What changes from step to step (which token it is, its slot, how far keys are turned, who leaves) is computed on the
device from a counter that lives there. The slots are those of a `KVStreamCache`, which goes on where such steps end.
"""
