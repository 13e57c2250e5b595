"""What is exported of a detector: its network with suppression, or without, at the size of its letterbox."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.box_geometry import Letterbox, placement
from resfit.export.export_model import ExportModel, check, clean
from resfit.networks.detection.kinds import AnyDetectorSpec, QueryDetectorSpec, takes_best_class
from resfit.preprocessing import InputSpec
from resfit.tasks.detection import Detector
from resfit.tasks.detection.orientation import letterbox_for
from resfit.tasks.detection.postprocess import best_classes, suppress

if TYPE_CHECKING:
    import keras

#: What an export returns, in the order in which runtimes without names return it.
DETECTIONS = ("boxes", "classes", "count", "scores")
RAW = ("boxes", "scores")

_MEANINGS = {
    "boxes": "float32 (batch, {most}, 4): left, top, right and bottom edge in pixels of the input, the best first",
    "scores": "float32 (batch, {most}), 0 to 1; 0 behind the count",
    "classes": "int32 (batch, {most}): index of the label; -1 behind the count",
    "count": "int32 (batch): how many boxes there are",
}
_RAW_MEANINGS = {
    "boxes": "float32 (batch, {n}, 4): left, top, right and bottom edge in pixels of the input, before suppression",
    "scores": "float32 (batch, {n}, labels), 0 to 1, before suppression",
}


@dataclasses.dataclass(frozen=True, eq=False)
class ExportDetector(ExportModel):
    """A detector as it is shipped.

    Attributes:
        detector: The detector.
        raw: Whether boxes and scores before suppression are exported.
    """

    detector: Detector = None  # type: ignore[assignment]  # a field behind fields with defaults
    raw: bool = False

    @property
    def spec(self) -> AnyDetectorSpec:
        """The detector's network."""
        return self.detector.spec

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return RAW if self.raw else DETECTIONS

    @functools.cached_property
    def scores(self) -> keras.Model:
        """The network: float32 RGB 0..255 of the letterbox's size to the outputs by name."""
        import keras

        from resfit.training import boundary

        if not self.raw:
            return self.detector.suppressed(size=self.input_spec.size)
        fixed = boundary.copy(self.detector.model, size=self.input_spec.size)
        # copies under names of their own: ONNX lets no two tensors share one
        return keras.Model(fixed.inputs[0], fixed.output, name=fixed.name)

    @property
    def boxes_before_suppression(self) -> int:
        """Boxes of one image before suppression."""
        return sum(self.detector_at_size._counts)

    @functools.cached_property
    def detector_at_size(self) -> Detector:
        """The detector with the letterbox of the export as its contract."""
        own = self.detector
        return Detector(own.model, own.classes, self.input_spec, own.spec, own.recipe, thresholds=own.thresholds)

    def detections(self, found: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Returns boxes in pixels of the input, scores and classes of each image, from outputs of the export.

        Args:
            found: The outputs by name, for a batch.
        """
        if not self.raw:
            return [
                (boxes[:count], scores[:count], classes[:count].astype(np.int64))
                for boxes, scores, classes, count in zip(
                    found["boxes"], found["scores"], found["classes"], found["count"].astype(int).tolist(), strict=True
                )
            ]
        spec, counts = self.spec, self.detector_at_size._counts
        single = takes_best_class(spec)
        rules = {name: getattr(spec, name) for name in ("score_threshold", "nms_threshold", "candidates")}
        return [
            suppress(
                boxes,
                best_classes(scores) if single else scores,
                counts=counts,
                max_detections=spec.max_detections,
                **rules,
            )[:3]
            for boxes, scores in zip(found["boxes"], found["scores"], strict=True)
        ]

    def fitted(self, size: tuple[int, int]) -> Letterbox:
        """Returns how an image lies in the letterbox.

        Args:
            size: Height and width of the image in pixels.
        """
        return placement(size, self.input_spec.size, self.input_spec.resize_mode)

    def described_outputs(self) -> tuple[dict[str, Any], ...]:
        """Returns the outputs for ``contract.json``."""
        spec, count = self.spec, len(self.labels)
        most, n = spec.max_detections, self.boxes_before_suppression
        shapes: dict[str, list[int | None]] = (
            {"boxes": [None, n, 4], "scores": [None, n, count]}
            if self.raw
            else {"boxes": [None, most, 4], "classes": [None, most], "count": [None], "scores": [None, most]}
        )
        meanings = _RAW_MEANINGS if self.raw else _MEANINGS
        return tuple(
            {
                "name": name,
                "dtype": "int32" if name in ("classes", "count") else "float32",
                "shape": shapes[name],
                "meaning": meanings[name].format(most=most, n=n),
            }
            for name in self.outputs
        )

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "Object detector"

    def about(self, temperature_applied: bool = True) -> dict[str, Any]:
        """Returns what ``contract.json`` says of the outputs beside their shapes.

        Args:
            temperature_applied: Not used: scores are as they are shipped.
        """
        spec = self.spec
        rules = {
            "score_threshold": spec.score_threshold,
            "nms_threshold": spec.nms_threshold,
            "candidates": spec.candidates,
            "max_detections": spec.max_detections,
        }
        return {
            "task": "detection",
            "box_format": "xyxy, pixels of the input; see image.rule for the way back to the image",
            "suppression": {"applied": not self.raw, "kind": self._rule, **rules},
            "thresholds": self.detector.thresholds,
        }

    @property
    def _rule(self) -> str:
        """What stands between the boxes of the network and its detections."""
        if isinstance(self.spec, QueryDetectorSpec):
            return "none: the best pairs of a query and a class"
        return "greedy, for each class"

    def output_lines(self, temperature_applied: bool = True) -> list[str]:
        """Returns what the card says of the outputs beside their names.

        Args:
            temperature_applied: Not used: scores are as they are shipped.
        """
        thresholds = sorted(set(self.detector.thresholds.values()))
        shown = f"{thresholds[0]:.2f}" + (f" to {thresholds[-1]:.2f}" if len(thresholds) > 1 else "")
        spec = self.spec
        if isinstance(spec, QueryDetectorSpec):
            best = f"of the best {spec.max_detections} pairs of a query and a class"
            chosen = "those of every query" if self.raw else best
            return [
                f"- Boxes are {chosen}; there is no suppression. The code above shows those of at least the threshold "
                f"of their class ({shown}; in `contract.json`), in pixels of the photo.",
            ]
        rule = (
            "before suppression: of each class, drop boxes that overlap a better one by more than "
            f"{spec.nms_threshold:g} (intersection over union)"
            if self.raw
            else f"after greedy suppression for each class at an overlap of {spec.nms_threshold:g}"
        )
        return [
            f"- Boxes are {rule}. The code above shows those of at least the threshold of their class ({shown}; in "
            "`contract.json`), in pixels of the photo.",
        ]


def of_detector(
    detector: Detector, *, name: str | None, raw: bool, facts: dict[str, Any] | None = None
) -> ExportDetector:
    """Returns a detector as it is exported.

    Args:
        detector: The detector.
        name: Its name in file names and model servers.
        raw: Whether boxes and scores before suppression are exported.
        facts: More for the model card.

    Raises:
        ArgumentError: Its network is not computed in float32, or the name cannot stand in a path.
    """
    contract: InputSpec = letterbox_for(detector.input_spec, portrait=False)
    shipped = detector.exportable()
    found = ExportDetector(
        name=name or clean(detector.model.name),
        network=detector.model,
        labels=detector.classes,
        input_spec=contract,
        activation="sigmoid",
        features="",
        facts={**shipped.facts, "assumptions": list(getattr(detector.model, "assumptions", ())), **(facts or {})},
        tests=shipped.tests,
        detector=detector,
        raw=raw,
    )
    check(found)
    return found
