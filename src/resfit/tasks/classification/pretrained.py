"""A published network as a classifier of the classes that it was trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resfit import artifact, zoo
from resfit.errors import ArtifactError, CheckpointError, closest
from resfit.networks import catalog
from resfit.tasks.classification import Classifier, FitRecipe
from resfit.weights import load as convert
from resfit.weights import locate, registry


def load(source: str | os.PathLike[str], **reading: Any) -> Classifier:
    """Loads what ``resfit fit`` wrote, or a published network.

    Args:
        source: A folder that ``resfit fit`` wrote, or what :func:`resfit.load` takes: a name, a handle, a file.
        **reading: For a file or handle, as :func:`resfit.load` takes it.

    Returns:
        A classifier. The classes of a network are called as its publisher calls them; by their numbers where that is
        not known.

    Raises:
        ArtifactError: It is neither, or a folder and no whole classifier.
        CheckpointError: The network has no classifier, or cannot be read.

    Example:
        >>> load("resnet50").predict("a.jpg", top=5)[0].label  # doctest: +SKIP
        'tabby'
    """
    text = os.fspath(source)
    if not _is_network(text):
        if not Path(text).exists():
            raise ArtifactError(
                f"a classifier is a folder that `resfit fit` wrote, or a network that `resfit models` lists. Received: "
                f"{text!r}, which is neither.{closest(text, [*catalog.rows(), *registry.rows()])}"
            )
        return Classifier.load(source)
    read = zoo.read(source, reading=reading)
    _check_head(text, read)
    kept = read.end is not None and read.end.head is not None
    model = convert.load_source(read, include_top=True, classifier_activation="default" if kept else "softmax")
    names = model.class_names or [f"class {number}" for number in range(model.architecture.classes)]
    return Classifier(
        model=model,
        classes=_distinct(names),
        input_spec=model.input_spec,
        recipe=FitRecipe(model=text, strategy="published", seed=0, test_share=0.0, C=0.0, folds=0, grouped=False),
        metrics={},
        fingerprint="",
        versions={},
    )


def _check_head(text: str, read: convert.Source) -> None:
    """Makes sure that a network gives one probability for each class, or can be made to.

    Raises:
        CheckpointError: Its graph says that it gives something else.
    """
    end = read.end
    if end is None or end.refused:
        return
    received = ""
    if end.head is not None:
        last = end.head.layers[end.head.outputs[0]] if len(end.head.outputs) == 1 else None
        is_softmax = last is not None and (last.kind == "Softmax" or last.options.get("activation") == "softmax")
        received = "" if is_softmax and end.head.classes else f"a head of {end.head}"
    elif read.has_top and end.activation not in ("softmax", "linear"):
        received = f"a classifier that ends in {end.activation}"
    if received:
        raise CheckpointError(
            f"{text}: a classifier must give one probability for each class, which add up to one. Received: "
            f"{received}. resfit.load runs the network as it is."
        )


def _is_network(source: str) -> bool:
    path = Path(source)
    if (path / artifact.DESCRIPTION).exists():
        return False
    known = locate.is_handle(source) or source in catalog.rows() or source in registry.rows()
    return known or (path.exists() and convert.find_format(path) is not None)


def _distinct(names: Any) -> list[str]:
    """Numbers the names that several classes have, as some of ImageNet-21k's."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [f"{name} ({number})" if seen[name] > 1 else name for number, name in enumerate(names)]
