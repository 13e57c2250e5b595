"""Takes the pictures of the page in docs/: starts a server for a classifier, and shows it to a browser.

python tools/serving_screenshots.py demo/fashion.resfit demo/images
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("images", type=Path)
    options = parser.parse_args()
    images = [options.images / "test" / name / "001.png" for name in ("Sneaker", "Coat")]
    command = [sys.executable, "-c", "from resfit.cli.main import run; run()", "serve", str(options.classifier)]
    server = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        url = json.loads(b"".join(server.stdout.readline() for _ in range(3)))["url"]
        while httpx.get(f"{url}/v2/health/ready").status_code != 200:
            time.sleep(0.2)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, shape in (
                ("serving-page", {"viewport": {"width": 1000, "height": 900}, "color_scheme": "light"}),
                ("serving-phone", {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}),
            ):
                page = browser.new_context(**shape).new_page()
                page.goto(url)
                take(page, images, DOCS / f"{name}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def take(page: Page, images: list[Path], target: Path) -> None:
    expect(page.locator("#model option")).to_have_count(1, timeout=60_000)
    page.set_input_files("#files", images)
    articles = page.locator("article")
    expect(articles).to_have_count(2, timeout=60_000)
    articles.first.locator(".explain").click()
    articles.first.locator(".heat").wait_for(timeout=120_000)
    expect(articles.first.locator(".nearest img")).to_have_count(5, timeout=60_000)
    page.evaluate("() => document.activeElement.blur()")
    page.screenshot(path=target)


if __name__ == "__main__":
    main()
