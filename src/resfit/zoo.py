"""Named networks: find one, read about it, load it with its weights and its input contract.

Listing and describing import neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError, AssumptionWarning, CheckpointError, UnknownNameError, closest
from resfit.networks import arithmetic, catalog
from resfit.networks.arithmetic import StageCount
from resfit.networks.detection import catalog as detector_catalog
from resfit.networks.spec import ArchitectureSpec
from resfit.weights import registry
from resfit.weights.registry import CheckpointInfo

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec
    from resfit.weights.detectors import DetectorSource
    from resfit.weights.load import Source

_MOST_JSON = 10_000_000
_GRAPH = "saved_model.pb"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """One architecture of the catalog in one line.

    Attributes:
        name: What ``resfit.load`` takes.
        family: The kind of network.
        parameters: Of the whole network, moving statistics included.
        gmacs: Multiply-accumulates in billions for one image of ``input_size``.
        input_size: Height and width in pixels that the network is meant for.
        classes: Outputs of its classifier.
        weights: The checkpoint that stands for it, or ``""`` where none is published.
        loadable: Whether ``resfit.load(name)`` brings these weights.
        licence: Of these weights.
        top1: Published top-1 accuracy of these weights in percent.
        top5: Published top-5 accuracy of these weights in percent.
        checkpoints: How many published checkpoints the registry knows.
        paper: Where the architecture was published.
    """

    name: str
    family: str
    parameters: int
    gmacs: float
    input_size: tuple[int, int]
    classes: int
    weights: str
    loadable: bool
    licence: str
    top1: float | None
    top5: float | None
    checkpoints: int
    paper: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "input_size": list(self.input_size)}


@dataclasses.dataclass(frozen=True)
class Description:
    """What is known of one network without building it.

    Attributes:
        info: Its line in the list.
        stages: What each stage holds and costs, at ``info.input_size``.
        receptive_field: Side of the square of pixels that one value of the last feature map sees.
        input_spec: The input contract of the checkpoint that stands for it.
        spec: The architecture.
        checkpoints: Every published checkpoint.
    """

    info: ModelInfo
    stages: tuple[StageCount, ...]
    receptive_field: int
    input_spec: InputSpec
    spec: ArchitectureSpec
    checkpoints: tuple[CheckpointInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            **self.info.to_dict(),
            "stages": [{**dataclasses.asdict(stage), "shape": list(stage.shape)} for stage in self.stages],
            "receptive_field": self.receptive_field,
            "input_spec": self.input_spec.to_dict(),
            "architecture": self.spec.to_dict(),
            "checkpoint_rows": [checkpoint.to_dict() for checkpoint in self.checkpoints],
        }


def list_models(pattern: str = "*", *, loadable: bool | None = None) -> list[ModelInfo]:
    """Lists the architectures of the catalog.

    Args:
        pattern: Shell pattern such as ``"resnet5*"``; a checkpoint's name such as ``"*.a1_in1k"`` finds its
            network.
        loadable: Only those whose weights ``resfit.load`` brings by name, or only the others.

    Returns:
        One row each, in the order of the catalog.

    Example:
        >>> [info.name for info in list_models("resnet1*v2")]
        ['resnet101v2', 'resnet152v2']
    """
    tags = {info.architecture for info in registry.rows().values() if fnmatch.fnmatchcase(info.name, pattern)}
    names = set(catalog.names(pattern)) | tags
    found = [_info(name) for name in catalog.rows() if name in names]
    return [info for info in found if loadable is None or info.loadable == loadable]


def describe(name: str) -> Description:
    """Describes a network from its tables alone.

    Args:
        name: A name of the catalog or of a checkpoint.

    Raises:
        UnknownNameError: Neither table has this name.
    """
    row, checkpoint = _resolve(name)
    counted = _count(row.name)
    checkpoints = registry.of_architecture(row.name)
    return Description(
        info=_info(row.name),
        stages=counted.stages,
        receptive_field=counted.receptive_field,
        input_spec=_contract(row.spec, checkpoint or registry.default_for(row.name)),
        spec=row.spec,
        checkpoints=checkpoints,
    )


def load(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = "default",
    classes: int | None = None,
    include_top: bool | None = None,
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
    """Loads a network as a Keras model, with its weights and its input contract.

    Args:
        source: A name of the catalog (``"resnet50"``) or of a checkpoint (``"resnet50.a1_in1k"``), or of a detector
            (``"retinanet_resnet50_v2"``); a handle
            (``"hf://timm/resnet50.a1_in1k"``, ``"timm://…"``, ``"kaggle://…"``, ``"https://…"``); or the path of a
            file or folder of any kind that :func:`resfit.weights.formats.base.all_formats` lists. A ``.keras`` file
            alone is loaded as it was saved (:func:`load_keras`); with any other argument, the residual network in
            it is read and built anew.
        weights: ``"default"`` for the published weights of that name, None for fresh ones, or the path or handle
            of weights of this architecture.
        classes: Outputs of the classifier. A number other than that of the weights replaces the classifier by
            a fresh one and keeps the rest.
        include_top: Whether the model ends in the classifier. Default: yes for a name, and for a file or handle
            if it holds one.
        pooling: Without top, ``"avg"`` or ``"max"`` for features of shape ``(batch, channels)``; for CLIP's visual
            towers ``"attention"`` too, their own way to a vector.
        taps: Stages, ``"stage1"`` to ``"stage5"``, whose feature maps the model returns as a dict.
        preprocess: Whether the model takes RGB images 0..255 of any dtype and normalises them itself. False
            gives the bare network, which takes what ``model.input_spec.normalize`` returns.
        input_shape: ``(height, width, channels)``; height and width may be None, which is the default.
        in_channels: Input channels, if ``input_shape`` does not say. Weights for RGB are adapted by timm's
            rule: the sum of the filters for one channel, repeated and scaled filters for more.
        classifier_activation: Activation of the classifier; None for logits. Default: that of the file where its graph
            states one (whole models of Keras, ONNX), else softmax.
        dtype: Dtype policy of the layers, such as ``"mixed_float16"``. Default: Keras' global policy.
        seed: Makes fresh weights the same in every run. Default: they follow Keras' global seed.
        name: Name of the model. Default: the architecture's.
        **reading: For a file or handle, what :func:`resfit.weights.load.read_any` takes beside it:
            ``architecture``, ``prefix``, ``averaged``, ``ignore``, ``config``, ``input_spec``, and fields of
            :class:`ArchitectureSpec` that overrule what the source says or leaves open.

    Returns:
        A functional Keras model, images of shape ``(batch, height, width, channels)`` to probabilities,
        features or feature maps; of a detector to ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}``, xyxy in
        pixels of the input and scores in [0, 1], before non-maximum suppression. It has the attributes
        ``architecture`` (ArchitectureSpec; of a detector DetectorSpec), ``input_spec`` (InputSpec),
        ``class_names`` (a tuple of labels, or None where they are not known) and ``assumptions``
        (what the source leaves open and was assumed, one sentence each). What changes the numbers of the network is a
        :class:`resfit.errors.AssumptionWarning` too.

    Raises:
        UnknownNameError: No table has this name.
        CheckpointError: There are no such weights, or they do not fit the network.
        DownloadError: The weights cannot be fetched.
        ArgumentError: An argument is outside its choices, or two contradict each other.

    Example:
        >>> model = load("resnet18", weights=None, classes=10, seed=0)
        >>> model.output_shape
        (None, 10)
    """
    if input_shape is not None:
        if len(input_shape) != 3:
            raise ArgumentError(f"input_shape must be (height, width, channels). Received: {input_shape!r}.")
        if in_channels not in (None, input_shape[-1]):
            raise ArgumentError(
                f"in_channels and input_shape must agree. Received: {in_channels!r} and {input_shape!r}."
            )
    for argument, value in (("classes", classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise ArgumentError(f"{argument} must be at least 1. Received: {value!r}.")
    _check_reading(reading)
    from resfit.weights import locate

    path = locate.as_path(source)
    if path is not None and path.suffix == ".keras":
        given = (classes, include_top, pooling, tuple(taps), preprocess, input_shape, in_channels, weights, dtype, name)
        if given == (None, None, None, (), True, None, None, "default", None, None) and not reading:
            return _as_saved(path)

    from resfit.weights import detectors
    from resfit.weights import load as convert
    from resfit.weights.detectors import DetectorSource

    if path is None and include_top is None:
        include_top = True
    needs_top = include_top is not False and not taps
    found = read_any(source if path is None else path, weights, reading, needs_top=needs_top, classes=classes)
    if isinstance(found, DetectorSource):
        if pooling is not None or classifier_activation != "default":
            raise ArgumentError(
                f"pooling and classifier_activation are for classifiers. Received: {found.name!r}, a detector. Pass "
                "include_top=False for its backbone."
            )
        with convert.building(dtype, seed):
            detector = detectors.load(
                found,
                classes=classes,
                preprocess=preprocess,
                input_shape=input_shape,
                in_channels=in_channels,
                name=name,
            )
        return _with_warning(detector, source, preprocess)
    model = convert.load_source(
        found,
        include_top=include_top,
        classes=classes,
        pooling=pooling,
        taps=taps,
        preprocess=preprocess,
        input_shape=input_shape,
        in_channels=in_channels,
        classifier_activation=classifier_activation,
        dtype=dtype,
        seed=seed,
        name=name,
    )
    return _with_warning(model, source, preprocess)


def _with_warning(model: keras.Model, source: object, preprocess: bool) -> keras.Model:
    """Warns of what was assumed and changes the numbers, and returns the model."""
    from resfit.weights.load import OF_IMAGES

    open_points = [text for text in model.assumptions if text.endswith(("changes it)", "change it)"))]
    if not preprocess:  # the contract is told, and not part of the network
        open_points = [text for text in open_points if not text.startswith(OF_IMAGES)]
    if open_points:
        warnings.warn(f"{source}: assumed {'; '.join(open_points)}.", AssumptionWarning, stacklevel=3)
    return model


def _as_saved(path: Path) -> keras.Model:
    """Loads a ``.keras`` file as it was saved. One of Keras 2, which Keras 3 cannot load, is built anew."""
    from resfit.weights import load as convert
    from resfit.weights.formats import keras_archive

    if not path.is_file() or not zipfile.is_zipfile(path) or keras_archive.version(path) == 3:
        return load_keras(path)
    source = _of_path(path, "default", {})
    assert isinstance(source, convert.Source)  # a file of Keras
    takes = source.end.takes if source.end is not None else None
    if takes == 1:
        contract = dataclasses.replace(source.input_spec, scale=source.input_spec.scale * 255)
        source = dataclasses.replace(source, input_spec=contract)
    return convert.load_source(source, preprocess=takes is not None)


def load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a ``.keras`` file, with the layers of resfit known to Keras.

    Args:
        path: The file. It is loaded in Keras' safe mode, which runs no code of the file.

    Returns:
        The model. ``architecture`` and ``input_spec`` are set where its name and weights are those of a row
        of the catalog, otherwise ``architecture`` is None.

    Raises:
        CheckpointError: The file is missing, damaged or not safe to load.
    """
    from resfit.networks import layers as _layers  # noqa: F401  # registers them
    from resfit.networks.build import attach
    from resfit.networks.detection import build as _build  # noqa: F401  # likewise
    from resfit.weights import keras_models
    from resfit.weights.formats import keras_archive

    if not Path(path).is_file():
        raise CheckpointError(f"model file must exist. Received: {os.fspath(path)}.")
    if _names_hub_layer(Path(path)):
        from resfit.hub import layer as _layer  # noqa: F401  # registers it
    try:
        model = keras_models.load(Path(path))
    except Exception as error:  # Keras raises many kinds for a damaged file
        raise CheckpointError(
            f"{os.fspath(path)}: the file must be a .keras model, and whole. Received: {error}."
        ) from error
    model.architecture = model.class_names = None
    model.assumptions = ()
    about = keras_archive.own_metadata(Path(path))
    if about is not None:
        model.class_names = about[2]
        return attach(model, about[0], about[1])  # type: ignore[arg-type]  # of a detector too
    row = catalog.rows().get(model.name)
    if row is None:
        return model
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.weights}
    dense = model.get_layer("predictions") if "predictions" in counts else None
    classes = dense.units if dense else row.spec.classes
    spec = row.spec.replace(in_channels=model.input_shape[-1], classes=classes)
    counts.pop("predictions", None)
    if counts != _body_parameters(spec):
        return model
    contract = _contract(row.spec, registry.default_for(row.name))
    return attach(model, spec, contract.with_channels(spec.in_channels))


