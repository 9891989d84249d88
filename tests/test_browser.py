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
@pytest.mark.parametrize("name", ["golden", "quick"])
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
    assert charts.count() == {"golden": 22, "quick": 10}[name]
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
