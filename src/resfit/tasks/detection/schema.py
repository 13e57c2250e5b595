"""What ``model.json`` of a detector must look like: every type and range, checked before anything of it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from resfit.data import class_names
from resfit.errors import ArtifactError
from resfit.networks.detection import kinds
from resfit.preprocessing import InputSpec
from resfit.tasks.detection.results import DetectorRecipe

_MOST_CLASSES = 100_000
_MOST_SIDE = 16_384

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]


class _Description(msgspec.Struct):
    classes: Annotated[list[_Name], msgspec.Meta(min_length=1, max_length=_MOST_CLASSES)]
    input: dict[str, Any]
    detector: dict[str, Any]
    recipe: dict[str, Any]
    thresholds: dict[str, _Share]
    metrics: dict[str, Any]
    data: str
    versions: dict[str, str]


def read(description: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a description and returns its parts, as the constructor of a detector takes them.

    Args:
        description: As :func:`resfit.artifact.read` returns it.

    Raises:
        ArtifactError: An entry is missing, of the wrong type or out of its range; the text says which.
    """
    found = _converted(dict(description), _Description, "")
    class_names.check(found.classes, alike=False, error=ArtifactError)
    contract = _made(found.input, InputSpec, "input", InputSpec.from_dict)
    if (
        max(contract.size) > _MOST_SIDE
        or contract.channels not in (1, 3)
        or contract.resize_mode not in ("letterbox", "fit", "squash")
    ):
        raise ArtifactError(
            f"'input' must be a letterbox of 1 or 3 channels with sides up to {_MOST_SIDE} pixels. "
            f"Received: {contract.resize_mode}, {contract.channels} and {contract.size}."
        )
    spec = _made(found.detector, None, "detector", kinds.from_dict)
    if spec.classes != len(found.classes) or set(found.thresholds) != set(found.classes):
        raise ArtifactError(
            f"'detector' and 'thresholds' must have each of the {len(found.classes)} classes. "
            f"Received: {spec.classes} and {len(found.thresholds)}."
        )
    recipe = _made(found.recipe, DetectorRecipe, "recipe", lambda fields: DetectorRecipe(**fields))
    recipe = dataclasses.replace(recipe, epochs=tuple(recipe.epochs), tiles=tuple(recipe.tiles))
    if recipe.tiles and not (len(recipe.tiles) == 2 and all(32 <= side <= _MOST_SIDE for side in recipe.tiles)):
        raise ArtifactError(f"'recipe' must have tiles of 32 to {_MOST_SIDE} pixels. Received: {recipe.tiles}.")
    return {
        "classes": tuple(found.classes),
        "input_spec": contract,
        "spec": spec,
        "recipe": recipe,
        "thresholds": found.thresholds,
        "metrics": found.metrics,
        "fingerprint": found.data,
        "versions": found.versions,
    }


def _made(fields: dict[str, Any], kind: Any, where: str, make: Any) -> Any:
    """Checks the types of a dataclass' fields, and makes it by its own rules."""
    if kind is not None:
        _converted(fields, kind, where)
    try:
        return make(fields)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ArtifactError(f"'{where}' cannot be used: {error!s:.300}") from error


def _converted(value: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError) as error:
        text = str(error).replace("`", "'")
        missing = text.partition("missing required field ")[2]
        text = f"missing entry {missing}" if missing else text
        raise ArtifactError(f"{f'{where!r}: ' if where else ''}{text:.300}") from error
