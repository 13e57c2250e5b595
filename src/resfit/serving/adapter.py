"""A classifier as the server sees it: the only module that knows how :class:`resfit.classifier.Classifier` is called.

Every answer comes from the classifier's own methods, so that it is the one that it gives offline.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, ImageError
from resfit.serving.problems import unusable

if TYPE_CHECKING:
    from resfit.classifier import Classifier, Prediction

#: Files of a classifier that the page shows, by the name that it asks for.
DOCUMENTS = {"report": ("report.html",), "card": ("model_card.md", "MODEL_CARD.md", "README.md")}
#: How many nearest training images are shown.
NEAREST = 5
#: Ways of drawing what a class is seen by.
METHODS = ("grad-cam", "grad-cam++", "eigen-cam")


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A training image near to one that was asked about.

    Attributes:
        label: Its class.
        similarity: Cosine of the features, -1..1.
        thumbnail: The image as PNG or JPEG; empty where none is kept.
    """

    label: str
    similarity: float
    thumbnail: bytes = b""


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Where on an image the network saw a class.

    Attributes:
        label: The class.
        image: uint8 ``(height, width, 3)``: the image as the network gets it.
        map: uint8 ``(height, width, 4)``: how much each place counts, to be laid over the image.
        overlay: uint8 ``(height, width, 3)``: both in one.
    """

    label: str
    image: np.ndarray
    map: np.ndarray
    overlay: np.ndarray


class Served:
    """One classifier, ready to answer.

    Args:
        classifier: The classifier.
        folder: Where it stands.
        engine: As :func:`resfit.engines.create` takes it.
    """

    def __init__(self, classifier: Classifier, folder: Path, engine: str):
        from resfit import engines

        self.classifier = classifier
        self.folder = folder
        engines.check_name(engine)
        self._body: Any = engines.create(classifier.body(), engine, images=None)

    @classmethod
    def load(cls, folder: Path, engine: str) -> Served:
        """Reads a classifier and makes it ready.

        Raises:
            ArtifactError: It cannot be read.
            ArgumentError: The engine cannot run it.
        """
        from resfit.classifier import Classifier

        return cls(Classifier.load(folder), folder, engine)

    @property
    def engine(self) -> str:
        """Which runtime answers."""
        return str(self._body.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classifier.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels that the network takes."""
        contract = self.classifier.input_spec
        return (*contract.size, contract.channels)

    @functools.cached_property
    def features(self) -> int:
        """How many numbers an embedding has."""
        return int(self.classifier.body().output_shape[-1])

    def warm_up(self, batch: int) -> None:
        """Runs the network on batches of every size that is compiled apart, and compares it with Keras once."""
        _ = self.features  # worked out once, and not while a client waits
        noise = np.random.default_rng(0).integers(0, 256, (batch, *self.shape), dtype=np.uint8)
        for count in sorted({1, min(2, batch), batch}):
            self.predict(list(noise[:count]))

    def decode(self, data: bytes, max_pixels: int) -> np.ndarray:
        """Decodes a file as the classifier does offline.

        Raises:
            Problem: The image cannot be used.
        """
        from resfit.data import decode

        try:
            image = decode.decode_image(data, self.classifier.input_spec, max_pixels=max_pixels)
            decode.check_size(image, self.classifier.input_spec)
        except ImageError as error:
            raise unusable(str(error)) from error
        return image

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Brings an array to the network's size as the classifier does offline.

        Raises:
            Problem: It cannot be used.
        """
        from resfit.data import decode, inputs

        try:
            image = inputs.fit_array(image, self.classifier.input_spec)
            decode.check_size(image, self.classifier.input_spec)
        except (ArgumentError, ImageError) as error:
            raise unusable(str(error)) from error
        return image

    def predict(self, images: Sequence[np.ndarray]) -> Sequence[Prediction]:
        """Says what is on images of the network's size."""
        from resfit.data.inputs import NetworkInput

        return self.classifier.predict(NetworkInput(images), engine=self._body, batch_size=len(images))

    def embed(self, images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the features of images of the network's size."""
        return list(self._body.run(np.stack(images)))

    def scores(self, predictions: Sequence[Prediction]) -> np.ndarray:
        """Returns probabilities in the order of the classes, float32 ``(n, classes)``."""
        rows = [[prediction.probabilities[name] for name in self.classes] for prediction in predictions]
        return np.array(rows, np.float32).reshape(len(predictions), len(self.classes))

    @staticmethod
    def unlike_training(prediction: Prediction) -> bool | None:
        """Says whether an image is unlike the training data; ``None`` where the classifier cannot tell."""
        return None if prediction.unlikeness is None else prediction.unlike_training

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature was fitted, so that the probabilities mean what they say."""
        return self.classifier.calibration.count > 0

    def explain(self, image: np.ndarray, method: str) -> Explanation:
        """Draws where on an image the most probable class was seen."""
        from resfit.data.inputs import NetworkInput
        from resfit.explain import overlays

        (found,) = self.classifier.explain(NetworkInput([image]), method=method)
        return Explanation(str(found.label), image, overlays.layer(found.map), found.overlay)

    def nearest(self, image: np.ndarray) -> list[Neighbour] | None:
        """Returns the nearest training images; ``None`` where the classifier keeps none."""
        kept = self.classifier.references
        if kept is None:
            return None
        positions, cosines = kept.nearest(self._body.run(image[None]), NEAREST)
        return [
            Neighbour(
                label=self.classes[kept.labels[position]] if kept.labels[position] >= 0 else "",
                similarity=float(cosine),
                thumbnail=kept.thumbnails[position],
            )
            for position, cosine in zip(positions[0].tolist(), cosines[0], strict=True)
        ]

    def document(self, name: str) -> bytes | None:
        """Returns a document that stands beside the model; ``None`` if there is none.

        Args:
            name: A key of :data:`DOCUMENTS`.
        """
        for file in DOCUMENTS[name]:
            path = self.folder / file
            if path.is_file():
                return path.read_bytes()
        return None


def png(image: np.ndarray) -> bytes:
    """Returns an image as PNG.

    Args:
        image: uint8 ``(height, width)`` or ``(height, width, channels)`` of 1, 3 or 4 channels.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def data_url(image: bytes) -> str:
    """Returns a PNG or JPEG as a ``data:`` URL."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
