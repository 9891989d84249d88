"""The reference backend: plain torch, on any device and in any dtype. Slow and literal; others must equal it.

It serves GPUs and Apple's MPS, too, as long as those have none of their own. All methods take and return tensors of one
device and one dtype. A backend knows products; policies, slots and positions it does not.

Shape legend: B batch, H kv-heads, G query heads per kv-head, T queries, S or U keys, D head size, P rotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kvstream.engine.attention import QUERY_BLOCK, Partial
from kvstream.engine.backends.scan import scan_plainly, shed_plainly
from kvstream.engine.bounded_chunk import attend_bounded
from kvstream.engine.bounded_step import seat_plainly
from kvstream.engine.causal_chunk import attend_causal
from kvstream.engine.positions import Ranks
from kvstream.engine.vocabulary_blocks import Best, Predicted, blocks_of, no_logits, own_logits, predict_from_blocks


@dataclass(frozen=True)
class Reference:
    """Plain products, written down in full.

    query_block: queries that share a product with keys which all of them see. tells_lifetimes: whether chunks of a
    `BoundedLayer` ask its eviction for them.
    """

    device: torch.device
    query_block = QUERY_BLOCK  # scores are written down
    logits_bytes = 256 << 20  # that exist at once while a text is scored
    best = Best
    tells_lifetimes = True

    def step(
        self, q_BHGD: torch.Tensor, keys_BHSD: torch.Tensor, values_BHSD: torch.Tensor, scaling: float, apart: int = 0
    ) -> torch.Tensor:
        """Answer one token's queries, which see every key: outputs (B, H, G, D).

        With `apart` there are twice as many queries: the second half asks the keys from slot `apart` on, in place of
        the first half, which asks those before.
        """
        scores_BHGTS = scaled_scores(q_BHGD[..., None, :], keys_BHSD, scaling)
        if apart:
            first, second = scores_BHGTS.chunk(2, dim=2)
            first[..., apart:] = second[..., apart:]
            scores_BHGTS = first.contiguous()
        return weigh(scores_BHGTS, values_BHSD)[..., 0, :]

    def seat(self, layer: Any, candidate: int, takeover: Any, newest: int, members: int) -> None:  # noqa: ARG002
        """Let a token of a `BoundedLayer` that lost its protection take a seat, with rank `newest` of `members` there.

        Contested keys that changed rank are turned, or as here the layer is marked so that the next step turns them.
        """
        seat_plainly(layer, candidate, takeover, newest)
        layer.turned = not layer.positions.by_rank

    def block(
        self,
        queries_BHGTD: torch.Tensor,
        keys_BHSD: torch.Tensor,
        values_BHSD: torch.Tensor,
        scaling: float,
        mask: torch.Tensor | None = None,
    ) -> Partial:
        """Answer several queries, S ≥ 1. mask: added to the scores, 0 or −inf, shape (T, S) or (B, H, T, S)."""
        scores_BHGTS = scaled_scores(queries_BHGTD, keys_BHSD, scaling)
        return answer(scores_BHGTS if mask is None else scores_BHGTS.add_(mask.unsqueeze(-3)), values_BHSD)

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
        """Answer queries from keys that stand at their rank, which differs from query to query; see `positions`.

        Keys are in order of age; neither they nor the queries are rotated. A key is seen by the queries whose token
        index, in query_T, lies between its enter and leave, both included.
        """
        table = ranks.table.cos, ranks.table.sin  # of a pair's two dimensions the first has its sine negated
        half = table[0].shape[-1] // 2
        wide = torch.promote_types(queries_BHGTD.dtype, torch.float32)
        queries, keys = queries_BHGTD.to(wide) * scaling, keys_BHUD.to(wide)
        seen_BHTU = (enter_BHU[:, :, None] <= query_T[:, None]) & (leave_BHU[:, :, None] >= query_T[:, None])
        distance_BHTU = ranks.positions(query_T)[:, None] - (seen_BHTU.cumsum(-1) - 1)
        distance_BHTU = distance_BHTU.clamp(0, ranks.budget)  # of keys that are not seen it means nothing
        scores_BHGTU = scaled_scores(queries[..., 2 * half :], keys[..., 2 * half :], 1.0)
        for pair in range(half):
            cos_BH1TU, sin_BH1TU = (x[:, pair].to(wide)[distance_BHTU][:, :, None] for x in table)
            q1, q2 = queries[..., pair, None], queries[..., pair + half, None]  # (B, H, G, T, 1)
            k1, k2 = (keys[:, :, None, None, :, place] for place in (pair, pair + half))  # (B, H, 1, 1, U)
            scores_BHGTU += cos_BH1TU * (q1 * k1 + q2 * k2) + sin_BH1TU * (q2 * k1 - q1 * k2)
        scores_BHGTU = scores_BHGTU.masked_fill(~seen_BHTU[:, :, None], -torch.inf)
        return answer(scores_BHGTU.to(queries_BHGTD.dtype), values_BHUD)

    def scan(self, layer: Any, arriving: Any, scaling: float) -> torch.Tensor:
        """Take tokens, `Arriving`, one after another through a `ScannedLayer`: (B, H, G, T, D)."""
        return scan_plainly(layer, arriving, scaling)

    def shed(self, layer: Any, token: int | torch.Tensor) -> None:
        """Have contested tokens leave a `ScannedLayer` whose slots are all taken, until as many are left as shall be.

        The lowest scores leave first, of equals the youngest. token: the newest's index, which may be on the device.
        """
        shed_plainly(layer, token)

    def causal(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Take many tokens through a layer that holds all so far, and go on holding all: (B, H, G, T, D)."""
        return attend_causal(layer, q_BHGTD, k_BHTD, v_BHTD, scaling)

    def bounded(
        self, layer: Any, q_BHGTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Take many tokens through a `BoundedLayer` whose evictions do not depend on attention: (B, H, G, T, D)."""
        return attend_bounded(layer, q_BHGTD, k_BHTD, v_BHTD, scaling)

    def predict(
        self,
        head: nn.Linear,
        hidden_TE: torch.Tensor,
        targets_T: torch.Tensor,
        *,
        more: bool = False,
        keep: bool = False,
    ) -> Predicted:
        """Say what a plain head predicts for targets, given the hidden states before them; see `Predicted`."""
        own_T = own_logits(head, hidden_TE, targets_T) if more else no_logits(hidden_TE)
        blocks = blocks_of(head, hidden_TE, self.logits_bytes, more=more)
        return predict_from_blocks(blocks, targets_T, self.best(own_T), keep=keep)


def scaled_scores(queries_BHGTD: torch.Tensor, keys_BHSD: torch.Tensor, scaling: float) -> torch.Tensor:
    """Multiply queries with keys, and by `scaling`: shape (B, H, G, T, S)."""
    B, H, G, T, D = queries_BHGTD.shape
    S = keys_BHSD.shape[2]
    queries = queries_BHGTD.reshape(B * H, G * T, D)
    keys = keys_BHSD.reshape(B * H, S, D).transpose(1, 2)
    # beta=0 ignores the first argument: one pass for product and scaling.
    return torch.baddbmm(queries.new_empty(()), queries, keys, beta=0, alpha=scaling).view(B, H, G, T, S)


def weigh(scores_BHGTS: torch.Tensor, values_BHSD: torch.Tensor) -> torch.Tensor:
    """Weigh values by the softmax over the keys, which of half-precision scores runs in float32: (B, H, G, T, D)."""
    B, H, G, T, S = scores_BHGTS.shape
    wide = torch.promote_types(scores_BHGTS.dtype, torch.float32)
    weights_BHGTS = torch.softmax(scores_BHGTS, dim=-1, dtype=wide)
    outputs = weights_BHGTS.to(scores_BHGTS.dtype).view(B, H, G * T, S) @ values_BHSD
    return outputs.view(B, H, G, T, -1)


def answer(scores_BHGTS: torch.Tensor, values_BHSD: torch.Tensor) -> Partial:
    """Answer from scores, −inf where a query does not see a key."""
    total = scores_BHGTS.to(torch.promote_types(scores_BHGTS.dtype, torch.float32)).logsumexp(-1)
    blind = total.isneginf()[..., None]
    return Partial(weigh(scores_BHGTS.masked_fill(blind, 0), values_BHSD), total)
