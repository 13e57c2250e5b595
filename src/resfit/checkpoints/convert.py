"""A checkpoint of another library as a Keras model: read, translate, identify, build, fill."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.architecture import arithmetic, catalog
from resfit.architecture.spec import ArchitectureSpec
from resfit.checkpoints import namings
from resfit.checkpoints.identify import Identified, identify, nearest
from resfit.errors import ArgumentError, CheckpointError
from resfit.preprocessing import TORCH, InputSpec

if TYPE_CHECKING:
    import keras

_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that was read and understood, not yet built. No Keras was imported for it.

    Attributes:
        path: What was read.
        name: The catalog's name of its network, or of the family where the catalog lacks it.
        spec: Its architecture.
        arrays: Its weights by canonical name, axes as Keras has them. All of them fit the architecture.
        has_top: Whether a classifier is among them.
        input_spec: Its input contract.
        class_names: Labels of its classes, or None where they are not known.
        convention: How it names its tensors.
        assumptions: What the source does not tell and was assumed, what was left out, and where the network was
            found, one sentence each.
    """

    path: Path
    name: str
    spec: ArchitectureSpec
    arrays: Mapping[str, np.ndarray]
    has_top: bool
    input_spec: InputSpec
    class_names: tuple[str, ...] | None
    convention: str
    assumptions: tuple[str, ...]


def read_source(
    source: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    prefix: str | None = None,
    averaged: bool = False,
    ignore: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    input_spec: InputSpec | None = None,
    **overrides: Any,
) -> Source:
    """Reads a checkpoint of torchvision, timm, transformers or one like theirs, and says what network it is.

    Args:
        source: A ``.pth``, ``.pt``, ``.th``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, an ``.index.json`` of
            shards, or a folder with one of them and perhaps ``config.json`` and ``preprocessor_config.json``.
        architecture: A name of the catalog that says what tensors do not, such as ``"resnetblur50"``.
        prefix: What stands before the network's names, where a source holds several networks.
        averaged: Take the running average (EMA) that the source holds beside the network.
        ignore: Patterns of names to leave out, such as ``"aux_classifier.*"``.
        config: In place of the ``config.json`` beside the weights.
        input_spec: In place of the input contract that the source states.
        **overrides: Fields of :class:`ArchitectureSpec`, such as ``stride_in_block="first"``.

    Raises:
        CheckpointError: The source is missing, damaged, asks for more than tensors, or is no network that is known
            here; or tensors are left over, missing or of other shapes. The text lists them.
        MissingDependencyError: The source is a pickle and torch is not installed.
        ArgumentError: An argument does not fit.
    """
    from resfit.checkpoints.readers import torch

    read = torch.read(source)
    try:
        translation = namings.translate(read.arrays, prefix=prefix, averaged=averaged, ignore=ignore)
        config = read.config if config is None else config
        identified = identify(
            translation.arrays,
            convention=translation.convention,
            facts=translation.facts,
            config=config,
            architecture=architecture,
            **overrides,
        )
        _check(translation, identified)
    except CheckpointError as error:
        raise CheckpointError(f"{read.path}: {error}") from error
    contract, assumed = _contract(identified, input_spec or read.input_spec)
    spec = identified.spec
    labels = read.class_names
    if labels is not None and (not identified.has_top or len(labels) != spec.classes):
        labels = None
    return Source(
        path=read.path,
        name=_name(identified),
        spec=spec,
        arrays=translation.arrays,
        has_top=identified.has_top,
        input_spec=contract,
        class_names=labels,
        convention=translation.convention,
        assumptions=(*identified.assumptions, *assumed, *translation.remarks, *translation.left_out),
    )


