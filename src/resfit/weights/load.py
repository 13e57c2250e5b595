"""A checkpoint of any known source as a Keras model: locate, read, identify, build and fill.

:func:`read_source` locates the files of a handle (:mod:`resfit.weights.locate`), reads them with the first format that
recognises them (:mod:`resfit.weights.formats`), has the first naming convention that recognises what was read
(:mod:`resfit.weights.conventions`) bring it to canonical names, and says what network it is
(:mod:`resfit.weights.identify`). :func:`load_source` builds that network and fills it. :mod:`resfit.weights.verify`
compares it with the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import arithmetic, catalog
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import TORCH, InputSpec, changed
from resfit.weights import attention, completeness, heads, locate, registry
from resfit.weights.assumption import sentence
from resfit.weights.conventions import pytorch
from resfit.weights.conventions.base import Translation, find_convention
from resfit.weights.detectors import DetectorSource
from resfit.weights.formats import keras_config
from resfit.weights.formats.base import Tensors, all_formats, find_format
from resfit.weights.heads import End
from resfit.weights.identify import Identified, identify, nearest

if TYPE_CHECKING:
    import keras

    from resfit.weights.canonical import WeightsFile

_INCIDENTAL = ("classes", "in_channels", "input_size", "weight_standardization_epsilon")
#: How sentences about the input contract begin, and those about the activation of the classifier.
OF_IMAGES, OF_HEAD = "images ", "classifier_activation="
_NAMED_BY_KERAS = re.compile(r"(?:.*/)?(?:conv2d|(?:batch|group|layer)_normalization)(?:_\d+)?/")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that was read and understood, not yet built. No Keras was imported for it.

    Attributes:
        path: What was read; None for fresh weights.
        name: The catalog's name of its network, or of the family where the catalog lacks it.
        spec: Its architecture.
        arrays: Its weights by canonical name, axes as Keras has them. All of them fit the architecture.
        has_top: Whether a classifier is among them.
        input_spec: Its input contract.
        class_names: Labels of its classes, or None where they are not known.
        convention: How it names its tensors.
        assumptions: What the source does not tell and was assumed, what was left out, and where the network was
            found, one sentence each.
        file: In place of ``arrays``: a file that is matched to the network once that is built.
        attention: Weights of CLIP's attention pooling (:mod:`resfit.weights.attention`), if it has one.
        end: What follows the body, where the source's graph says it.
    """

    path: Path | None
    name: str
    spec: ArchitectureSpec
    arrays: Mapping[str, np.ndarray]
    has_top: bool
    input_spec: InputSpec
    class_names: tuple[str, ...] | None
    convention: str
    assumptions: tuple[str, ...]
    file: WeightsFile | None = None
    attention: Mapping[str, np.ndarray] | None = None
    end: End | None = None

    @property
    def weights(self) -> WeightsFile | None:
        """What a network that was built is filled from, or None where there is nothing."""
        from resfit.weights.canonical import WeightsFile

        return self.file or (WeightsFile(self.path, arrays=self.arrays) if self.path else None)


def read_source(source: str | os.PathLike[str], **reading: Any) -> Source:
    """Reads a checkpoint of any known kind and says what network it is; a classifier, or the body of a network.

    Args:
        source: As :func:`read_any` takes it.
        **reading: The other arguments of :func:`read_any`.

    Raises:
        CheckpointError: As :func:`read_any`; or it is a detector, and ``include_top`` is not False.
        MissingDependencyError: As :func:`read_any`.
        ArgumentError: As :func:`read_any`.
    """
    found = read_any(source, **reading)
    if isinstance(found, DetectorSource):
        raise CheckpointError(
            f"{found.path}: the network must be a classifier, or the body of one. Received: a detector, "
            f"{found.name!r}. resfit.load loads it; include_top=False gives its backbone."
        )
    return found