def _names_hub_layer(path: Path) -> bool:
    """Whether the configuration of a ``.keras`` archive has a layer of :mod:`resfit.hub`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > _MOST_JSON:
                return False
            return b"resfit>KerasLayer" in archive.read("config.json")
    except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, RuntimeError):
        return False


def read(
    source: str | os.PathLike[str],
    weights: Any = "default",
    reading: Mapping[str, Any] | None = None,
    **options: Any,
) -> Source:
    """Reads what :func:`load` would build a classifier or its body from, as :func:`read_any` does.

    Args:
        source: As :func:`load` takes it.
        weights: As :func:`load` takes it.
        reading: Further arguments of :func:`load`, for files and handles.
        **options: The other arguments of :func:`read_any`.

    Raises:
        ResfitError: As :func:`load`; or it is a detector, and the classifier is wanted.
    """
    from resfit.weights.detectors import DetectorSource

    found = read_any(source, weights, reading, **options)
    if isinstance(found, DetectorSource):
        raise CheckpointError(
            f"the network must be a classifier. Received: {os.fspath(source)!r}, a detector ({found.name!r}). Take "
            "resfit.Detector, or pass include_top=False for its backbone."
        )
    return found


def read_any(
    source: str | os.PathLike[str],
    weights: Any = "default",
    reading: Mapping[str, Any] | None = None,
    *,
    needs_top: bool = True,
    classes: int | None = None,
) -> Source | DetectorSource:
    """Reads what :func:`load` would build a network from. Nothing is built, and a ``.keras`` file is read anew.

    Args:
        source: As :func:`load` takes it.
        weights: As :func:`load` takes it.
        reading: Further arguments of :func:`load`, for files and handles.
        needs_top: Whether the classifier is wanted; if not, the smaller published file serves.
        classes: Outputs of the classifier that is wanted. Default: as many as the weights have.

    Raises:
        ResfitError: As :func:`load`.
    """
    from resfit.weights import locate

    path = locate.as_path(source)
    if path is not None:
        return _of_path(path, weights, {**({} if needs_top else {"include_top": False}), **(reading or {})})
    if str(source) in detector_catalog.rows():
        return _detector(str(source), weights, reading or {}, needs_top=needs_top)
    return read_named(str(source), weights, reading, needs_top=needs_top, classes=classes)


def _check_reading(reading: Mapping[str, Any]) -> None:
    """Makes sure that further arguments of :func:`load` are some that exist.

    Raises:
        ArgumentError: One does not.
    """
    from resfit.weights import detectors
    from resfit.weights import load as convert

    own, further = (
        [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        for function in (load, convert.read_any)
    )
    further += detectors.FIELDS
    for name in reading:
        if name not in further:
            raise ArgumentError(f"load has no argument {name!r}.{closest(name, [*own, *further])}")


def _detector(name: str, weights: Any, reading: Mapping[str, Any], *, needs_top: bool) -> Source | DetectorSource:
    """Reads a detector of the catalog, or its backbone."""
    from resfit.weights import detectors, fetch, locate
    from resfit.weights import load as convert
    from resfit.weights.detectors import DetectorSource
    from resfit.weights.formats import base as formats
    from resfit.weights.formats import resfit as resfit_format

    named, row = detectors.named(name), registry.detectors().get(name)
    path = locate.as_path(weights)
    if reading and path is None:
        raise ArgumentError(f"only a file or handle can be read in other ways. Received: {sorted(reading)}.")
    if path is None and weights not in ("default", None):
        raise ArgumentError(
            f'weights must be "default", None, a handle or a path that ends in {", ".join(formats.suffixes())}. '
            f"Received: weights={weights!r}."
        )
    if path is None and weights is not None:
        if row is None:
            raise CheckpointError(
                f"no weights are published for {name!r}. Pass weights=None for fresh ones, or the path of a file."
            )
        path = fetch.fetch(row)
    if path is not None and path.suffix.lower() in formats.suffixes(runner="keras") and needs_top:
        return dataclasses.replace(named, path=path, is_keras_file=True)
    if path is not None:
        own = {} if resfit_format.states_architecture(path) else {"architecture": name}
        found = convert.read_any(path, **{**own, **reading})
        if not isinstance(found, DetectorSource):
            raise CheckpointError(f"{path}: the weights must be those of {name!r}. Received: {found.name!r}.")
        named = found if reading else detectors.filled(named, found)
    if needs_top:
        return named
    spec, arrays = detectors.body(named)
    return convert.Source(
        path=named.path,
        name=convert.catalog_name_of(spec) or "resnet",
        spec=spec,
        arrays=arrays,
        has_top=False,
        input_spec=named.input_spec,
        class_names=None,
        convention=named.convention,
        assumptions=named.assumptions,
    )


def _of_path(path: Path, weights: Any, reading: Mapping[str, Any]) -> Source | DetectorSource:
    """Reads a file or folder that says itself what network it is.

    Raises:
        CheckpointError: It is missing, or says nothing.
        ArgumentError: Weights are named beside it.
    """
    from resfit.weights import load as convert
    from resfit.weights.detectors import DetectorSource

    if weights not in ("default", None):
        raise ArgumentError(f"a file as source brings its own weights. Received: weights={weights!r}.")
    try:
        found = convert.read_any(path, **reading)
    except CheckpointError as error:
        offer = f" resfit.hub.KerasLayer({str(path)!r}) runs it as it is." if (path / _GRAPH).is_file() else ""
        raise CheckpointError(f"{error}{offer}") from error
    if isinstance(found, DetectorSource):
        return found if weights else dataclasses.replace(found, path=None, arrays={})
    return found if weights else dataclasses.replace(found, path=None, class_names=None)


def read_named(
    name: str,
    weights: Any = "default",
    reading: Mapping[str, Any] | None = None,
    *,
    needs_top: bool = True,
    classes: int | None = None,
) -> Source:
    """Says what a name and a choice of weights stand for, and reads these. Nothing is built yet.

    Args:
        name: Of the catalog or of a checkpoint.
        weights: As :func:`load` takes it.
        reading: Further arguments of :func:`load`, for weights from a file or handle.
        needs_top: Whether the classifier is wanted; if not, the smaller published file serves.
        classes: Outputs of the classifier that is wanted. Default: as many as the weights have.

    Raises:
        UnknownNameError: No table has this name.
        CheckpointError: There is no such file, or there are no such weights.
        DownloadError: The weights cannot be fetched.
        ArgumentError: The choice of weights is none.
    """
    from resfit.weights import fetch, locate
    from resfit.weights import load as convert
    from resfit.weights.formats import base as formats

    row, checkpoint = _resolve(name)
    checkpoint = checkpoint or registry.default_for(row.name)
    given, reading = locate.as_path(weights), reading or {}
    if reading and given is None:
        raise ArgumentError(f"only a file or handle can be read in other ways. Received: {sorted(reading)}.")
    named = convert.Source(
        path=None,
        name=row.name,
        spec=row.spec,
        arrays={},
        has_top=True,
        input_spec=_contract(row.spec, checkpoint),
        class_names=None,
        convention="resfit",
        assumptions=(),
    )
    if weights is None:
        return named
    if given is not None:
        return _filled(named, given, reading, needs_top=needs_top)
    if weights not in ("default", "imagenet"):
        raise ArgumentError(
            f'weights must be "default", None, a handle or a path that ends in {", ".join(formats.suffixes())}. '
            f"Received: weights={weights!r}.{closest(str(weights), ('default', 'imagenet'))}"
        )
    if checkpoint is None:
        raise CheckpointError(
            f"no weights are published for {row.name!r}. Pass weights=None for fresh ones, or the path of a file."
        )
    if weights == "imagenet" and not checkpoint.training_data.endswith("ImageNet-1k"):
        raise CheckpointError(
            f"no ImageNet weights are known for {row.name!r}, but {checkpoint.training_data} ones. "
            'Pass weights="default" for these, or None.'
        )
    needs_top = needs_top and classes in (None, checkpoint.classes)
    path = fetch.fetch(checkpoint, include_top=needs_top)
    return dataclasses.replace(_filled(named, path, {}), class_names=_published_labels(checkpoint))


def _filled(named: Source, path: Path, reading: Mapping[str, Any], *, needs_top: bool = True) -> Source:
    """Returns a named network with the weights of a file or folder.

    Raises:
        CheckpointError: It is missing, or of no known kind, or of another network.
    """
    from resfit.weights import canonical, identify
    from resfit.weights import load as convert
    from resfit.weights.formats import base as formats
    from resfit.weights.formats import resfit as resfit_format

    if path.suffix.lower() in formats.suffixes(runner="keras") and not reading:
        if not path.is_file():
            raise CheckpointError(f"weights file must exist. Received: {path}.")
        whole = _whole(named, path)
        if whole is not None:
            return whole
        file = canonical.read(path)
        spec = named.spec.replace(
            classes=file.classes or named.spec.classes, in_channels=file.channels or named.spec.in_channels
        )
        has_top = not file.tells or file.classes is not None
        contract = named.input_spec.with_channels(spec.in_channels)
        return dataclasses.replace(named, path=path, spec=spec, has_top=has_top, input_spec=contract, file=file)
    # a file of resfit's says itself what it is; any other leaves open what the name tells
    own = resfit_format.states_architecture(path)
    found = (
        convert.read_source(path, **reading)
        if own
        else convert.read_source(
            path, **{"architecture": named.name, "include_top": None if needs_top else False, **reading}
        )
    )
    if not reading and not convert.is_like(found.spec, named.spec):
        differences = identify.differences(found.spec, named.spec)
        raise CheckpointError(
            f"{path}: the weights must be those of {named.name!r}. Received: {found.name!r}, which differs in "
            f"{' + '.join(differences)}. Load the path itself, or the name that it stands for."
        )
    if own:
        return dataclasses.replace(found, name=named.name)
    contract = named.input_spec.with_channels(found.spec.in_channels)
    return dataclasses.replace(found, name=named.name, input_spec=contract, assumptions=_beyond_contract(found))


def _whole(named: Source, path: Path) -> Source | None:
    """Reads a file of Keras that is more than the bare weights of a network; None where it is not more.

    Raises:
        CheckpointError: It is damaged, or of another network.
    """
    from resfit.weights import canonical, identify
    from resfit.weights import load as convert
    from resfit.weights.formats import base as formats
    from resfit.weights.formats import keras_h5, keras_weights
    from resfit.weights.formats.keras_config import SavedModel

    is_new = path.name.endswith(keras_weights.ENDING) and not keras_h5.is_legacy(path)
    if is_new:
        try:
            found = convert.read_source(path, architecture=named.name)
            if found.convention in ("keras", "keras-legacy"):
                return _of_name(named, found, path)
        except CheckpointError:
            pass  # its names mean nothing, or there are none
        groups = keras_weights.read_unnamed(path)
        file = canonical.WeightsFile(path, groups=groups)
        spec = named.spec.replace(
            classes=file.classes or named.spec.classes, in_channels=file.channels or named.spec.in_channels
        )
        told = "layers are matched by their order within each class, as Keras does (the file does not name them)"
        return dataclasses.replace(
            named,
            path=path,
            spec=spec,
            has_top=file.classes is not None,
            input_spec=named.input_spec.with_channels(spec.in_channels),
            assumptions=(told,),
            file=file,
        )
    kind = formats.find_format(path)
    read = kind.read(path) if kind else None
    if read is None or not isinstance(read.graph, SavedModel):
        if read is None or not any(name.count("/") > 1 for name in read.arrays):
            return None
        try:
            return _of_name(named, convert.read_source(path, architecture=named.name), path)
        except CheckpointError:
            return None  # the names mean nothing: layers are matched by order and shape, as Keras does
    whole = _of_path(path, "default", {})
    assert isinstance(whole, convert.Source)  # a file of Keras
    found = whole
    shapes = identify.differences(
        found.spec, named.spec, ("depths", "widths", "inner_widths", "block", "preactivation")
    )
    if shapes:
        raise CheckpointError(
            f"{path}: the weights must be those of {named.name!r}. Received: {found.name!r}, which differs in "
            f"{' + '.join(shapes)}. Load the path itself, or the name that it stands for."
        )
    return _compared(named, found, path)


def _of_name(named: Source, found: Source, path: Path) -> Source:
    """Returns weights that were told by their names for the network that was named, which says all that they do not."""
    spec = found.spec
    own = named.spec.replace(classes=spec.classes, in_channels=spec.in_channels)
    assumed = ("weights alone do not say so", "the tensors do not tell", "as the architecture")
    kept = tuple(text for text in _beyond_contract(found) if not any(a in text for a in assumed))
    contract = named.input_spec.with_channels(spec.in_channels)
    return dataclasses.replace(found, path=path, name=named.name, spec=own, input_spec=contract, assumptions=kept)


def _beyond_contract(found: Source) -> tuple[str, ...]:
    """What was assumed of a source but for its input contract and its activation, which a name says."""
    from resfit.weights.load import OF_HEAD, OF_IMAGES

    return tuple(text for text in found.assumptions if not text.startswith((OF_HEAD, OF_IMAGES)))


def _compared(named: Source, found: Source, path: Path) -> Source:
    """Returns what was read under a name, and says in what it is another network than the one of this name."""
    from resfit.weights import identify
    from resfit.weights import load as convert

    told: tuple[str, ...] = ()
    usual = {field: getattr(named.spec, field) for field in ("norm_momentum", "zero_init_last", "drop_path_rate")}
    if not convert.is_like(found.spec.replace(**usual), named.spec):
        differences = identify.differences(found.spec.replace(**usual), named.spec)
        kept = [text for text in differences if not text.startswith(("classes ", "input_size ", "in_channels "))]
        told = (f"the file's network is not quite {named.name!r}, and is built as the file has it: {', '.join(kept)}",)
    states = found.end is not None and found.end.takes is not None
    contract = found.input_spec if states else named.input_spec.with_channels(found.spec.in_channels)
    assumptions = found.assumptions if states else _beyond_contract(found)
    return dataclasses.replace(
        found, path=path, name=named.name, input_spec=contract, assumptions=(*assumptions, *told)
    )


def _resolve(name: str) -> tuple[catalog.CatalogRow, CheckpointInfo | None]:
    """Returns the architecture of a name, and the checkpoint if the name is one's."""
    checkpoint = registry.rows().get(name)
    if name in catalog.rows():
        return catalog.get(name), checkpoint
    if checkpoint is not None:
        return catalog.get(checkpoint.architecture), checkpoint
    if (module := registry.modules().get(name)) is not None:
        raise UnknownNameError(
            f"model must be a network of its own, not a module alone. Received: {name!r}: {module.obstacle}."
            f" resfit.hub.KerasLayer({module.url!r}) runs it as it is."
        )
    from resfit.weights.formats import base as formats

    candidates = [*catalog.rows(), *registry.rows(), *detector_catalog.rows()]
    raise UnknownNameError(
        "model must be a name that `resfit models` lists, or a path that ends in "
        f"{', '.join(formats.suffixes())}. "
        f"Received: {name!r}.{closest(name, candidates)}"
    )


