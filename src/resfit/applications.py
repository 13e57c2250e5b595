"""Drop-in for keras.applications' ResNets: the same functions, arguments and errors, and one for every other
network.

In a script written for ``keras.applications`` only the import changes::

    from resfit import applications

    base = applications.ResNet50(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    x = applications.resnet50.preprocess_input(images)

Each row of the catalog has a function. Its name is the row's in camel case: ``resnet50v1.5`` is
``ResNet50V1_5``, ``resnet50d`` is ``ResNet50D``, ``seresnext50_32x4d`` is ``SEResNeXt50_32x4d``,
``wide_resnet50_2`` is ``WideResNet50_2``, ``resnetv2_50x1_bit`` is ``ResNetV2_50x1_BiT``, ``resnet10_tiny``
is ``ResNet10Tiny``. Every function carries the ``preprocess_input`` that belongs to it:
``applications.ResNet50D.preprocess_input(images)``.

As in ``keras.applications`` the network takes preprocessed images. ``resfit.load`` puts the preprocessing
inside.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from resfit import zoo
from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.networks import arithmetic, catalog
from resfit.networks.catalog import CatalogRow
from resfit.weights import registry
from resfit.weights.registry import CheckpointInfo

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec

# keras.applications' smallest image; networks that reduce less take smaller ones.
_MIN_SIZE = 32

_CLASS_INDEX_URL = "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json"
_CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"


class Application(Protocol):
    """What every function here looks like."""

    __name__: str
    preprocess_input: Any
    decode_predictions: Any

    def __call__(
        self,
        include_top: bool = True,
        weights: str | os.PathLike[str] | None = "imagenet",
        input_tensor: Any = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: str | None = None,
        classes: int = 1000,
        classifier_activation: Any = "softmax",
        name: str = ...,
    ) -> keras.Model:
        """Builds the network."""


def function_name(name: str) -> str:
    """Returns the name of the function for a row of the catalog.

    Args:
        name: The row's name.

    Example:
        >>> function_name("seresnext26d_32x4d")
        'SEResNeXt26D_32x4d'
    """
    found = next(word for word in _WORDS if name.startswith(word))
    rest = name.removeprefix(found)
    rest = re.sub(r"^(\d+)([cdst])(?=_|$)", lambda match: match[1] + match[2].upper(), rest)
    rest = rest.replace("v1.5", "V1_5").replace("v2", "V2").replace("_bit", "_BiT").replace("_gn", "_GN")
    rest = rest.replace("_evos", "_EvoS").replace("_pruned", "_Pruned")
    return _WORDS[found] + rest.replace("_tiny", "Tiny").replace("light", "Light")


# What the names begin with; the longest first, since one may begin with another.
_WORDS = {
    "preact_resnet": "PreActResNet",
    "seresnextaa": "SEResNeXtAA",
    "wide_resnet": "WideResNet",
    "test_resnet": "TestResNet",
    "resnetblur": "ResNetBlur",
    "resnetv2_": "ResNetV2_",
    "ecaresnet": "ECAResNet",
    "seresnext": "SEResNeXt",
    "seresnet": "SEResNet",
    "resnetrs": "ResNetRS",
    "resnetaa": "ResNetAA",
    "resnext": "ResNeXt",
    "resnet": "ResNet",
    "senet": "SENet",
    "wrn_": "WRN_",
}


def decode_predictions(
    preds: Any, top: int = 5, *, class_index: str | os.PathLike[str] | None = None
) -> list[list[tuple[str, str, float]]]:
    """Names the likeliest ImageNet classes of each image.

    Args:
        preds: Probabilities of shape ``(samples, 1000)``, numpy or tensor.
        top: How many classes to return for each image.
        class_index: JSON file of ``{"0": [id, label], ...}``. Default: the one that Keras publishes, from its
            cache.

    Returns:
        For each image, tuples of WordNet id, label and score, the highest score first.

    Raises:
        ArgumentError: The shape is another one.
        DownloadError: The published file is not in Keras' cache and cannot be fetched.
    """
    import numpy as np

    shape = tuple(getattr(preds, "shape", np.shape(preds)))
    if len(shape) != 2 or shape[1] != 1000:
        raise ArgumentError(f"preds must be a batch of shape (samples, 1000). Received: shape={shape}.")
    labels = _class_index(None if class_index is None else os.fspath(class_index))
    decoded = []
    for scores in np.asarray(preds):
        best = scores.argsort()[-top:][::-1]
        found = [(labels[index][0], labels[index][1], scores[index]) for index in best]
        decoded.append(sorted(found, key=lambda item: item[2], reverse=True))
    return decoded


def __getattr__(name: str) -> Any:
    names = _functions()
    if name not in names:
        raise AttributeError(
            f"module 'resfit.applications' has no attribute {name!r}.{closest(name, [*names, *_NAMESPACES])}"
        )
    value = _function(names[name])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_functions()})


@functools.cache
def _functions() -> dict[str, str]:
    """Rows of the catalog by the names of their functions."""
    return {function_name(name): name for name in catalog.rows()}


def _function(row_name: str) -> Application:
    """Makes the function of one row. All there is to it stands in the catalog and the registry."""
    row, checkpoint = catalog.get(row_name), registry.default_for(row_name)
    called = function_name(row_name)
    published = _published_as(checkpoint)
    usual = checkpoint.classes if checkpoint and published else row.spec.classes

    def build_application(
        include_top: bool = True,
        weights: str | os.PathLike[str] | None = published,
        input_tensor: Any = None,
        input_shape: tuple[int | None, int | None, int] | None = None,
        pooling: str | None = None,
        classes: int = usual,
        classifier_activation: Any = "softmax",
        name: str = row_name,
    ) -> keras.Model:
        return _build(
            row,
            checkpoint,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
        )

    function: Any = build_application
    function.__name__ = function.__qualname__ = called
    function.__module__ = __name__
    function.__doc__ = _documentation(called, row, published)
    function.preprocess_input = _preprocessor(_contract(row, checkpoint))
    function.decode_predictions = decode_predictions
    return function


def _documentation(called: str, row: CatalogRow, published: str | None) -> str:
    height, width = row.spec.input_size
    choices = f'"{published}" for the published ones, ' if published else ""
    return f"""Builds {row.name} ({row.family}). With the arguments of keras.applications.

    Args:
        include_top: Whether to end in the classifier ``predictions``.
        weights: {choices}None for fresh ones, or the path of a file.
        input_tensor: Keras tensor to build on, in place of a new input.
        input_shape: ``(height, width, 3)``; default ``({height}, {width}, 3)`` with top, any size without.
        pooling: Without top, ``"avg"`` or ``"max"`` for features of shape
            ``(batch, {row.spec.feature_width})``, None for the last feature map.
        classes: Outputs of the classifier.
        classifier_activation: Activation of the classifier; None for logits.
        name: Name of the model.

    Returns:
        A functional Keras model that takes what ``{called}.preprocess_input`` returns.

    Raises:
        ArgumentError: An argument breaks a rule of keras.applications. It is a ValueError.
        CheckpointError: The weights do not fit, or none are published. It is a ValueError.
        DownloadError: The published weights cannot be fetched.

    Source:
        {row.paper}.
    """


def _build(
    row: CatalogRow,
    checkpoint: CheckpointInfo | None,
    *,
    include_top: bool,
    weights: str | os.PathLike[str] | None,
    input_tensor: Any,
    input_shape: Any,
    pooling: str | None,
    classes: int,
    classifier_activation: Any,
    name: str,
) -> keras.Model:
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise ArgumentError(
            "the image data format must be 'channels_last'. Received: 'channels_first' in Keras' "
            "configuration. "
            "Call keras.config.set_image_data_format('channels_last')."
        )
    published = _published_as(checkpoint)
    by_name = weights is not None and weights == published
    if not by_name and weights is not None:
        _check_weights_path(weights, published, row)
    if by_name and include_top and checkpoint and classes != checkpoint.classes:
        raise ArgumentError(
            f"classes must be {checkpoint.classes} with weights={weights!r} and include_top=True. "
            f"Received: classes={classes!r}. resfit.load({row.name!r}, classes={classes!r}) replaces the "
            "classifier."
        )
    shape = _input_shape(row, input_shape, pretrained=by_name, include_top=include_top)
    if include_top and weights is not None:
        allowed = {keras.activations.get(None), keras.activations.get("softmax")}
        if keras.activations.get(classifier_activation) not in allowed:
            raise ArgumentError(
                "classifier_activation must be None or 'softmax' with pre-trained weights and "
                "include_top=True. "
                f"Received: classifier_activation={classifier_activation!r}."
            )

    from resfit.networks.build import build
    from resfit.weights import canonical

    file = None
    if weights is not None:
        chosen = checkpoint.name if by_name and checkpoint else row.name
        source = zoo.read_named(chosen, "default" if by_name else Path(weights), needs_top=include_top)
        file = source.weights
    channels = shape[-1] if input_tensor is None else input_tensor.shape[-1]
    model = build(
        row.spec.replace(in_channels=int(channels)),
        input_shape=shape,
        include_top=include_top,
        classes=classes,
        pooling=None if include_top else pooling,
        classifier_activation=classifier_activation,
        input_tensor=input_tensor,
        input_spec=_contract(row, checkpoint).with_channels(int(channels)),
        name=name,
    )
    if file is not None:
        canonical.fill_from_file(model, file)
    return model


def _check_weights_path(weights: Any, published: str | None, row: CatalogRow) -> None:
    if isinstance(weights, (str, os.PathLike)) and os.path.exists(weights):
        return
    if weights == "imagenet":
        raise CheckpointError(
            f"no ImageNet weights of {row.name!r} can be fetched by name. "
            "Pass weights=None for fresh ones, or the path of a file."
        )
    choices = [f'"{published}"'] if published else []
    raise ArgumentError(
        f"weights must be {', '.join(['None', *choices])} or the path of a file. Received: "
        f"weights={weights!r}."
        f"{closest(str(weights), [published]) if published else ''}"
    )


def _input_shape(
    row: CatalogRow, given: Any, *, pretrained: bool, include_top: bool
) -> tuple[int | None, int | None, int]:
    """Checks an input shape by keras.applications' rules and fills in what it leaves open."""
    height, width = row.spec.input_size
    default: tuple[int | None, int | None, int] = (height, width, 3)
    if not pretrained and given and len(given) == 3:
        if given[-1] not in (1, 3):
            warnings.warn(f"input_shape usually has 1 or 3 channels. Received: {given[-1]} channels.", stacklevel=4)
        default = (height, width, given[-1])
    if pretrained and include_top:
        if given is not None and given != default:
            raise ArgumentError(
                f"input_shape must be {default} with pre-trained weights and include_top=True. "
                f"Received: input_shape={given!r}."
            )
        return default
    if not given:
        return default if include_top else (None, None, 3)
    if len(given) != 3:
        raise ArgumentError(f"input_shape must be (height, width, channels). Received: input_shape={given!r}.")
    if pretrained and given[-1] != 3:
        raise ArgumentError(
            f"input_shape must have 3 channels with pre-trained weights. Received: input_shape={given!r}. "
            f"resfit.load({row.name!r}, in_channels={given[-1]!r}) adapts the first convolution."
        )
    least = min(_MIN_SIZE, max(arithmetic.count(row.spec).taps.values()))
    if any(side is not None and side < least for side in given[:2]):
        raise ArgumentError(f"input_shape must be at least {least}x{least}. Received: input_shape={given!r}.")
    if include_top and None in given:
        raise ArgumentError(
            f"input_shape must be static with include_top=True. Received: input_shape={given!r}. "
            f"resfit.load({row.name!r}) takes images of any size."
        )
    return tuple(given)