def read_any(
    source: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    prefix: str | None = None,
    averaged: bool = False,
    ignore: Sequence[str] = (),
    include_top: bool | None = None,
    config: Mapping[str, Any] | None = None,
    input_spec: InputSpec | Mapping[str, Any] | str | None = None,
    **overrides: Any,
) -> Source | DetectorSource:
    """Reads a checkpoint of any known kind and says what network it is, a classifier or a detector.

    Args:
        source: A handle, or a file or folder: PyTorch's ``.pth``, ``.pt``, ``.th``, ``.bin``, ``.tar`` and ``.ckpt``,
            ``.safetensors`` (an ``.index.json`` of shards too), a folder with one of them and perhaps
            ``config.json`` and ``preprocessor_config.json``; TensorFlow's SavedModels and checkpoints (a folder, its
            ``.index`` or the name before it); BiT's ``.npz``; Haiku's ``.pkl``; ONNX' ``.onnx``; Keras' ``.keras``,
            ``.weights.h5`` and ``.h5`` (weights or whole models, with the network inside another model too); the
            folder of a preset of KerasHub.
        architecture: A name of the catalog that says what tensors do not, such as ``"resnetblur50"``; of a detector,
            one of its own catalog.
        prefix: What stands before the network's names, where a source holds several networks.
        averaged: Take the running average (EMA) that a source holds beside the network.
        ignore: Patterns of names to leave out, such as ``"aux_classifier.*"``.
        include_top: False for the body alone: what stands beside the network, such as the rest of a detector or
            segmenter, is then left out and listed, not an error; of a detector that gives its body.
        config: In place of the configuration beside the weights.
        input_spec: In place of the input contract that the source states or that is assumed: another one, fields of it
            that are changed (``{"channel_order": "bgr"}``), or how values are scaled by name
            (:func:`resfit.preprocessing.changed`).
        **overrides: Fields of :class:`ArchitectureSpec`, such as ``stride_in_block="first"``, or of
            :class:`resfit.networks.detection.spec.DetectorSpec`.

    Raises:
        CheckpointError: The source is missing, damaged, asks for more than tensors, or is no network that is known
            here; or tensors are left over, missing or of other shapes. The text lists them.
        MissingDependencyError: The source's format needs a package that is not installed.
        ArgumentError: An argument does not fit.
    """
    read = _read(locate.locate(source))
    stated = read.config if config is None else config
    if include_top is False and isinstance(detector := stated.get("resfit"), AnyDetectorSpec):
        stated = {**stated, "resfit": detector.backbone}
    try:
        if architecture is None and stated.get("resfit", "") is None:
            raise CheckpointError(
                "the metadata must say the architecture. Received: none, with resfit's names. Pass the name and the "
                f'file: load("resnet50", weights={read.path.name!r}).'
            )
        convention = find_convention(read, body_only=include_top is False)
        if convention is None:
            raise _unnamed(read)
        if convention.is_larger:
            return convention.translate(
                read,
                prefix=prefix,
                averaged=averaged,
                ignore=ignore,
                architecture=architecture,
                config=stated,
                input_spec=input_spec,
                **overrides,
            )
        translation = convention.translate(read, prefix=prefix, averaged=averaged, ignore=ignore)
        if include_top is False:
            translation = _without_surroundings(translation)
        identified = identify(
            translation.arrays,
            convention=translation.convention,
            facts=translation.facts,
            config=stated,
            architecture=architecture,
            habits=translation.habits,
            assumed_facts=translation.assumed,
            program=translation.program,
            **overrides,
        )
        _check(translation, identified)
    except CheckpointError as error:
        raise CheckpointError(f"{read.path}: {error}{_whole_model(read)}") from error
    published = registry.default_for(_name(identified)) if translation.convention == "resfit" else None
    usual = published.input_spec if published else translation.input_spec
    contract, assumed = _contract(identified, read.input_spec or usual)
    remarks = translation.remarks
    if input_spec is not None:
        contract = changed(contract, input_spec).with_channels(identified.spec.in_channels)
        remarks = tuple(text for text in remarks if not text.startswith(OF_IMAGES))
        assumed = []
    if identified.has_top and translation.end is None and translation.convention != "resfit":
        assumed.append(sentence(f"{OF_HEAD}'softmax'", "weights alone do not say so", OF_HEAD[:-1]))
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
        assumptions=(
            *identified.assumptions,
            *assumed,
            *remarks,
            *translation.left_out,
            *read.left_out,
        ),
        attention=translation.attention,
        end=translation.end,
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
    in_channels: int | None = None,
    classifier_activation: Any = "default",
    dtype: Any = None,
    seed: int | None = None,
    name: str | None = None,
    **reading: Any,
) -> keras.Model:
    """Loads a checkpoint as a Keras model.

    Args:
        source: As :func:`read_source` takes it, or what it returned.
        include_top: Whether the model ends in the classifier. Default: if the source has one.
        classes: Outputs of the classifier. A number other than the source's gives a fresh classifier.
        pooling: Without top, ``"avg"`` or ``"max"`` for features of shape ``(batch, channels)``; ``"attention"`` for
            those of CLIP's visual towers.
        taps: Stages, ``"stage1"`` to ``"stage5"``, whose feature maps the model returns as a dict.
        preprocess: Whether the model takes RGB images 0..255 and normalises them itself.
        input_shape: ``(height, width, channels)``; weights for RGB are adapted to other numbers of channels.
        in_channels: Input channels, if ``input_shape`` does not say.
        classifier_activation: Activation of the classifier; None for logits. Default: the source's where its graph
            states one, else softmax.
        dtype: Dtype policy of the layers. Default: Keras' global policy.
        seed: Makes fresh weights the same in every run.
        name: Name of the model.
        **reading: The other arguments of :func:`read_source`.

    Returns:
        A functional Keras model with the attributes ``architecture``, ``input_spec``, ``class_names`` and
        ``assumptions`` (a tuple of sentences).

    Raises:
        CheckpointError: As :func:`read_source`; or the source has no classifier and one is asked for.
        ArgumentError: An argument does not fit.
    """
    from resfit.networks.build import attach, build
    from resfit.weights import canonical

    if isinstance(source, Source):
        if reading:
            raise ArgumentError(
                f"a source that was read takes no more arguments of reading. Received: {sorted(reading)}."
            )
        read = source
    else:
        read = read_source(source, include_top=False if include_top is False or taps else None, **reading)
    file, end = read.weights, read.end or End()
    has_head = read.has_top or end.head is not None
    top = (has_head or bool(end.refused) or classes is not None) if include_top is None else include_top
    headless = bool(taps) or not top
    if not headless and end.refused and classes is None:
        raise CheckpointError(
            f"{read.path}: {end.refused}. Pass include_top=False for the body alone, or classes for a fresh classifier."
        )
    if not headless and not has_head and classes is None:
        raise CheckpointError(
            f"{read.path}: the file must hold the classifier 'predictions'. Received: none. "
            "Pass include_top=False for the body alone, or classes for a fresh classifier."
        )
    channels = (input_shape[-1] if input_shape else in_channels) or read.spec.in_channels
    attends = pooling == "attention"
    if attends and not headless:
        raise ArgumentError('pooling="attention" takes the place of the classifier. Pass include_top=False.')
    side = attention.image_size(read.attention, read.spec.output_stride) if attends else None
    # a grey image is repeated in front of the network, so that it equals the same picture in three channels
    grey = channels == 1 and read.spec.in_channels == 3 and preprocess
    contract = read.input_spec.for_grey() if grey else read.input_spec.with_channels(channels)
    spec = read.spec.replace(classes=classes or read.spec.classes, in_channels=3 if grey else channels)
    own_head = end.head if not headless and classes in (None, end.head and end.head.classes) else None
    if own_head is not None and classifier_activation not in ("default", "softmax"):
        raise ArgumentError(
            "a head that is kept as the source has it keeps its activations. Received: "
            f"classifier_activation={classifier_activation!r}. Pass include_top=False for the body alone."
        )
    if own_head is not None and own_head.needs_size and input_shape is None:
        input_shape = (*spec.input_size, channels)
    says_activation = classifier_activation != "default"
    if not says_activation:
        classifier_activation = end.activation if read.has_top and spec.classes == read.spec.classes else "softmax"
    with _policy(dtype), _seeded(seed):
        model = build(
            spec,
            input_shape=input_shape or (side, side, channels),
            include_top=top and own_head is None,
            pooling=None if attends or own_head else pooling,
            classifier_activation=classifier_activation,
            taps=tuple(taps),
            input_spec=contract,
            preprocess=preprocess,
            name=name or read.name,
        )
    keeps_head = not headless and read.has_top and spec.classes == read.spec.classes
    if file is not None:
        canonical.fill_from_file(
            model, file, channel_order=read.input_spec.channel_order, keeps_head=keeps_head, to_rgb=grey
        )
    if own_head is not None:
        with _policy(dtype):
            model = attach(_with_head(read, model, own_head), spec, model.input_spec)
    if attends and not taps:
        with _policy(dtype):
            model = attach(attention.attach(model, read.attention), spec, model.input_spec)
    known = file is not None and keeps_head and read.class_names and len(read.class_names) == spec.classes
    model.class_names = read.class_names if known else None
    of_head = says_activation or not keeps_head
    model.assumptions = tuple(
        text
        for text in read.assumptions
        if not (attends and attention.REASON in text) and not (of_head and text.startswith(OF_HEAD))
    )
    return model


