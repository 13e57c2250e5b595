"""The page in a real browser: what people do, what they must never see, and what those need who see it otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.serving.conftest import TOKEN

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


class Watched:
    """A page, and everything that it says or asks for."""

    def __init__(self, browser, url: str, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = url
        self.page.goto(url)

    def check(self, *, but: str = "") -> None:
        """Nothing in the console, and nothing asked of anybody else."""
        assert [message for message in self.messages if not (but and but in message)] == []
        inner = ("data:", f"blob:{self.url}", self.url)
        assert [url for url in self.requests if not url.startswith(inner)] == []


@pytest.fixture
def watched(browser, server):
    found = Watched(browser, server.url)
    loaded(found.page, 2)
    found.page.select_option("#model", "fashion")
    yield found
    found.context.close()


def articles(page, count: int):
    found = page.locator("article")
    sync_api.expect(found).to_have_count(count, timeout=60_000)
    return found


def loaded(page, models: int) -> None:
    sync_api.expect(page.locator("#model option")).to_have_count(models, timeout=60_000)


def scan(page) -> list[str]:
    """Serious findings of axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical", "moderate")]


def test_one_image(watched, files, offline):
    page = watched.page
    assert "10 classes" in page.inner_text("#summary")
    page.set_input_files("#files", files[0])
    (article,) = articles(page, 1).all()
    assert article.locator("h2").inner_text() == files[0].name
    rows = article.locator(".classes li")
    assert rows.count() == 10
    assert rows.first.locator(".name").inner_text() == offline.labels[0]
    bars = [float(bar.get_attribute("value")) for bar in rows.locator("progress").all()]
    assert bars == pytest.approx(sorted(offline.scores[0], reverse=True), abs=5e-6)
    assert rows.first.locator(".value").inner_text() == f"{100 * offline.scores[0].max():.1f} %"
    assert "ms in the server" in article.locator(".latency").inner_text()
    assert offline.labels[0] in page.inner_text("#status")
    watched.check()
    assert scan(page) == []


def test_several_images_and_a_wrong_one(watched, files, offline, tmp_path):
    page = watched.page
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no image")
    page.set_input_files("#files", [files[0], wrong, files[1]])
    found = articles(page, 3)
    assert found.nth(1).locator(".error").inner_text() == "not an image of a known format"
    labels = [found.nth(place).locator(".classes .name").first.inner_text() for place in (0, 2)]
    assert labels == offline.labels[:2]
    assert page.inner_text("#status") == "2 images classified. 1 could not be used."
    watched.check()
    assert scan(page) == []


def test_a_wrong_file_alone(watched, tmp_path):
    wrong = tmp_path / "a<img src=x onerror=alert(1)>.png"
    wrong.write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    watched.page.set_input_files("#files", wrong)
    (article,) = articles(watched.page, 1).all()
    assert "damaged" in article.locator(".error").inner_text()
    assert article.locator("h2").inner_text() == wrong.name  # text, not markup
    watched.check(but="status of 422")


def test_more_images_than_one_request_takes(watched, images):
    paths = sorted(images.glob("test/*/*.png"))[:40]
    watched.page.set_input_files("#files", paths)
    articles(watched.page, 40)
    sync_api.expect(watched.page.locator("#status")).to_have_text("8 images classified.", timeout=60_000)
    watched.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_model_tab_by_keyboard_in_both_schemes(browser, server, scheme):
    watched = Watched(browser, server.url, color_scheme=scheme)
    page = watched.page
    loaded(page, 2)
    page.select_option("#model", "fashion")
    page.focus("#tab-images")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-model"
    assert page.get_attribute("#tab-model", "aria-selected") == "true"
    assert page.is_hidden("#panel-images")
    frame = page.frame_locator("#evaluation iframe")
    assert frame.locator("h1").inner_text() == "Report of the test"
    page.wait_for_selector("#card pre")
    assert page.inner_text("#card pre").startswith("# A card")
    watched.check(but="Blocked script execution")  # that of the report: it may run nothing
    assert any("Blocked script execution" in message for message in watched.messages)
    assert scan(page) == []
    watched.context.close()


def test_a_model_without_report_shows_its_figures(watched):
    page = watched.page
    page.select_option("#model", "swapped")
    page.click("#tab-model")
    page.wait_for_selector("#evaluation table")
    assert "test accuracy" in page.inner_text("#evaluation")
    assert "Ankle boot" in page.inner_text("#card")
    watched.check()
    assert scan(page) == []


def test_everything_by_keyboard_alone(watched, files):
    page = watched.page
    page.focus("#tab-images")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chosen:
        page.keyboard.press("Space")
    chosen.value.set_files(files[0])
    articles(page, 1)
    watched.check()


def test_pasted_and_dropped_images(watched, files, offline):
    page = watched.page
    give = """([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
            : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
        document.getElementById("drop").dispatchEvent(event);
    }"""
    for count, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(give, [kind, list(files[count].read_bytes())])
        first = articles(page, count).first
        assert first.locator("h2").inner_text() == f"{kind}.png"
        assert first.locator(".classes .name").first.inner_text() == offline.labels[count]
    watched.check()


def test_a_picture_of_the_camera(watched):
    page = watched.page
    page.click("#camera-open")
    page.click("#camera-take")
    (article,) = articles(page, 1).all()
    assert article.locator("h2").inner_text() == "camera.png"
    assert article.locator(".classes li").count() == 10
    assert page.is_hidden("#camera")
    watched.check()


def test_explanation_with_its_slider(watched, server, files):
    page = watched.page
    page.set_input_files("#files", files[0])
    (article,) = articles(page, 1).all()
    article.locator(".explain").click()
    heat = article.locator(".heat")
    heat.wait_for(state="visible")
    slider = article.locator(".opacity input")
    before = heat.evaluate("node => getComputedStyle(node).opacity")
    slider.press("Home")
    assert (before, heat.evaluate("node => getComputedStyle(node).opacity")) == ("0.6", "0")
    slider.press("End")
    assert heat.evaluate("node => getComputedStyle(node).opacity") == "1"
    watched.check()
    assert scan(page) == []


def test_a_phone_shows_it_all_without_scrolling_aside(browser, server, files):
    watched = Watched(browser, server.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = watched.page
    loaded(page, 2)
    page.set_input_files("#files", files[0])
    articles(page, 1)
    for tab in ("#tab-images", "#tab-model"):
        page.tap(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    watched.context.close()


def test_a_token_is_asked_for_and_kept_for_the_tab(browser, guarded, files, offline):
    watched = Watched(browser, guarded.url)
    page = watched.page
    page.wait_for_selector("#token-form")
    assert "token" in page.inner_text("#summary")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    loaded(page, 1)
    page.set_input_files("#files", files[0])
    found = articles(page, 1)
    assert found.first.locator(".classes .name").first.inner_text() == offline.labels[0]
    watched.check(but="status of 401")
    watched.context.close()


def test_the_description_of_the_api_is_a_page_without_help_from_elsewhere(browser, server):
    watched = Watched(browser, f"{server.url}/docs")
    watched.url = server.url
    watched.page.wait_for_selector("#operations h3")
    text = watched.page.inner_text("#operations")
    assert "POST /predict" in text
    assert "POST /v2/models/{model}/infer" in text
    watched.check()
    assert scan(watched.page) == []
    watched.context.close()


def test_the_page_is_small():
    folder = Path(__file__).parents[2] / "src" / "resfit" / "serving" / "page"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40_000
