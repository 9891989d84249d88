"""Models are shown by size, as the overview has them; what was published keeps its own order."""

from analysis.numbers.order import smaller_first


def test_rows_follow_the_overview_and_keep_their_order_within_a_model():
    names = ("160m", "160m", "70m")
    rows = [{"setting": name, "place": place} for place, name in enumerate(names)]
    frames = {
        "overview": [{"settings": ["70m", "160m"]}],
        "latency": rows,
        "published": rows,
        "published_latency": rows,
        "models": [{"model": "b"}, {"model": "a"}],
        "empty": [],
    }
    found = smaller_first(frames)
    assert [row["place"] for row in found["latency"]] == [2, 0, 1]
    for name in frames.keys() - {"latency"}:
        assert found[name] == frames[name]
