"""What a detector says about one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

# colours that are told apart, whoever looks (Okabe and Ito 2008)
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """Boxes found in one picture, the best first.

    Attributes:
        path: The file; ``None`` for an array.
        boxes: float32 ``(n, 4)``: left, top, right and bottom edge in pixels of the picture as displayed.
        scores: float32 ``(n,)``, 0..1.
        classes: int64 ``(n,)``: index into ``names``.
        names: The detector's classes.
        size: Height and width of the picture in pixels, as displayed.
        error: Why the picture could not be used; empty if it could.
        source: What was handed over, for :meth:`draw`.
    """

    path: Path | None
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int]
    error: str = ""
    source: Any = dataclasses.field(default=None, repr=False)

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.boxes)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class of each box."""
        return tuple(self.names[number] for number in self.classes.tolist())

    @classmethod
    def failed(cls, path: Path | None, names: tuple[str, ...], error: str) -> Detections:
        """Returns what is said of a picture that cannot be used."""
        empty = np.zeros(0, np.float32)
        return cls(path, empty.reshape(0, 4), empty, np.zeros(0, np.int64), names, (0, 0), error)

    def above(self, threshold: float) -> Detections:
        """Returns the boxes of at least this score.

        Args:
            threshold: 0..1.
        """
        return self._some(self.scores >= threshold)

    def draw(self, image: Any = None, *, width: int | None = None) -> Image:
        """Returns the picture with the boxes on it.

        Args:
            image: A PIL image or file of the same size; ``None`` takes what was predicted on.
            width: Of the lines in pixels; ``None`` follows from the size.

        Raises:
            ArgumentError: The picture is of another size, or cannot be used.
        """
        from PIL import ImageDraw

        picture = opened(self.source if image is None else image)
        if (picture.height, picture.width) != tuple(self.size):
            raise ArgumentError(
                f"the picture must have {self.size[1]}x{self.size[0]} pixels. "
                f"Received: {picture.width}x{picture.height}."
            )
        texts = [f"{label} {score:.2f}" for label, score in zip(self.labels, self.scores.tolist(), strict=True)]
        draw_boxes(ImageDraw.Draw(picture), self.boxes, self.classes, texts, picture.size, width)
        return picture

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        return {
            "path": None if self.path is None else str(self.path),
            "error": self.error or None,
            "width": self.size[1],
            "height": self.size[0],
            "boxes": [
                {"label": label, "score": round(score, 6), "box": [round(value, 3) for value in box]}
                for label, score, box in zip(self.labels, self.scores.tolist(), self.boxes.tolist(), strict=True)
            ],
        }

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Returns a row for each box as COCO's result files have it: ``bbox`` is left, top, width, height.

        Args:
            image_id: Of the picture. ``category_id`` is the number of the class, from 0.
        """
        return [
            {
                "image_id": image_id,
                "category_id": number,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for number, score, (x1, y1, x2, y2) in zip(
                self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each box: ``path``, ``label``, ``score``, ``xmin``, ``ymin``, ``xmax``, ``ymax``."""
        import pandas as pd

        edges = dict(zip(("xmin", "ymin", "xmax", "ymax"), self.boxes.T, strict=True))
        path = None if self.path is None else str(self.path)
        return pd.DataFrame({"path": [path] * len(self), "label": self.labels, "score": self.scores, **edges})

    def _some(self, chosen: np.ndarray) -> Detections:
        return dataclasses.replace(
            self, boxes=self.boxes[chosen], scores=self.scores[chosen], classes=self.classes[chosen]
        )


class PredictedPictures(list[Detections]):
    """The detections of each picture, in order. Of one picture alone, its boxes are the list's too."""

    @property
    def boxes(self) -> np.ndarray:
        """float32 ``(n, 4)`` of the one picture; see :class:`Detections`."""
        return self._only("boxes").boxes

    @property
    def scores(self) -> np.ndarray:
        """float32 ``(n,)`` of the one picture."""
        return self._only("scores").scores

    @property
    def labels(self) -> tuple[str, ...]:
        """The class of each box of the one picture."""
        return self._only("labels").labels

    def draw(self, image: Any = None, *, width: int | None = None) -> Image:
        """Returns the one picture with its boxes; see :meth:`Detections.draw`."""
        return self._only("draw").draw(image, width=width)

    def to_coco(self) -> list[dict[str, Any]]:
        """Returns a row for each box of all pictures as COCO's result files have it; ``image_id`` is the position."""
        return [row for number, one in enumerate(self) for row in one.to_coco(number)]

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each box of all pictures; see :meth:`Detections.to_dataframe`."""
        import pandas as pd

        tables = [one.to_dataframe() for one in self]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _only(self, name: str) -> Detections:
        if len(self) != 1:
            raise ArgumentError(f"{name} is of one picture. Received: {len(self)}; take found[0].{name}.")
        return self[0]


def opened(source: Any) -> Image:
    """Returns a picture as displayed, in colours, at its full size.

    Args:
        source: As :func:`resfit.data.decode.decode_image` takes it, or an array ``(height, width, 3)``.

    Raises:
        ArgumentError: It cannot be used.
    """
    from PIL import Image as Images

    from resfit.data import decode, inputs
    from resfit.errors import ImageError
    from resfit.preprocessing import InputSpec

    contract = InputSpec(resize_mode="none")
    if source is None:
        raise ArgumentError("there is no picture to draw on. Pass image=.")
    if not isinstance(source, Images.Image):
        source = inputs.listed(source, contract).items[0]
    try:
        return Images.fromarray(np.asarray(decode.decode_image(source, contract)).round().astype(np.uint8))
    except ImageError as error:
        raise ArgumentError(f"the picture cannot be drawn on: {error}.") from error


def draw_boxes(
    canvas: Any,
    boxes: np.ndarray,
    classes: np.ndarray,
    texts: Sequence[str],
    size: tuple[int, int],
    width: int | None = None,
) -> None:
    """Draws boxes with captions.

    Args:
        canvas: A ``PIL.ImageDraw.ImageDraw``.
        boxes: Array ``(n, 4)``, xyxy in pixels.
        classes: Array ``(n,)``; each class has a colour.
        texts: A caption for each box; none where it is empty.
        size: Width and height of the picture.
        width: Of the lines; ``None`` follows from the size.
    """
    from PIL import ImageFont

    line = width or max(1, round(min(size) / 200))
    font = ImageFont.load_default(max(10, round(min(size) / 32)))
    # the best boxes are drawn last, over the others
    for row in reversed(range(len(boxes))):
        colour = _COLOURS[int(classes[row]) % len(_COLOURS)]
        x1, y1, x2, y2 = (float(value) for value in boxes[row])
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        if texts[row]:
            left, top, right, bottom = canvas.textbbox((x1, y1), texts[row], font=font)
            shift = top - y1 + bottom - top + line
            y = y1 - shift if y1 >= shift else y1
            place = (left, top + y - y1, right, bottom + y - y1)
            canvas.rectangle((place[0] - 1, place[1] - 1, place[2] + 1, place[3] + 1), fill=colour)
            canvas.text((x1, y), texts[row], fill=(255, 255, 255), font=font)
