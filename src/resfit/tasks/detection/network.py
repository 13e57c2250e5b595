"""The network of a detector: any residual network with a pyramid and a head, and the parts that a fit runs alone."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.networks.detection import catalog
from resfit.networks.detection.build import RawOutputs, boxes_and_scores, pyramid_and_head
from resfit.networks.detection.deformable_detr_build import DeformableTransformer
from resfit.networks.detection.detr_build import Transformer
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_build import TwoStageHeads
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec, QueryDetectorSpec
from resfit.networks.detection.roi_layers import ImageOfSize
from resfit.networks.detection.rtdetr_build import QueryDecoder
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.preprocessing import InputSpec

if TYPE_CHECKING:
    import keras

    from resfit.networks.spec import ArchitectureSpec

#: The network of the package that has a pyramid and head trained with it (tools/pretrain_detector_head.py).
PACKAGED_HEAD = "resnet10_tiny"


@dataclasses.dataclass(frozen=True, eq=False)
class DetectorNetwork:
    """A detector in the making. All models share their layers.

    Attributes:
        spec: The detector.
        contract: How images become the input: a letterbox.
        whole: RGB 0..255 to raw outputs.
        body: RGB 0..255 to the maps of the taps, by their names.
        head: Those maps, in the order of the taps, to raw outputs.
        pretrained_head: Whether pyramid and head began with the weights in the package.
        learned: What training takes in place of the raw outputs of ``head``, tensors by name; empty for these.
        extra: The inputs that only training has, such as denoising queries.
        published: The detector that it was made of, a model of boxes and scores, or None.
    """

    spec: AnyDetectorSpec
    contract: InputSpec
    whole: keras.Model
    body: keras.Model
    head: keras.Model
    pretrained_head: bool = False
    learned: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: tuple[Any, ...] = ()
    published: keras.Model | None = None

    def detector(self) -> keras.Model:
        """Returns the model that is kept: RGB 0..255 to ``boxes`` and ``scores`` before suppression."""
        import keras

        if self.published is not None:
            model = self.published
        else:
            assert isinstance(self.spec, DetectorSpec)
            found = boxes_and_scores(self.whole.inputs[0], self._raw(), self.spec)
            model = keras.Model(self.whole.inputs[0], found, name=f"{self.body.name}_detector")
        model.architecture, model.input_spec = self.spec, self.contract
        return model

    def _raw(self) -> Any:
        outputs = self.whole.output
        assert isinstance(self.spec, DetectorSpec)
        maps = tuple(self.whole.get_layer(name).output for name in level_layers(self.whole, self.spec))
        return RawOutputs(outputs["class_logits"], outputs["box_codes"], outputs.get("quality"), maps)


def build(
    model: str | os.PathLike[str] | keras.Model,
    classes: int,
    size: tuple[int, int],
    *,
    channels: int | None = None,
    seed: int = 0,
    pretrained_head: bool = True,
    **fields: Any,
) -> DetectorNetwork:
    """Puts a pyramid and a fresh head onto a residual network.

    Args:
        model: A name of the zoo or a source that :func:`resfit.load` takes; or a Keras model of :func:`resfit.load`.
        classes: Number of classes.
        size: Height and width of the input in pixels.
        channels: 1 or 3; ``None`` is what the network was trained on.
        seed: Of the fresh weights.
        pretrained_head: Whether pyramid and head begin with the weights in the package where they fit: those for
            ``resnet10_tiny``, of a pyramid and head 64 wide. What gives the classes is fresh in any case.
        **fields: Of :func:`resfit.networks.detection.catalog.light`.

    Raises:
        ArgumentError: The network is no residual one, or a field is out of its range.
    """
    import keras

    from resfit import zoo

    spec = detector_spec(architecture_of(model), classes, size, **fields)
    taps = tuple(spec.taps.values())
    if isinstance(model, str | os.PathLike):
        body = zoo.load(model, include_top=False, taps=taps, preprocess=True, in_channels=channels)
    else:
        body = _tapped(model, taps)
    spec = spec.replace(backbone=body.architecture)
    contract = dataclasses.replace(body.input_spec, size=size, resize_mode="letterbox", crop_fraction=1.0)
    keras.utils.set_random_seed(seed)
    raw = pyramid_and_head({level: body.output[tap] for level, tap in spec.taps.items()}, spec)
    whole = keras.Model(body.inputs[0], raw.named(), name=f"{body.name}_raw")
    head = keras.Model([body.output[tap] for tap in taps], raw.named(), name=f"{body.name}_head")
    for layer in body.layers:
        layer.trainable = False
    fitting = pretrained_head and isinstance(model, str) and model == PACKAGED_HEAD
    return DetectorNetwork(spec, contract, whole, body, head, fitting and _fill_head(head, body))


def of_detector(model: keras.Model, size: tuple[int, int], **fields: Any) -> DetectorNetwork:
    """Takes a published detector apart for a fit. Its pyramid or encoder, its decoder and its head stay as they are.

    Args:
        model: RGB 0..255 to boxes and scores, with the classes that are to be found. It is changed by the fit.
        size: Height and width of the input in pixels.
        **fields: Fields of its spec that no weight depends on.
    """
    import keras

    from resfit.engines import prefix

    spec: AnyDetectorSpec = model.architecture
    contract = dataclasses.replace(model.input_spec, size=size, resize_mode="letterbox", crop_fraction=1.0)
    spec = spec.replace(input_size=size, **fields)
    names = prefix.taps(types.SimpleNamespace(architecture=spec.backbone))
    maps = {level: model.get_layer(names[tap]).output for level, tap in spec.taps.items()}
    images = model.inputs[0]
    body = keras.Model(images, {spec.taps[level]: output for level, output in maps.items()}, name=f"{model.name}_body")
    body.architecture, body.input_spec = spec.backbone, contract
    learned: dict[str, Any] = {}
    extra: tuple[Any, ...] = ()
    if isinstance(spec, QueryDetectorSpec):
        raw, learned, extra = _query_outputs(model, spec, maps)
    elif isinstance(spec, FasterRCNNSpec):
        raw, learned, extra = _two_stage_outputs(model, spec)
    else:
        raw = {name: model.get_layer(name).output for name in ("class_logits", "box_codes")}
        if getattr(spec, "quality", None) is not None:
            raw["quality"] = model.get_layer("quality").output
    whole = keras.Model(images, raw, name=f"{model.name}_raw")
    head = keras.Model(list(maps.values()), raw, name=f"{model.name}_head")
    for layer in body.layers:
        layer.trainable = False
    return DetectorNetwork(spec, contract, whole, body, head, learned=learned, extra=extra, published=model)


def _query_outputs(
    model: keras.Model, spec: QueryDetectorSpec, maps: Mapping[int, Any]
) -> tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]]:
    """What encoder and decoder of a model give, what they give in training, and what training adds."""
    from keras import Input

    own = {layer.name: layer for layer in model.layers}
    if not isinstance(spec, RTDETRSpec):
        transformer = Transformer(spec) if isinstance(spec, DETRSpec) else DeformableTransformer(spec)
        transformer.layers.update(own)
        return transformer(maps), transformer(maps, training=True), ()
    decoder = QueryDecoder(spec)
    decoder.layers.update(own)
    extra = (
        Input((None,), dtype="int32", name="classes"),
        Input((None, 4), name="codes"),
        Input((None,), name="mask"),  # of all images together: a matrix
    )
    return decoder(maps), decoder(maps, extra), extra


def _two_stage_outputs(
    model: keras.Model, spec: FasterRCNNSpec
) -> tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]]:
    """What both stages of a model give, what they give in training, and what training adds."""
    from keras import Input

    heads = TwoStageHeads(spec)
    heads.layers.update({layer.name: layer for layer in model.layers})
    maps = [model.get_layer(name).output for name in level_layers(model, spec)]
    image = ImageOfSize(*spec.input_size, name="rpn_image")(maps[0])
    extra = (
        Input((None, 4), name="true_boxes"),
        Input((None,), dtype="int32", name="true_classes"),
        Input((None,), name="noise"),
    )
    return heads(image, maps).named(), heads.learned(image, maps, extra), extra


def learning_model(made: DetectorNetwork, tensors: Sequence[Any]) -> keras.Model:
    """Returns the model that a phase trains: tensors of the network, and what training adds, to what the loss takes.

    Args:
        made: The network.
        tensors: Where the model begins.
    """
    import keras

    return keras.Model([*tensors, *made.extra], made.learned or made.whole.output, name=f"{made.body.name}_learning")


def called(model: keras.Model) -> Callable[..., Any]:
    """Returns a model as a function of a list of inputs and what training adds to them. Norms keep their statistics.

    Args:
        model: As :func:`learning_model` returns it, or one without further inputs.
    """
    return lambda inputs, extra=(): model([*inputs, *extra], training=False)


def _fill_head(head: keras.Model, body: keras.Model) -> bool:
    """Gives pyramid and head the weights in the package, and says whether they fit; what gives the classes stays."""
    from safetensors.numpy import load_file

    values = load_file(str(files("resfit") / "weights" / f"{PACKAGED_HEAD}_detector_head.safetensors"))
    own = {layer.name for layer in body.layers}
    variables = {
        f"{layer.name}/{variable.name}": variable
        for layer in head.layers
        if layer.name not in own and layer.name != "class_logits_conv"
        for variable in layer.weights
    }
    if any(name not in values or values[name].shape != tuple(one.shape) for name, one in variables.items()):
        return False
    for name, variable in variables.items():
        variable.assign(values[name].astype(np.float32))
    return True


def detector_spec(backbone: ArchitectureSpec, classes: int, size: tuple[int, int], **fields: Any) -> DetectorSpec:
    """Returns the light detector on a residual network, its coarsest levels left out where the input is small.

    Args:
        backbone: The residual network.
        classes: Number of classes.
        size: Height and width of the input in pixels.
        **fields: Of :func:`resfit.networks.detection.catalog.light`.
    """
    return catalog.light(backbone, **{"classes": classes, "input_size": size, **fields})


def opened(model: str | os.PathLike[str] | keras.Model, channels: int | None = None) -> str | keras.Model:
    """Returns a file or handle as the residual network in it, so that it is read once; names and models as they are.

    Args:
        model: As :func:`build` takes it.
        channels: As :func:`build` takes them.

    Raises:
        CheckpointError: There is no such network.
    """
    from resfit import zoo
    from resfit.errors import UnknownNameError

    if not isinstance(model, str | os.PathLike):
        return model
    try:
        if str(model) not in catalog.rows():
            zoo.describe(str(model))
    except UnknownNameError:
        return zoo.load(model, include_top=False, preprocess=True, in_channels=channels)
    return str(model)


def architecture_of(model: str | os.PathLike[str] | keras.Model) -> ArchitectureSpec:
    """Returns the architecture of a network, without loading one of the catalog.

    Args:
        model: As :func:`build` takes it.

    Raises:
        ArgumentError: It is no residual network.
    """
    from resfit import zoo
    from resfit.errors import UnknownNameError

    if isinstance(model, str | os.PathLike):
        if str(model) in catalog.rows():
            return catalog.get(str(model)).spec.backbone
        try:
            return zoo.describe(str(model)).spec
        except UnknownNameError:
            model = zoo.load(model, include_top=False)
    found = getattr(model, "architecture", None)
    if found is None or not hasattr(found, "widths"):
        raise ArgumentError(
            "a detector is built on a residual network that resfit knows. Received: a model without an architecture. "
            "Save it, and pass the path of its file: resfit.load reads the residual network in it."
        )
    return found


def _tapped(model: keras.Model, taps: Sequence[str]) -> keras.Model:
    """A copy of a network that returns maps of its stages."""
    import keras

    from resfit.engines import prefix
    from resfit.training import boundary

    own = boundary.copy(model)
    if isinstance(own.output, dict) and set(taps) <= set(own.output):
        outputs = {tap: own.output[tap] for tap in taps}
    else:
        names = prefix.taps(own)
        outputs = {tap: own.get_layer(names[tap]).output for tap in taps}
    body = keras.Model(own.inputs[0], outputs, name=model.name)
    body.architecture, body.input_spec = own.architecture, own.input_spec
    return body


@dataclasses.dataclass(frozen=True)
class MapShapes:
    """How the maps of the taps lie in a row of the feature store.

    Attributes:
        taps: Names of the taps, finest first.
        shapes: Height, width and channels of each.
    """

    taps: tuple[str, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(math.prod(shape) for shape in self.shapes)

    def maps(self, rows: Any) -> list[Any]:
        """Returns the map of each tap, ``(batch, height, width, channels)``.

        Args:
            rows: Array or tensor ``(batch, width)``.
        """
        found, start = [], 0
        for shape in self.shapes:
            end = start + math.prod(shape)
            part = rows[:, start:end]
            found.append(part.reshape(-1, *shape) if isinstance(part, np.ndarray) else _reshaped(part, shape))
            start = end
        return found


def _reshaped(rows: Any, shape: tuple[int, int, int]) -> Any:
    from keras import ops

    return ops.reshape(rows, (-1, *shape))


def row_model(network: DetectorNetwork, stages: Sequence[str] = ()) -> tuple[keras.Model, MapShapes]:
    """Returns a frozen part of the body with its maps in one row, at the size of the contract, for engines and stores.

    Args:
        network: The network.
        stages: Stages whose maps are in the row; empty for the taps.
    """
    import keras
    from keras import layers

    from resfit.training import boundary

    taps = tuple(stages) or tuple(network.spec.taps.values())
    tensors = [_stage(network, tap) for tap in taps]
    fixed = boundary.copy(keras.Model(network.body.inputs[0], tensors), size=network.contract.size)
    outputs = list(fixed.outputs)
    parts = [layers.Reshape((-1,), name=f"{tap}_row")(output) for tap, output in zip(taps, outputs, strict=True)]
    row = layers.Concatenate(axis=-1, name="rows")(parts) if len(parts) > 1 else parts[0]
    model = keras.Model(fixed.inputs[0], row, name=f"{network.body.name}_rows")
    model.input_spec = network.contract
    shapes = tuple(tuple(int(side) for side in output.shape[1:]) for output in outputs)
    return model, MapShapes(taps, shapes)  # type: ignore[arg-type]


def _stage(network: DetectorNetwork, stage: str) -> Any:
    """The map of a stage of the body."""
    from resfit.engines import prefix

    if stage in network.spec.taps.values():
        return network.body.output[stage]
    return network.body.get_layer(prefix.taps(network.body)[stage]).output


def frozen_stages(spec: AnyDetectorSpec) -> tuple[str, ...]:
    """Returns the stages whose maps decide everything behind them where the last two levels' stages learn.

    Args:
        spec: The detector.
    """
    taps = list(spec.taps.values())
    number = int(taps[-2 if len(taps) > 1 else -1].removeprefix("stage"))
    cut = f"stage{max(number - 1, 1)}"
    return (*(tap for tap in taps if tap < cut), cut)


def taps_of(made: DetectorNetwork) -> list[Any]:
    """Returns the maps of the taps, the inputs of pyramid or encoder."""
    return [made.body.output[tap] for tap in made.spec.taps.values()]


def suffix_of(made: DetectorNetwork) -> keras.Model:
    """Returns what learns where the last stages learn: a model from the maps of :func:`frozen_stages`.

    Args:
        made: The network.
    """
    return learning_model(made, [_stage(made, stage) for stage in frozen_stages(made.spec)])


def level_layers(model: keras.Model, spec: DetectorSpec | FasterRCNNSpec) -> list[str]:
    """Returns the names of the layers that give each level's map.

    Args:
        model: A model with all layers of a detector.
        spec: The detector.
    """
    names = {layer.name for layer in model.layers}
    suffix = {"none": "conv", "batch": "bn", "group": "gn"}[spec.pyramid_norm]
    extra = "pool" if isinstance(spec, FasterRCNNSpec) else "conv"
    return [
        f"p{level}_output_{suffix}" if f"p{level}_output_{suffix}" in names else f"p{level}_{extra}"
        for level in spec.levels
    ]


def forward_of(made: DetectorNetwork, head: keras.Model) -> Callable[..., Any]:
    """Returns the whole network as a function with the norms of the body inside its convolutions, which is faster.

    The norms keep the statistics of the checkpoint; their scales and shifts learn as in the network itself.

    Args:
        made: The network.
        head: What follows the body: ``made.head``, or a :func:`learning_model` of the taps.
    """
    from resfit.training import bn_folding

    folded = bn_folding.fold(made.body, lambda norm: True)
    taps = tuple(made.spec.taps.values())
    behind = called(head)

    def forward(images: Any, extra: Sequence[Any] = ()) -> Any:
        maps = folded(images, training=False)
        return behind([maps[tap] for tap in taps], extra)

    return forward


def learning_layers(made: DetectorNetwork, strategy: str) -> frozenset[str]:
    """Returns the names of the body's layers that learn.

    Args:
        made: The network.
        strategy: ``"head"``, none; ``"last"``, those behind :func:`frozen_stages`; ``"full"``, all.
    """
    names = frozenset(layer.name for layer in made.body.layers if layer.weights)
    if strategy == "head":
        return frozenset()
    if strategy == "full":
        return names
    return names & {layer.name for layer in suffix_of(made).layers}
