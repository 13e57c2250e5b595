"""Why a network said so: maps over the image, and the training images that look alike to it."""

from __future__ import annotations

from resfit.explain.methods import METHODS, Attribution, attribute, register_explainer
from resfit.explain.neighbours import Example, NeighbourSource, nearest
from resfit.explain.overlays import overlay
from resfit.explain.results import Explanation, explain_batches

__all__ = [
    "METHODS",
    "Attribution",
    "Example",
    "Explanation",
    "NeighbourSource",
    "attribute",
    "explain_batches",
    "nearest",
    "overlay",
    "register_explainer",
]