def _with_head(read: Source, model: keras.Model, head: heads.SourceHead) -> keras.Model:
    try:
        return heads.attach(model, head)
    except Exception as error:  # Keras raises many kinds
        raise CheckpointError(
            f"{read.path}: the layers of the head must fit each other. Received: {error}. Pass include_top=False for "
            "the body alone."
        ) from error


def _read(path: Path) -> Tensors:
    """Reads a path with the first format that recognises it.

    Raises:
        CheckpointError: None does, or the content is damaged.
    """
    kind = find_format(path)
    if kind is None:
        raise unknown(path)
    read = kind.read(path)
    # as variables of TensorFlow's graphs are called
    plain = {name.removesuffix(":0"): array for name, array in read.arrays.items()} if read.graph is None else {}
    return dataclasses.replace(read, arrays=plain) if len(plain) == len(read.arrays) else read


def _unnamed(read: Tensors) -> CheckpointError:
    """Returns the error that no convention knows the names of the arrays."""
    return CheckpointError(
        "the arrays must be named as in torchvision, timm (resnet or resnetv2), transformers, detectron2, CIFAR's "
        "ResNets, TF-Slim, BiT, keras.applications, tensorpack or Haiku, under any prefix. Received: "
        f"{pytorch.described(read.arrays)}."
    )


