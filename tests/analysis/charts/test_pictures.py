"""Charts as files are drawn by other processes: all of them, as the converter draws them here; a failure is told."""

import pytest
import vl_convert

from analysis.charts import pictures


def bars(height):
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": [{"height": height}]},
        "mark": "bar",
        "encoding": {"y": {"field": "height", "type": "quantitative"}},
    }


def test_each_spec_becomes_both_files(tmp_path):
    specs = {tmp_path / f"chart {number}": bars(number) for number in range(1, 6)}
    pictures.finish(pictures.begin(specs))
    for path, spec in specs.items():
        svg = path.with_suffix(".svg").read_text(encoding="utf-8")
        assert svg == pictures.svg_of(spec)
        assert path.with_suffix(".png").read_bytes() == vl_convert.svg_to_png(svg, scale=pictures.SCALE)


def test_nothing_to_draw_is_nothing_to_wait_for():
    assert pictures.begin({}) == []


def test_a_chart_that_cannot_be_drawn_is_told(tmp_path, capfd):
    drawing = pictures.begin({tmp_path / "sound": bars(1), tmp_path / "broken": {"mark": "no such mark"}})
    with pytest.raises(OSError, match="charts: not all were drawn"):
        pictures.finish(drawing)
    assert "ValueError" in capfd.readouterr().err
