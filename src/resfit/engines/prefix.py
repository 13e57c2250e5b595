"""A network up to some layer: what is frozen, or what is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError, closest

if TYPE_CHECKING:
    import keras

#: ``until=`` for one vector an image.
POOLED = "features"


def cut(model: keras.Model, until: str | None) -> keras.Model:
    """Returns the part of a functional model from its input to a tensor inside it.

    Layers and weights are shared with the model, not copied.

    Args:
        model: A functional model.
        until: ``"stage1"`` to ``"stage5"`` for the feature map of a stage, as :func:`resfit.load` taps them;
            ``"features"`` for the pooled features, one vector an image; otherwise the name of a layer, whose output is
            taken; ``None`` for the whole model.

    Returns:
        A functional model with one output, with the ``architecture`` and ``input_spec`` of the whole.

    Raises:
        ArgumentError: The model has no such layer, or no graph to cut.

    Example:
        >>> cut(resfit.load("resnet50", weights=None), "stage4").output_shape
        (None, None, None, 1024)
    """
    import keras

    if until is None:
        return model
    try:
        inputs = list(model.inputs)
    except (AttributeError, ValueError) as error:
        raise ArgumentError(f"only a functional model can be cut. Received: {type(model).__name__}.") from error
    part = keras.Model(inputs, _tensor(model, until), name=model.name)
    for attribute in ("architecture", "input_spec"):
        value = getattr(model, attribute, None)
        if value is not None:
            setattr(part, attribute, value)
    return part


def _tensor(model: Any, until: str) -> Any:
    names = [layer.name for layer in model.layers]
    if until in names:
        return model.get_layer(until).output
    known = taps(model)
    if until in known and known[until] in names:
        return model.get_layer(known[until]).output
    if until == POOLED:
        return _pooled(model)
    choices = [*(tap for tap, name in known.items() if name in names), POOLED, *names]
    raise ArgumentError(
        f"until must be a stage, {POOLED!r} or the name of a layer. Received: {until!r}.{closest(until, choices)}"
    )


def taps(model: Any) -> dict[str, str]:
    """Returns for each tap of a network of resfit's the layer whose output it is; nothing for other networks.

    Args:
        model: The network.
    """
    from resfit.networks.plan import blocks, stage_names

    spec = getattr(model, "architecture", None)
    if spec is None:
        return {}
    stages = stage_names(spec)
    stem = "conv1" if len(spec.stem) == 1 else f"conv1_{len(spec.stem)}"
    found = {stages[0]: f"{stem}_relu" if spec.normalizes_stem(last=True) else f"{stem}_conv"}
    before = ""
    planned = blocks(spec)
    for plan in planned:
        found[stages[plan.stage + 1]] = before if plan.tapped else f"{plan.name}_out"
        before = f"{plan.name}_out"
    if spec.preactivation and not planned[-1].tapped:
        found[stages[-1]] = "post_relu"
    return found


def _pooled(model: Any) -> Any:
    """Returns the first tensor of one vector an image: what a global pooling gives, or the average of the last map."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D):
            output = layer.output
            if len(output.shape) == 2:  # not the squeeze of a squeeze-excite block
                return output
    output = model.outputs[0]
    if len(output.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(output)
    raise ArgumentError("the network has no pooled features. Name a layer instead.")
