"""Numbers that are none: NaN and infinity are results, recorded and counted, never a crash and never part of a mean.

And texts at the edges of what can be measured: too short, exactly long enough, empty.
"""

import csv
import json
import logging
import re
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from driving import arguments, here, sweep_here
from tiny import WORDS, build_model
from transformers import AutoTokenizer

from analysis import report
from analysis.charts import drawing
from kvstream import FixSizeL2, Full, RecentOnly, StreamingLLM, decode, parse_policy, replay
from kvstream import __main__ as command
from kvstream.engine import model_check
from kvstream.inputs.documents import load_documents
from kvstream.measure import quality, scores
from kvstream.records.store import Records
from kvstream.sweep.rerun import rerun

POISON = 95  # the token whose embedding is not a number
FIRST = 30  # where it stands
LABELS = ["full", "streaming_llm(2,6)", "recent_only(8)", "fix_size_l2(8,0.5,keep_low)", "fix_size_l2(8,0.5,random)"]
POLICIES = [Full(), StreamingLLM(2, 6), RecentOnly(8)]
POLICIES += [FixSizeL2(8, 0.5, strategy) for strategy in ("keep_low", "keep_high", "random")]


def poisoned(value, dtype=torch.float32):
    """A model that one token makes lose its numbers."""
    model = build_model.__wrapped__("neox", torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = value
    return model.to(dtype)


def ids_with_poison(length=60):
    ids = torch.arange(length) * 7 % 90
    ids[FIRST] = POISON
    return ids


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_replay_returns_nan_and_spoils_no_chunk_before(policy, value):
    ids, model = ids_with_poison(), poisoned(value)
    nll = replay(model, ids, policy, chunk_size=10)
    assert torch.equal(nll[:FIRST], replay(build_model("neox", torch.float32), ids[: FIRST + 1], policy, chunk_size=10))
    assert nll[FIRST : FIRST + 8].isnan().all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_replay_token_by_token_agrees_with_decoding(policy):
    ids, model = ids_with_poison(), poisoned(float("nan"))
    nll = decode(model, ids, policy).nll_nats
    assert torch.equal(replay(model, ids, policy, chunk_size=1).isnan(), nll.isnan())
    if not policy.regions or not policy.regions.contested:  # a window forgets it once every layer has
        reach = model.config.num_hidden_layers * policy.regions.recent if policy.regions else 59
        assert nll.isnan().tolist() == [FIRST <= place <= FIRST + reach for place in range(59)]


@pytest.mark.parametrize(("policy", "shared"), zip(POLICIES, [True, False] * 3), ids=str)
def test_rows_are_those_of_decoding(policy, shared, monkeypatch):
    """Also where NaN begins inside a chunk, comes again, and where a cell goes on from shared first tokens."""
    monkeypatch.setattr("kvstream.engine.replay.CHUNK_SIZE", 16)
    ids, model = ids_with_poison(80), poisoned(float("nan"))
    ids[70] = POISON  # windows have forgotten the first by then
    policy = replace(policy, seed=7) if getattr(policy, "strategy", "") == "random" else policy
    begun = scores.begin(model, ids[None, :5].numpy(), "cpu") if shared else None
    asked = {"cells": ["c"], "documents": ["d"], "device": "cpu", "begun": begun}
    [found] = quality.evaluate(model, ids[None].numpy(), policy, **asked)
    nll, expected = torch.tensor(found.rows["nll_nats"].to_numpy()), decode(model, ids, policy).nll_nats
    assert torch.equal(nll.isnan(), expected.isnan())
    assert expected[:FIRST].isfinite().all()
    assert torch.allclose(nll, expected, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_nan_that_reaches_no_key_ends_with_its_token(policy, monkeypatch):
    """The last layer's MLP makes it, of a token that ends a chunk; later another comes into the keys."""
    monkeypatch.setattr("kvstream.engine.replay.CHUNK_SIZE", 16)
    model, ids = poisoned(float("nan")), torch.arange(80) * 7 % 90
    ids[31], ids[60], seen = 93, POISON, []

    def spoil(module, given, output):
        output[seen.pop() == 93] = torch.nan

    model.gpt_neox.embed_in.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    model.gpt_neox.layers[-1].mlp.register_forward_hook(spoil)
    policy = replace(policy, seed=7) if getattr(policy, "strategy", "") == "random" else policy
    [found] = quality.evaluate(model, ids[None].numpy(), policy, cells=["c"], documents=["d"], device="cpu")
    nll, expected = torch.tensor(found.rows["nll_nats"].to_numpy()), decode(model, ids, policy).nll_nats
    assert (expected[:60].isnan().nonzero().flatten().tolist(), bool(expected[60].isnan())) == ([31], True)
    assert torch.allclose(nll, expected, atol=1e-5, equal_nan=True)


def of_logits(logit):
    """A model that predicts the same at every position, with one logit that is no number."""
    model = build_model.__wrapped__("neox", torch.float32)
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        row = model.get_output_embeddings().weight[POISON].zero_()
        row[:2] = logit
    return model


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_token_of_probability_0_is_an_infinite_loss_where_it_is_the_next(policy):
    nll = replay(of_logits(-3e38), ids_with_poison(), policy)
    assert nll[FIRST - 1] == torch.inf
    assert nll[torch.arange(59) != FIRST - 1].isfinite().all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_an_infinite_logit_is_no_finite_loss_anywhere(policy):
    nll = replay(of_logits(3e38), ids_with_poison(), policy)
    assert not nll.isfinite().any()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_that_overflows_does_not_crash(policy, dtype):
    model = build_model.__wrapped__("neox", torch.float32)
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            layer.mlp.dense_4h_to_h.weight.mul_(1e5)
    ids = torch.arange(60) * 7 % 90
    nll = replay(model.to(dtype), ids, policy)
    assert nll.shape == (59,)
    assert nll.isnan().any() == (dtype == torch.float16), "bfloat16 has float32's range"


def test_what_rounding_alone_changes_is_told_of_drawn_tokens_where_the_text_has_none_to_tell():
    model, ids = poisoned(float("nan")), torch.full((60,), POISON)
    healthy = model_check.rounding_nats(build_model("neox", torch.float32), ids_with_poison())
    assert 0.1 * healthy < model_check.rounding_nats(model, ids) < 10 * healthy
    assert np.isnan(model_check.rounding_nats(of_logits(3e38), ids))


def test_attention_to_what_is_no_number_is_none_to_write_down():
    """JSON has no NaN."""
    policy, model = parse_policy(LABELS[1]), poisoned(float("nan"))
    assert quality.evaluate_attention(model, ids_with_poison(80).numpy(), policy, "cpu") is None
    lost = quality.evaluate_attention(model, (torch.arange(80) * 11 % 90).numpy(), policy, "cpu")
    assert np.isfinite(lost).all()
    assert np.max(lost) > 0


# A sweep


@pytest.fixture(scope="module")
def swept(ray_here, world, tmp_path_factory):
    """The records of a sweep of a poisoned model over two documents, one with the poison, and what it printed."""
    base = tmp_path_factory.mktemp("numbers")
    poisoned(float("nan")).save_pretrained(base / "model")
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(base / "model")
    (base / "texts").mkdir()
    for name, ids in (("ill", ids_with_poison()), ("well", torch.arange(60) * 11 % 90)):
        (base / "texts" / f"{name}.txt").write_text(" ".join(WORDS[number] for number in ids))
    flags = ["--models", str(base / "model"), "--text", str(base / "texts"), "--documents", "2", "--lengths", "20,60"]
    flags += ["--policies", ",".join(LABELS), "--contexts", "none", "--device", "cpu", "--out", str(base / "records")]
    return base, sweep_here(flags)


def test_a_sweep_finishes_and_its_lines_say_nan(swept):
    _, done = swept
    assert done.returncode == 0, done.stderr
    for label in LABELS:
        [ill] = [line for line in done.stdout.splitlines() if f"{label} · ill" in line]
        [well] = [line for line in done.stdout.splitlines() if f"{label} · well" in line]
        assert re.search(r"PPL \d.*, NaN or infinite loss for \d+ of 59 tokens", ill)
        assert re.search(r"PPL \d", well)
        assert "NaN" not in well


def test_every_row_is_recorded(swept):
    base, _ = swept
    paths = [*(base / "records").glob("????????????????.json")]
    assert len(paths) == 2 * len(LABELS)
    for path in paths:
        text = path.read_text()
        assert "NaN" not in text, "JSON has no such number"
        record = json.loads(text)
        rows = pq.read_table(path.parent / record["file"])
        nll = rows["nll_nats"].to_numpy()
        assert len(nll) == record["rows"] == 59
        ill = record["fields"]["document"] == "ill"
        assert np.isfinite(nll[: FIRST if ill else None]).all()
        assert np.isnan(nll[FIRST]) == ill
        model = build_model("neox", torch.float32)
        ids = torch.tensor(rows["token"].to_numpy()[: FIRST - 1])
        if record["fields"]["strategy"] != "random":  # whose seed is the document's own
            expected = replay(model, torch.cat([torch.tensor([0]), ids]), parse_policy(record["fields"]["policy"]))
            assert np.abs(nll[: FIRST - 1] - expected.numpy()).max() < 1e-5


def test_the_folder_is_whole_and_a_cell_of_nan_comes_again(swept):
    base, _ = swept
    out = str(base / "records")
    verified = here(command.main, ["verify", out])
    assert (verified.returncode, verified.stderr) == (0, "")
    records = [json.loads(path.read_text()) for path in (base / "records").glob("????????????????.json")]
    [cell] = [r["cell"] for r in records if (r["fields"]["document"], r["fields"]["policy"]) == ("ill", LABELS[1])]
    again = here(command.main, ["rerun", out, cell])
    assert again.returncode == 0, again.stderr
    assert re.search(r"59 rows, (identical|at most .* nats apart, .* makes \d.*), 0 argmax hits differ", again.stdout)


def test_rerun_asks_what_rounding_makes_of_the_tokens_before_the_first_nan(swept, monkeypatch):
    """The model's own attention gives NaN throughout: it weighs what comes later with 0, and 0 × NaN is NaN."""
    base, _ = swept
    monkeypatch.setattr(model_check, "DRAWS", 1)  # the text's own first tokens, and no others
    assert np.isnan(model_check.rounding_nats(poisoned(float("nan")), ids_with_poison()))
    records = [json.loads(path.read_text()) for path in (base / "records").glob("????????????????.json")]
    cells = {one["fields"]["document"]: one["cell"] for one in records if one["fields"]["policy"] == LABELS[1]}
    ill, well = (rerun(Records(str(base / "records")), cells[name]).rounding_nats for name in ("ill", "well"))
    assert 0.1 * well < ill < 10 * well


def test_the_report_counts_them_and_keeps_them_out_of_means(swept):
    base, _ = swept
    where = ["--records", str(base / "records"), "--out", str(base / "report")]
    with patch.object(drawing, "begin", lambda *_: (0, [])):  # as SVG and PNG charts take most of a report's time
        done = here(report.main, where)
    assert done.returncode == 0, done.stderr
    invalid, finite = {}, {}
    for path in (base / "records").glob("????????????????.json"):
        record = json.loads(path.read_text())
        rows = pq.read_table(path.parent / record["file"]).to_pandas()
        policy, nll, kl = record["fields"]["policy"], rows.nll_nats.to_numpy(float), rows.kl_nats.to_numpy(float)
        finite.setdefault(policy, []).extend(nll[np.isfinite(nll)])
        invalid[policy] = invalid.get(policy, 0) + int((np.isnan(nll) | (np.isnan(kl) & (policy != "full"))).sum())
    summary = (base / "report" / "summary.md").read_text()
    assert f"{sum(invalid.values())} invalid rows" in summary
    longest = [
        row for row in pq.read_table(base / "report" / "tables" / "perplexity.parquet").to_pylist() if row["longest"]
    ]
    assert {row["policy"] for row in longest} == set(LABELS)
    for row in longest:
        assert row["ppl_corpus"] == pytest.approx(np.exp(np.mean(finite[row["policy"]])), rel=1e-6)
        assert row["invalid"] == invalid[row["policy"]] >= 2 * 59 - len(finite[row["policy"]]) > 0
    files = [*(base / "report" / "tables").glob("*.csv")]
    assert "perplexity.csv" in {file.name for file in files}
    for file in files:
        cells = [cell for row in csv.reader(file.open()) for cell in row]
        assert not {"nan", "NaN", "inf", "-inf"} & set(cells), file.name
    page = (base / "report" / "index.html").read_text()
    without_vega = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert 0 < len(without_vega) < len(page)
    assert not re.findall(r">nan<|>NaN<|: ?NaN", without_vega)


# Texts


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "model")


def rows(tmp_path, *counts):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"name": f"{count} words", "text": " ".join(WORDS[:count])}) + "\n" for count in counts]
    file.write_text("".join(lines))
    return str(file)


