"""A detector as the server sees it: boxes in pixels of the picture that a client sent."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, ImageError
from resfit.serving.adapter import LONGEST, Served, not_finite, png, register_served
from resfit.serving.problems import Problem, unusable

if TYPE_CHECKING:
    from resfit.preprocessing import InputSpec
    from resfit.tasks.base import FittedModel
    from resfit.tasks.detection import Detections, Detector


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A picture in its letterbox.

    Attributes:
        pixels: As the network takes it, ``(height, width, channels)``.
        size: Height and width of the picture in pixels, as displayed.
        source: The file or the array itself, where it is predicted in tiles; else None.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    source: Any = None


class ServedDetector(Served):
    """One detector, ready to answer.

    Args:
        fitted: The detector.
        folder: Where it stands.
        engine: As :func:`resfit.engines.create` takes it.
    """

    def __init__(self, fitted: FittedModel, folder: Path, engine: str):
        from resfit import engines
        from resfit.tasks.detection.orientation import at_size

        super().__init__(fitted, folder, engine)
        whole: Any = fitted
        # of each orientation, where the contract turns its box for portraits
        self._at: dict[tuple[int, int], Detector] = {one.input_spec.size: one for one in at_size(whole)}
        self._runs = {size: engines.for_server(one.joined_network(), engine) for size, one in self._at.items()}

    @property
    def engine(self) -> str:
        """Which runtime answers."""
        return str(next(iter(self._runs.values())).name)

    @property
    def is_calibrated(self) -> bool:
        """Whether scores were calibrated on validation pictures, so that they are probabilities."""
        recipe: Any = getattr(self.fitted, "recipe", None)
        return recipe is not None and (recipe.score_scale, recipe.score_shift) != (1.0, 0.0)

    def _engines(self) -> dict[tuple[int, ...], Any]:
        """Returns the engines of both orientations, where there are two, by the shape of the pictures."""
        channels = self.shape[-1]
        return {(*size, channels): engine for size, engine in self._runs.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """By class the score from which boxes are shown."""
        return dict(getattr(self.fitted, "thresholds", {}))

    @functools.cached_property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one picture's answer by the name of the output."""
        return {name: values.shape[1:] for name, values in self.fitted.arrays([]).items()}

    @property
    def integers(self) -> tuple[str, ...]:
        """Names of outputs that are whole numbers."""
        return ("classes", "count")

    def decode(self, data: bytes, max_pixels: int) -> Any:
        """Decodes a file as the detector does offline.

        Raises:
            Problem: The picture cannot be used.
        """
        from resfit.data import decode
        from resfit.tasks.detection.orientation import is_portrait

        sizes: list[tuple[int, int]] = []
        try:
            pixels = decode.decode_image(
                data,
                self._contract(portrait=is_portrait(data)),
                max_pixels=max_pixels,
                look=lambda header, image: sizes.append(decode.full_size(image)),
            )
        except ImageError as error:
            raise unusable(str(error)) from error
        size = sizes[0] if sizes else (pixels.shape[0], pixels.shape[1])
        return Fitted(pixels, size, data if self._is_tiled else None)

    def fit(self, image: np.ndarray) -> Any:
        """Brings an array into the letterbox as the detector does offline; see :meth:`Served.fit`.

        Raises:
            Problem: It cannot be used.
        """
        from resfit.data import inputs

        image = self.checked(image)
        size = (int(image.shape[0]), int(image.shape[1]))
        try:
            pixels = inputs.fit_array(image, self._contract(portrait=size[0] > size[1]))
            return Fitted(pixels, size, image if self._is_tiled else None)
        except (ArgumentError, ImageError) as error:
            raise unusable(str(error)) from error

    def predict(self, images: Sequence[Any]) -> Sequence[Any]:
        """Finds all boxes in pictures, down to the network's own lowest score; one that is not finite is a problem."""
        from resfit.data.box_geometry import placement
        from resfit.data.inputs import NetworkInput

        if any(isinstance(image, Fitted) and image.source is not None for image in images):
            return [self._in_tiles(image) for image in images]
        found: list[Any] = [None] * len(images)
        for size, detector in self._at.items():
            rows = [row for row, image in enumerate(images) if _pixels(image).shape[:2] == size]
            if not rows:
                continue
            own = NetworkInput([_pixels(images[row]) for row in rows])
            run: Any = self._runs[size]
            predicted = detector.predict(own, threshold=0.0, tiles=False, engine=run, batch_size=len(rows))
            for row, one in zip(rows, predicted, strict=True):
                if not (np.isfinite(one.boxes).all() and np.isfinite(one.scores).all()):
                    found[row] = not_finite()
                    continue
                shown = images[row].size if isinstance(images[row], Fitted) else size
                placed = placement(shown, size, detector.input_spec.resize_mode)
                boxes = placed.to_image(one.boxes, clip=True).astype(np.float32)
                found[row] = dataclasses.replace(one, boxes=boxes, size=shown, source=None)
        return found

    def _in_tiles(self, image: Any) -> Any:
        """Finds boxes in one picture as the detector does offline, tile by tile."""
        source = image.source if isinstance(image, Fitted) and image.source is not None else _pixels(image)
        run: Any = next(iter(self._runs.values()))
        whole: Any = self.fitted
        (found,) = whole.predict(source, threshold=0.0, engine=run)
        if found.error:
            return unusable(found.error)
        fine = np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
        return dataclasses.replace(found, source=None) if fine else not_finite()

    @property
    def _is_tiled(self) -> bool:
        """Whether the detector cuts pictures into tiles."""
        return bool(getattr(getattr(self.fitted, "recipe", None), "tiles", None))

    def embed(self, images: Sequence[Any]) -> Sequence[np.ndarray | Problem]:
        """Returns the features of pictures; see :meth:`Served.embed`."""
        return [found for image in images for found in super(ServedDetector, self).embed([_pixels(image)])]

    def explain(self, image: Any, *arguments: Any, **options: Any) -> Any:
        """Is not available for detectors.

        Raises:
            Problem: Always.
        """
        raise Problem(501, "explanations are for classifiers. Received: a detector.")

    def shown(self, found: Detections, threshold: float | None) -> Detections:
        """Returns the boxes that are shown.

        Args:
            found: All boxes of a picture.
            threshold: Lowest score; ``None`` takes that of each class.
        """
        if threshold is not None:
            return found.above(threshold)
        limits = np.array([self.thresholds[name] for name in found.names], np.float32)
        return found._some(found.scores >= limits[found.classes])

    def drawn(self, source: Any, found: Detections, max_pixels: int) -> bytes:
        """Returns the picture with boxes as PNG, its longest side 1600 pixels at most.

        Args:
            source: The file, or the array.
            found: The boxes, in pixels of the picture.
            max_pixels: Most pixels of the file that are decoded.
        """
        from PIL import Image, ImageDraw

        from resfit.explain import photos
        from resfit.tasks.detection.detections import draw_boxes

        pixels = photos.read(source, self.fitted.input_spec, longest=LONGEST, max_pixels=max_pixels).pixels
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        scale = np.array([picture.width / found.size[1], picture.height / found.size[0]] * 2)
        texts = [f"{label} {score:.2f}" for label, score in zip(found.labels, found.scores.tolist(), strict=True)]
        draw_boxes(ImageDraw.Draw(picture), found.boxes * scale, found.classes, texts, picture.size)
        return png(np.asarray(picture))

    def _contract(self, *, portrait: bool) -> InputSpec:
        from resfit.tasks.detection.orientation import letterbox_for

        return letterbox_for(self.fitted.input_spec, portrait=portrait)


def _pixels(image: Any) -> np.ndarray:
    return image.pixels if isinstance(image, Fitted) else image


register_served("detection", ServedDetector)