@functools.cache
def _count(name: str) -> arithmetic.Arithmetic:
    return arithmetic.count(catalog.get(name).spec)


def _info(name: str) -> ModelInfo:
    row, counted, default = catalog.get(name), _count(name), registry.default_for(name)
    top1, top5 = (default.top1, default.top5) if default else (None, None)
    if default and default.source == registry.RESFIT:
        top1, top5 = _embedded_accuracy(default)
    return ModelInfo(
        name=name,
        family=row.family,
        parameters=counted.parameters,
        gmacs=round(counted.macs / 1e9, 4),
        input_size=row.spec.input_size,
        classes=row.spec.classes,
        weights=default.name if default else "",
        loadable=bool(default and default.loadable),
        licence=default.licence if default else "",
        top1=top1,
        top5=top5,
        checkpoints=len(registry.of_architecture(name)),
        paper=row.paper,
    )


def _contract(spec: ArchitectureSpec, checkpoint: CheckpointInfo | None) -> InputSpec:
    from resfit.preprocessing import TORCH

    if checkpoint is None:
        return dataclasses.replace(TORCH, size=spec.input_size).with_channels(spec.in_channels)
    return checkpoint.input_spec


def _published_labels(checkpoint: CheckpointInfo) -> tuple[str, ...] | None:
    metadata = registry.embedded_metadata(checkpoint) if checkpoint.source == registry.RESFIT else {}
    return _labels(metadata.get("labels")) or _labels(metadata.get("classes")) or checkpoint.class_names


def _embedded_accuracy(checkpoint: CheckpointInfo) -> tuple[float | None, float | None]:
    """Returns top-1 and top-5 in percent, which ``resfit pretrain`` writes as shares beside the weights."""
    scores = registry.embedded_metadata(checkpoint).get("scores")
    shares = [scores.get(key) if isinstance(scores, dict) else None for key in ("val_top1", "val_top5")]
    top1, top5 = (None if share is None else round(100 * share, 2) for share in shares)
    return top1, top5


def _labels(value: Any) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) and value else None


def _body_parameters(spec: ArchitectureSpec) -> dict[str, int]:
    counted = arithmetic.count(spec, include_top=False)
    return {layer.name: layer.parameters for layer in counted.layers if layer.parameters}
