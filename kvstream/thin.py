"""Thin products on all CPU cores.

A decoding step multiplies one row (or one per text of a batch) with every weight matrix, and takes as long as reading
the weights does. torch leaves such a product to a single core on common builds. Cutting the matrix into one piece per
core and multiplying the pieces as a batch uses them all; with the pieces on the left and few rows, each is a product of
a matrix and a vector, which reads weights as fast as memory delivers them. Knows nothing of caches: it helps every
cache alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

MOST_ROWS = 8  # beyond, torch's own product is as fast
FEW_ROWS = 4  # up to here, weights on the left are faster
LEAST_WEIGHTS = 1 << 17  # below, waking a second core costs more than it brings


@contextmanager
def all_cores(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model on the CPU use every core for thin inputs; results differ by rounding only."""
    cores = torch.get_num_threads()
    changed = []
    for module in model.modules():
        if cores > 1 and type(module) is nn.Linear and "forward" not in vars(module) and _worth_it(module, cores):
            module.__dict__["forward"] = _in_pieces(module, cores)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _worth_it(module: nn.Linear, cores: int) -> bool:
    weight = module.weight
    return weight.device.type == "cpu" and weight.numel() >= LEAST_WEIGHTS and module.out_features % cores == 0


def _in_pieces(module: nn.Linear, cores: int) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias = module.weight, module.bias
    pieces_PVE = weight.view(cores, -1, module.in_features)
    bias_PV = weight.new_empty(()) if bias is None else bias.view(cores, -1)
    beta = 0 if bias is None else 1

    def forward(x: torch.Tensor) -> torch.Tensor:
        rows = x.numel() // module.in_features
        if not 0 < rows <= MOST_ROWS:
            return functional.linear(x, weight, bias)
        x_PRE = x.reshape(1, rows, -1).expand(cores, -1, -1)
        if rows <= FEW_ROWS:
            bias_PV1 = bias_PV[..., None] if beta else bias_PV
            product_PVR = torch.baddbmm(bias_PV1, pieces_PVE, x_PRE.transpose(1, 2), beta=beta)
            product_RPV = product_PVR.permute(2, 0, 1)
        else:
            bias_P1V = bias_PV[:, None] if beta else bias_PV
            product_RPV = torch.baddbmm(bias_P1V, x_PRE, pieces_PVE.transpose(1, 2), beta=beta).transpose(0, 1)
        return product_RPV.reshape(*x.shape[:-1], module.out_features)

    return forward
