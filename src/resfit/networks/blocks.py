"""Stem, shortcuts and residual blocks of every kind, as Keras layers.

The layers are Keras' own wherever Keras has them, so that a saved network of the usual kinds loads without resfit.
Their names are those of keras.applications, extended to what it lacks.
"""

from __future__ import annotations

from typing import Any

from keras import layers

from resfit.networks.layers import (
    BlurPool2D,
    EvoNormS0,
    LowestPadding2D,
    PaddedShortcut,
    StandardizedConv2D,
    StochasticDepth,
)
from resfit.networks.plan import NORM_SUFFIXES, BlockPlan
from resfit.networks.spec import ArchitectureSpec

# The layer of each kind of norm, and its options beside epsilon by the fields of a spec that say them.
_NORMS: dict[str, tuple[Any, dict[str, str]]] = {
    "batch": (layers.BatchNormalization, {"momentum": "norm_momentum"}),
    "group": (layers.GroupNormalization, {"groups": "norm_groups"}),
    "evo": (EvoNormS0, {"groups": "norm_groups"}),
}


def convolution(
    x: Any,
    spec: ArchitectureSpec,
    name: str,
    width: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    normalized: bool = True,
    explicit_padding: bool = False,
) -> Any:
    """Applies a convolution with the network's padding, bias rule and weight standardisation.

    Args:
        x: Tensor of shape ``(batch, height, width, channels)``.
        spec: The network.
        name: Name prefix; the layers are ``{name}_pad`` (if needed) and ``{name}_conv``.
        width: Output channels.
        kernel: Side of the kernel.
        stride: Stride in pixels.
        dilation: Distance of the kernel's taps in pixels.
        groups: Groups of channels.
        normalized: Whether a norm follows, on which the bias may depend.
        explicit_padding: Pad by a layer of its own even where the convolution could.
    """
    padding = "same"
    if spec.padding == "symmetric" and kernel > 1 and (stride > 1 or explicit_padding):
        x = layers.ZeroPadding2D(dilation * (kernel - 1) // 2, name=f"{name}_pad")(x)
        padding = "valid"
    options: dict[str, Any] = {
        "strides": stride,
        "padding": padding if kernel > 1 else "valid",
        "dilation_rate": dilation,
        "groups": groups,
        "use_bias": spec.has_bias(normalized=normalized, is_shortcut=name.endswith("_0")),
        "name": f"{name}_conv",
    }
    if spec.weight_standardization:
        return StandardizedConv2D(
            width, kernel, standardization_epsilon=spec.weight_standardization_epsilon, **options
        )(x)
    return layers.Conv2D(width, kernel, **options)(x)


def normalization(
    x: Any, spec: ArchitectureSpec, name: str, *, zero_gamma: bool = False, behind_convolution: bool = True
) -> Any:
    """Applies the network's norm, named ``{name}_bn``, ``{name}_gn`` or ``{name}_evo``; nothing where it has none."""
    if spec.norm == "none" or (spec.folded and behind_convolution):
        return x
    kind, fields = _NORMS[spec.norm]
    options = {option: getattr(spec, field) for option, field in fields.items()}
    gamma = "zeros" if zero_gamma else "ones"
    named = f"{name}_{NORM_SUFFIXES[spec.norm]}"
    return kind(epsilon=spec.norm_epsilon, gamma_initializer=gamma, name=named, **options)(x)


def activation(x: Any, spec: ArchitectureSpec, name: str) -> Any:
    """Applies the network's activation under exactly this name."""
    if spec.activation_slope is not None:
        return layers.LeakyReLU(negative_slope=spec.activation_slope, name=name)(x)
    return layers.Activation(spec.activation, name=name)(x)


def stem(x: Any, spec: ArchitectureSpec) -> tuple[Any, Any]:
    """Applies the stem.

    Args:
        x: Images of shape ``(batch, height, width, in_channels)``.
        spec: The network.

    Returns:
        The tensor after the stem and the one before its pooling (the tap ``"stage1"``).
    """
    last = len(spec.stem)
    padded = spec.replace(padding=spec.stem_padding) if spec.stem_padding else spec
    for number, conv in enumerate(spec.stem, start=1):
        name = "conv1" if last == 1 else f"conv1_{number}"
        normalized = spec.normalizes_stem(number == last)
        x = convolution(x, padded, name, conv.width, conv.kernel, stride=conv.stride, normalized=normalized)
        if normalized:
            x = normalization(x, spec, name)
            x = activation(x, spec, f"{name}_relu")
    tapped = x
    width = spec.stem[-1].width
    if spec.stem_pool == "conv":
        x = convolution(x, spec, "pool1", width, 3, stride=2)
        x = normalization(x, spec, "pool1")
        x = activation(x, spec, "pool1_relu")
    elif spec.stem_pool == "avg":
        padding = "same" if spec.stem_pool_size is not None and spec.stem_pool_padding == "same" else "valid"
        x = layers.AveragePooling2D(spec.pool_size, strides=2, padding=padding, name="pool1_pool")(x)
    elif spec.stem_pool in ("max", "blur"):
        stride = 2 if spec.stem_pool == "max" else 1
        padding = "valid" if spec.stem_pool_padding == "valid" else "same"
        if spec.stem_pool_padding == "zero" or (_is_never_negative(spec) and spec.stem_pool_padding == "lowest"):
            # after a ReLU no value lies under zero, so that padding with zeros is padding with the lowest
            x = layers.ZeroPadding2D(spec.pool_size // 2, name="pool1_pad")(x)
            padding = "valid"
        elif spec.stem_pool_padding == "lowest":
            x = LowestPadding2D(spec.pool_size // 2, name="pool1_pad")(x)
            padding = "valid"
        x = layers.MaxPooling2D(spec.pool_size, strides=stride, padding=padding, name="pool1_pool")(x)
        if spec.stem_pool == "blur":
            x = BlurPool2D(2, name="pool1_blur")(x)
    return x, tapped


def _is_never_negative(spec: ArchitectureSpec) -> bool:
    return spec.activation in ("relu", "relu6") and spec.normalizes_stem(last=True)


def shortcut(x: Any, entering: Any, spec: ArchitectureSpec, plan: BlockPlan) -> Any:
    """Applies the shortcut of a block.

    Args:
        x: What a projection reads: the block's input, or its pre-activation in v2.
        entering: The block's input itself, which an identity passes on.
        spec: The network.
        plan: The block.
    """
    if plan.subsamples:
        return layers.MaxPooling2D(1, strides=plan.stride)(entering)
    if not plan.changes_shape:
        return entering
    name = f"{plan.name}_0"
    if spec.shortcut_input == "raw":
        x = entering
    if spec.shortcut == "pad":
        return PaddedShortcut(plan.width, plan.stride, name=f"{name}_pad")(x)
    stride = plan.stride
    if spec.shortcut == "avgpool" and (plan.reduces or spec.shortcut_pool == "always"):
        x = layers.AveragePooling2D(2, strides=stride, padding="same", name=f"{name}_pool")(x)
        stride = 1
    kernel = spec.shortcut_kernel if plan.reduces else 1
    normalized = spec.shortcut_norm and not spec.preactivation
    x = convolution(x, spec, name, plan.width, kernel, stride=stride, normalized=normalized)
    return normalization(x, spec, name) if normalized else x


def attention(x: Any, spec: ArchitectureSpec, plan: BlockPlan) -> Any:
    """Scales the channels by squeeze-excite or ECA; nothing where the network has neither.

    Squeeze-excite: Hu et al. 2017, arXiv:1709.01507. ECA: Wang et al. 2019, arXiv:1910.03151.
    """
    if spec.attention is None or spec.attention_sizes is None:
        return x
    size, name = spec.attention_sizes[plan.stage], f"{plan.name}_{spec.attention}"
    weights = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    if spec.attention == "se":
        weights = layers.Conv2D(size, 1, name=f"{name}_reduce_conv")(weights)
        weights = layers.Activation("relu", name=f"{name}_relu")(weights)
        weights = layers.Conv2D(plan.width, 1, name=f"{name}_expand_conv")(weights)
    else:
        weights = layers.Reshape((plan.width, 1), name=f"{name}_line")(weights)
        weights = layers.Conv1D(1, size, padding="same", use_bias=False, name=f"{name}_conv")(weights)
        weights = layers.Reshape((1, 1, plan.width), name=f"{name}_unline")(weights)
    weights = layers.Activation("sigmoid", name=f"{name}_gate")(weights)
    return layers.Multiply(name=f"{name}_scale")([x, weights])


def residual_block(x: Any, spec: ArchitectureSpec, plan: BlockPlan) -> Any:
    """Applies one residual block of any kind.

    Args:
        x: Tensor of shape ``(batch, height, width, plan.in_width)``.
        spec: The network.
        plan: The block.

    Returns:
        Tensor of shape ``(batch, height / stride, width / stride, plan.width)``.
    """
    name, entering = plan.name, x
    if spec.preactivation and (spec.first_preactivation or not plan.is_first):
        x = normalization(x, spec, f"{name}_preact", behind_convolution=False)
        x = activation(x, spec, f"{name}_preact_relu")
    bypass = shortcut(x, entering, spec, plan)

    last = plan.convolutions
    for number in range(1, last + 1):
        x = _branch_convolution(x, spec, plan, number)
        if number < last or not spec.preactivation:
            # gamma of the last norm can start at zero only where that norm ends the branch (v1)
            zero = spec.zero_init_last and number == last
            x = normalization(x, spec, f"{name}_{number}", zero_gamma=zero)
        if number < last:
            x = activation(x, spec, f"{name}_{number}_relu")
            if number == last - 1 and spec.antialias and plan.reduces:
                x = _antialias(x, spec, plan, f"{name}_{number}_aa")
    x = attention(x, spec, plan)
    if plan.drop_rate > 0:
        x = StochasticDepth(plan.drop_rate, name=f"{name}_drop")(x)
    if spec.preactivation:
        return layers.Add(name=f"{name}_out")([bypass, x])
    x = layers.Add(name=f"{name}_add")([bypass, x])
    return activation(x, spec, f"{name}_out")


def _branch_convolution(x: Any, spec: ArchitectureSpec, plan: BlockPlan, number: int) -> Any:
    last = plan.convolutions
    name = f"{plan.name}_{number}"
    normalized = number < last or not spec.preactivation
    if plan.kind == "basic":
        width = plan.inner_width if number == 1 else plan.width
        stride = plan.stride if number == 1 and not spec.antialias else 1
        dilation = plan.first_dilation if number == 1 else plan.dilation
        return convolution(x, spec, name, width, 3, stride=stride, dilation=dilation, normalized=normalized)
    early = spec.stride_in_block == "first"
    if number == 1:
        return convolution(x, spec, name, plan.reduce_width, 1, stride=plan.stride if early else 1)
    if number == 2:
        return convolution(
            x,
            spec,
            name,
            plan.inner_width,
            3,
            stride=1 if early or spec.antialias else plan.stride,
            dilation=plan.first_dilation,
            groups=spec.groups,
            explicit_padding=spec.preactivation,
        )
    return convolution(x, spec, name, plan.width, 1, normalized=normalized)


def _antialias(x: Any, spec: ArchitectureSpec, plan: BlockPlan, name: str) -> Any:
    if spec.antialias == "blur":
        return BlurPool2D(plan.stride, name=name)(x)
    return layers.AveragePooling2D(2, strides=plan.stride, padding="same", name=name)(x)
