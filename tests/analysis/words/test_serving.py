"""Where a policy is served: real policies' numbers anew in plain Python, what is not the same, and its sources."""

import html
import re
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from golden import FULL, PLAIN, P, report_of, streaming
from report_oracle import answer_of

from analysis.words import serving
from kvstream import parse_policy
from kvstream.policies import POLICIES
from kvstream.policies.fields import fields_of, policy_fields


def places(label):
    """The places of a policy as a sweep records it: engine → its line."""
    recorded = policy_fields(parse_policy(label))
    return {place["engine"]: place for place in serving.places(recorded["policy_name"], recorded["policy_fields"])}


def shift(keep, context, tokens=5000):
    """llama.cpp's context shift token by token: how many it holds after and before its cuts."""
    held, least, most = [], [], []
    for token in range(tokens):
        if len(held) + 1 >= context:
            most.append(len(held))
            held = held[:keep] + held[keep + (len(held) - keep) // 2 :]
            least.append(len(held))
        held.append(token)
    assert held[:keep] == list(range(keep))
    return min(least), max(most)


def config(setting):
    """The arguments of a CacheEvictionConfig as text: name → value."""
    return dict(re.findall(r"(\w+)=([\w.]+)", setting))


@pytest.mark.parametrize("label", ["streaming_llm(4,508)", "streaming_llm(1,255)", "streaming_llm(64,960)"])
def test_streaming_llm_is_a_saw_tooth_in_llama_cpp(label):
    start, recent = map(int, re.findall(r"\d+", label))
    found = places(label)
    assert list(found) == ["transformers", "llama.cpp"]
    assert found["llama.cpp"]["setting"] == (
        f"llama-server --context-shift --keep {start} --ctx-size {start + recent} --parallel 1"
    )
    least, most = shift(start, start + recent)
    note = found["llama.cpp"]["note"]
    assert note.startswith("Not the same: a saw-tooth.")
    assert f"half of what follows the first {start} tokens leaves at once" in note
    assert f"so {least:,} to {most:,} tokens are held, where the policy holds {start + recent:,}." in note
    assert f"A prompt of {start + recent:,} tokens or more is refused." in note
    assert "multiples" not in note  # nothing was rounded


@pytest.mark.parametrize(
    ("label", "budget", "context"), [("streaming_llm(4,28)", 32, 256), ("recent_only(600)", 600, 768)]
)
def test_a_context_that_is_no_multiple_is_rounded_up_and_says_so(label, budget, context):
    line = places(label)["llama.cpp"]
    assert f"--ctx-size {context} " in line["setting"]
    assert line["note"].endswith(f"Contexts are multiples of 256 tokens: {context} for {budget}.")
    least, most = shift(4 if "4," in label else 0, context)
    assert f"so {least} to {most} tokens are held, where the policy holds {budget}." in line["note"]


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("streaming_llm(4,508)", "transformers; nearly: llama.cpp"),
        ("recent_only(512)", "transformers, TensorRT-LLM; nearly: llama.cpp"),
        ("h2o(512,256,start_size=4)", "transformers; nearly: OpenVINO GenAI"),
        ("snapkv(512)", "transformers, no engine yet; nearly: OpenVINO GenAI"),
        ("tova(512)", "transformers, no engine yet"),
    ],
)
def test_the_line_above_the_places_claims_no_more_than_their_notes(label, told):
    found = places(label)
    assert serving.served_by(list(found.values())) == told
    assert all(line["note"].startswith("Not the same") <= (not line["same"]) for line in found.values())


def test_a_window_alone_is_one_policy_under_two_names_and_in_two_modes():
    found = places("recent_only(512)")
    assert list(found) == ["transformers", "llama.cpp", "TensorRT-LLM"]
    assert "--keep 0 --ctx-size 512" in found["llama.cpp"]["setting"]
    assert "half of it leaves at once" in found["llama.cpp"]["note"]
    assert "A BOS token that the model adds stays in any case." in found["llama.cpp"]["note"]
    assert found["TensorRT-LLM"]["setting"] == "KvCacheConfig(max_attention_window=[512])"
    assert "does not work on Llama 3.1 8B" in found["TensorRT-LLM"]["note"]
    for same in ("streaming_llm(0,512)", "recent_only(512,position='absolute')", "h2o(512,512)"):
        assert places(same) == found, same
    assert places("h2o(512,508,start_size=4)") == places("streaming_llm(4,508)")  # nothing is contested


