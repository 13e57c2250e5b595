"""A small classifier of the shipped sample, and the servers that the tests talk to: real ones, in processes apart."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

try:
    import httpx
except ImportError:  # the tests that use it are skipped, with this reason
    httpx = None

ROOT = Path(__file__).parents[2]
REPORT = """<h1>Report of the test</h1><script>
document.querySelector("h1").textContent += " runs";
fetch("/about").catch(() => {});
try { parent.document.title = "taken over"; } catch {}
</script>"""
TOKEN = "a-token-of-twenty-characters"


@dataclasses.dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen
    url: str
    errors: Path

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    @property
    def log(self) -> list[dict]:
        lines = self.errors.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metric(self, name: str, token: str = "") -> float:
        """Sum over the samples of one metric."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        text = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30).text
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
        return sum(float(value) for key, value in rows if key.split("{")[0] == name)

    def stop(self, patience: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)


@contextlib.contextmanager
def serving(source: Path, folder: Path, *options: str, ready: bool = True, **environment: str) -> Iterator[Running]:
    """Starts `resfit serve` and waits until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "stderr"
    command = [sys.executable, "-c", "from resfit.cli.main import run; run()", "serve", str(source)]
    with open(errors, "wb") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment},
            cwd=ROOT,
        )
    try:
        assert process.stdout is not None
        head = b"".join(process.stdout.readline() for _ in range(3))
        assert head, errors.read_text()
        running = Running(process, json.loads(head)["url"], errors)
        wait_until(lambda: not ready or httpx.get(f"{running.url}/v2/health/ready").status_code == 200, 120)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def wait_until(true, seconds: float) -> None:
    """Waits for something that comes; how long it takes is not measured."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def in_threads(count: int, work) -> list:
    """Runs `work(number)` in threads and returns what each gave, or raises what one raised."""
    results: list = [None] * count
    errors: list[BaseException] = []

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """The shipped images."""
    from resfit.data import samples

    return samples.unpack(tmp_path_factory.mktemp("sample") / "images")


@pytest.fixture(scope="session")
def classifier(images, tmp_path_factory) -> Path:
    """The embedded network with a head for 20 training images a class."""
    from resfit.tasks.classification import fit

    folder = tmp_path_factory.mktemp("small")
    for path in sorted(images.glob("train/*/*.png")):
        if int(path.stem) < 20:
            target = folder / "images" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    fit(folder / "images", out=folder / "fashion.resfit", cache=False)
    return folder / "fashion.resfit"


@pytest.fixture(scope="session")
def other(classifier, tmp_path_factory) -> Path:
    """The same network with its first two classes swapped: another answer for each image."""
    from resfit.tasks.classification import Classifier

    changed = Classifier.load(classifier)
    changed.classes = (changed.classes[1], changed.classes[0], *changed.classes[2:])
    folder = tmp_path_factory.mktemp("other") / "other.resfit"
    changed.save(folder)
    return folder


@pytest.fixture(scope="session")
def files(images) -> list[Path]:
    """Twelve test images, the ten classes among them."""
    found = sorted(images.glob("test/*/00[01].png"))
    return [*found[::2], *found[1:4:2]]


@dataclasses.dataclass(frozen=True)
class Offline:
    """What the classifier says without a server."""

    labels: list[str]
    scores: np.ndarray
    features: np.ndarray
    classes: tuple[str, ...]


@pytest.fixture(scope="session")
def offline(classifier, files) -> Offline:
    from resfit.tasks.classification import Classifier

    loaded = Classifier.load(classifier)
    return Offline(
        labels=[prediction.label for prediction in loaded.predict(files, engine="openvino")],
        scores=loaded.predict_proba(files, engine="openvino"),
        features=loaded.embed(files, engine="openvino", cache=False).features,
        classes=loaded.classes,
    )


@pytest.fixture(scope="session")
def arrays(classifier, files) -> np.ndarray:
    """The images as the network takes them."""
    from resfit.data.decode import decode_image
    from resfit.tasks.classification import Classifier

    spec = Classifier.load(classifier).input_spec
    return np.stack([decode_image(path, spec) for path in files])


@pytest.fixture(scope="session")
def models(classifier, other, tmp_path_factory) -> Path:
    """A folder of two models, one of which has versions."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(classifier, root / "fashion")
    shutil.copytree(classifier, root / "swapped" / "1")
    (root / "swapped" / "labels.json").write_text('{"stable": 1}')
    (root / "not a model").mkdir()
    (root / "fashion" / "report.html").write_text(REPORT)
    (root / "fashion" / "model_card.md").write_text("# A card\n\nFor the test.\n")
    return root


@pytest.fixture(scope="session")
def server(models, tmp_path_factory) -> Iterator[Running]:
    """A server of two models with the usual bounds."""
    with serving(models, tmp_path_factory.mktemp("server"), "--poll", "0.2", "--versions", "2") as running:
        yield running


@pytest.fixture(scope="session")
def guarded(classifier, tmp_path_factory) -> Iterator[Running]:
    """A server with a token and narrow bounds."""
    options = {
        "--max-body": 400_000,
        "--max-files": 3,
        "--max-pixels": 1_000_000,
        "--queue": 4,
        "--header-timeout": 0.5,
        "--body-timeout": 1,
    }
    flat = [str(part) for pair in options.items() for part in pair]
    with serving(classifier, tmp_path_factory.mktemp("guarded"), *flat, RESFIT_TOKEN=TOKEN) as running:
        yield running
