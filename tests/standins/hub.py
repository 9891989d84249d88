"""A hub on this machine: lists repositories and hands out their files as the real one does, or fails as it may.

For one process (`test_hub`) or, by HF_ENDPOINT, for commands. `pythia` and `pg19` make what the first real run asks
for: the published file lists and formats, random weights, other books.
"""

import hashlib
import http.server
import io
import json
import re
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

SILENT = (None,)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, a listing of a repository's files, a tree of them, the files; or as `server.fault` says.

    `server.repositories` are theirs by name; of any other name the files are `server.files`, bytes or paths.
    """

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        stage = "listing" if "/revision/" in path else "tree" if "/tree/" in path else "file"
        if self.server.fault and stage == self.server.fault_at:
            if self.server.fault == SILENT:
                return time.sleep(1)
            return self.send(*self.server.fault)
        files = self.files_of(path)
        if stage == "listing":
            asked = re.search(r"/revision/([0-9a-f]{40})$", path)
            sha = asked[1] if asked and self.server.repositories else self.server.sha
            content = {"id": "o/n", "sha": sha, "siblings": [{"rfilename": name} for name in files]}
            return self.send(200, json.dumps(content).encode())
        if stage == "tree":
            listed = [
                {"type": "file", "path": name, "size": size(held), "oid": oid(name, held)}
                for name, held in files.items()
            ]
            return self.send(200, json.dumps(listed).encode())
        commit, _, name = path.partition("/resolve/")[2].partition("/")
        if name not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send(200, files[name], {"ETag": f'"{oid(name, files[name])}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def files_of(self, path):
        known = [name for name in self.server.repositories if f"/{name}/" in path]
        return self.server.repositories[known[0]] if known else self.server.files

    def send(self, status, content=b"", headers=(), cut=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size(content)))
        self.end_headers()
        if self.command == "GET":
            with content.open("rb") if isinstance(content, Path) else io.BytesIO(content[:cut]) as source:
                shutil.copyfileobj(source, self.wfile, 1 << 20)
        self.close_connection = True

    def log_message(self, *args):
        pass


def size(held):
    return held.stat().st_size if isinstance(held, Path) else len(held)


def oid(name, held):
    """What a file is told apart by; of one on the disk its name and size."""
    return hashlib.sha1(f"{name} {size(held)}".encode() if isinstance(held, Path) else held).hexdigest()


@contextmanager
def serving(repositories=None):
    """A hub that serves these repositories: its server, with `.url`, `.asked` and what may be set to make it fail."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.repositories, server.files = repositories or {}, {}
    server.asked, server.sha, server.fault, server.fault_at = [], COMMIT, None, "listing"
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# The published config.json of EleutherAI/pythia-*-deduped names the rotary fields so, which newer ones do not.
CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}


def pythia(folder, hidden, layers, heads, tokenizer):
    """A repository as Pythia's are: weights in float16, with the masks that old checkpoints hold, and pickled twice.

    tokenizer: its files, by name.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = CONFIG | sizes | {"intermediate_size": 4 * hidden}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    torch.manual_seed(0)

    def drawn(*shape):
        return (0.02 * torch.randn(shape)).half()

    tensors = {"gpt_neox.embed_in.weight": drawn(50304, hidden), "embed_out.weight": drawn(50304, hidden)}
    norms = [f"gpt_neox.layers.{n}.{name}_layernorm" for n in range(layers) for name in ("input", "post_attention")]
    for name in (*norms, "gpt_neox.final_layer_norm"):
        tensors |= {f"{name}.weight": 1 + drawn(hidden), f"{name}.bias": drawn(hidden)}
    for n in range(layers):
        layer = f"gpt_neox.layers.{n}"
        for name, out, into in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            tensors |= {f"{layer}.{name}.weight": drawn(out, into), f"{layer}.{name}.bias": drawn(out)}
        tensors |= {
            f"{layer}.attention.bias": torch.ones(2048, 2048, dtype=torch.bool).tril()[None, None].clone(),
            f"{layer}.attention.masked_bias": torch.tensor(-1e4).half(),
            f"{layer}.attention.rotary_emb.inv_freq": drawn(hidden // heads // 8),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_bytes(b"a pickle, which nobody may want")
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)
    others = {".gitattributes": b"", "README.md": b"# Pythia", "pytorch_model.bin.index.json": b"{}"}
    return others | {path.name: path for path in sorted(folder.iterdir())}


def tokenizer_files(texts):
    """A byte-level tokenizer as Pythia's is, of a smaller vocabulary, learnt from these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = special | {"add_prefix_space": False, "tokenizer_class": "GPTNeoXTokenizer"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }


def pg19(texts):
    """A repository as the Parquet copy of PG-19's test set is: one file, its columns, a book a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    titles = [f"Book {number}" for number in range(len(texts))]
    urls = [f"http://www.gutenberg.org/ebooks/{number}" for number in range(len(texts))]
    columns = {"short_book_title": titles, "publication_date": [1900] * len(texts), "url": urls, "text": texts}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    name = "data/test-00000-of-00001-29a571947c0b5ccc.parquet"
    return {".gitattributes": b"", "README.md": b"# PG-19", name: sink.getvalue().to_pybytes()}