def _whole_model(read: Tensors) -> str:
    """What to do with weights alone of layers that Keras named itself."""
    connected = not isinstance(read.graph, keras_config.Layers | None)
    if connected or not any(_NAMED_BY_KERAS.match(name) for name in read.arrays):
        return ""
    return (
        " Weights alone do not state how layers that Keras named itself (conv2d_7) are connected. Save the whole "
        "model, model.save('network.keras'), and load that: its graph is read, whatever its layers are called."
    )


def unknown(path: Path) -> CheckpointError:
    """Returns the error that a path is of no known kind, or is not there.

    Args:
        path: The path.
    """
    kinds = ", ".join(kind.name for kind in all_formats())
    if not path.exists():
        return CheckpointError(f"weights file must exist. Received: {path}.")
    received = path.suffix or "folder or file"
    return CheckpointError(f"{path}: the source must be one of these kinds: {kinds}. Received: a {received}.")


def _check(translation: Translation, identified: Identified) -> None:
    """Compares the tensors with what the architecture needs, layer by layer, before anything is built.

    So a network is never larger than the file that it is made from.

    Raises:
        CheckpointError: Tensors are left over or missing, or have other sizes.
    """
    spec = identified.spec
    layers = arithmetic.count(spec, include_top=identified.has_top).layers
    received = completeness.problem(translation.arrays, translation.leftover, layers)
    if not received:
        return
    name, differences = nearest(spec)
    raise CheckpointError(
        f"every tensor must have its place in the network, and the network every tensor. Received: {received}. "
        f"The nearest architecture is {name!r}"
        f"{', which differs in ' + '; '.join(differences) if differences else ''}. "
        f"{_way_out(translation)}What is no part of the network can be left out by ignore=."
    )