def _published_as(checkpoint: CheckpointInfo | None) -> str | None:
    """Returns what ``weights`` calls the published weights of a row: the default of its function."""
    if checkpoint is None or not checkpoint.classes:
        return None
    if checkpoint.evaluated_on == registry.IMAGENET or checkpoint.training_data == registry.IMAGENET:
        return "imagenet"
    return checkpoint.training_data.lower().replace(" ", "-")


def _contract(row: CatalogRow, checkpoint: CheckpointInfo | None) -> InputSpec:
    from resfit.preprocessing import TORCH

    return checkpoint.input_spec if checkpoint else TORCH


def _preprocessor(contract: InputSpec) -> Any:
    def preprocess_input(x: Any, data_format: str | None = None) -> Any:
        """Brings images to the values that the network was trained on.

        As keras.applications' function of this name, but the input is never changed and never wraps around.

        Args:
            x: Images of shape ``(..., height, width, 3)``, RGB, values 0..255, any dtype: numpy, tensor, list
                or Pillow image.
            data_format: ``"channels_first"``, ``"channels_last"`` or None for Keras' configuration.

        Returns:
            A new array or tensor, in the dtype of a floating-point input, otherwise in Keras' float type.

        Raises:
            ArgumentError: data_format is another one, or the channel axis is not 3 long.
        """
        return _preprocess(x, contract, data_format)

    return preprocess_input


