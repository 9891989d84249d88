"""The page in a real browser: what a reader sees, presses, drags and prints; nothing logged, requested or too wide."""

import math
import os
import re
import shutil
import time
from contextlib import contextmanager

import pytest
from golden import built

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: install Debian's `chromium`, or set CHROMIUM"
)
CHARTS = {"golden": 42, "shapes": 12}
VISIBLE = "[...document.querySelectorAll('[data-spec]')].filter(place => place.offsetParent)"
UNDRAWN = f"{VISIBLE}.filter(place => !place.querySelector('svg')).length"


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as run:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = run.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@contextmanager
def visits(browser, tmp_path_factory):
    """Opens reports' pages, and in the end checks that they said nothing and asked for nothing."""
    pages = []

    def open_page(name, width=1440, scheme="light"):
        _, report = built(name, tmp_path_factory)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        seen = []
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        pages.append((page, seen, (report / "index.html").as_uri()))
        page.goto(pages[-1][2])
        return page

    yield open_page
    for page, seen, address in pages:
        assert [one for one in seen if not one.startswith("data:")] == [address]
        page.close()


@pytest.fixture
def visit(browser, tmp_path_factory):
    with visits(browser, tmp_path_factory) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def golden(browser, tmp_path_factory):
    """The golden page, drawn once for all tests that leave it as they find it."""
    with visits(browser, tmp_path_factory) as open_page:
        yield drawn(open_page("golden"))


def drawn(page):
    """The page, once every chart that can be seen, now or by scrolling, is drawn."""
    until = time.monotonic() + 60  # a busy machine takes many times as long
    while page.evaluate(UNDRAWN):  # the page's policy forbids what playwright's own waiting does
        assert time.monotonic() < until, page.evaluate(UNDRAWN)
        page.wait_for_timeout(50)
    return page


@pytest.mark.parametrize(("name", "width", "scheme"), [("golden", 390, "light"), ("shapes", 1440, "dark")])
def test_page(visit, name, scheme, width):
    page = drawn(visit(name, width, scheme))
    page.locator("#pick-model").select_option("all")
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for axis in page.locator(".axis input:enabled").all():
        axis.check()
        drawn(page)
    charts = page.locator("[data-spec]")
    assert charts.count() == CHARTS[name]
    for index in range(charts.count()):
        chart = charts.nth(index)
        assert chart.locator("svg .mark-line path, svg .mark-symbol path, svg .mark-rect path").count() > 0
        assert len(chart.get_attribute("aria-label") or "") > 40
        box = chart.locator("svg").bounding_box()
        assert box is None or box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_divergence_the_worst_tokens_and_attention_fit_a_phone(visit):
    page = drawn(visit("quick", 390))
    page.locator("#worst > summary").click()
    for place in ("#divergences", "#worst table", "#attention", "#tail", "#far"):
        one = page.locator(place).first
        one.scroll_into_view_if_needed()
        assert one.is_visible(), place
    page.locator("#missing > summary").click()
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for table in page.locator("main table:visible").all():  # wider ones scroll on their own
        around = "one => { const box = one.closest('.scroll').getBoundingClientRect(); return [box.left, box.right]; }"
        left, right = table.evaluate(around)
        assert left >= 0
        assert right <= 390
    titles = page.locator("svg .role-axis-title text:visible")
    assert titles.count() > 10
    for box in filter(None, (title.bounding_box() for title in titles.all())):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_page_is_small_and_its_first_chart_comes_soon(browser, tmp_path_factory):
    """In seconds of the page's own thread: a busy machine delays any page."""
    path = built("golden", tmp_path_factory)[1] / "index.html"
    assert path.stat().st_size <= 3_000_000
    page = browser.new_page()
    asked = page.context.new_cdp_session(page)
    asked.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_selector("[data-spec] svg .mark-symbol path")
    taken = {one["name"]: one["value"] for one in asked.send("Performance.getMetrics")["metrics"]}
    page.close()
    assert 0.1 < taken["TaskDuration"] <= 2, taken


def faint(page, figure):
    """Points of the figure's visible charts that are drawn faint, and all of them."""
    marks = f"[...document.querySelectorAll('#{figure} .panel:not(.elsewhere) .mark-symbol path')]"
    found = page.evaluate(f"{marks}.map(mark => +(mark.getAttribute('opacity') ?? 1))")
    found = [one for one in found if one]  # what nobody sees is there for its tooltip
    return sum(one < 0.5 for one in found), len(found)


