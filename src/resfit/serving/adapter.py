"""A fitted model as the server sees it: the only module that calls :class:`resfit.tasks.base.FittedModel`.

Every answer comes from the model's own methods, so that it is the one that it gives offline.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, ArtifactError, ImageError
from resfit.serving import folders, logs
from resfit.serving.problems import Problem, unusable

if TYPE_CHECKING:
    from resfit.tasks.base import FittedModel

#: Files of a classifier that the page shows, by the name that it asks for.
DOCUMENTS = {"report": ("report.html",), "card": ("model_card.md", "MODEL_CARD.md", "README.md")}
_LARGEST_DOCUMENT = 64 * 2**20
#: How many nearest training images are shown.
NEAREST = 5
#: Ways of drawing what a class is seen by.
METHODS = ("grad-cam", "hires-cam", "grad-cam++", "eigen-cam")
#: Longest side of an explained photo, in pixels.
LONGEST = 1600


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
class ServedExplanation:
    """Where on an image the network saw a class.

    Attributes:
        label: The class.
        image: uint8 ``(height, width, 3)``: the photo at its own size, at most 1600 pixels.
        map: uint8 ``(height, width, 4)``: how much each place counts, to be laid over the image.
        overlay: uint8 ``(height, width, 3)``: both in one.
        method: What made the map.
        evidence: Whether the map shows what speaks for the class (``"positive"``) or against it (``"negative"``).
        note: What is to be known of the map; empty for an ordinary one.
    """

    label: str
    image: np.ndarray
    map: np.ndarray
    overlay: np.ndarray
    method: str
    evidence: str
    note: str


class Served:
    """One fitted model, ready to answer.

    Args:
        fitted: The fitted model.
        folder: Where it stands.
        engine: As :func:`resfit.engines.create` takes it.
    """

    def __init__(self, fitted: FittedModel, folder: Path, engine: str):
        from resfit import engines

        self.fitted = fitted
        self.folder = folder
        engines.check_name(engine)
        self._body: Any = engines.for_server(fitted.network(), engine)

    @classmethod
    def load(cls, folder: Path, engine: str) -> Served:
        """Reads a fitted model and makes it ready.

        Raises:
            ArtifactError: It cannot be read, or holds something else than regular files.
            ArgumentError: The engine cannot run it.
        """
        folders.check(folder, [name for names in DOCUMENTS.values() for name in names])
        from resfit.tasks import dispatch

        return _KINDS.get(dispatch.task_of(folder).name, cls)(dispatch.load(folder), folder, engine)

    @property
    def engine(self) -> str:
        """Which runtime answers."""
        return str(self._body.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or of the numbers that are predicted."""
        return self.fitted.labels

    @property
    def task(self) -> str:
        """What the model was fitted to."""
        return self.fitted.task

    @property
    def network(self) -> str:
        """Name of the network."""
        return str(getattr(getattr(self.fitted, "recipe", None), "model", "") or self.fitted.model.name)

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one image's answer by the name of the output; texts have none."""
        blank = np.full(self.shape, 128, np.uint8)
        (found,) = self.predict([blank])
        if isinstance(found, Problem):
            raise ArtifactError(f"a model must give finite answers. Received: {found}.")
        return {name: values.shape[1:] for name, values in self.arrays([found]).items()}

    @functools.cached_property
    def text_outputs(self) -> tuple[str, ...]:
        """Names of what is answered as text."""
        return tuple(self.fitted.texts([]))

    @property
    def label_separator(self) -> str:
        """What stands between labels in an answer; empty for one label an image."""
        return str(getattr(getattr(self.fitted, "recipe", None), "separator", ""))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels that the network takes."""
        contract = self.fitted.input_spec
        return (*contract.size, contract.channels)

    @functools.cached_property
    def features(self) -> int:
        """How many numbers an embedding has."""
        from resfit import engines

        network = self.fitted.network()
        return int(network.width if isinstance(network, engines.StoredNetwork) else network.output_shape[-1])

    def warm_up(self, batch: int) -> None:
        """Runs the network on batches of every size that is compiled apart, and compares it with Keras once.

        Raises:
            ArtifactError: There are weights that are not finite, or answers that are not.
        """
        _ = self.features  # worked out once, and not while a client waits
        self.fitted.check_finite()
        for images in self._warming(batch):
            embedded = self.embed(images) if images[0].shape == tuple(self.shape) else []
            for found in (*self.predict(images), *embedded):
                if isinstance(found, Problem):
                    raise ArtifactError(f"a model must give finite answers. Received: NaN or infinity ({found}).")
        _ = self.outputs
        if self.engine == "openvino":
            noise = np.random.default_rng(0).integers(0, 256, (batch, *self.shape), dtype=np.uint8)
            self.fitted.keep_for_later(noise)

    def _engines(self) -> dict[tuple[int, ...], Any]:
        """Returns the engines that answer, by the shape of the images that they get."""
        return {tuple(self.shape): self._body}

    def _warming(self, batch: int) -> Iterator[list[np.ndarray]]:
        """Yields batches of noise, one of each size that an engine makes itself ready for."""
        from resfit import engines

        for shape, engine in self._engines().items():
            noise = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
            yield from (list(noise[:count]) for count in engines.batch_sizes(engine, batch))

    def decode(self, data: bytes, max_pixels: int) -> np.ndarray:
        """Decodes a file as the classifier does offline.

        Raises:
            Problem: The image cannot be used.
        """
        from resfit.data import decode

        try:
            image = decode.decode_image(data, self.fitted.input_spec, max_pixels=max_pixels)
            decode.check_size(image, self.fitted.input_spec)
        except ImageError as error:
            raise unusable(str(error)) from error
        return image

    def fit(self, image: np.ndarray) -> np.ndarray:
        """Brings an array to the network's size as the classifier does offline.

        Fractions of at most 1 are refused, so that no client gets an answer for other values than it thinks: an
        exported network would take them as 0..255. Whole numbers are taken as they are, since JSON does not tell
        integers from floats.

        Raises:
            Problem: It cannot be used.
        """
        from resfit.data import decode, inputs

        try:
            image = inputs.fit_array(self.checked(image), self.fitted.input_spec)
            decode.check_size(image, self.fitted.input_spec)
        except (ArgumentError, ImageError) as error:
            raise unusable(str(error)) from error
        return image

    @staticmethod
    def checked(image: np.ndarray) -> np.ndarray:
        """Returns an array whose values are 0..255.

        Raises:
            Problem: They are fractions of 1.
        """
        if image.dtype.kind == "f" and image.size and image.min() >= 0 and image.max() <= 1:
            if (image != np.rint(image)).any():
                raise unusable("its values are 0..1, and 0..255 are needed: multiply them by 255")
            return image.astype(np.uint8)
        return image

    @property
    def integers(self) -> tuple[str, ...]:
        """Names of outputs that are whole numbers."""
        return ()

    def predict(self, images: Sequence[np.ndarray]) -> Sequence[Any]:
        """Predicts on images of the network's size; an image whose answer is not finite is a problem."""
        from resfit.data.inputs import NetworkInput

        found = self.fitted.predict(NetworkInput(images), engine=self._body, batch_size=len(images))
        rows = list(self.fitted.arrays(found).values())
        finite = [all(np.isfinite(values[row]).all() for values in rows) for row in range(len(found))]
        return [one if fine else not_finite() for one, fine in zip(found, finite, strict=True)]

    def embed(self, images: Sequence[np.ndarray]) -> Sequence[np.ndarray | Problem]:
        """Returns the features of images of the network's size; an image whose are not finite is a problem."""
        return [row if np.isfinite(row).all() else not_finite() for row in self._body.run(np.stack(images))]

    def arrays(self, predictions: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns predictions as arrays by the name of the output; see :meth:`FittedModel.arrays`."""
        return self.fitted.arrays(predictions)

    def texts(self, predictions: Sequence[Any]) -> dict[str, list[str]]:
        """Returns what is answered as text by its name; see :meth:`FittedModel.texts`."""
        return self.fitted.texts(predictions)

    @staticmethod
    def unlike_training(prediction: Any) -> bool | None:
        """Says whether an image is unlike the training data; ``None`` where the model cannot tell."""
        return None if getattr(prediction, "unlikeness", None) is None else bool(prediction.unlike_training)

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature was fitted, so that the probabilities mean what they say."""
        return getattr(getattr(self.fitted, "calibration", None), "count", 0) > 0

    def explain(
        self, image: np.ndarray, method: str, source: bytes | np.ndarray | None = None, max_pixels: int | None = None
    ) -> ServedExplanation:
        """Draws where on an image the most probable class was seen.

        Args:
            image: As the network takes it.
            method: One of :data:`METHODS`.
            source: The file, or the array before it was brought to the network's size; by default ``image``.
            max_pixels: Most pixels of the file that are decoded.
        """
        from resfit.data.decode import MAX_PIXELS
        from resfit.data.inputs import NetworkInput
        from resfit.explain import overlays, photos

        try:
            (found,) = self.fitted.explain(NetworkInput([image]), method=method)
        except ArgumentError as error:
            raise Problem(501, str(error)) from error
        contract = self.fitted.input_spec
        whole = image if source is None else source
        try:
            photo = photos.read(whole, contract, longest=LONGEST, max_pixels=max_pixels or MAX_PIXELS)
        except ImageError:  # too large for the memory at its own size
            photo = photos.read(image, contract)
        against = found.evidence == "negative"
        return ServedExplanation(
            label=str(found.label),
            image=photo.pixels,
            map=overlays.photo_layer(photo, found.map, against=against),
            overlay=overlays.over_photo(photo, found.map, against=against),
            method=found.method,
            evidence=found.evidence,
            note=found.note,
        )

    def nearest(self, image: np.ndarray) -> list[Neighbour] | None:
        """Returns the nearest training images; ``None`` where the model keeps none."""
        kept = getattr(self.fitted, "references", None)
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
        """Returns a document that stands beside the model; ``None`` if there is none that may be shown.

        Args:
            name: A key of :data:`DOCUMENTS`.
        """
        for file in DOCUMENTS[name]:
            try:
                return folders.read_file(self.folder, file, _LARGEST_DOCUMENT)
            except FileNotFoundError:
                continue
            except (OSError, ArtifactError) as error:
                logs.event("document is not shown", level=30, error=str(error))
        return None

    def has_document(self, name: str) -> bool:
        """Says whether there is a document that may be shown; see :meth:`document`."""
        for file in DOCUMENTS[name]:
            with contextlib.suppress(OSError, ArtifactError):
                folders.resolve(self.folder, self.folder / file)
                return True
        return False


#: What answers for a task, where it is more than :class:`Served`.
_KINDS: dict[str, type[Served]] = {}


def register_served(task: str, kind: type[Served]) -> None:
    """Says what answers for the models of a task.

    Args:
        task: Its name.
        kind: The class.
    """
    _KINDS[task] = kind


def not_finite() -> Problem:
    """Returns the problem of an image whose answer is no number."""
    return unusable("the network's answer is not finite: the image's values lie far outside of 0..255")


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