def _way_out(translation: Translation) -> str:
    """What loads the network in spite of what stands beside it, where something does."""
    return "include_top=False loads the body without what stands beside it. " if translation.beside else ""


def _without_surroundings(translation: Translation) -> Translation:
    """Leaves out and lists what stands beside the network, where the body alone is wanted."""
    beside = [name for name in translation.leftover if name in translation.beside]
    if not beside:
        return translation
    parts = sorted({_part(name, translation.prefix) for name in beside})
    sentence = f"left out what stands beside the network: {completeness.listed(parts)} ({len(beside)} tensors)"
    leftover = {name: array for name, array in translation.leftover.items() if name not in translation.beside}
    return dataclasses.replace(translation, leftover=leftover, left_out=(*translation.left_out, sentence))


def _part(name: str, prefix: str) -> str:
    """The first parts of a name up to where it leaves the network's prefix: what a reader calls a neck or a head."""
    separator = "/" if "/" in name else "."
    own, parts = prefix.rstrip("./").split(separator), name.split(separator)
    shared = next((place for place, pair in enumerate(zip(own, parts, strict=False)) if pair[0] != pair[1]), 0)
    return separator.join(parts[: min(shared + 1, max(len(parts) - 1, 1))])


def _contract(identified: Identified, stated: InputSpec | None) -> tuple[InputSpec, list[str]]:
    if stated is not None:
        return stated.with_channels(identified.spec.in_channels), []
    return _usual_contract(identified.spec)


def _usual_contract(spec: ArchitectureSpec) -> tuple[InputSpec, list[str]]:
    contract = dataclasses.replace(TORCH, size=spec.input_size).with_channels(spec.in_channels)
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (contract.mean, contract.std))
    what = f"{OF_IMAGES}of {spec.input_size[0]}x{spec.input_size[1]}, scaled to 0..1, less {mean}, over {std}"
    return contract, [sentence(what, "torch's usual; the source states no input contract", "input_spec")]


def is_like(spec: ArchitectureSpec, other: ArchitectureSpec) -> bool:
    """Whether two networks are alike but for their classes, channels, input size and the epsilon of their kernels.

    (BiT's authors add 1e-10 to a kernel's variance and timm 1e-8, for the same weights.)

    Args:
        spec: One.
        other: The other.
    """
    return spec == other.replace(**{field: getattr(spec, field) for field in _INCIDENTAL})


def catalog_name_of(spec: ArchitectureSpec) -> str | None:
    """Returns the catalog's name of a network, whatever its classes, channels and input size.

    Args:
        spec: The architecture.
    """
    return next((row.name for row in catalog.rows().values() if is_like(spec, row.spec)), None)


def _name(identified: Identified) -> str:
    spec = identified.spec
    if identified.architecture and is_like(spec, catalog.get(identified.architecture).spec):
        return identified.architecture
    return catalog_name_of(spec) or "resnet"


@contextlib.contextmanager
def building(dtype: Any, seed: int | None) -> Iterator[None]:
    """Builds what is built inside with a dtype policy and seeded initialisers.

    Args:
        dtype: Dtype policy of the layers; None for Keras' global one.
        seed: None for Keras' own.
    """
    with _policy(dtype), _seeded(seed):
        yield


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Makes Keras draw its initialisers' seeds from ``seed``, and restores the caller's random state."""
    import random

    if seed is None:
        yield
        return
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _policy(dtype: Any) -> Iterator[None]:
    import keras

    if dtype is None:
        yield
        return
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