def test_a_legend_entry_singles_its_series_out_in_every_chart(golden):
    page = golden
    entry = page.locator("#by_budget .entry", has_text="recent_only")
    figures = ("by_budget", "tradeoff_kv", "excess", "equal_budget")
    assert [faint(page, figure)[0] for figure in figures] == [0, 0, 0, 0]
    entry.click()
    page.wait_for_timeout(200)
    assert entry.get_attribute("aria-pressed") == "true"
    assert page.locator("#excess .entry[aria-pressed=true]").inner_text() == "recent_only"
    for figure in figures:
        some, every = faint(page, figure)
        assert 0 < some < every, figure
    assert faint(page, "sinks")[0] == 0  # its series are budgets, of which none was singled out
    entry.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert [faint(page, figure)[0] for figure in figures] == [0, 0, 0, 0]
    assert page.locator(".entry[aria-pressed=true]").count() == 0


def test_the_tradeoff_changes_its_axis_by_keyboard(golden):
    page = golden
    shown = "[...document.querySelectorAll('[data-axis]')].filter(one => one.offsetParent).map(one => one.dataset.axis)"
    title = "#tradeoff_{} .panel:not(.elsewhere) svg .role-axis-title text"
    assert page.evaluate(shown) == ["kv"]
    page.locator(".axis input:checked").focus()
    for axis, words in (("tpot", "time per token ÷ full’s"), ("kv", "KV memory ÷ full’s")):
        page.keyboard.press("ArrowRight")
        drawn(page)
        assert page.evaluate(shown) == [axis]
        assert any(words in text for text in page.locator(title.format(axis)).all_text_contents())
        assert page.locator(f"#tradeoff_{axis} .panel:not(.elsewhere) .mark-line path").count() == 1  # the step line


def test_a_line_tells_the_row_that_the_pointer_is_near(golden):
    """Of a line Vega tells the first row, wherever the pointer is."""
    page, told = golden, set()
    points = page.locator("#excess .panel:not(.elsewhere) .mark-symbol path[opacity='0']")
    points.first.scroll_into_view_if_needed()
    for point in points.all()[4:20:2]:
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told.update(page.locator("#vg-tooltip-element.visible td.value").all_inner_texts()[1:2])
    assert len(told) > 3, told


def ends_of(page, figure):
    """First and last number on the x axis of a figure's first visible chart."""
    axis = page.locator(f"#{figure} .panel:not(.elsewhere) .role-axis").filter(has_text="position in the text").last
    numbers = [int(text.replace(",", "")) for text in axis.locator(".role-axis-label text").all_text_contents() if text]
    return min(numbers), max(numbers)


def test_the_overviews_brush_zooms_the_charts_below(golden):
    page = golden
    zoom = page.locator(".zoom:not(.elsewhere)")
    assert ends_of(page, "excess") == (0, 600)
    zoom.scroll_into_view_if_needed()
    box = zoom.locator("svg").bounding_box()
    level = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + 0.5 * box["width"], level)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], level, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    low, high = ends_of(page, "excess")
    assert low >= 250
    assert high <= 560
    assert 250 <= int(zoom.locator(".from").input_value()) <= 320
    zoom.locator(".reset").click()
    page.wait_for_timeout(300)
    assert ends_of(page, "excess") == (0, 600)
    zoom.locator(".from").fill("100")
    zoom.locator(".to").fill("200")
    zoom.locator(".to").press("Tab")
    page.wait_for_timeout(300)
    assert ends_of(page, "excess") == (100, 200)
    brush = zoom.locator("svg .mark-rect path").last
    assert 0.1 < brush.bounding_box()["width"] / box["width"] < 0.25  # it shows what was typed
    zoom.locator(".reset").click()


def test_the_model_switch_shows_one_model_or_all(visit):
    page = visit("golden")
    of = f"new Set({VISIBLE}.map(place => place.dataset.setting))"
    assert page.evaluate(f"[...{of}]") == ["tiny-llama"]
    rows = "#results tbody tr:visible"
    assert page.locator(rows).count() == 12
    page.locator("#pick-model").select_option("tiny-neox")
    drawn(page)
    assert page.evaluate(f"[...{of}]") == ["tiny-neox"]
    assert page.locator(".headline:visible").all_inner_texts()[0].startswith("For tiny-neox: take")
    page.locator("#pick-model").select_option("all")
    drawn(page)
    assert page.evaluate(f"{of}.size") == 2
    assert page.locator(rows).count() == 24
    assert page.locator(".headline:visible").count() == 2


