"""A quality cell: one text under one policy, replayed into one row per predicted token. Knows no Ray, no files."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from kvstream.policies import Policy
from kvstream.policies.draws import derived_seed
from kvstream.replaying import replay_chunks

TOKEN_ROWS = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # index of the predicted token, 1 … T−1
        pa.field("token", pa.int32(), nullable=False),
        pa.field("nll_nats", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Evaluated:
    """The rows of a finished cell, one per predicted token, and the seconds they took."""

    rows: pa.Table
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp of the mean NLL: for progress lines; reports compute their own from the rows."""
        return float(np.exp(self.rows["nll_nats"].to_numpy().astype(np.float64).mean()))


def evaluate(
    model: PreTrainedModel, token_ids: np.ndarray, policy: Policy, *, cell: str, document: str, device: str
) -> Evaluated:
    """Replay `token_ids`, (T,), under `policy`. A policy that draws at random draws independently per document."""
    if hasattr(policy, "seed"):
        policy = replace(policy, seed=derived_seed(policy.seed, document))  # type: ignore[call-arg]
    ids = torch.as_tensor(token_ids, dtype=torch.int64, device=device)
    started = time.perf_counter()
    scored = list(replay_chunks(model, ids, policy))
    nll = torch.cat([part.nll_nats for part in scored]).float().cpu().numpy()
    correct = torch.cat([part.correct for part in scored]).cpu().numpy()
    seconds = time.perf_counter() - started
    columns = {
        "cell": [cell] * len(nll),
        "document": [document] * len(nll),
        "position": np.arange(1, len(token_ids), dtype=np.int32),
        "token": np.asarray(token_ids[1:], dtype=np.int32),
        "nll_nats": nll,
        "correct": correct,
    }
    return Evaluated(pa.table(columns, schema=TOKEN_ROWS), seconds)
