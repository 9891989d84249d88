"""A hub that is away, full, closed or wrong: one line with a remedy; what is cached asks nobody.

A stand-in server plays the hub, for models and for datasets alike. The client's own waits are cut short here.
"""

import socket
import time
from itertools import cycle
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.utils._http
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from standins.hub import COMMIT, SILENT, serving

from kvstream.inputs import text_sources
from kvstream.inputs.documents import load_documents
from kvstream.inputs.model_loading import load_model
from kvstream.inputs.models import resolve


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A hub on this machine, and an empty cache."""
    with serving() as server:
        point_at(server.url, monkeypatch, tmp_path / "cache" / "hub")
        yield server


def point_at(url, monkeypatch, cache):
    """Have the client of this process ask there, and wait for nothing."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, "").partition("/{")[2]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{{template}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(
        huggingface_hub.utils._http, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: None)
    )


def model_files(world):
    return {file.name: file.read_bytes() for file in sorted((world / "model").iterdir())}


ACTS = {
    "model": (lambda: resolve("o/n@v1"), "models: ", "give local directories"),
    "dataset": (lambda: list(text_sources.read("hub:o/n@v1")), "text: ", "a local file"),
    "pg19": (lambda: list(text_sources.read("pg19")), "text: ", "a local file"),
}


def refusal(what):
    """The one line with which an act ends: field, repository, remedy."""
    act, field, remedy = ACTS[what]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        act()
    line = str(caught.value)
    assert line.startswith(field), line
    assert "\n" not in line
    assert "; " in line
    assert remedy in line
    return line


FAULTS = {
    "404": ((404,), "404"),
    "no repository": ((401, b"", {"X-Error-Code": "RepoNotFound"}), "does not exist on the hub, or is private"),
    "no revision": ((404, b"", {"X-Error-Code": "RevisionNotFound"}), "no such revision"),
    "gated": ((403, b"", {"X-Error-Code": "GatedRepo"}), "asks for a login"),
    "429": ((429, b"", {"Retry-After": "3600"}), "429"),
    "503": ((503,), "503"),
    "torn": ((200, b" " * 5000, {}, 100), "did not deliver it"),
    "garbage": ((200, b"<html>502</html>"), "did not deliver it"),
    "silent": (SILENT, "timed out"),
    "another's": ((200, b"[]"), "did not deliver it"),
}


@pytest.mark.parametrize(("fault", "what"), zip(FAULTS, cycle(ACTS)))  # one piece of code serves all three
def test_a_listing_that_does_not_come(stand_in, monkeypatch, what, fault):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    stand_in.fault, reason = FAULTS[fault]
    assert reason in refusal(what)


def test_a_hub_that_is_not_there(monkeypatch, stand_in):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    line = refusal("model")
    assert "'o/n' at 'v1' is not in the local Hugging Face cache and the hub did not deliver it (" in line
    assert "hf_canary" not in line


@pytest.mark.parametrize(
    ("what", "sha", "name"),
    [
        ("model", "../../../outside", "a.json"),
        ("dataset", "0" * 39, "a.parquet"),
        ("dataset", COMMIT, "../../../../outside.parquet"),
        ("model", COMMIT, "/tmp/outside.json"),
    ],
)
def test_names_that_lead_elsewhere(stand_in, tmp_path, what, sha, name):
    stand_in.sha, stand_in.files = sha, {name: b"x", "a.parquet": b"", "model.safetensors": b"", "config.json": b"{}"}
    assert "names that lead elsewhere" in refusal(what)
    assert not list(tmp_path.rglob("outside*"))


ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize(
    ("spec", "names", "words"),
    [
        (
            "o/n@v1",
            {"config.json", "pytorch_model.bin"},
            r"models: 'o/n@v1' has only pickled weights \(pytorch_model.bin",
        ),
        ("o/n@v1", ADAPTER, "models: 'o/n@v1' holds an adapter such as LoRA .*; merge it with Peft"),
        ("o/n@v1", ADAPTER | {"config.json", "model.safetensors"}, "models: 'o/n@v1' holds an adapter such as LoRA"),
        ("hub:o/n@v1", {"books.py", "data.json"}, "text: 'hub:o/n@v1' has no Parquet files; give a Parquet copy"),
    ],
)
def test_what_would_be_refused_is_not_downloaded(stand_in, spec, names, words):
    stand_in.files = dict.fromkeys(names, b"{}")
    with pytest.raises(ValueError, match=words):
        list(text_sources.read(spec)) if spec.startswith("hub:") else resolve(spec)
    assert [path for path in stand_in.asked if "/resolve/" in path] == []


@pytest.mark.parametrize(
    ("stage", "fault", "what"),
    [("tree", "torn", "model"), ("tree", "404", "dataset"), ("file", "torn", "dataset"), ("file", "429", "model")],
)
def test_a_download_that_breaks_off(stand_in, world, what, stage, fault):
    stand_in.files = model_files(world) if what == "model" else {"a.parquet": b"x" * 5000}
    stand_in.fault, stand_in.fault_at = FAULTS[fault][0], stage
    refusal(what)


def test_weights_that_break_off_are_an_error_and_are_not_taken_for_whole(stand_in, world):
    stand_in.files = model_files(world)
    resolve("o/n@v1")
    stand_in.fault, stand_in.fault_at = FAULTS["torn"][0], "file"
    with pytest.raises(ValueError, match=r"^models: 'o/n' at .*the hub .*; run offline"):
        load_model("o/n@v1")
    stand_in.fault = None
    load_model("o/n@v1")


def test_what_is_cached_asks_nobody(stand_in, world, monkeypatch):
    stand_in.files = model_files(world) | {"rows.parquet": rows_of(["w1 w2 w3 w4", "w5 w6 w7 w8"])}
    _, tokenizer = load_model("o/n@v1")
    read = load_documents("hub:o/n@v1", tokens=4, tokenizer=tokenizer)
    assert [document.token_ids.tolist() for document in read] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    stand_in.asked.clear()
    called = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: called.append(host) or [])
    for name in ("v1", COMMIT):
        assert resolve(f"o/n@{name}").identity == f"o/n@{COMMIT}"
        load_model(f"o/n@{name}")
        assert len(load_documents(f"hub:o/n@{name}", tokens=4, tokenizer=tokenizer)) == 2
    assert list(text_sources.read(str(world / "texts"))), "local files, neither"
    assert (stand_in.asked, called) == ([], [])


def rows_of(texts):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue().to_pybytes()
