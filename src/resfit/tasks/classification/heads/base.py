"""Heads: what tells classes by features, as numbers and as Keras layers on a network.

The linear one is in :mod:`resfit.tasks.classification.heads.linear`, those for a few images a class are in
:mod:`resfit.tasks.classification.heads.few_shot`, the one with a hidden layer in
:mod:`resfit.tasks.classification.heads.mlp`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from resfit.errors import ArgumentError
from resfit.numerics import logits_of, tempered
from resfit.registries import Registry
from resfit.tasks.classification.heads import linear
from resfit.tasks.classification.heads.linear import HeldOut, LinearHead
from resfit.training.loop import check_choice

if TYPE_CHECKING:
    import keras


class Head(Protocol):
    """Something that tells classes by features, and that Keras layers can compute."""

    @property
    def activation(self) -> str:
        """``"softmax"`` or ``"sigmoid"``."""
        ...

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits ``(n, classes)`` of features ``(n, features)``."""
        ...

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns probabilities ``(n, classes)`` of features ``(n, features)``."""
        ...

    def layers(self) -> list[Any]:
        """Returns built Keras layers, one after the other, of which the last gives logits."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class HeadJob:
    """What a head is fitted to; the fields are the arguments of :func:`fit_head`.

    Attributes:
        features: Float array of shape ``(n, features)``. Not to be changed.
        labels: ``n`` integers, or an array ``(n, classes)`` of 0 and 1 where an image may have several labels.
        classes: Number of classes.
        multilabel: Whether an image may have several labels.
        seed: Of all that is random.
        sample_groups: The group of each image, or None.
        balance: Whether each class counts the same.
        label_smoothing: Share of the target spread over all classes.
        focal: gamma of the focal loss.
        strength: C of the linear head, or None.
        settings: Further settings of the training.
    """

    features: np.ndarray
    labels: np.ndarray
    classes: int
    multilabel: bool = False
    seed: int = 0
    sample_groups: Sequence[Any] | None = None
    balance: bool = False
    label_smoothing: float = 0.0
    focal: float = 0.0
    strength: float | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
        fit: Fits it.
        takes: Which of ``"multilabel"``, ``"balance"``, ``"label_smoothing"`` and ``"focal"`` it has.
    """

    fit: Callable[[HeadJob], Head]
    takes: tuple[str, ...] = ()


#: What ``head=`` accepts.
HEADS: Registry[HeadKind] = Registry("a head")

_WORDS = {"multilabel": "an image with several labels", "focal": "focal loss"}
_Fit = TypeVar("_Fit", bound=Callable[[HeadJob], Any])


def register_head(name: str, *, takes: tuple[str, ...] = ()) -> Callable[[_Fit], _Fit]:
    """Registers the decorated function, which fits a head.

    Args:
        name: What ``head=`` calls it.
        takes: As :class:`HeadKind` has it.

    Example:
        >>> @register_head("mean")  # doctest: +SKIP
        ... def fit_mean(job):
        ...     return LinearHead(...)
    """

    def register(fit: _Fit) -> _Fit:
        HEADS.add(name, HeadKind(fit, takes))
        return fit

    return register


@dataclasses.dataclass(frozen=True, eq=False)
class ModelHead:
    """A head of any kind, read back from a model: features in, probabilities out.

    Attributes:
        model: The layers of the head, as a Keras model.
        activation: ``"softmax"`` or ``"sigmoid"``.
        temperature: What logits are divided by before that.
    """

    model: keras.Model
    activation: str
    temperature: float = 1.0

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns probabilities ``(n, classes)`` of features ``(n, features)``."""
        return tempered(self._shares(features), self.temperature, self.activation)

    def _shares(self, features: np.ndarray) -> np.ndarray:
        rows = np.asarray(features, np.float32)
        found = [np.asarray(self.model(rows[i : i + 1024], training=False)) for i in range(0, len(rows), 1024)]
        return np.concatenate(found) if found else np.zeros((0, self.model.output_shape[-1]), np.float32)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits with these probabilities, shape ``(n, classes)``."""
        return logits_of(self._shares(features), self.activation) / np.float32(self.temperature)

    def layers(self) -> list[Any]:
        """Returns the layers of the head, which end in probabilities."""
        return [layer for layer in self.model.layers if layer.weights]


def attach(body: keras.Model, head: Head, *, logits: bool = False) -> tuple[keras.Model, list[Any]]:
    """Puts a head on a network.

    Args:
        body: A network that gives one vector an image. Its layers are shared, not copied.
        head: The head.
        logits: Whether the model ends in logits, in place of probabilities.

    Returns:
        One plain functional model, and the layers of the head in it.
    """
    import keras

    taken = {layer.name for layer in body.layers}
    added = head.layers()
    if not logits:
        if isinstance(added[-1], keras.layers.Dense):
            added[-1].activation = keras.activations.get(head.activation)
        else:
            added.append(keras.layers.Activation(head.activation, dtype="float32", name="probabilities"))
    x = body.outputs[0]
    for layer in added:
        if layer.name in taken:
            layer.name = f"{layer.name}_{len(taken)}"
        x = layer(x)
    model = keras.Model(body.inputs, x, name=body.name)
    for attribute in ("architecture", "input_spec"):
        if hasattr(body, attribute):
            setattr(model, attribute, getattr(body, attribute))
    return model, added


def from_layers(layers: Sequence[Any], head: Head) -> Head:
    """Returns the head that Keras layers have become in training.

    Args:
        layers: The layers, as :func:`attach` returned them.
        head: The head that they were made from.
    """
    from resfit.tasks.classification.heads.mlp import MlpHead

    found = [[np.asarray(weight, np.float32) for weight in layer.get_weights()] for layer in layers]
    if isinstance(head, MlpHead):
        (first, bias), (second, last) = found
        return dataclasses.replace(head, kernels=(first, second), biases=(bias, last))
    if not isinstance(head, LinearHead):
        raise ArgumentError(f"heads that are trained with the network are 'linear' and 'mlp'. Received: {type(head)}.")
    return dataclasses.replace(head, kernel=found[-1][0], bias=found[-1][1])


def fit_head(
    kind: str,
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    seed: int = 0,
    sample_groups: Sequence[Any] | None = None,
    balance: bool = False,
    label_smoothing: float = 0.0,
    focal: float = 0.0,
    strength: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Head:
    """Fits a head of some kind.

    Args:
        kind: A name of :data:`HEADS`.
        features: Float array of shape ``(n, features)``. Not changed.
        labels: ``n`` integers, or an array ``(n, classes)`` of 0 and 1 where an image may have several labels.
        classes: Number of classes.
        seed: Of all that is random.
        sample_groups: As :func:`resfit.tasks.classification.heads.linear.fit_linear` takes it.
        balance: Whether each class counts the same, however many images it has (``"linear"`` and ``"mlp"``).
        label_smoothing: Share of the target spread over all classes (``"linear"`` and ``"mlp"``).
        focal: gamma of the focal loss (``"mlp"``).
        strength: C of ``"linear"``; ``None`` chooses it by cross-validation.
        settings: Further settings of the training, as :class:`resfit.training.settings.Tuning` has them (``"mlp"``).

    Raises:
        ArgumentError: The kind is unknown, or does not have one of these options.
        DataError: The features cannot be fitted.
    """
    check_choice("head", kind, tuple(HEADS))
    multilabel = np.ndim(labels) == 2
    chosen = HEADS[kind]
    asked = {
        "multilabel": multilabel,
        "balance": balance,
        "label_smoothing": bool(label_smoothing),
        "focal": bool(focal),
    }
    for option in (name for name, is_asked in asked.items() if is_asked and name not in chosen.takes):
        having = " and ".join(repr(name) for name, head in HEADS.items() if option in head.takes)
        raise ArgumentError(f"{_WORDS.get(option, option)} is for head={having}. Received: head={kind!r}.")
    job = HeadJob(
        features,
        labels,
        classes,
        multilabel=multilabel,
        seed=seed,
        sample_groups=sample_groups,
        balance=balance,
        label_smoothing=label_smoothing,
        focal=focal,
        strength=strength,
        settings=settings or {},
    )
    return chosen.fit(job)


@register_head("linear", takes=("multilabel", "balance", "label_smoothing"))
def _fit_linear(job: HeadJob) -> Head:
    return linear.fit_linear(
        job.features,
        job.labels,
        classes=job.classes,
        seed=job.seed,
        sample_groups=job.sample_groups,
        grid=linear.GRID if job.strength is None else (job.strength,),
        balance=job.balance,
        label_smoothing=job.label_smoothing,
    )


@register_head("mlp", takes=("multilabel", "balance", "label_smoothing", "focal"))
def _fit_mlp(job: HeadJob) -> Head:
    from resfit.tasks.classification.heads import mlp

    own = {"seed": job.seed, "balance": job.balance, "label_smoothing": job.label_smoothing, "focal": job.focal}
    tuning = dataclasses.replace(mlp.MLP, **{**own, **job.settings})
    hot = job.labels if job.multilabel else np.eye(job.classes, dtype=np.float32)[job.labels]
    return mlp.fit_mlp(job.features, np.asarray(hot, np.float32), tuning=tuning, multilabel=job.multilabel)


@register_head("nearest_mean")
def _fit_nearest_mean(job: HeadJob) -> Head:
    from resfit.tasks.classification.heads import few_shot

    return few_shot.fit_nearest_mean(job.features, job.labels, job.classes)


@register_head("knn")
def _fit_neighbours(job: HeadJob) -> Head:
    from resfit.tasks.classification.heads import few_shot

    return few_shot.fit_neighbours(job.features, job.labels, job.classes)


def leave_out(
    fit: Callable[[np.ndarray], Head],
    features: np.ndarray,
    labels: np.ndarray,
    *,
    sample_groups: Sequence[Any] | None = None,
    folds: int = 5,
    rounds: int | None = None,
    seed: int = 0,
) -> HeldOut | None:
    """Predicts images by heads fitted without them.

    Args:
        fit: Makes a head from some rows.
        features: Array ``(n, features)``.
        labels: ``n`` integers, which the folds keep in proportion; or an array ``(n, classes)`` of 0 and 1.
        sample_groups: As :func:`resfit.tasks.classification.heads.linear.fit_linear` takes it.
        folds: How many parts there are.
        rounds: How many of them are predicted; ``None`` is all.
        seed: Of the folds.

    Returns:
        What was predicted; ``None`` where there are too few images.
    """
    groups = linear.group_numbers(sample_groups)
    folds = linear.most_folds(folds, labels, groups)
    if folds < 2:
        return None
    positions, logits = [], []
    for train, test in itertools.islice(linear.stratified(folds, labels, groups, seed), rounds):
        if len(test) and linear.tells_apart(labels[train]):
            positions.append(test)
            logits.append(np.asarray(fit(train).logits(features[test]), np.float32))
    return HeldOut(np.concatenate(positions), np.concatenate(logits)) if positions else None
