"""What each chart draws, against specs kept in `specs/`; and that no chart names a field which its rows do not have.

    python tests/analysis/charts/test_specs.py      writes the specs anew after a change: read the difference

Kept are the panels of the figure's first setting as the page draws them, of budgets the first, and what a file puts
around them; rows are replaced by their count and fields.
"""

import json
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[up]) for up in (2, 3)]

from golden import GOLDEN, built, write

from analysis.charts import figures
from analysis.charts.figures import CHARTS
from analysis.charts.specs import encoded, for_file, for_page
from analysis.numbers import database
from analysis.read.records import read_records

KEPT = Path(__file__).parent / "specs"


def figures_of(records):
    """Every figure of a records folder that has panels."""
    connection = database.open_database(read_records(records), 5.0)
    frames = {query: database.rows(connection, query) for query in figures.QUERIES}
    return {name: figure for name, figure in figures.drawn(frames).items() if figure and figure.panels}


def outline(value):
    """A spec without its rows and without where its axes end: what is drawn how, not what was measured."""
    if isinstance(value, dict):
        return {
            name: counted(one) if name in ("values", "columns") and rows_like(one) else outline(one)
            for name, one in sorted(value.items())
        }
    if isinstance(value, list):
        measured = any(isinstance(one, float) for one in value)  # the ends of an axis, its ticks: they follow the data
        return f"{len(value)} numbers" if measured else [outline(one) for one in value]
    return value


def rows_like(value):
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def counted(rows):
    """How many rows of which fields, row by row or column by column."""
    if isinstance(rows, list):
        return {"rows": len(rows), "fields": sorted(rows[0])}
    return {name: {"rows": len(next(iter(one.values()))), "fields": sorted(one)} for name, one in rows.items()}


def text_of(figure, name):
    first = [one for one in figure.panels if one.setting == figure.panels[0].setting]
    alike = all("budget " in one.title for one in first)  # panels that differ in their budget alone
    specs = {
        "legend": [entry for entry, _ in figure.legend],
        "panels": [f"{one.setting}: {one.title}" for one in figure.panels],
        "page": [for_page(one) for one in (first[:1] if alike else first)],
    }
    if CHARTS[name].file:
        around = for_file(figure, "title", "about")
        specs["file"] = {key: value for key, value in around.items() if key not in ("concat", "layer")}
    return json.dumps(outline(specs), indent=1, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return figures_of(built("golden", tmp_path_factory)[0])


@pytest.mark.parametrize("name", CHARTS)
def test_each_chart_is_drawn_as_its_kept_spec_says(name, golden):
    kept = (KEPT / f"{name}.json").read_text(encoding="utf-8")
    assert text_of(golden[name], name) == kept, "if the change is meant: python tests/analysis/charts/test_specs.py"


def test_no_spec_is_kept_of_a_chart_that_is_gone():
    assert {path.stem for path in KEPT.glob("*.json")} == set(CHARTS)


@pytest.mark.parametrize("name", ["golden", "shapes", "quick"])
def test_every_field_a_chart_names_is_in_its_rows(name, golden, tmp_path_factory):
    found = golden if name == "golden" else figures_of(built(name, tmp_path_factory)[0])
    assert len(found) == {"golden": len(CHARTS), "shapes": 3, "quick": 7}[name]
    for figure_name, figure in found.items():
        for panel in figure.panels:
            for layer in panel.spec["layer"]:
                rows = layer.get("data", panel.spec.get("data"))["values"]
                fields = encoded(layer)
                assert rows, figure_name
                assert fields, figure_name
                for row in rows:
                    assert fields <= set(row), (figure_name, fields - set(row))


def test_the_page_keeps_what_its_charts_name_and_nothing_else(golden):
    for name, figure in golden.items():
        for panel in figure.panels:
            spec = for_page(panel)
            for layer in spec["layer"]:
                assert encoded(layer) <= set(spec["columns"][layer["data"]["name"]]), name
            for place, columns in spec["columns"].items():
                named = [encoded(layer) for layer in spec["layer"] if layer["data"]["name"] == place]
                assert set(columns) == set().union(*named), name
                assert len({len(one) for one in columns.values()}) == 1, name


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
    for old in KEPT.glob("*.json"):
        old.unlink()
    with tempfile.TemporaryDirectory() as place:
        for name, figure in figures_of(write(GOLDEN, Path(place) / "records")).items():
            (KEPT / f"{name}.json").write_text(text_of(figure, name), encoding="utf-8")
    print(f"wrote {len(list(KEPT.glob('*.json')))} specs to {KEPT}")
