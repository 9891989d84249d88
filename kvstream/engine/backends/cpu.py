"""The CPU backend: torch's fused attention kernel, which also says log Σ exp, and a compiled loop for keys at ranks.

Single tokens are answered as by the reference.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S or U keys, D head size, R rows (B × H).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kvstream.engine.attention import Partial
from kvstream.engine.backends.compiled_best import CompiledBest
from kvstream.engine.backends.compiled_ranks import add_by_rank
from kvstream.engine.backends.compiled_scan import scan_compiled
from kvstream.engine.backends.compiled_seats import seat_compiled
from kvstream.engine.backends.reference import Reference, answer, scaled_scores
from kvstream.engine.backends.scan import scan_plainly
from kvstream.engine.backends.team import run_all
from kvstream.engine.chunks import CHUNK_SIZE
from kvstream.engine.positions import Ranks


@dataclass(frozen=True)
class Cpu(Reference):
    """Blocks of queries without their scores ever written down."""

    query_block = CHUNK_SIZE  # the more, the less often keys are read from memory
    logits_bytes = 2 << 20  # from 0.5 to 16 MiB take the same time, within the noise
    best = CompiledBest

    def block(
        self,
        queries_BHGTD: torch.Tensor,
        keys_BHSD: torch.Tensor,
        values_BHSD: torch.Tensor,
        scaling: float,
        mask: torch.Tensor | None = None,
    ) -> Partial:
        """Answer several queries by torch's fused kernel; see `Reference.block`."""
        B, H, G, T, D = queries_BHGTD.shape
        if mask is not None:
            mask = mask.unsqueeze(-3).expand(*mask.shape[:-2], G, *mask.shape[-2:]).flatten(-3, -2)
        outputs, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries_BHGTD.reshape(B, H, G * T, D), keys_BHSD, values_BHSD, 0.0, False, attn_mask=mask, scale=scaling
        )
        if mask is not None:  # the kernel's sum over no keys at all is 0
            total = total.masked_fill(mask.amax(-1).isneginf(), -torch.inf)
        return Partial(outputs.view(B, H, G, T, D), total.view(B, H, G, T))

    def seat(self, layer: Any, candidate: int, takeover: Any, newest: int, members: int) -> None:
        """Seat a candidate, and turn contested keys that stand turned already, in one pass; see `Reference.seat`."""
        if layer.keys.element_size() < 4:
            return super().seat(layer, candidate, takeover, newest, members)
        back = layer.tables.rotation_of((-candidate if layer.ranks else 0,), layer.keys)
        table, first = (layer.ranks.table, layer.ranks.first) if layer.ranks else (back, 0)
        settled, eviction, layout = takeover.settled, layer.eviction, layer.layout
        held = layer.keys, layer.values, layer.plain_BHZD, eviction.score_BHZ, eviction.rank_BHZ
        of = *held, settled.seat_BHC, settled.left_BHC, settled.score_BHC, table.cos, table.sin
        if layer.views is None or any(one is not other for one, other in zip(of, layer.views[0])):
            layer.views = of, [x.numpy() for x in of]
        *arrays, cos, sin = layer.views[1]
        to_turn = members if layer.ranks and layer.turned else 0
        places = takeover.offer, layout.slot_of(candidate), layout.contested_at, newest, first, to_turn
        return seat_compiled(*arrays, back.cos.numpy(), back.sin.numpy(), cos, sin, *places)

    def scan(self, layer: Any, arriving: Any, scaling: float) -> torch.Tensor:
        """Take no Python step per token, but for a policy that scores in Python itself."""
        return (scan_plainly if layer.policy.scores_in_python else scan_compiled)(layer, arriving, scaling)

    def block_by_rank(
        self,
        queries_BHGTD: torch.Tensor,
        keys_BHUD: torch.Tensor,
        values_BHUD: torch.Tensor,
        enter_BHU: torch.Tensor,
        leave_BHU: torch.Tensor,
        query_T: torch.Tensor,
        scaling: float,
        ranks: Ranks,
    ) -> Partial:
        """Answer queries from keys at their rank, rows spread over torch's threads; see `Reference.block_by_rank`."""
        rows = queries_BHGTD.shape[0] * queries_BHGTD.shape[1]
        size = ranks.table.cos.shape[-1]
        wide = torch.promote_types(queries_BHGTD.dtype, torch.float32)
        queries, keys = queries_BHGTD.to(wide) * scaling, keys_BHUD.to(wide)
        rest = scaled_scores(queries[..., size:], keys[..., size:], 1.0)  # zeros where all dimensions are rotated
        arrays = [
            x.reshape(rows, *x.shape[2:]).numpy()
            for x in (rest, queries[..., :size].contiguous(), keys[..., :size].contiguous(), enter_BHU, leave_BHU)
        ]
        table = ranks.table.cos.to(wide), ranks.table.sin.to(wide)
        shared = [x.numpy() for x in (query_T, ranks.positions(query_T), *table)]
        threads = min(torch.get_num_threads(), rows)
        pieces = [slice(rows * n // threads, rows * (n + 1) // threads) for n in range(threads)]
        run_all([partial(add_by_rank, *(x[piece] for x in arrays), *shared) for piece in pieces])
        return answer(torch.from_numpy(arrays[0]).view(rest.shape).to(queries_BHGTD), values_BHUD)
