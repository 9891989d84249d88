"""The columns of a cell's rows. analysis/read checks them: they are the contract between a sweep and its report."""

import pyarrow as pa

MOST_RANK = 65_535

TOKEN_ROWS = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),  # index of the predicted token, 1 … T−1
        pa.field("token", pa.int32(), nullable=False),
        pa.field("nll_nats", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        # Beside the full cache on the same text; null where it was not compared.
        pa.field("kl_nats", pa.float32()),  # KL(full ‖ policy) over the whole vocabulary
        pa.field("same_top", pa.bool_()),  # the argmax is full's
        pa.field("rank", pa.uint16()),  # of the token: 1 for the argmax; MOST_RANK: that or more; 0: no number
    ]
)

LATENCY_ROWS = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),  # "ttft": a prefill; "step": one output token after the first
        pa.field("round", pa.int32(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),  # place in the random order of this prefill or step
        pa.field("step", pa.int32(), nullable=False),  # 0 for a prefill
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
