"""Figures of several settings, which may differ in policies, lengths and batches: nothing is cut off or mixed up."""

import json
import re
from dataclasses import replace

import pytest
import vl_convert
from golden import FULL, PLAIN, Latency, built, database_of, report_of, streaming
from pyarrow.parquet import read_table
from report_oracle import page_of

from analysis.charts import figures, pictures
from analysis.charts.along_the_text import excess, far, stream
from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_file, for_page
from analysis.charts.theme import style
from analysis.numbers import database
from analysis.page.views import view

SERIES = [name for name, chart in CHARTS.items() if chart.file and name != "attention"]


def rows_along(setting, last):
    fields = {"setting": setting, "budget": 64, "trained_context": last}
    fields |= {"excess_nats": 0.1, "nll_nats": 2.0, "far_percent": 1.0}
    names = ("full", "recent_only")
    return [
        fields | {"series": name, "policy": name, "position": at} for name in names for at in range(64, last + 1, 64)
    ]


@pytest.mark.parametrize("draw", [excess, far, stream])
def test_a_file_shows_all_of_each_text(draw):
    spec = for_file(draw(rows_along("short", 2048) + rows_along("long", 8192)), "title")
    ends = [
        {layer["encoding"]["x"]["scale"]["domainMax"] for layer in part["layer"] if "scale" in layer["encoding"]["x"]}
        for part in spec["concat"]
    ]
    assert ends == [{round(1.01 * 2048)}, {round(1.01 * 8192)}]
    assert [one["name"] for one in spec["params"]] == ["emphasis"]
    axes = re.findall(r">([\d,]+)</text>", pictures.svg_of(spec))
    assert {"2,000", "8,000"} <= set(axes)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The rows of every chart, from whichever records have some."""
    found = {}
    for plan in ("stream", "recall", "protection", "quick", "golden"):
        folder = built(plan, tmp_path_factory)[1] / "tables"
        rows = {name: read_table(folder / f"{name}.parquet").to_pylist() for name in figures.QUERIES}
        found |= {name: mine for name, mine in rows.items() if mine}
    return found


def drawn(tables, settings):
    return figures.drawn({name: [] for name in figures.QUERIES} | tables | {"overview": [{"settings": settings}]})


def halved(rows):
    """As if each of two settings had policies of its own, beside full."""
    first = [row for row in rows if row["setting"] == rows[0]["setting"]]
    twice = [row | {"setting": setting} for setting in ("one", "other") for row in first]
    names = sorted({row["series"] for row in rows})
    half = {"one": {"full", *names[: len(names) // 2]}, "other": {"full", *names[len(names) // 2 :]}}
    return [row for row in twice if row["series"] in half[row["setting"]]]


@pytest.mark.parametrize("name", SERIES)
def test_all_panels_of_a_figure_have_its_scales(name, tables):
    rows = tables[CHARTS[name].query]
    if "series" in rows[0]:
        rows = halved(rows)
    figure = drawn({CHARTS[name].query: rows}, ["one", "other"])[name]
    wanted = [entry for entry, _ in figure.legend], [look.colour for _, look in figure.legend]
    encodings = [layer["encoding"] for panel in figure.panels for layer in panel.spec["layer"]]
    scales = [one["color"]["scale"] for one in encodings if "color" in one]
    assert len(scales) >= len(figure.panels)
    assert all((one["domain"], one["range"]) == wanted for one in scales)


@pytest.mark.parametrize("name", ["equal_budget", "tpot", "by_budget"])
def test_in_a_file_each_policy_has_its_own_colour(name, tables):
    figure = drawn({CHARTS[name].query: halved(tables[CHARTS[name].query])}, ["one", "other"])[name]
    svg = pictures.svg_of(for_file(figure, "title"))
    seen = {}
    for tag in re.findall(r'<path aria-label="[^"]*series: [^>]*>', svg):
        series = re.search(r'series: ([^";]*)', tag)[1]
        if 'aria-roledescription="point"' in tag:
            seen.setdefault(series, set()).add(re.search(r'fill="(#\w+)"', tag)[1])
    assert len({panel.setting for panel in figure.panels}) == 2
    assert seen == {entry: {style(entry).colour} for entry, _ in figure.legend}
    symbols = svg.count('class="mark-symbol role-legend-symbol"')
    assert symbols == (0 if figure.named else len(figure.legend))


def test_in_a_file_points_beside_each_other_are_as_far_apart_as_their_panel_has_room(tables):
    """Else those of a panel with many policies lie on the line of the next."""
    more = [row | {"setting": "other", "base": base} for row in tables["position_modes"] for base in "abc"]
    figure = CHARTS["position_modes"].draw(tables["position_modes"] + more)
    scales = vl_convert.vegalite_to_vega(for_file(figure, "title"))["scales"]
    assert sum(scale["name"].endswith("yOffset") for scale in scales) == len(figure.panels) == 3


def test_a_file_promises_no_whiskers_that_it_lacks(tables):
    figures_of = drawn(tables, ["tiny-llama", "tiny-neox"])
    bare = dict.fromkeys(("quality", "speed", "both"), ("", "95 %"))
    with_some = {name for name in SERIES if "whiskers" in CHARTS[name].beneath(bare, figures_of[name])}
    wanted = {"tradeoff_kv", "tradeoff_tpot", "equal_budget", "by_budget", "sinks", "position_modes", "protection"}
    assert with_some == wanted | {"recall", "length", "eviction"}
    assert not figures_of["tpot"].whiskers  # milliseconds, over several contexts
    rows = tables["context"]
    single = [row for row in rows if row["context"] == max(one["context"] for one in rows)]
    assert "whiskers: 95 %" in CHARTS["tpot"].beneath(bare, CHARTS["tpot"].draw(single))


@pytest.mark.parametrize(
    ("budget", "drawn", "title"),
    [
        (16, False, "budget 16 tokens, shorter than all distances"),
        (48, True, "budget 48 tokens"),
        (256, True, "budget 256 tokens"),
        (400, True, "budget 400 tokens"),
        (4096, False, "budget 4,096 tokens, longer than all distances"),
    ],
)
def test_a_budget_is_a_rule_on_the_axis_or_its_panel_says_why_not(tables, budget, drawn, title):
    rows = [row for row in tables["recall"] if row["budget"] == 96]
    [panel] = CHARTS["recall"].draw([row | {"budget": budget} for row in rows]).panels
    encodings = [layer["encoding"] for layer in panel.spec["layer"]]
    [domain] = {tuple(one["x"]["scale"]["domain"]) for one in encodings if "scale" in one["x"]}
    rules = [
        layer for layer in panel.spec["layer"] if layer["mark"]["type"] == "rule" and "y2" not in layer["encoding"]
    ]
    assert len(rules) == drawn
    assert panel.title == title
    assert all(1.1 * domain[0] < rule["data"]["values"][0]["place"] < domain[1] / 1.1 for rule in rules)


def test_one_setting_of_several_is_named(tables):
    rows = [row for row in tables["sinks"] if row["setting"] == "tiny-neox"]
    alone, among = (drawn({"sinks": rows}, settings)["sinks"] for settings in (["tiny-neox"], ["tiny-neox", "other"]))
    assert "tiny-neox" not in json.dumps(for_file(alone, "title", "about")["title"])
    assert for_file(among, "title", "about")["title"]["subtitle"][0].startswith("tiny-neox; ")
    known = {"texts": [], "models": []}
    assert [view("sinks", one, known)["several"] for one in (alone, among)] == [False, True]


def test_charts_say_their_batch(tmp_path):
    """One model was timed at a batch of four alone, as its single ones failed."""
    failed = {("tiny-neox", context, 1): "failed" for context in (100, 200)}
    plan = replace(PLAIN, policies=(FULL, streaming(4, 60, 0.1)), tokens=200, lengths=(200,))
    plan = replace(plan, models=(*PLAIN.models, ("tiny-llama", None, 2048)), documents=PLAIN.documents[:1])
    latency = Latency(contexts=(100, 200), batches=(1, 4), rounds=6, blemishes=failed)
    page = page_of(report_of(replace(plan, latency=latency), tmp_path))
    assert "; charts at each model’s smallest batch, named unless it is 1. Medians" in page
    for name in ("tpot", "peak_memory", "eviction"):
        figure = page.partition(f'<figure id="{name}"')[2].partition("</figure>")[0]
        titles = re.findall(r"<h4>(.*?)</h4>", figure)
        assert [("batch 4" in title) for title in titles] == ["tiny-neox" in title for title in titles], name
        assert '"field":"batch"' in figure
    failed = {("tiny-neox", 200, 1): "failed"}
    latency = replace(latency, contexts=(200,), blemishes=failed)
    rows = database.rows(database_of(replace(plan, latency=latency), tmp_path / "one"), "context")
    titles = {panel.setting: panel.title for panel in CHARTS["tpot"].draw(rows).panels}
    at = "budget 64 tokens · 200 tokens of context"
    assert titles == {"tiny-neox": f"{at} · batch 4", "tiny-llama": at}


def test_a_heat_map_has_a_key_and_a_scale(tables):
    figure = drawn(tables, ["smollm2-135m"])["attention"]
    [layer] = for_page(figure.panels[0])["layer"]
    assert layer["encoding"]["color"]["legend"]["title"] == "attention lost, %"
    svg = pictures.svg_of(for_file(figure, "title"))
    assert svg.count("attention lost, %</text>") == 1
    assert "linearGradient" in svg
    nothing = [row | {"lost_percent": 0.0, "mean_percent": 0.0, "highest_percent": 0.0} for row in tables["attention"]]
    [layer] = drawn({"attention": nothing}, ["smollm2-135m"])["attention"].panels[0].spec["layer"]
    assert layer["encoding"]["color"]["scale"]["domain"] == [0, 1]
