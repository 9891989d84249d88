"""Rotary rotation of rows by tables of cosines and sines; what is not rotated of a head passes.

Tables are float32, (rows, pairs), made from float64 angles (`Rope.pairs`), and so is what is computed with them, also
where rows are in half precision. `Rotation` is the same in plain torch.

Shape legend: B batch, H heads, T rows, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

Pairs = tuple[torch.Tensor, torch.Tensor]


@triton.jit
def load_turned(x, stride, rows, inside, cos, sin, places, HALF: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows of x and rotate each by the tables' row at its place: float32, (rows, BLOCK_D)."""
    d = tl.arange(0, BLOCK_D)
    twin = tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d))
    loaded = inside[:, None] & (d < D)[None, :]
    turned = inside[:, None] & (d < 2 * HALF)[None, :]
    own = tl.load(x + rows[:, None] * stride + d[None, :], mask=loaded, other=0.0).to(tl.float32)
    other = tl.load(x + rows[:, None] * stride + twin[None, :], mask=turned, other=0.0).to(tl.float32)
    cell = places[:, None] * HALF + (d % HALF)[None, :]
    c = tl.load(cos + cell, mask=turned, other=1.0)
    s = tl.load(sin + cell, mask=turned, other=0.0)
    return own * c + other * tl.where((d < HALF)[None, :], -s, s)


@triton.jit(do_not_specialize=["T"])
def _turn(
    X, OUT, COS, SIN, xb, xh, xt, ob, oh, ot, T,
    HEADS: tl.constexpr, HALF: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    b, h = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    inside = rows < T
    h = h.to(tl.int64)  # of a long text a head begins beyond 32 bits
    x = load_turned(X + b.to(tl.int64) * xb + h * xh, xt, rows, inside, COS, SIN, rows, HALF, D, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    at = OUT + b.to(tl.int64) * ob + h * oh + rows[:, None] * ot + d[None, :]
    tl.store(at, x.to(OUT.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])


def turned(x_BHTD: torch.Tensor, table: Pairs, out_BHTD: torch.Tensor | None = None) -> torch.Tensor:
    """Rotate row t by the table's row t, into `out_BHTD` or a new tensor. Each row of D lies in one piece."""
    B, H, T, D = x_BHTD.shape
    out = x_BHTD.new_empty(B, H, T, D) if out_BHTD is None else out_BHTD
    if T:
        _turn[(triton.cdiv(T, 64), B * H)](
            x_BHTD, out, *table, *x_BHTD.stride()[:3], *out.stride()[:3], T,
            HEADS=H, HALF=table[0].shape[1], D=D, BLOCK_D=max(16, triton.next_power_of_2(D)), BM=64,
        )  # fmt: skip
    return out
