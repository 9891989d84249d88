"""What takes a worker seconds to import, imported sooner: nobody looks for garbage meanwhile.

torch and transformers leave 400,000 objects that stay. Python would go through them again and again while they come,
a fifth of the time; frozen (https://docs.python.org/3/library/gc.html#gc.freeze), they are passed over by every later
collection, too, and by the last one, which takes a second when the program ends.
"""

import gc

_collecting = gc.isenabled()
gc.disable()
try:
    import numba  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
finally:
    gc.freeze()
    if _collecting:
        gc.enable()
