"""Files that hold canonical names already: those of resfit itself."""

from __future__ import annotations

from collections.abc import Sequence

from resfit.errors import ArgumentError
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.detection.spec import is_of_detector
from resfit.weights.conventions.base import Translation, register_convention
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.resfit import CanonicalNames


@register_convention("resfit", recognises=lambda tensors: isinstance(tensors.graph, CanonicalNames), order=0)
def _translate(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Hands the arrays on."""
    if prefix is not None or averaged or ignore:
        raise ArgumentError(f"a file of resfit says itself what it is. Received: {tensors.path} with arguments.")
    arrays = tensors.arrays
    if isinstance(tensors.config.get("resfit"), AnyDetectorSpec):  # whose body alone is wanted
        arrays = {name: array for name, array in arrays.items() if not is_of_detector(name)}
    return Translation("resfit", "", arrays, {}, {}, (), ())
