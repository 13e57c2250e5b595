"""Explanations of a classifier's answers: a map, its picture and the words that belong to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, ResfitError, closest
from resfit.explain import overlays, photos
from resfit.explain.graph import ExplainableGraph
from resfit.explain.methods import Attribution, Evidence, attribute, check_method
from resfit.explain.neighbours import Example
from resfit.explain.overlays import overlay
from resfit.preprocessing import InputSpec

if TYPE_CHECKING:
    import keras

    from resfit.data.decode import DecodedBatch


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Why a classifier said what it said about one image.

    Attributes:
        path: The file; ``None`` for an array.
        label: The most probable class; ``None`` if the image could not be used.
        target: The class that is explained.
        probability: Its probability, 0..1.
        map: float32 ``(height, width)`` as the network saw the image, 0..1: what speaks for the target, or with
            negative evidence what speaks against it.
        raw: float32, signed and unscaled, as :class:`resfit.explain.methods.Attribution` has it.
        image: uint8 ``(height, width, channels)``: the image as the network saw it.
        method: How it was made: the method that was asked for, or the one that took its place.
        stage: The layer whose feature map was read; empty for methods that read none.
        gap: Integrated gradients: share of the difference in score that ``raw`` misses.
        error: Why the image could not be used; empty if it could.
        examples: The training images that are most alike, where they were asked for.
        empty: Whether the method that was asked for finds nothing that speaks for the target.
        evidence: What the map shows, ``"positive"``, ``"negative"`` or ``"none"``; see
            :class:`resfit.explain.methods.Attribution`.
        note: What is to be known of the map; empty for an ordinary one.
        source: What :meth:`picture` reads the photo from; ``None`` where that is not known.
        contract: How the photo became the network's input; ``None`` where that is not known.
    """

    path: Path | None
    label: str | None
    target: str | None
    probability: float
    map: np.ndarray
    raw: np.ndarray
    image: np.ndarray
    method: str
    stage: str
    gap: float = 0.0
    error: str = ""
    examples: tuple[Example, ...] = ()
    empty: bool = False
    evidence: Evidence = "positive"
    note: str = ""
    source: Any = dataclasses.field(default=None, repr=False)
    contract: InputSpec | None = dataclasses.field(default=None, repr=False)

    @property
    def overlay(self) -> np.ndarray:
        """The map over the photo at its own size, as :meth:`picture` draws it; nothing where there was an error."""
        return self.picture()

    def picture(self, longest: int = photos.LONGEST) -> np.ndarray:
        """Draws the map over the photo: the redder, the more a place speaks for the target.

        The photo is read again, at its own size. What the network did not see of it is darker. With negative evidence
        the map is violet. A file that cannot be read any more is drawn as the network saw it.

        Args:
            longest: Longest side in pixels; a larger photo is scaled down to it.

        Returns:
            uint8 ``(height, width, 3)``.
        """
        against = self.evidence == "negative"
        photo = None if self.error else self.photo(longest)
        if photo is None:
            return overlay(self.image, self.map, against=against) if self.map.size else np.zeros((0, 0, 3), np.uint8)
        return overlays.over_photo(photo, self.map, against=against)

    def photo(self, longest: int = photos.LONGEST) -> photos.Photo | None:
        """Returns the photo at its own size; ``None`` where it cannot be read.

        Args:
            longest: As :meth:`picture` takes it.
        """
        if self.source is None or self.contract is None:
            return None
        try:
            return photos.read(self.source, self.contract, longest=longest)
        except ResfitError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Returns all but the arrays as JSON-ready values."""
        return {
            "path": None if self.path is None else str(self.path),
            "label": self.label,
            "target": self.target,
            "probability": self.probability if not self.error else None,
            "method": self.method,
            "stage": self.stage or None,
            "gap": self.gap,
            "empty": self.empty,
            "evidence": self.evidence if not self.error else None,
            "note": self.note or None,
            "error": self.error or None,
            "examples": [example.to_dict() for example in self.examples],
        }


def explain_batches(
    model: keras.Model,
    batches: Iterable[DecodedBatch],
    classes: Sequence[str],
    *,
    paths: Sequence[Path | None] = (),
    sources: Sequence[Any] = (),
    contract: InputSpec | None = None,
    method: str = "grad-cam",
    target: str | int | None = None,
    stage: str | None = None,
    batch_size: int | None = None,
    alike: Callable[[np.ndarray], Sequence[Sequence[Example]]] | None = None,
    calibrate: Callable[[np.ndarray], np.ndarray] | None = None,
    total: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> list[Explanation]:
    """Explains decoded images.

    Args:
        model: A network with probabilities for the classes.
        batches: The images, as :func:`resfit.data.decode.decode_many` gives them.
        classes: Names of the classes.
        paths: The files; ``None`` for what was handed over otherwise, empty if all was.
        sources: The images before they were brought to the network's size, as :func:`resfit.explain.photos.read`
            takes them; empty draws maps over what the network saw.
        contract: How they were brought to it.
        method: As :func:`resfit.explain.methods.attribute` takes it, as are ``stage``, ``batch_size`` and ``options``.
        target: The class to explain, by name or index; ``None`` is the most probable one of each image.
        stage: Which feature map.
        batch_size: Images at once; ``None`` chooses by their size.
        alike: Gives for a batch of images the training images that are most alike.
        calibrate: Makes calibrated probabilities of what the network gives, both ``(n, classes)``.
        total: How many there are, for ``progress``.
        progress: Called as images get done.
        **options: Of the method.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    check_method(method, options)
    wanted = None if target is None else class_number(target, classes)
    graph = ExplainableGraph(model)
    nothing = np.zeros((0, 0), np.float32)
    found: list[Explanation] = []
    for batch in batches:
        rows: dict[int, Explanation] = {}
        for index, reason in batch.failures:
            path = paths[index] if paths else None
            empty = np.zeros((0, 0, 3), np.uint8)
            rows[index] = Explanation(path, None, None, 0.0, nothing, nothing, empty, method, "", error=reason)
        if len(batch.indices):
            made = attribute(
                graph,
                batch.images,
                method=method,
                target=wanted,
                stage=stage,
                batch_size=batch_size,
                **options,
            )
            examples = alike(batch.images) if alike is not None else [()] * len(made)
            for index, image, one, near in zip(batch.indices.tolist(), batch.images, made, examples, strict=True):
                shares = one.probabilities if calibrate is None else calibrate(one.probabilities[None])[0]
                rows[index] = Explanation(
                    path=paths[index] if paths else None,
                    label=classes[int(one.probabilities.argmax())],
                    target=classes[one.target],
                    probability=float(shares[one.target]),
                    map=one.map,
                    raw=one.raw,
                    image=image,
                    method=one.method,
                    stage=one.stage,
                    gap=one.gap,
                    examples=tuple(near),
                    empty=one.empty,
                    evidence=one.evidence,
                    note=_note(one, method, classes[one.target]),
                    source=sources[index] if sources else None,
                    contract=contract,
                )
        found.extend(rows[index] for index in sorted(rows))
        if progress is not None:
            progress("explaining", len(found), max(total, len(found)))
    return found


def _note(found: Attribution, asked: str, target: str) -> str:
    """Says what is unusual about a map."""
    if not found.empty:
        return ""
    where = f" in {found.stage}" if found.stage else ""
    nothing = f"{asked} finds nothing that speaks for {target}{where}"
    if found.evidence == "positive":
        return f"{nothing}; the map is that of {found.method}"
    if found.evidence == "negative":
        return f"{nothing}; the map shows what speaks against it"
    return f"{nothing}, nor against it"


def class_number(target: str | int, classes: Sequence[str]) -> int:
    """Returns the index of a class.

    Args:
        target: Its name or index.
        classes: The names.

    Raises:
        ArgumentError: There is no such class.
    """
    if isinstance(target, str) and target in classes:
        return list(classes).index(target)
    if isinstance(target, int | np.integer) and not isinstance(target, bool) and 0 <= target < len(classes):
        return int(target)
    raise ArgumentError(
        f"target must be one of the classes {', '.join(classes[:8])}{', …' if len(classes) > 8 else ''}, or an index "
        f"0..{len(classes) - 1}. Received: {target!r}.{closest(str(target), classes)}"
    )
