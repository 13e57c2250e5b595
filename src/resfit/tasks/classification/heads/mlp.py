"""A head with one hidden layer, trained on features."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import dependencies
from resfit.errors import ArgumentError, DataError
from resfit.numerics import activated
from resfit.tasks.classification.heads import solver
from resfit.tasks.classification.objective import ClassObjective
from resfit.training import boundary, loop
from resfit.training import trainer as finetune
from resfit.training.feeds import mixed
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

#: Settings of the training: those of the usual tutorial, with a schedule that ends and the best epoch kept.
MLP = Tuning(epochs=30, batch_size=64, optimizer="adam", learning_rate=1e-3, schedule="cosine", patience=8)


@dataclasses.dataclass(frozen=True, eq=False)
class MlpHead:
    """``Dense(hidden, relu)`` and a classifier, standardisation included.

    Attributes:
        kernels: The two kernels, ``(features, hidden)`` and ``(hidden, classes)``, float32.
        biases: The two biases.
        activation: ``"softmax"``, or ``"sigmoid"`` where an image may have several labels.
        history: A row for each epoch of its training.
    """

    kernels: tuple[np.ndarray, np.ndarray]
    biases: tuple[np.ndarray, np.ndarray]
    activation: str = "softmax"
    history: tuple[dict[str, Any], ...] = ()

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits of shape ``(n, classes)`` of features ``(n, features)``."""
        hidden = np.maximum(np.asarray(features, np.float32) @ self.kernels[0] + self.biases[0], 0)
        return hidden @ self.kernels[1] + self.biases[1]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns the softmax, or the sigmoid, of :meth:`logits`."""
        return activated(self.logits(features), self.activation)

    def layers(self) -> list[Any]:
        """Returns the head as two Keras layers that give logits; see
        :func:`resfit.tasks.classification.heads.base.attach`.
        """
        import keras

        names = (("hidden", "relu"), ("predictions", None))
        made = []
        for (name, activation), kernel, bias in zip(names, self.kernels, self.biases, strict=True):
            layer = keras.layers.Dense(len(bias), activation=activation, dtype="float32", name=name)
            layer.build((None, len(kernel)))
            layer.set_weights([kernel, bias])
            made.append(layer)
        return made


def fit_mlp(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    hidden: int = 1024,
    tuning: Tuning | None = None,
    multilabel: bool = False,
    val: np.ndarray | None = None,
    views: Sequence[np.ndarray] = (),
    report: Callable[[finetune.Trainer, dict[str, float]], None] | None = None,
) -> MlpHead:
    """Fits a head with one hidden layer.

    Args:
        features: Float array of shape ``(n, features)``; memory-mapped will do. Not changed.
        targets: Array ``(n, classes)``: rows that sum to 1, or 0 and 1 for several labels.
        hidden: Width of the hidden layer.
        tuning: Settings; ``None`` takes :data:`MLP`. Class weights (``balance``), focal loss, label smoothing and mixup
            work as in fine-tuning.
        multilabel: Whether an image may have several labels.
        val: Positions to choose the epoch on; ``None`` takes a tenth at random, from 50 images on.
        views: Features of changed views of the same images, of which each epoch takes another.
        report: Called after each step.

    Raises:
        ArgumentError: The arrays do not fit together.
        DataError: A feature is not finite.
    """
    import keras

    dependencies.require_tensorflow_backend("head='mlp'")
    tuning = tuning or MLP
    goals = np.asarray(targets, np.float32)
    if features.ndim != 2 or goals.ndim != 2 or len(features) != len(goals):
        raise ArgumentError(
            "features must have shape (n, features) and targets (n, classes). "
            f"Received: {features.shape}, {goals.shape}."
        )
    mean, deviation = solver.moments(features)
    if not np.isfinite(mean).all():
        raise DataError("features must be finite. The network gives infinite or undefined values on these images.")
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    random = np.random.default_rng(tuning.seed)
    if val is None:
        count = len(features) // 10 if len(features) >= 50 else 0
        val = np.sort(random.permutation(len(features))[:count])
    learning = np.setdiff1d(np.arange(len(features)), val)

    inputs = keras.Input((features.shape[1],))
    # the initial weights are drawn here, so that they depend on nothing but the seed
    made = [keras.layers.Dense(hidden, activation="relu", name="hidden"), keras.layers.Dense(goals.shape[1])]
    model = keras.Model(inputs, made[1](made[0](inputs)))
    for layer in made:
        shape = layer.kernel.shape
        limit = np.sqrt(6 / sum(shape))
        layer.set_weights([random.uniform(-limit, limit, shape), np.zeros(shape[1])])
    nothing = boundary.Boundary(0, "", (), (), "", ())
    feed = _FeatureFeed([features, *views], tuning, mean, scale)
    objective = ClassObjective(goals, learning, tuning, multilabel=multilabel)
    trainer = finetune.Trainer(model, made, tuning, feed, objective, goals, learning, val, parts=(nothing, model))
    with tempfile.TemporaryDirectory(prefix="resfit-mlp-") as folder:
        log = loop.Log(Path(folder), tensorboard=False, speak=False)
        learned = finetune.train(trainer, Path(folder), log, checkpoint_seconds=np.inf, report=report)
    (first, bias), (second, last) = (layer.get_weights() for layer in made)
    kernel = first / scale[:, None]
    return MlpHead(
        kernels=(kernel.astype(np.float32), second.astype(np.float32)),
        biases=((bias - mean @ kernel).astype(np.float32), last.astype(np.float32)),
        activation="sigmoid" if multilabel else "softmax",
        history=learned.history,
    )


class _FeatureFeed:
    """Standardised features, of the view whose turn it is."""

    def __init__(self, views: Sequence[np.ndarray], tuning: Tuning, mean: np.ndarray, scale: np.ndarray):
        self._views, self._tuning = list(views), tuning
        self._mean, self._factor = mean.astype(np.float32), (1 / scale).astype(np.float32)

    def __len__(self) -> int:
        return len(self._views[0])

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        return mixed(self._standard(self._views[epoch % len(self._views)][rows]), targets, self._tuning, step)

    def plain(self, rows: np.ndarray) -> np.ndarray:
        return self._standard(self._views[0][rows])

    def _standard(self, rows: np.ndarray) -> np.ndarray:
        return (np.asarray(rows, np.float32) - self._mean) * self._factor
