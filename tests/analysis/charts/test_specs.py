"""What each chart draws, against specs kept in `specs/`.

    python tests/analysis/charts/test_specs.py      writes the specs anew after a change: read the difference

Kept are the panels of the figure's first setting as the page draws them, of budgets the first, a line a layer, and what
a file puts around them; rows are replaced by their count and fields. Of the golden records, or those of protection,
recall, quick or stream.
"""

import json
import sys
from pathlib import Path

import altair as alt
import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[up]) for up in (2, 3)]

from golden import PLANS, built, report_of
from pyarrow.parquet import read_table

from analysis.charts import figures, marks
from analysis.charts.figures import CHARTS
from analysis.charts.specs import for_file, for_page

KEPT = Path(__file__).parent / "specs"
NAMES = ("stream", "recall", "protection", "quick", "golden")  # whose figures count, the last ones first


def figures_of(report):
    """Every figure of a report that it has records for."""
    tables = {name: read_table(report / "tables" / f"{name}.parquet") for name in figures.QUERIES}
    frames = {name: table.to_pylist() for name, table in tables.items()}
    settings = {row["setting"] for rows in frames.values() for row in rows}
    found = figures.drawn(frames | {"overview": [{"settings": sorted(settings)}]})
    return {name: figure for name, figure in found.items() if figure and figure.panels}


def outline(value):
    """A spec without its rows and without where its axes end: what is drawn how, not what was measured."""
    if isinstance(value, dict):
        return {name: counted(one) if name == "values" else outline(one) for name, one in sorted(value.items())}
    if isinstance(value, list) and value and isinstance(value[0], float):
        return f"{len(value)} numbers"  # the ends of an axis, its ticks: they follow the data
    return [outline(one) for one in value] if isinstance(value, list) else value


def counted(values):
    """How many rows of which fields; or the values that an axis marks."""
    rows = bool(values) and isinstance(values[0], dict)
    return {"rows": len(values), "fields": sorted(values[0])} if rows else outline(values)


def text_of(figure, name):
    first = [one for one in figure.panels if one.setting == figure.panels[0].setting]
    alike = all("budget " in one.title for one in first)  # panels that differ in their budget alone
    parts = [
        {"legend": [entry for entry, _ in figure.legend]},
        {"panels": [f"{one.setting}: {one.title}" for one in figure.panels]},
    ]
    for panel in first[:1] if alike else first:
        spec = for_page(panel)
        parts += [{key: value for key, value in spec.items() if key != "layer"}, *spec["layer"]]
    if CHARTS[name].file:
        around = for_file(figure, "title", "about")
        parts.append({key: value for key, value in around.items() if key not in ("concat", "layer")})
    return "".join(f"{json.dumps(outline(part), ensure_ascii=False)}\n" for part in parts)


@pytest.mark.parametrize("shared", [True, False])
def test_layers_are_put_together_as_altair_does(shared):
    rows = marks.values([{"x": 1, "y": 2}, {"x": 2, "y": 3}])
    other = rows if shared else marks.values([{"x": 1, "y": 5}])
    axes = {"x": alt.X("x:Q"), "y": alt.Y("y:Q", scale=alt.Scale(domain=[0, 9]))}
    layers = [alt.Chart(rows).mark_line().encode(**axes), alt.Chart(other).mark_point(filled=True).encode(**axes)]
    spec = marks.layered(layers)
    assert spec == alt.layer(*layers).to_dict(validate=False)
    assert ("data" in spec) == shared


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    found = {}
    for name in NAMES:
        found |= figures_of(built(name, tmp_path_factory)[1])
    return found


@pytest.mark.parametrize("name", CHARTS)
def test_each_chart_is_drawn_as_its_kept_spec_says(name, golden):
    kept = (KEPT / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text_of(golden[name], name) == kept, "if the change is meant: python tests/analysis/charts/test_specs.py"


def test_no_spec_is_kept_of_a_chart_that_is_gone():
    assert {path.stem for path in KEPT.glob("*.jsonl")} == set(CHARTS)


def test_every_chart_is_described_for_those_who_do_not_see_it(golden):
    for name, figure in golden.items():
        for panel in figure.panels:
            about = panel.spec["description"]
            assert panel.setting in about, name
            assert len(about) > 40, name


def test_series_of_one_legend_differ_in_colour_shape_or_dash(golden):
    for name, figure in golden.items():
        looks = [(style.colour, style.shape, style.dash) for _, style in figure.legend]
        assert len(set(looks)) == len(looks), name
        without_colour = [(style.shape, style.dash) for _, style in figure.legend]
        assert len(set(without_colour)) == len(without_colour), name


if __name__ == "__main__":
    import tempfile

    KEPT.mkdir(exist_ok=True)
    for old in KEPT.glob("*.jsonl"):
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        for plan in NAMES:
            for name, figure in figures_of(report_of(PLANS[plan], Path(place) / plan)).items():
                (KEPT / f"{name}.jsonl").write_text(text_of(figure, name), encoding="utf-8")
    print(f"wrote {len(list(KEPT.glob('*.jsonl')))} specs to {KEPT}")
