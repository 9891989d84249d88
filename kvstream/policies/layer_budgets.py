"""Budgets that differ from layer to layer, with the same total: PyramidKV's schedule.

https://arxiv.org/abs/2406.02069: lower layers attend broadly and higher ones to a few tokens, so what a layer keeps
falls linearly from the first to the last, which has a `LAST`th of the mean. What is divided so is a budget less what
every layer needs (`BoundedPolicy.in_every_layer`), as the paper adds its window of recent tokens in each layer. The
paper's code rounds each layer's size down; here the total stays what it was, and the first layers have what is left.
Knows no policy.
"""

from fractions import Fraction
from functools import cache
from typing import Literal

LayerBudgets = Literal["uniform", "pyramid"]
LAST = 20  # the paper's β


@cache
def pyramid(mean: int, layers: int) -> tuple[int, ...]:
    """Divide `mean` · `layers` tokens: so many for each layer, falling."""
    if layers == 1:
        return (mean,)
    last = Fraction(mean, LAST)
    step = 2 * (mean - last) / (layers - 1)
    sizes = [int(last + step * above) for above in reversed(range(layers))]
    rest = mean * layers - sum(sizes)
    return tuple(size + (layer < rest) for layer, size in enumerate(sizes))