def _preprocess(x: Any, contract: InputSpec, data_format: str | None) -> Any:
    import keras
    import numpy as np
    from keras import ops

    if data_format is None:
        data_format = keras.config.image_data_format()
    elif data_format not in ("channels_first", "channels_last"):
        raise ArgumentError(
            f"data_format must be 'channels_first' or 'channels_last'. Received: data_format={data_format!r}."
        )
    numpy = not (keras.ops.is_tensor(x) or isinstance(x, keras.KerasTensor))
    images = np.asarray(x) if numpy else x
    rank = len(images.shape)
    axis = rank - 1 if data_format == "channels_last" else rank - 3
    if rank < 3 or images.shape[axis] not in (3, None):
        raise ArgumentError(
            f"x must have 3 channels on axis {axis} ({data_format}). Received: shape={tuple(images.shape)}."
        )
    is_float = "float" in (images.dtype.name if numpy else keras.backend.standardize_dtype(images.dtype))
    if numpy:
        images = images if is_float else images.astype(keras.config.floatx())
    elif not is_float:
        images = ops.cast(images, keras.config.floatx())

    # one step after the other, as keras.applications does, so that the results are the same to the last bit
    divisor = 1 / contract.scale
    if divisor != 1:
        images = images / round(divisor, 6)
    if contract.channel_order == "bgr":
        images = np.flip(images, axis) if numpy else ops.flip(images, axis)
    column = [1] * rank
    column[axis] = 3
    dtype = images.dtype if numpy else keras.backend.standardize_dtype(images.dtype)

    def line(values: Sequence[float]) -> Any:
        array = np.asarray(values).reshape(column)
        return array.astype(dtype) if numpy else ops.convert_to_tensor(array, dtype)

    if any(contract.mean):
        images = images - line(contract.mean)
    if any(value != 1 for value in contract.std):
        images = images / line(contract.std)
    return images


