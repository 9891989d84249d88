"""What takes workers and drivers seconds to import, imported faster: nobody looks for garbage meanwhile.

torch, transformers and numba leave 400,000 objects that stay; Python would go through them again and again while they
come, about a tenth of the time.
"""

import gc

_collecting = gc.isenabled()
gc.disable()
try:
    import numba  # noqa: F401
    import transformers.modeling_utils  # noqa: F401
finally:
    if _collecting:
        gc.enable()
