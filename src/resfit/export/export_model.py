"""What is exported: a classifier's network, or any network with a classifier, with all that has to travel with it."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from resfit import artifact
from resfit.errors import ArgumentError
from resfit.networks.detection import catalog as detector_catalog
from resfit.preprocessing import InputSpec
from resfit.tasks import dispatch
from resfit.tasks.base import FittedModel
from resfit.tasks.detection import Detector

if TYPE_CHECKING:
    import keras

#: How the last layer of a network turns logits into scores.
ACTIVATIONS = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True, eq=False)
class ExportModel:
    """A network as it is shipped.

    Attributes:
        name: Of the network in file names and model servers: letters, digits, ``.``, ``_`` and ``-``.
        network: The Keras model: RGB 0..255 of shape ``(batch, height, width, channels)`` in; scores
            ``(batch, classes)`` or logits out.
        labels: Names of the classes, in the order of the outputs.
        input_spec: How images become the network's input.
        activation: ``"softmax"``, or ``"sigmoid"`` where an image may have several labels.
        features: Name of the layer whose output the head reads.
        temperature: What logits are divided by before the activation.
        facts: What the model card says of it, JSON-ready.
        tests: Files that it was tested on, with the labels that they have; empty where that is not known.
    """

    name: str
    network: keras.Model
    labels: tuple[str, ...]
    input_spec: InputSpec
    activation: str
    features: str
    temperature: float = 1.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    tests: tuple[tuple[Path, str], ...] = ()

    #: Name of the output, and of the function that the card's code calls.
    output: ClassVar[str] = "scores"
    function: ClassVar[str] = "classify"

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "Image classifier"

    @property
    def meaning(self) -> str:
        """What the output is, in words."""
        return "probability of each label on its own" if self.multilabel else "probabilities, which sum to 1"

    def title(self, format: str, precision: str, size: int) -> str:
        """Returns the first sentence of the card.

        Args:
            format: Of the export.
            precision: Of the export.
            size: Of the network's files in bytes.
        """
        return (
            f"{self.kind} of {len(self.labels)} classes as {format} in {precision}, {size / 1e6:.1f} MB. Made with "
            "resfit; nothing here needs resfit."
        )

    def about(self, temperature_applied: bool) -> dict[str, Any]:
        """Returns what ``contract.json`` says of the outputs beside their shapes.

        Args:
            temperature_applied: Whether the scores are divided by the temperature already.
        """
        return {
            "several_labels": self.multilabel,
            "temperature": {"value": self.temperature, "applied": temperature_applied},
        }

    def output_lines(self, temperature_applied: bool) -> list[str]:
        """Returns what the card says of the outputs beside their names.

        Args:
            temperature_applied: Whether the scores are divided by the temperature already.
        """
        applied = "are divided by already" if temperature_applied else "have to be divided by"
        found = [f"- Temperature {self.temperature:g}, which the logits {applied}."]
        return found + (
            ["- An image may have several labels: those of a score over one half."] if self.multilabel else []
        )

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.activation == "sigmoid"

    @functools.cached_property
    def raw_logits(self) -> keras.Model:
        """The network up to the activation, without the temperature."""
        return _logits(self.network)

    @functools.cached_property
    def logits(self) -> keras.Model:
        """The network up to the activation, logits divided by the temperature."""
        return _divided(self.raw_logits, self.temperature)

    @functools.cached_property
    def scores(self) -> keras.Model:
        """The network with calibrated scores, 0..1."""
        import keras

        if self.temperature == 1 and _ending(self.network) in ACTIVATIONS:
            return self.network
        logits = self.logits
        layer = keras.layers.Activation(self.activation, dtype="float32", name=_free(self.output, logits))
        return keras.Model(logits.inputs[0], layer(logits.outputs[0]), name=self.network.name)

    @functools.cached_property
    def body(self) -> keras.Model:
        """The network up to the features that the head reads, ``(batch, features)``."""
        import keras

        output = self.network.get_layer(self.features).output
        return keras.Model(self.network.inputs[0], output, name=f"{self.network.name}_features")


@dataclasses.dataclass(frozen=True, eq=False)
class ExportRegressor(ExportModel):
    """A network that predicts numbers, as it is shipped; ``labels`` are their names."""

    output: ClassVar[str] = "values"
    function: ClassVar[str] = "predict"

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "Image regressor"

    @property
    def meaning(self) -> str:
        """What the output is, in words."""
        return "the number of each label, in its own unit"

    def title(self, format: str, precision: str, size: int) -> str:
        """Returns the first sentence of the card; see :meth:`ExportModel.title`."""
        return (
            f"{self.kind} for {', '.join(self.labels)} as {format} in {precision}, {size / 1e6:.1f} MB. Made with "
            "resfit; nothing here needs resfit."
        )

    def about(self, temperature_applied: bool) -> dict[str, Any]:
        """Returns what ``contract.json`` says of the outputs beside their shapes: nothing."""
        return {}

    def output_lines(self, temperature_applied: bool) -> list[str]:
        """Returns what the card says of the outputs beside their names: nothing."""
        return []


def subject_of(source: Any, *, name: str | None = None, facts: dict[str, Any] | None = None) -> ExportModel:
    """Returns what is to be exported.

    Args:
        source: A fitted model, such as a :class:`resfit.Classifier`; the folder of one; a Keras model that has an
            ``input_spec``; or what :func:`resfit.load` takes: a name, a handle, or a file.
        name: Its name in file names and model servers. Default: that of the classifier's folder or of the network.
        facts: What the model card says of a Keras model.

    Raises:
        ArgumentError: The network does not end in a classifier, has more than one input, does not compute in float32,
            or the name cannot stand in a path.
    """
    source, name, published = opened(source, name)
    facts = {**published, **(facts or {})}
    found = _of_fitted(source, name) if isinstance(source, FittedModel) else _of_model(source, name, facts)
    check(found)
    return found


def opened(source: Any, name: str | None) -> tuple[Any, str | None, dict[str, Any]]:
    """Loads what is to be exported where it is named by a path, a name or a handle.

    Args:
        source: As :func:`subject_of` takes it.
        name: Likewise.

    Returns:
        A fitted model or a Keras model, its name in the export, and what the model card says of it.
    """
    if not isinstance(source, str | os.PathLike):
        return source, name, {}
    if _holds_classifier(Path(source)):
        name = name or clean(Path(os.path.abspath(source)).name.removesuffix(".resfit"))
        return dispatch.load(source), name, {}
    name = name or clean(Path(str(source)).name)
    if str(source) in detector_catalog.rows():
        return Detector.pretrained(source), name, _published_detector(str(source))
    from resfit import zoo

    return zoo.load(source), name, _published(str(source))


def _holds_classifier(path: Path) -> bool:
    """Says whether a folder holds a classifier, a damaged one included, which is then told from a checkpoint."""
    return artifact.is_artifact(path) or (path.is_dir() and (path / artifact.MODEL).exists())


def _published(name: str) -> dict[str, Any]:
    """Returns what the registry knows of the weights that a name stands for."""
    from resfit.weights import registry

    row = registry.rows().get(name) or registry.default_for(name)
    known = ("name", "source", "licence", "training_data", "top1", "evaluated_on", "eval_size")
    return {} if row is None else {"weights": {key: getattr(row, key) for key in known}}


def _published_detector(name: str) -> dict[str, Any]:
    """Likewise of a detector."""
    from resfit.weights import registry

    row = registry.detectors().get(name)
    known = ("name", "source", "licence", "training_data", "ap", "evaluated_on", "eval_size")
    return {} if row is None else {"weights": {key: getattr(row, key) for key in known}}


def _of_fitted(fitted: FittedModel, name: str | None) -> ExportModel:
    found = fitted.exportable()
    kinds: dict[tuple[str, ...], type[ExportModel]] = {("scores",): ExportModel, ("values",): ExportRegressor}
    kind = kinds.get(found.outputs)
    if kind is None:
        raise ArgumentError(
            f"exports have one output, 'scores' or 'values'. Received: {', '.join(found.outputs)} of a model for "
            f"{fitted.task}."
        )
    return kind(
        name=name or clean(found.network.name),
        network=_single(found.network),
        labels=found.labels,
        input_spec=fitted.input_spec,
        activation=found.activation,
        features=found.features or _last_input(found.network),
        temperature=found.temperature or 1.0,
        facts=found.facts,
        tests=found.tests,
    )


def _of_model(model: Any, name: str | None, facts: dict[str, Any]) -> ExportModel:
    contract = getattr(model, "input_spec", None)
    if not isinstance(contract, InputSpec):
        raise ArgumentError(
            "only a network with an input contract can be exported. Received: a model whose input_spec is "
            f"{type(contract).__name__}. Load it with resfit.load, or set model.input_spec = InputSpec(...)."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.output_shape) != 2:
        raise ArgumentError(
            "only a network of one image in and one row of scores out can be exported. "
            f"Received: {model.name!r} with {len(model.inputs)} inputs, {len(model.outputs)} outputs "
            f"and output shape {model.output_shape}. Load it with include_top=True and without taps."
        )
    ending = _ending(model)
    if ending is None or model.layers[-1].name in ("avg_pool", "max_pool"):
        raise ArgumentError(
            "only a network that ends in a classifier (a dense layer, then softmax or sigmoid) can be exported. "
            f"Received: {model.name!r}, which ends in {model.layers[-1].name!r}. Load it with include_top=True."
        )
    if not _normalises(model, contract):
        raise ArgumentError(
            "only a network that takes RGB images 0..255 can be exported. "
            f"Received: {model.name!r}, which was loaded with preprocess=False. Load it with preprocess=True."
        )
    count = model.output_shape[-1]
    labels = getattr(model, "class_names", None) or ()
    if len(labels) != count:
        labels = tuple(f"class {number}" for number in range(count))
    return ExportModel(
        name=name or clean(model.name),
        network=_single(model),
        labels=tuple(str(label) for label in labels),
        input_spec=contract,
        activation="sigmoid" if ending == "sigmoid" else "softmax",
        features=_last_input(model),
        facts={"kind": "network", "assumptions": list(getattr(model, "assumptions", None) or ()), **facts},
    )


def check(subject: ExportModel) -> None:
    """Makes sure that a network can be exported under its name.

    Args:
        subject: What is to be exported.

    Raises:
        ArgumentError: The name cannot stand in a path, the temperature is none, or a layer computes in half precision.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", subject.name):
        raise ArgumentError(
            "the name of an export must be of letters, digits, '.', '_' and '-', and start with a letter or a digit. "
            f"Received: {subject.name!r}."
        )
    if not 0 < subject.temperature < float("inf"):
        raise ArgumentError(f"a temperature must be positive and finite. Received: {subject.temperature!r}.")
    mixed = [
        layer.name
        for layer in subject.network.layers
        if getattr(layer, "compute_dtype", "float32") in ("float16", "bfloat16")
    ]
    if mixed:
        raise ArgumentError(
            "a network must compute in float32 to be exported; precision= chooses that of the export. "
            f"Received: {subject.network.name!r}, whose layer {mixed[0]!r} does not. Load it with dtype='float32'."
        )