def load_source(
    source: str | os.PathLike[str] | Source,
    *,
    include_top: bool | None = None,
    classes: int | None = None,
    pooling: str | None = None,
    taps: Sequence[str] = (),
    preprocess: bool = True,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    **reading: Any,
) -> keras.Model:
    """Loads a checkpoint as a Keras model.

    Args:
        source: As :func:`read_source` takes it, or what it returned.
        include_top: Whether the model ends in the classifier. Default: if the source has one.
        classes: Outputs of the classifier. A number other than the source's gives a fresh classifier.
        pooling: Without top, ``"avg"`` or ``"max"`` for features of shape ``(batch, channels)``.
        taps: Stages, ``"stage1"`` to ``"stage5"``, whose feature maps the model returns as a dict.
        preprocess: Whether the model takes RGB images 0..255 and normalises them itself.
        input_shape: ``(height, width, channels)``; weights for RGB are adapted to other numbers of channels.
        classifier_activation: Activation of the classifier; None for logits.
        name: Name of the model.
        **reading: The other arguments of :func:`read_source`.

    Returns:
        A functional Keras model with the attributes ``architecture``, ``input_spec``, ``class_names`` and
        ``assumptions`` (a tuple of sentences).

    Raises:
        CheckpointError: As :func:`read_source`; or the source has no classifier and one is asked for.
        ArgumentError: An argument does not fit.
    """
    from resfit.architecture.network import build
    from resfit.checkpoints import canonical

    if isinstance(source, Source):
        if reading:
            raise ArgumentError(
                f"a source that was read takes no more arguments of reading. Received: {sorted(reading)}."
            )
        read = source
    else:
        read = read_source(source, **reading)
    top = (read.has_top or classes is not None) if include_top is None else include_top
    headless = bool(taps) or not top
    if not headless and not read.has_top and classes is None:
        raise CheckpointError(
            f"{read.path}: the source must have a classifier. Received: a body without one. Pass include_top=False, or "
            "classes for a fresh classifier."
        )
    channels = input_shape[-1] if input_shape else read.spec.in_channels
    spec = read.spec.replace(classes=classes or read.spec.classes, in_channels=channels)
    model = build(
        spec,
        input_shape=input_shape or (None, None, channels),
        include_top=top,
        pooling=pooling,
        classifier_activation=classifier_activation,
        taps=tuple(taps),
        input_spec=read.input_spec.with_channels(channels),
        preprocess=preprocess,
        name=name or read.name,
    )
    keeps_head = not headless and read.has_top and spec.classes == read.spec.classes
    file = canonical.WeightsFile(read.path, arrays=read.arrays)
    canonical.fill_from_file(model, file, keeps_head=keeps_head)
    model.class_names = read.class_names if keeps_head else None
    model.assumptions = read.assumptions
    return model


def _check(translation: namings.Translation, identified: Identified) -> None:
    """Compares the tensors with what the architecture needs, layer by layer, before anything is built.

    So a network is never larger than the file that it is made from.

    Raises:
        CheckpointError: Tensors are left over or missing, or have other sizes.
    """
    spec = identified.spec
    needed = {
        layer.name: layer.parameters
        for layer in arithmetic.count(spec, include_top=identified.has_top).layers
        if layer.parameters
    }
    held: dict[str, int] = {}
    shapes: dict[str, list[str]] = {}
    for name, array in translation.arrays.items():
        layer = name.partition("/")[0]
        held[layer] = held.get(layer, 0) + int(array.size)
        shapes.setdefault(layer, []).append(f"{name} {array.shape}")
    missing = [f"{name} ({needed[name]} weights)" for name in needed if name not in held]
    strange = [text for name in held if name not in needed for text in shapes[name]]
    strange += [namings.described({name: array}) for name, array in translation.leftover.items()]
    different = [
        f"{', '.join(shapes[name])} where {needed[name]} weights belong"
        for name in held
        if name in needed and held[name] != needed[name]
    ]
    integers = [name for name, array in translation.arrays.items() if not np.issubdtype(array.dtype, np.floating)]
    if not (missing or strange or different or integers):
        return
    told = (
        (strange, "tensors left over"),
        (missing, "layers without tensors"),
        (different, "layers of other sizes"),
        (integers, "weights that are no floating-point numbers"),
    )
    received = ". ".join(f"{len(found)} {what}: {_listed(found)}" for found, what in told if found)
    name, differences = nearest(spec)
    raise CheckpointError(
        f"every tensor must have its place in the network, and the network every tensor. Received: {received}. "
        f"The nearest architecture is {name!r}"
        f"{', which differs in ' + '; '.join(differences) if differences else ''}. "
        "What is no part of the network can be left out by ignore=."
    )


def _contract(identified: Identified, stated: InputSpec | None) -> tuple[InputSpec, list[str]]:
    spec = identified.spec
    if stated is not None:
        return stated.with_channels(spec.in_channels), []
    contract = dataclasses.replace(TORCH, size=spec.input_size).with_channels(spec.in_channels)
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (contract.mean, contract.std))
    return contract, [
        f"images of {spec.input_size[0]}x{spec.input_size[1]}, scaled to 0..1, less {mean}, over {std} (torch's usual; "
        "the source states no input contract)"
    ]


def _name(identified: Identified) -> str:
    """The catalog's name of exactly this network, whatever its classes and channels; else what it is called."""
    spec = identified.spec
    if identified.architecture and _like(spec, catalog.get(identified.architecture).spec):
        return identified.architecture
    return next((row.name for row in catalog.rows().values() if _like(spec, row.spec)), "resnet")


def _like(spec: ArchitectureSpec, other: ArchitectureSpec) -> bool:
    return spec == other.replace(classes=spec.classes, in_channels=spec.in_channels, input_size=spec.input_size)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