@functools.lru_cache(maxsize=4)
def _class_index(path: str | None) -> tuple[tuple[str, str], ...]:
    from resfit.weights import fetch

    file = fetch.fetch_file(_CLASS_INDEX_URL, _CLASS_INDEX_MD5) if path is None else path
    with open(file, encoding="utf-8") as opened:
        table = json.load(opened)
    return tuple((str(table[str(index)][0]), str(table[str(index)][1])) for index in range(1000))


def _namespace(name: str, members: Sequence[str]) -> types.ModuleType:
    """Makes a submodule as keras.applications has them, with the preprocessing of its functions."""
    module = types.ModuleType(f"{__name__}.{name}", f"{', '.join(members)} and what goes with them.")
    functions = {member: globals().get(member) or __getattr__(member) for member in members}
    module.__dict__.update(functions)
    module.__dict__["preprocess_input"] = functions[members[0]].preprocess_input
    module.__dict__["decode_predictions"] = decode_predictions
    module.__dict__["__all__"] = [*members, "preprocess_input", "decode_predictions"]
    sys.modules[module.__name__] = module
    return module


_NAMESPACES = {
    "resnet": ("ResNet50", "ResNet101", "ResNet152"),
    "resnet50": ("ResNet50",),
    "resnet_v2": ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "resnext": ("ResNeXt50", "ResNeXt101"),
}

resnet = _namespace("resnet", _NAMESPACES["resnet"])
resnet50 = _namespace("resnet50", _NAMESPACES["resnet50"])
resnet_v2 = _namespace("resnet_v2", _NAMESPACES["resnet_v2"])
resnext = _namespace("resnext", _NAMESPACES["resnext"])

__all__ = ["decode_predictions", "function_name", *_NAMESPACES, *_functions()]

if TYPE_CHECKING:
    ResNet18: Application
    ResNet34: Application
    ResNet50: Application
    ResNet101: Application
    ResNet152: Application
    ResNet50V2: Application
    ResNet101V2: Application
    ResNet152V2: Application
    ResNeXt50: Application
    ResNeXt101: Application
