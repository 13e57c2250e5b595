"""A server in a thread, with a model that needs no framework: for tests of what stands before the network."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from resfit.serving import repository
from resfit.serving.context import Context
from resfit.serving.metrics import Metrics
from resfit.serving.pipeline import Pipeline
from resfit.serving.server import Server
from resfit.serving.settings import ServerSettings

CLASSES = ("dark", "bright")


class Brightness:
    """Tells dark images from bright ones by their mean. A file is as bright as its first byte says."""

    engine, classes, shape, features = "none", CLASSES, (2, 2, 3), 1
    is_calibrated, label_separator = False, ""
    integers = frozenset()
    task, outputs, text_outputs = "classification", {"scores": (2,)}, ("label",)

    def __init__(self, folder: Path, engine: str):
        self.folder = folder
        self.seen: list[np.ndarray] = []

    def warm_up(self, batch: int) -> None:
        pass

    def decode(self, data: bytes, max_pixels: int) -> np.ndarray:
        return np.full(self.shape, data[0], np.uint8)

    def fit(self, image: np.ndarray) -> np.ndarray:
        return image

    def predict(self, images):
        self.seen += images
        found = []
        for image in images:
            bright = float(image.mean()) / 255
            scores = {"dark": 1 - bright, "bright": bright}
            label = max(scores, key=scores.__getitem__)
            found.append(SimpleNamespace(label=label, labels=(label,), probability=scores[label], probabilities=scores))
        return found

    def embed(self, images):
        return [np.array([image.mean()], np.float32) for image in images]

    def arrays(self, found) -> dict[str, np.ndarray]:
        return {"scores": np.array([[one.probabilities[name] for name in CLASSES] for one in found], np.float32)}

    def texts(self, found) -> dict[str, list[str]]:
        return {"label": [one.label for one in found]}

    def unlike_training(self, found) -> None:
        return None

    def document(self, name: str) -> None:
        return None


@dataclasses.dataclass
class Light:
    """The server."""

    url: str
    address: tuple[str, int]
    context: Context
    server: Server

    @property
    def served(self) -> Brightness:
        return self.context.repository.models["mean"][1].served


def parts(root: Path, load=Brightness, **options) -> Context:
    """The parts of a server, without one."""
    folder = root / "mean"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("classifier.json", "model.keras"):
        (folder / name).write_text("{}")
    settings, metrics = ServerSettings(port=0, drain=0, **options), Metrics()
    found = repository.Repository(root, settings, metrics, load)
    return Context(settings, found, Pipeline(settings, metrics), metrics)


@contextlib.contextmanager
def light_server(root: Path, load=Brightness, **options) -> Iterator[Light]:
    """Starts a server in a thread, and ends it."""
    context = parts(root, load, **options)
    begun = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        server = Server(context, listener, started=begun.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        context.repository.refresh()
        context.repository.start()
        thread.start()
        assert begun.wait(30)
        try:
            yield Light(f"http://127.0.0.1:{address[1]}", address, context, server)
        finally:
            server.handle_exit(15, None)
            thread.join(60)
            assert context.pipeline.close(30)
            assert context.repository.close(30)
