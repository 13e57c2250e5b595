"""The report in a real browser."""

import os
import shutil
from pathlib import Path

import pytest

from resfit import report
from resfit.classifier import Classifier

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, written):
    """A page with all that it said and asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append("dialog"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())
    yield page, said, asked
    page.close()


def test_a_click_shows_the_images_behind_a_cell(opened, written):
    page, said, asked = opened
    assert "How good is tiny" in page.title()
    panel, button = page.locator("#cell-1-0"), page.locator('[data-cell="1-0"]')
    assert button.inner_text() == "3"
    assert not panel.is_visible()
    button.click()
    assert panel.is_visible()
    assert button.get_attribute("aria-expanded") == "true"
    images = panel.locator("img")
    assert images.count() == 3
    assert all(images.nth(n).evaluate("image => image.complete && image.naturalWidth") > 8 for n in range(3))
    page.locator('[data-cell="1-1"]').click()
    assert not panel.is_visible()
    assert page.locator("#cell-1-1").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#cell-1-1").is_visible()
    assert page.evaluate("document.activeElement.dataset.cell") == "1-1"
    page.keyboard.press("Enter")  # by keyboard as well
    assert page.locator("#cell-1-1").is_visible()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]


def test_curves_are_drawn_in_both_colour_schemes(opened):
    page, said, _ = opened
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.locator("figure svg text").first.evaluate("text => getComputedStyle(text).fill")
        light = sum(int(part) for part in paper[4:-1].split(",")) > 380
        assert light == (scheme == "light")
        assert (sum(int(part) for part in ink[4:-1].split(",")) > 380) == (scheme == "dark")
    assert page.locator("figure svg").count() == 4
    box = page.locator("figure svg").first.bounding_box()
    assert box["width"] > 200
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert said == []


def test_it_prints(opened):
    page, _, _ = opened
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, _, _ = opened
    page.emulate_media(color_scheme=scheme)
    page.locator('[data-cell="1-0"]').click()
    found = axe.Axe().run(page)
    assert [(item["id"], item["nodes"][0]["html"][:200]) for item in found.response["violations"]] == []


@pytest.mark.skipif("RESFIT_SCREENSHOT" not in os.environ, reason="makes docs/report.png; set RESFIT_SCREENSHOT")
def test_screenshot(browser, tmp_path):
    """Makes the picture in the guide, from the images that ship with resfit."""
    from resfit.classifier import fit
    from resfit.data import samples

    samples.unpack(tmp_path / "images")
    fit(tmp_path / "images", out=tmp_path / "fashion.resfit")
    found = report.measure(Classifier.load(tmp_path / "fashion.resfit"), tmp_path / "images" / "test")
    report.write(found, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1200, "height": 1500})
    page.goto((tmp_path / "report.html").as_uri())
    page.locator('[data-cell="4-6"]').click()
    page.screenshot(path=Path(os.environ["RESFIT_SCREENSHOT"]), full_page=False)