@pytest.mark.parametrize(("normalise", "mode"), [("none", "SUM"), ("age", "NORM_SUM")])
@pytest.mark.parametrize(("position", "rotation"), [("cache", "True"), ("absolute", "False")])
@pytest.mark.parametrize("sizes", [(512, 256, 32), (128, 64, 0), (500, 250, 4), (33, 16, 0), (96, 63, 31)])
def test_h2o_is_openvinos_with_sizes_in_its_blocks(normalise, mode, position, rotation, sizes):
    budget, recent, start = sizes
    found = places(f"h2o({budget},{recent},start_size={start},normalise='{normalise}',position='{position}')")
    assert list(found) == ["transformers", "OpenVINO GenAI"]
    line = found["OpenVINO GenAI"]
    given = config(line["setting"])
    assert given["aggregation_mode"] == f"AggregationMode.{mode}"
    assert given["apply_rotation"] == rotation
    assert given["snapkv_window_size"] == "0"
    fields = ("start_size", "recent_size", "max_cache_size")
    asked = dict(zip(fields, (start, recent, budget)))
    taken = {field: int(given[field]) for field in fields}
    for field, size in taken.items():  # what the engine checks, and no more blocks than it takes
        assert size > 0
        assert size % 32 == 0
        assert size >= asked[field]
        assert size - asked[field] < 32 or field == "max_cache_size" or size == 32
    ends = taken["start_size"] + taken["recent_size"]
    assert taken["max_cache_size"] > ends
    assert taken["max_cache_size"] - 32 in (ends, *range(budget - 32, budget))
    assert f"up to {taken['max_cache_size'] + 31:,} tokens are held after the prompt" in line["note"]
    told = dict.fromkeys(fields) | {
        field: (int(size.replace(",", "")), int(wanted.replace(",", "")))
        for field, size, wanted in re.findall(r"(\w+_size) ([\d,]+\d|\d) for ([\d,]+\d|\d)", line["note"])
    }
    assert told == {field: None if taken[field] == asked[field] else (taken[field], asked[field]) for field in fields}
    assert ("multiples of its block, 32 tokens on CPUs (16 on GPUs)" in line["note"]) == any(told.values())
    for difference in ("whole blocks leave", "alike for all heads", "none before the end of the prompt", "next 6"):
        assert difference in line["note"]
    # Rotation is not the whole of mode cache: its query stands at its rank, too.
    assert ("a new token’s stays its index in the text" in line["note"]) == (position == "cache")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("fix_size_l2(128,0.7,keep_low)", ""),
        ("keydiff(128,64,start_size=4)", ""),
        ("sink_l2(128,64)", ""),
        ("sink_random(128,64)", ""),
        ("tova(128)", ""),
        ("l2_compress(0.5,128)", ""),
        ("streaming_llm(4,508,position='absolute')", " with position=absolute"),
        ("streaming_llm(4,508,position='frozen')", " with position=frozen"),
        ("recent_only(512,position='frozen')", " with position=frozen"),
        ("h2o(512,256,position='frozen')", " with position=frozen"),
        ("streaming_llm(4,508,skip_layers=(0,1))", " where layers 0, 1 never evict"),
        ("h2o(512,256,skip_layers=(3,))", " where layer 3 never evicts"),
        ("streaming_llm(4,508,layer_budgets='pyramid')", " where layers differ in budget"),
        ("recent_only(512,layer_budgets='pyramid')", " where layers differ in budget"),
        ("h2o(512,256,layer_budgets='pyramid')", " where layers differ in budget"),
    ],
)
def test_what_no_engine_serves_is_said_and_why(label, why):
    found = places(label)
    assert list(found) == ["transformers", "elsewhere"]
    assert found["elsewhere"]["note"] == f"No engine serves this yet{why}."
    assert not found["elsewhere"]["setting"]


def test_snapkv_at_the_end_of_a_prompt_is_near_and_is_not_the_policy():
    found = places("snapkv(512,window=16,every=64)")
    assert list(found) == ["transformers", "elsewhere", "OpenVINO GenAI"]
    assert found["elsewhere"]["note"] == "No engine serves this yet. Nearest:"
    assert "snapkv_window_size=16" in found["OpenVINO GenAI"]["setting"]
    assert "by the last 16 queries once, at the end of the prompt" in found["OpenVINO GenAI"]["note"]
    assert "the policy does so every 64 tokens" in found["OpenVINO GenAI"]["note"]


def test_full_needs_nobody_and_an_unknown_policy_has_this_package_alone():
    assert serving.places("full", {}) == []
    unknown = serving.places("made_up", {"start_size": 2, "budget": 64, "every": 4})
    assert [place["engine"] for place in unknown] == ["transformers", "elsewhere"]


def test_every_fact_has_sources_and_every_engine_was_looked_at():
    known = serving.known()
    assert known["looked_at"].isoformat() == "2026-11-27"
    assert serving.looked_at().endswith("SGLang, on 27 November 2026")
    for row in known["engine"]:
        assert row["engine"] in known["engines"]
        assert set(row["policies"]) <= set(POLICIES)
        assert len(row["sources"]) >= 2
        for source in row["sources"]:
            address = urlsplit(source)
            assert (address.scheme, address.query, address.fragment) == ("https", "", "")
            assert "/blob/" not in address.path or re.search(r"/blob/[0-9a-f]{40}/", address.path), source  # as it was
        for name in row["policies"]:
            for field in row.get("means", {}):  # which a record holds
                assert field in {one.name for one in fields_of(POLICIES[name])}


def test_the_page_links_the_sources_and_prints_the_settings(tmp_path):
    contested = {"budget": 128, "recent_size": 64, "start_size": 0, "normalise": "none"}
    h2o = P("h2o(128,64)", "h2o", 0.0004, 128, 0, fields=contested)
    plan = replace(PLAIN, policies=(FULL, streaming(4, 28, 0.05), h2o), documents=PLAIN.documents[:10])
    answer = answer_of(report_of(plan, tmp_path))
    cards = dict(re.findall(r'data-card="(\w+)">(.*?)</li>', answer, re.S))
    for card, name, fields, engine in (
        ("answer", "streaming_llm", {"start_size": 4, "recent_size": 28}, "llama.cpp"),
        ("quality", "h2o", contested, "OpenVINO GenAI"),
    ):
        [ours, line] = serving.places(name, fields | {"position": "cache"})
        assert line["engine"] == engine
        shown = html.unescape(cards[card])
        assert f"<dt>{ours['engine']}</dt><dd><small>{ours['note']}</small>" in shown
        assert f"<dt>{engine}</dt><dd><code>{line['setting']}</code><small>{line['note']} Sources:" in shown
        assert re.findall(r'<a href="(https:[^"]*)"', shown) == line["sources"]
    assert cards["speed"].count("<h4>") == 0  # nothing was timed, so there is nothing to serve
    assert f"read in documentation and source, of {serving.looked_at()}; none of it was run here." in html.unescape(
        answer
    )
