"""The reports in a real browser."""

import contextlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit import report
from resfit.tasks.classification import Classifier
from tests.pictures import COLOURS, picture
from tests.report.conftest import CLASSES, EVIL, write_named

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


@contextlib.contextmanager
def watched(browser, path):
    """A page with all that it said and asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append("dialog"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page, said, asked
    page.close()


@pytest.fixture
def opened(browser, written):
    with watched(browser, written) as found:
        yield found


def findings_of_axe(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [(item["id"], item["nodes"][0]["html"][:200]) for item in found]


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
    page, _, _ = opened
    page.emulate_media(color_scheme=scheme)
    page.locator('[data-cell="1-0"]').click()
    assert findings_of_axe(page) == []


# what `resfit check` writes


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The page about a folder in which everything is wrong that it tells of, under names that would harm a page."""
    from resfit.cli import main

    folder = write_named(tmp_path_factory.mktemp("checked") / EVIL / "train", 30).parent
    first, second, third = (folder / "train" / name.replace("/", "∕") for name in CLASSES.values())

    other = folder / "train" / os.fsdecode(b"caf\xe9")

    def save(pixels, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for place, colour in zip((first, second, third), COLOURS, strict=True):
        for number in range(8):
            save(picture(colour, 1000 + number), folder / "test" / place.name / f"{number}.png")
    shutil.copyfile(first / EVIL, folder / "test" / first.name / "leak.png")
    shutil.copyfile(first / "001.png", second / "conflict.png")
    for number in range(6):
        shutil.copyfile(third / "002.png", third / f"copy {number}.png")
    for number in range(30):  # more than are shown
        save(np.full((24, 24, 3), 60 + 4 * number, np.uint8), second / f"blank {number} {EVIL}")
    save(picture("red", 7, (24, 300)), third / "odd.png")
    (third / "broken.png").write_bytes(b"no image")
    for number in range(12):  # names that are no UTF-8
        save(
            picture("blue", 2000 + number),
            other / os.fsdecode(b"\xff%d.png" % number),
        )
    shutil.copyfile(other / os.fsdecode(b"\xff0.png"), other / os.fsdecode(b"\xffcopy.png"))
    page = tmp_path_factory.mktemp("page") / "checks.html"
    with pytest.raises(SystemExit) as ended:
        main.run(["check", str(folder), "--report", str(page)])
    assert not ended.value.code
    return page


@pytest.fixture
def opened_checks(browser, checked):
    with watched(browser, checked) as found:
        yield found


def test_names_in_the_page_of_checks_are_text_and_nobody_is_asked(opened_checks, checked):
    page, said, asked = opened_checks
    assert page.title() == "Data checks"
    titles = page.locator("h2").all_inner_texts()
    for title in (
        *("Images in both training and test set: 1", "Duplicates with different labels: 1", "Exact copies: 9"),
        *("Blank images: 30", "Odd images: 1"),
    ):
        assert title in titles
    assert "The first 24 are shown" in page.locator("h2", has_text="Blank images: 30").locator("+ p").inner_text()
    seen = page.locator("main").inner_text()
    for name in (CLASSES["blue"].replace("/", "∕"), CLASSES["green"], EVIL.replace("\u202e", "\\u202e"), "leak.png"):
        assert name in seen
    assert "caf\\udce9" in seen
    assert "\\xff" in seen
    assert "\u202e" not in page.content()  # would turn round what stands behind it
    assert page.locator("script").count() == page.locator("[onerror]").count() == 0
    images = page.locator("img")
    assert images.count() > 30
    assert all(images.evaluate_all("found => found.map(one => one.complete && one.naturalWidth > 8)"))
    assert all(images.evaluate_all("found => found.map(one => one.alt.length > 0)"))
    assert [url for url in asked if not url.startswith("data:")] == [checked.as_uri()]
    assert said == []


def test_the_page_of_checks_fits_a_phone_and_prints(opened_checks):
    page, said, _ = opened_checks
    for width in (1280, 380):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert said == []


def test_what_can_be_clicked_in_the_page_of_checks_leads_somewhere(opened_checks):
    page, _, _ = opened_checks
    links = page.locator("nav a")
    assert links.count() == page.locator("h2").count() > 6
    for link in links.all():
        link.click()
        title = page.locator(":target")
        assert title.inner_text().startswith(link.inner_text())
        assert title.evaluate("node => Math.abs(node.getBoundingClientRect().top) < window.innerHeight")
    assert page.locator("button, input, summary, [onclick]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_the_page_of_checks(opened_checks, scheme):
    page, _, _ = opened_checks
    page.emulate_media(color_scheme=scheme)
    assert findings_of_axe(page) == []


@pytest.mark.skipif("RESFIT_SCREENSHOT" not in os.environ, reason="makes docs/report.png; set RESFIT_SCREENSHOT")
def test_screenshot(browser, tmp_path):
    """Makes the picture in the guide, from the images that ship with resfit."""
    from resfit.data import samples
    from resfit.tasks.classification import fit

    samples.unpack(tmp_path / "images")
    fit(tmp_path / "images", out=tmp_path / "fashion.resfit")
    found = report.measure(Classifier.load(tmp_path / "fashion.resfit"), tmp_path / "images" / "test")
    report.write(found, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1200, "height": 1500})
    page.goto((tmp_path / "report.html").as_uri())
    page.locator('[data-cell="4-6"]').click()
    page.screenshot(path=Path(os.environ["RESFIT_SCREENSHOT"]), full_page=False)