def values(page, table, column):
    """The numbers in a column's visible rows, NaN for none."""
    cells = f"#{table} tbody tr:not([hidden]) td[data-column={column}]"
    texts = page.evaluate(f"[...document.querySelectorAll('{cells}')].map(cell => cell.childNodes[0].nodeValue.trim())")
    return [float(text.replace("−", "-").replace("\u00a0%", "").replace("–", "nan")) for text in texts]


def test_table_sorts_filters_and_changes_length(visit):
    page = visit("golden")
    page.locator("#pick-model").select_option("all")
    shown = values(page, "results", "ppl_corpus")
    assert len(shown) == 24
    assert shown != sorted(shown)
    head = page.locator("#results th button", has_text="PPL corpus")
    head.click()
    assert values(page, "results", "ppl_corpus") == sorted(shown)
    head.press("Enter")
    assert values(page, "results", "ppl_corpus") == sorted(shown, reverse=True)
    page.locator("#results th button", has_text="vs full, %").first.click()
    *known, last, none = values(page, "results", "ppl_change_percent")
    assert known == sorted(known)
    assert math.isnan(last)  # full has no change; what is not known comes last
    assert math.isnan(none)
    page.locator("#results th button", has_text="Policy").click()
    names = [text.split()[0] for text in page.locator("#results tbody tr:not([hidden]) td.name").all_inner_texts()]
    assert [name[0] for name in names] == sorted(name[0] for name in names)
    page.locator("#pick-length").select_option("150")
    assert len(values(page, "results", "ppl_corpus")) == 24
    assert set(values(page, "results", "ppl_corpus")) != set(shown)
    page.locator("#pick-words").fill("neox recent")
    assert page.locator("[data-table=results] .count").inner_text() == "2 of 72 rows"


def test_latency_table_sorts_and_shows_every_cell(visit):
    page = visit("golden")
    page.locator("#pick-model").select_option("all")
    shown = values(page, "latency", "tpot_ms")
    assert len(shown) == 28  # one cell of each model: twelve policies, full again, DynamicCache
    page.locator("#latency th button", has_text="Time per token, ms").click()
    assert values(page, "latency", "tpot_ms") == sorted(shown)
    page.locator("#pick-context").select_option("every")
    assert len(values(page, "latency", "tpot_ms")) == 11 * 14
    page.locator("#pick-latency-words").fill("neox idle")
    assert len(values(page, "latency", "tpot_ms")) == 14
    assert len(values(page, "results", "ppl_corpus")) == 24  # the other table keeps its own filter
    assert page.locator("#latency .tag.busy:visible").first.get_attribute("title").startswith("other processes")


def test_printing_draws_every_chart_of_every_model(visit, tmp_path):
    page = visit("golden")
    page.wait_for_selector("[data-spec] svg")
    page.pdf(path=tmp_path / "page.pdf")
    hidden = "[...document.querySelectorAll('[data-spec]:not(.overview)')].filter(place => !place.querySelector('svg'))"
    assert page.evaluate(f"{hidden}.length") == 0
    assert not page.evaluate("document.body.classList.contains('printing')")


def test_what_can_be_pressed_shows_its_focus(golden):
    page = golden
    for wanted in ("#by_budget .entry", ".axis input:checked", "#results th button", "#pick-model", "nav a"):
        page.locator(wanted).first.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        ring = "(() => { const one = document.activeElement.closest('.axis label') ?? document.activeElement;"
        ring += " return getComputedStyle(one).outlineStyle; })()"
        assert page.evaluate(ring) in ("solid", "auto"), wanted


def luminance(colour):
    """Relative luminance of a colour as the browser prints it, rgb(1, 2, 3)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_print_in_charts_stands_out_from_its_ground(visit, scheme):
    page = drawn(visit("quick", scheme=scheme))
    ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground > 0.5) == (scheme == "light")
    colours = page.evaluate("[...document.querySelectorAll('.chart svg text')].map(one => getComputedStyle(one).fill)")
    assert len(colours) > 100
    for colour in set(colours):
        low, high = sorted((ground, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
