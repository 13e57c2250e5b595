"""What ``classifier.json`` must look like: every type and range, checked before anything of it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from resfit.data import class_names
from resfit.errors import ArtifactError
from resfit.evaluation.calibrated import Calibration
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.results import FitRecipe

_MOST_CLASSES = 1_000_000
_MOST_SIDE = 16_384
_MOST_CHANNELS = 10_000

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


class _Conformal(msgspec.Struct):
    count: _Count
    ranks: list[_Count]
    scores: dict[str, Any]


class _Calibration(msgspec.Struct):
    count: _Count
    source: str
    effect: dict[str, Any]
    conformal: _Conformal | None


class _Test(msgspec.Struct):
    accuracy: _Share | None = None
    interval: tuple[_Share, _Share] | None = None
    n: _Count | None = None
    log_loss: float | None = None
    per_class: list[dict[str, Any]] | None = None
    confusion: list[list[_Count]] | None = None
    figures: dict[str, Any] | None = None


class _Metrics(msgspec.Struct):
    images: dict[str, _Count] = {}
    cross_validation: list[dict[str, Any]] = []
    training: dict[str, Any] | None = None
    checks: dict[str, Any] | None = None
    test: _Test | None = None
    notice: str = ""


class _Description(msgspec.Struct):
    """The whole; what older versions did not write has a default."""

    classes: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=_MOST_CLASSES)]
    input: dict[str, Any]
    architecture: dict[str, Any] | None
    recipe: dict[str, Any]
    metrics: _Metrics
    data: str
    versions: dict[str, str]
    temperature: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    calibration: _Calibration | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifierDescription:
    """What a classifier's folder says beside its model, checked.

    Attributes:
        classes: Names of the classes.
        input_spec: The input contract.
        architecture: The network, where it is a residual one.
        recipe: How it was made.
        calibration: Temperature and prediction sets.
        metrics: JSON-ready figures of the fit.
        fingerprint: Digest of the data.
        versions: Versions of the packages that made it.
    """

    classes: tuple[str, ...]
    input_spec: InputSpec
    architecture: ArchitectureSpec | None
    recipe: FitRecipe
    calibration: Calibration
    metrics: dict[str, Any]
    fingerprint: str
    versions: dict[str, str]


def read(description: Mapping[str, Any], *, strict: bool = True) -> ClassifierDescription:
    """Checks a description and returns its parts.

    Args:
        description: As :func:`resfit.artifact.read` returns it.
        strict: Whether class names must have no control characters, as those of earlier classifiers might.

    Raises:
        ArtifactError: An entry is missing, of the wrong type or out of its range; the text says which.
    """
    found = _converted(description, _Description, "")
    class_names.check(found.classes, alike=False, controls=strict, error=ArtifactError)
    contract = _dataclass(found.input, InputSpec, "input", InputSpec.from_dict)
    if max(contract.size) > _MOST_SIDE or contract.channels > _MOST_CHANNELS:
        raise ArtifactError(f"'input' must have sides up to {_MOST_SIDE} pixels. Received: {contract.size}.")
    spec = None
    if found.architecture is not None:
        spec = _dataclass(found.architecture, ArchitectureSpec, "architecture", ArchitectureSpec.from_dict)
    recipe = _dataclass(found.recipe, FitRecipe, "recipe", lambda fields: FitRecipe(**fields))
    if recipe.head not in base.HEADS:
        raise ArtifactError(f"'recipe' must have a head of {tuple(base.HEADS)}. Received: {recipe.head!r:.40}.")
    return ClassifierDescription(
        classes=tuple(found.classes),
        input_spec=contract,
        architecture=spec,
        recipe=recipe,
        calibration=_calibration(found.temperature, description.get("calibration")),
        metrics=description["metrics"],
        fingerprint=found.data,
        versions=found.versions,
    )


def _calibration(temperature: float, fields: Mapping[str, Any] | None) -> Calibration:
    try:
        found = Calibration.from_dict(float(temperature), fields)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"'calibration' cannot be read: {error}.") from error
    sets = found.conformal
    for own in () if sets is None else (sets, *sets.by_class):
        scores = [value for values in own.scores.values() for value in values]
        ordered = list(own.ranks) == sorted(own.ranks) and all(
            list(values) == sorted(values) for values in own.scores.values()
        )
        lengths = {len(values) for values in own.scores.values()} | {len(own.ranks)}
        if len(lengths) != 1 or not ordered or not all(-1e-6 <= score <= 1 + 1e-6 for score in scores):
            raise ArtifactError("'calibration' must have ascending scores 0..1, one for each rank.")
    return found


def _dataclass(fields: dict[str, Any], kind: Any, where: str, make: Any) -> Any:
    """Checks the types of a dataclass' fields, and makes it by its own rules, which know the unknown ones."""
    _converted(fields, kind, where)
    try:
        return make(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"'{where}' cannot be used: {error}") from error


def _converted(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError) as error:
        text = str(error).replace("`", "'")
        missing = text.partition("missing required field ")[2]
        text = f"missing entry {missing}" if missing else text
        place = f"'{where}': " if where else ""
        raise ArtifactError(f"{place}{text:.300}") from error
