"""What stands beneath the title of each chart that is saved: it must make sense without the page around it."""

import pytest
from golden import built

from analysis import report
from analysis.charts import drawing, figures, pictures
from analysis.charts.figures import CHARTS
from analysis.read.records import read_records
from analysis.words.standing import machines, standing

QUALITY = {"quick": "smollm2-135m", "golden": "tiny-llama and tiny-neox", "shapes": ""}
DOCUMENTS = {"quick": "2 documents of kjv, 4,096 tokens each", "golden": "12 documents of kjv, 600 tokens each"}
OVER = {"quick": "range over documents, too few for an interval", "golden": "95\u00a0% interval over documents"}
ROUNDS = "95\u00a0% interval over rounds"


@pytest.fixture
def lines(request, tmp_path, tmp_path_factory, monkeypatch):
    """Of each file of a report: the line beneath its title, and whether whiskers are drawn."""
    _, frames = report.asked(read_records(built(request.param, tmp_path_factory)[0]))
    saved = {}
    monkeypatch.setattr(pictures, "begin", saved.update)
    found = figures.drawn(frames)
    drawing.begin(found, tmp_path, standing(frames, machines(frames["machines"])))
    assert saved
    told = {path.name: " ".join(spec["title"]["subtitle"]) for path, spec in saved.items()}
    return request.param, {name: (line, found[name].whiskers) for name, line in told.items()}


@pytest.mark.parametrize("lines", ["golden", "quick", "shapes"], indirect=True)
def test_each_file_says_what_was_measured_where_and_what_whiskers_are(lines):
    plan, told = lines
    for name, (line, whiskers) in told.items():
        chart = CHARTS[name]
        assert "Golden" in line.split(" · "), name  # the processor
        assert "cpu, float32" in line
        assert QUALITY[plan] in line
        of_texts, of_prompts = chart.kind in ("quality", "both"), chart.kind in ("speed", "both")
        assert (DOCUMENTS.get(plan, "documents") in line) == of_texts, name
        assert ("prompts of random tokens" in line) == of_prompts, name
        assert (", 2 threads" in line) == of_prompts, name
        assert ("whiskers: " in line) == (whiskers and chart.whiskers is not None), name
        if "whiskers: " in line and not chart.whiskers:
            ends = {"quality": OVER.get(plan), "speed": ROUNDS}
            ends["both"] = f"vertical {OVER.get(plan)}; horizontal {ROUNDS}"
            assert line.endswith(f"whiskers: {ends[chart.kind]}"), name
    assert {CHARTS[name].kind for name in told} == {
        "golden": {"quality", "speed", "both"},
        "quick": {"quality"},
        "shapes": {"speed"},
    }[plan]
