"""What tells panels and points apart: labels of one model's panels, tooltips, looks of modes and budgets."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from golden import FULL, PLAIN, quick_report, streaming, write

from analysis.charts.specs import for_page
from analysis.charts.theme import budget_style, variant_styles
from analysis.charts.tradeoff import tradeoff
from analysis.numbers import database
from analysis.read.records import read_records

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SMALL = replace(PLAIN, policies=(FULL, streaming(1, 63, 0.2), streaming(4, 60, 0.1)), documents=("Job", "Ruth"))
SMALL = replace(SMALL, tokens=200, lengths=(200,))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install Debian's `chromium`, or set CHROMIUM")
@pytest.mark.parametrize("dtypes", [("float32",), ("float32", "bfloat16")])
def test_panels_of_one_model_say_whose_they_are_where_it_has_several(tmp_path, dtypes):
    playwright = pytest.importorskip("playwright.sync_api")
    plans = [replace(SMALL, dtype=dtype) for dtype in dtypes]
    plans.append(replace(SMALL, models=(("tiny-llama", None, 2048),)))
    for plan in plans:
        write(plan, tmp_path / "records")
    assert quick_report("--records", tmp_path / "records", "--out", tmp_path / "out").returncode == 0
    with playwright.sync_playwright() as run:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = run.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = chromium.new_page()
        page.goto((tmp_path / "out" / "index.html").as_uri())
        shown = {}
        for model in ("tiny-neox", "tiny-llama", ""):
            page.locator("#pick-model").select_option(model)
            shown[model] = page.locator("#by_budget .of:visible").all_inner_texts()
            zooms = page.locator(".zooms .of:visible").count()
            assert bool(zooms) == bool(shown[model])
        chromium.close()
    several = len(dtypes) > 1
    assert {text.split(" · ")[0] for text in shown[""]} == {"tiny-neox", "tiny-llama"}
    assert shown["tiny-llama"] == []
    assert {text.split(" · ")[1] for text in shown["tiny-neox"]} == ({"float32", "bfloat16"} if several else set())


@pytest.mark.parametrize(("metric", "title"), [("kl", "mean KL from full, nats"), ("top1", "tokens with another top")])
def test_the_tradeoffs_tooltip_gives_what_is_drawn(tmp_path, metric, title):
    records = read_records(write(replace(SMALL, diverges=True), tmp_path))
    rows = database.rows(database.open_database(records, 5.0, metric=metric), "tradeoff")
    [panel] = tradeoff("kv")(rows).panels
    layers = for_page(panel)["layer"]
    [points] = [layer for layer in layers if layer["mark"].get("type") == "point"]
    [told] = [one for one in points["encoding"]["tooltip"] if one["title"].startswith(title)]
    scale = 0.01 if metric == "kl" else 1
    values = {row["policy"]: row[told["field"]] for row in points["data"]["values"]}
    assert values == {row["policy"]: pytest.approx(scale * row["cost"], rel=1e-4) for row in rows}
    assert "told" not in json.dumps(for_page(tradeoff("kv")([row | {"metric": "ppl"} for row in rows]).panels[0]))


def test_sixteen_budgets_differ_as_points_and_many_more_in_a_legend():
    found = [budget_style(place) for place in range(40)]
    assert len({(look.shape, look.colour) for look in found[:16]}) == 16
    assert len({(look.shape, look.dash) for look in found}) == 40


def test_all_that_skips_layers_otherwise_looks_otherwise():
    skips = ("", *(f", layers {layers} never evict" for layers in ("0", "0,1", "5")))
    variants = [mode + skip for mode in ("cache", "absolute", "frozen", "another") for skip in skips]
    for some in (variants, variants[1:3], variants[4:11]):
        found = variant_styles(some)
        assert found.keys() == set(some)
        assert len({(look.shape, look.colour) for look in found.values()}) == len(some)
        assert len({(look.shape, look.dash) for look in found.values()}) == len(some)
    assert variant_styles(variants)["frozen"].shape == "square"