def _single(model: Any) -> Any:
    """Returns a network over the same layers that takes one tensor, not a list of one."""
    import keras

    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ArgumentError(f"only a network of one input and one output can be exported. Received: {model.name!r}.")
    single = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if hasattr(model, "architecture"):
        single.architecture = model.architecture
    return single


def _normalises(model: Any, contract: InputSpec) -> bool:
    """Says whether a network of resfit's was loaded with the contract's normalisation in front."""
    head = [type(operation).__name__ for operation in model.operations[:3]]
    return getattr(model, "architecture", None) is None or (
        (contract.scales_nothing or "Rescaling" in head) and (contract.channel_order == "rgb" or "Flip" in head)
    )


def _ending(model: Any) -> str | None:
    """Returns the activation at the end of a network, ``"linear"`` for logits, or ``None`` for another layer."""
    import keras

    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    if isinstance(last, keras.layers.Dense | keras.layers.Activation):
        name = getattr(last.activation, "__name__", "")
        return name if name in (*ACTIVATIONS, "linear") else None
    return None


def _last_input(model: Any) -> str:
    last = model.layers[-1]
    import keras

    if not isinstance(last, keras.layers.Dense):
        last = last.input._keras_history.operation
    return str(last.input._keras_history.operation.name)


def _logits(model: Any) -> Any:
    import keras

    last = model.layers[-1]
    ending = _ending(model)
    if ending == "linear":
        return model
    if not isinstance(last, keras.layers.Dense):
        return keras.Model(model.inputs[0], last.input, name=model.name)
    config = {**last.get_config(), "activation": "linear"}
    dense = keras.layers.Dense.from_config(config)
    result = keras.Model(model.inputs[0], dense(last.input), name=model.name)
    dense.set_weights(last.get_weights())
    return result


def _divided(logits: Any, temperature: float) -> Any:
    import keras

    if temperature == 1:
        return logits
    layer = keras.layers.Rescaling(1 / temperature, dtype="float32", name=_free("temperature", logits))
    return keras.Model(logits.inputs[0], layer(logits.outputs[0]), name=logits.name)


def _free(name: str, model: Any) -> str:
    taken = {layer.name for layer in model.layers}
    candidates = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def clean(name: str) -> str:
    """Returns a name with what cannot stand in a path replaced.

    Args:
        name: Any text.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100] or "network"
