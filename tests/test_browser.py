"""The page in a real browser: every chart drawn, nothing logged, nothing requested, nothing wider than the window."""

import os
import shutil

import pytest
from golden import built

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH: install Debian's `chromium`, or set CHROMIUM"
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as run:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = run.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["golden", "quick", "shapes"])
def test_page(browser, tmp_path_factory, name, scheme, width):
    _, report = built(name, tmp_path_factory)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((report / "index.html").as_uri())
    charts = page.locator("[data-spec]")
    undrawn = "[...document.querySelectorAll('[data-spec]')].filter(place => !place.querySelector('svg')).length"
    page.wait_for_function(f"{undrawn} === 0")
    assert charts.count() == {"golden": 48, "quick": 10, "shapes": 20}[name]
    for index in range(charts.count()):
        chart = charts.nth(index)
        assert chart.locator("svg .mark-line path, svg .mark-symbol path").count() > 0
        assert chart.locator("svg").bounding_box()["width"] <= width
        assert chart.locator("svg").get_attribute("aria-label") or chart.locator("svg [aria-label]").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in requests if not url.startswith("data:")] == [(report / "index.html").as_uri()]
    assert messages == []
    page.close()


def test_table_sorts_filters_and_changes_length(browser, tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto((report / "index.html").as_uri())
    cells = "#results tbody tr:not([hidden]) td[data-column=ppl_corpus]"
    values = f"[...document.querySelectorAll('{cells}')].map(cell => +cell.dataset.value)"
    shown = page.evaluate(values)
    assert len(shown) == 24
    head = page.locator("#results th button", has_text="PPL corpus")
    head.click()
    assert page.evaluate(values) == sorted(shown)
    head.click()
    assert page.evaluate(values) == sorted(shown, reverse=True)
    page.locator("#pick-length").select_option("150")
    assert len(page.evaluate(values)) == 24
    assert not set(page.evaluate(values)) & set(shown)
    page.locator("#pick-words").fill("neox recent")
    assert len(page.evaluate(values)) == 2
    page.close()


def test_latency_table_sorts_and_shows_every_cell(browser, tmp_path_factory):
    _, report = built("golden", tmp_path_factory)
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto((report / "index.html").as_uri())
    cells = "#latency tbody tr:not([hidden]) td[data-column=tpot_ms]"
    values = f"[...document.querySelectorAll('{cells}')].map(cell => +cell.dataset.value)"
    shown = page.evaluate(values)
    assert len(shown) == 28  # one cell of each model: twelve policies, full again, DynamicCache
    page.locator("#latency th button", has_text="TPOT").click()
    assert page.evaluate(values) == sorted(shown)
    page.locator("#pick-context").select_option("every")
    assert len(page.evaluate(values)) == 11 * 14
    page.locator("#pick-latency-words").fill("neox noisy")
    assert len(page.evaluate(values)) == 14
    assert page.locator("#results tbody tr:not([hidden])").count() == 24  # the other table keeps its own filter
    assert page.locator("#latency .tag.busy:visible").first.get_attribute("title").startswith("other processes")
    page.close()


def test_dark_page_has_light_text_on_dark_ground(browser, tmp_path_factory):
    _, report = built("quick", tmp_path_factory)
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((report / "index.html").as_uri())
        page.wait_for_selector("[data-spec] svg text")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.evaluate("getComputedStyle(document.querySelector('[data-spec] svg text')).fill")
        colours[scheme] = (ground, text)
        page.close()
    assert colours["light"][0] != colours["dark"][0]
    assert colours["light"][1] != colours["dark"][1]
