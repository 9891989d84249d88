"""One model decoding with the attention-sinks package, in that package's own environment; a worker of decode.py and
replay.py, by way of `measuring.Peer`.

Reads lines from standard input: a number of tokens to make. Answers each with their seconds, as a JSON list.

    python peer.py HIDDEN LAYERS HEADS BUDGET CONTEXT THREADS
"""

import json
import sys
import tempfile
import time

import torch
from attention_sinks import GPTNeoXForCausalLM
from transformers import GPTNeoXConfig
from transformers import GPTNeoXForCausalLM as PlainGPTNeoX

hidden, layers, heads, budget, context, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
config = GPTNeoXConfig(
    hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden,
    vocab_size=50304, max_position_embeddings=2048, rotary_pct=0.25,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    PlainGPTNeoX(config).save_pretrained(folder)
    model = GPTNeoXForCausalLM.from_pretrained(
        folder, attention_sink_size=4, attention_sink_window_size=budget - 4
    ).eval()

token, past = torch.zeros(1, budget, dtype=torch.int64), None  # the first step fills the window at once
with torch.inference_mode():

    def step() -> float:
        """Make one token."""
        global token, past
        started = time.perf_counter()
        outputs = model(token, past_key_values=past, use_cache=True)
        past, token = outputs.past_key_values, outputs.logits[:, -1:].argmax(-1)
        return time.perf_counter() - started

    for _ in range(1 + context - budget):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps([step() for _ in range(int(line))]), flush=True)