def test_documents_that_are_too_short_are_passed_over_and_said(world, tmp_path, caplog):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, words in (("a-long", 60), ("b-short", 5), ("c-empty", 0), ("d-one", 1), ("e-long", 50)):
        (texts / f"{name}.txt").write_text(" ".join(WORDS[:words]))
    asked = arguments(world, tmp_path / "out", "--text", str(texts), "--lengths", "50", "--documents", "2", "--dry-run")
    planned = sweep_here(asked)
    assert planned.returncode == 0, planned.stderr
    assert "a-long" in planned.stdout
    assert "e-long" in planned.stdout
    assert "b-short" in caplog.text, "passed over, and said"
    refused = sweep_here([*asked[:-2], "3", "--dry-run"])
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: documents: 3 asked, only 2")


def test_short_and_empty_texts_among_others_are_passed_over_and_said(tmp_path, tokenizer, caplog):
    spec = rows(tmp_path, 0, 1, 49, 50, 51)
    with caplog.at_level(logging.WARNING):
        found = load_documents(spec, documents=2, tokens=50, tokenizer=tokenizer)
    assert [document.name for document in found] == ["50 words", "51 words"]
    assert "3 documents" in caplog.text
    for name, count in (("0 words", 0), ("1 words", 1), ("49 words", 49)):
        assert f"'{name}' has {count}" in caplog.text


def test_only_empty_texts_are_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"^documents: 1 asked, only 0 .* the longest of the others has 0; ask for"):
        load_documents(rows(tmp_path, 0, 0), documents=1, tokens=2, tokenizer=tokenizer)


@pytest.mark.parametrize("tokens", [2, 50])
def test_a_text_that_is_just_long_enough(tmp_path, tokenizer, tokens):
    [document] = load_documents(rows(tmp_path, tokens), tokens=tokens, tokenizer=tokenizer)
    assert len(document.token_ids) == tokens
    for policy in POLICIES:
        nll = replay(build_model("neox", torch.float32), torch.tensor(document.token_ids), policy)
        assert nll.shape == (tokens - 1,)
        assert nll.isfinite().all()


@pytest.mark.parametrize("count", [0, 1])
def test_replay_of_a_text_that_predicts_nothing(count):
    with pytest.raises(ValueError, match=r"token"):
        replay(build_model("neox", torch.float32), torch.arange(count), Full())
