"""build(): an ArchitectureSpec as a Keras model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import layers, ops

from resfit.errors import ArgumentError, closest
from resfit.networks import blocks
from resfit.networks.plan import BlockPlan, stage_names
from resfit.networks.plan import blocks as planned_blocks
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec


def build(
    spec: ArchitectureSpec,
    *,
    input_shape: tuple[int | None, int | None, int] | None = None,
    include_top: bool = True,
    classes: int | None = None,
    pooling: str | None = None,
    classifier_activation: Any = "softmax",
    taps: Sequence[str] = (),
    input_tensor: Any = None,
    input_spec: InputSpec | None = None,
    preprocess: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network as a functional Keras model with fresh weights.

    Args:
        spec: The network.
        input_shape: ``(height, width, channels)`` of one image; height and width may be None, which is the default.
        include_top: Whether to end in the classifier ``predictions``.
        classes: Outputs of the classifier. Default: the spec's.
        pooling: Without top, ``"avg"`` or ``"max"`` for features of shape ``(batch, channels)``, None for the last
            feature map ``(batch, height, width, channels)``.
        classifier_activation: Activation of the classifier; None for logits.
        taps: Names of stages, ``"stage1"`` to ``"stage5"``, whose feature maps the model returns as a dict, in
            place of its usual output. ``"stage1"`` is the stem before its pooling; a network whose last block of a
            stage carries the stride is tapped before that block.
        input_tensor: Keras tensor to build on, in place of a new input.
        input_spec: The input contract; kept as ``model.input_spec`` and used by ``preprocess``.
        preprocess: Whether the model takes RGB images 0..255 of any dtype and normalises them itself.
        name: Name of the model.

    Returns:
        A functional model with two more attributes: ``architecture``, the spec that was built, and, if one was
        given, ``input_spec``, the input contract.

    Raises:
        ArgumentError: An argument is outside its choices, or two contradict each other.

    Example:
        >>> from resfit.networks import catalog
        >>> body = build(catalog.get("resnet18").spec, include_top=False, taps=("stage3", "stage5"))
        >>> sorted(body.output)
        ['stage3', 'stage5']

    Source:
        He et al. 2015, arXiv:1512.03385 (v1); He et al. 2016, arXiv:1603.05027 (v2).
    """
    if pooling not in (None, "avg", "max"):
        raise ArgumentError(f"pooling must be None, 'avg' or 'max'. Received: pooling={pooling!r}.")
    known = stage_names(spec)
    for tap in taps:
        if tap not in known:
            raise ArgumentError(f"taps must be among {known}. Received: {tap!r}.{closest(tap, known)}")
    if preprocess and input_spec is None:
        raise ArgumentError("preprocess=True needs an input_spec. Received: input_spec=None.")
    if classes is not None:
        spec = spec.replace(classes=classes)
    repeats = preprocess and input_spec is not None and input_spec.repeats_grey
    if input_shape is not None and input_shape[-1] != spec.in_channels and not repeats:
        spec = spec.replace(in_channels=int(input_shape[-1]))

    if input_tensor is None:
        images = layers.Input(shape=input_shape or (None, None, 1 if repeats else spec.in_channels))
    elif keras.utils.is_keras_tensor(input_tensor):
        images = input_tensor
    else:
        images = layers.Input(tensor=input_tensor, shape=input_shape)
    x = preprocessing(images, input_spec) if preprocess and input_spec else images

    x, tapped = blocks.stem(x, spec)
    maps = {known[0]: tapped}
    planned = planned_blocks(spec)
    for plan in planned:
        entering, x = x, blocks.residual_block(x, spec, plan)
        maps[known[plan.stage + 1]] = entering if plan.tapped else x
    if spec.preactivation:
        x = blocks.normalization(x, spec, "post", behind_convolution=False)
        x = blocks.activation(x, spec, "post_relu")
        if not planned[-1].tapped:
            maps[known[-1]] = x

    if taps:
        outputs: Any = {tap: maps[tap] for tap in taps}
    elif include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool", dtype=head_dtype())(x)
        outputs = layers.Dense(spec.classes, activation=classifier_activation, name="predictions", dtype=head_dtype())(
            x
        )
    elif pooling == "avg":
        outputs = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        outputs = layers.GlobalMaxPooling2D(name="max_pool")(x)
    else:
        outputs = x

    inputs = images if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    with deep_graph(planned):
        model = keras.Model(inputs, outputs, name=name)
    return attach(model, spec, input_spec)


def head_dtype() -> str | None:
    """Returns float32 where the policy computes in less: sums over a map and a softmax need the range and precision.

    Returns:
        The dtype for the layers of a head, or None for that of the policy.
    """
    return "float32" if keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16") else None


def preprocessing(images: Any, input_spec: InputSpec) -> Any:
    """Applies an input contract inside a model, in float32 whatever the dtype policy.

    Args:
        images: Tensor of shape ``(batch, height, width, channels)``, RGB, values 0..255.
        input_spec: The contract.

    Returns:
        What the network was trained on, equal to :meth:`InputSpec.normalize` to the last bit of float32 arithmetic.
    """
    if input_spec.channel_order == "bgr":
        images = ops.flip(images, axis=-1)
    if input_spec.repeats_grey:
        images = ops.repeat(images, len(input_spec.mean), axis=-1)
    if input_spec.scales_nothing:
        return images
    return layers.Rescaling(
        list(input_spec.multiplier), list(input_spec.offset), dtype="float32", name="normalization"
    )(images)


def attach(model: keras.Model, spec: ArchitectureSpec, input_spec: InputSpec | None) -> keras.Model:
    """Writes the spec and the input contract on a model, as ``model.architecture`` and ``model.input_spec``.

    The class of the model stays Keras' own, so that a saved network loads in a program that has no resfit.

    Args:
        model: The model.
        spec: Its architecture.
        input_spec: Its input contract, if there is one.
    """
    model.architecture = spec
    if input_spec is not None:
        model.input_spec = input_spec
    return model


@contextlib.contextmanager
def deep_graph(planned: Sequence[BlockPlan]) -> Iterator[None]:
    """Lets Keras walk the graph of a network of a thousand layers, which it does by recursion.

    Args:
        planned: The blocks of the network.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 1000 + 20 * len(planned)))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
