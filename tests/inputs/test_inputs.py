"""What a sweep makes of models and texts before it computes: sizes, BOS, joined rows, and budgets that hold all."""

import json
import logging
import random

import pytest
import torch
import transformers
from tiny import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvstream.grid import planning
from kvstream.grid.axes import Grid
from kvstream.inputs.model_loading import load_model
from kvstream.policies import Full, RecentOnly, StreamingLLM
from kvstream.sweep import cluster, main
from kvstream.sweep.rerun import cell_of

POLICIES = (Full(), StreamingLLM(4, 12))


def save(folder, name, *left_out, **fields):
    """A tiny model whose config.json leaves some entries out, with a tokenizer of words that puts BOS in front."""
    sizes = {"vocab_size": 98, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.2} | fields
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: written[key] for key in written if key not in left_out}))
    words = Tokenizer(models.WordLevel({word: id for id, word in enumerate([*WORDS, "?", "<s>"])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 97)])
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(folder)
    return str(folder)


def grid_of(model, text, **fields):
    return Grid("g", (model,), **{"policies": POLICIES, "text": str(text), "lengths": (50,)} | fields)


def cells_of(grid, dtype="float32"):
    return planning.quality_cells(grid, planning.prepare(grid), "cpu", dtype)


def test_kv_bytes_are_those_of_the_built_model(world, tmp_path):
    """Qwen3's heads have 128 numbers, whatever its hidden size, where config.json says nothing."""
    model = save(tmp_path, "Qwen3", "head_dim", head_dim=128)
    full, bounded = cells_of(grid_of(model, world / "texts"))
    cache = transformers.DynamicCache()
    load_model(model)[0](torch.arange(50)[None], past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert full.fields["kv_bytes"] == full.fields["kv_bytes_full"] == held
    assert bounded.fields["kv_bytes"] == held * 16 // 50


def test_bos_is_in_tokens_fields_and_key(world, tmp_path):
    model = save(tmp_path, "Llama")
    cells = {bos: cells_of(grid_of(model, world / "texts", bos=bos))[0] for bos in ("auto", "on", "off")}
    assert {bos: cell.fields["bos"] for bos, cell in cells.items()} == {"auto": True, "on": True, "off": False}
    assert cells["auto"].document.token_ids[0] == 97
    assert len(cells["auto"].document.token_ids) == len(cells["off"].document.token_ids) == 50
    assert cells["auto"].key == cells["on"].key != cells["off"].key
    for cell in cells.values():
        assert cell_of(cell.fields).document.token_ids.tolist() == cell.document.token_ids.tolist()


def test_joined_rows_are_computed_again_as_they_were_read(world, tmp_path):
    lines = [{"text": " ".join(random.Random(seed).choices(WORDS, k=8))} for seed in range(20)]
    (tmp_path / "wiki.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    grid = grid_of(str(world / "model"), tmp_path / "wiki.jsonl", join_rows=True)
    [cell, _] = cells_of(grid)
    assert (cell.fields["document"], cell.fields["join_rows"], cell.tokens) == ("wiki", True, 50)
    assert cell_of(cell.fields).key == cell.key


# Budgets that hold all


def test_budgets_larger_than_a_text_are_said(world, tmp_path, caplog):
    policies = (Full(), StreamingLLM(4, 12), RecentOnly(48), RecentOnly(49), StreamingLLM(4, 60))
    with caplog.at_level(logging.WARNING):
        planning.prepare(grid_of(str(world / "model"), world / "texts", policies=policies))
    assert caplog.messages == [
        "note: recent_only(49), streaming_llm(4,60) will equal full at a text's 50 tokens, which they hold; "
        "give more tokens or smaller --budgets to tell them apart"
    ]


def test_contexts_that_do_not_exceed_a_budget_are_said():
    grid = grid_of("m", "t", lengths=(), contexts=(8, 16, 32, 64), latency_policies=(RecentOnly(16), RecentOnly(32)))
    told = [note.partition(" tokens")[0] for note in planning.notes(grid, 3)]
    both = "note: recent_only(16), recent_only(32) will equal full at"
    assert told == [f"{both} 8", f"{both} 16", "note: recent_only(32) will equal full at 32"]
    assert planning.notes(grid_of("m", "t", lengths=(), contexts=(32,)), 3) == []
    many = tuple(RecentOnly(budget) for budget in range(90, 99))
    assert "recent_only(93) and 5 more will" in planning.notes(grid_of("m", "t", policies=many), 3)[0]


def test_a_dry_run_says_it(world, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(cluster, "device_here", lambda: "cpu")
    flags = ["--models", str(world / "model"), "--text", str(world / "texts"), "--dry-run", "--budgets", "64"]
    flags += ["--contexts", "none", "--lengths", "50", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main.main(Grid("g", ("m",), POLICIES, lengths=(50,)), "Which?", flags)
    assert ended.value.code == 0
    assert any(line.startswith("note: streaming_llm(4,60) will equal full") for line in caplog.messages)
