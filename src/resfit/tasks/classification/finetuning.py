"""What a fit learns: the fine-tuning with its teacher, and what is kept of it or of the probe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.errors import ArgumentError
from resfit.features import extract as feature_store
from resfit.tasks import backbone
from resfit.tasks.classification.classifier import Classifier
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.heads.linear import HeldOut, LinearHead, fit_linear
from resfit.tasks.classification.heads.mlp import MlpHead
from resfit.tasks.classification.objective import ClassObjective
from resfit.tasks.classification.reduced_precision import Rows
from resfit.tasks.steps import ReadyTraining
from resfit.training.finetuning import TunedBody, finetune

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuned(TunedBody):
    """A network that was fine-tuned, with its head.

    Attributes:
        head: The head on it.
        logits: Of the test images, by the tuned network.
        val_logits: Of the validation images.
    """

    head: base.Head
    logits: np.ndarray
    val_logits: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FitResult:
    """What of the training goes into the classifier. Positions are those of the images.

    Attributes:
        network: Images to features.
        head: The head on them.
        logits: Of the test images.
        spared: Logits of images that the head has not learned from.
        source: Where these come from: ``"validation"`` or ``"cross-validation"``.
        train: Positions of the images that were learned from.
        held_out: Positions of those that the network has not learned from; ``None`` where it learned from none.
        features: Computes what the head reads, of images by position.
        tuned: The fine-tuning, where it is kept.
    """

    network: keras.Model
    head: base.Head
    logits: np.ndarray
    spared: HeldOut
    source: str
    train: np.ndarray
    held_out: np.ndarray | None
    features: Callable[[np.ndarray], np.ndarray]
    tuned: FineTuned | None = None

    @property
    def strategy(self) -> str:
        """``"probe"``, ``"finetune"`` or ``"full"``."""
        return "probe" if self.tuned is None else self.tuned.strategy


def keep_tuned(data: TrainingData, tuned: FineTuned) -> FitResult:
    """Keeps what was fine-tuned.

    Args:
        data: What was learned from.
        tuned: What was learned.
    """
    return FitResult(
        network=tuned.body,
        head=tuned.head,
        logits=tuned.logits,
        spared=HeldOut(data.parts.val, tuned.val_logits),
        source="validation",
        train=data.parts.train,
        held_out=data.parts.val,
        features=tuned.features,
        tuned=tuned,
    )


def keep_probe(
    data: TrainingData,
    body: keras.Model,
    head: base.Head,
    rows: Rows,
    head_of: Callable[[Rows, np.ndarray], base.Head],
    seed: int,
) -> FitResult:
    """Keeps the frozen network with a head that has learned from all but the test images.

    Args:
        data: What was learned from.
        body: The frozen network.
        head: The head.
        rows: Features of the images.
        head_of: Fits such a head to rows at positions.
        seed: Of the folds in which others are fitted, to see what a head says of images that it has not learned from.
    """
    return FitResult(
        network=body,
        head=head,
        logits=head.logits(rows[data.parts.test]),
        spared=_left_out(data, head, rows, head_of, seed),
        source="cross-validation",
        train=data.everything,
        held_out=None,
        features=rows.__getitem__,
    )


def keep_beginning(
    data: TrainingData, body: keras.Model, head: base.Head, rows: np.ndarray, learned_from: np.ndarray
) -> FitResult:
    """Keeps a head that a training was to begin with.

    Args:
        data: What was learned from.
        body: The frozen network.
        head: The head.
        rows: Features of the images ``(n, features)``.
        learned_from: Positions that the head has learned from.
    """
    val = data.parts.val
    return FitResult(
        network=body,
        head=head,
        logits=head.logits(rows[data.parts.test]),
        spared=HeldOut(val, head.logits(rows[val])),
        source="validation",
        train=learned_from,
        held_out=None,
        features=rows.__getitem__,
    )


def _left_out(
    data: TrainingData,
    final: base.Head,
    rows: Rows,
    head_of: Callable[[Rows, np.ndarray], base.Head],
    seed: int,
) -> HeldOut:
    """Returns what was predicted for training images by heads that had not learned from them."""
    train = data.everything
    if isinstance(final, LinearHead):
        found = final.held_out
    else:
        found = base.leave_out(
            lambda some: head_of(rows, train[some]),
            rows[train],
            data.labels(train),
            sample_groups=data.groups(train),
            rounds=1 if isinstance(final, MlpHead) else None,  # its training takes long
            seed=seed,
        )
    if found is None:
        return HeldOut(np.zeros(0, np.int64), np.zeros((0, len(data.classes)), np.float32))
    return HeldOut(train[found.positions], found.logits)


def tune(data: TrainingData, ready: ReadyTraining, head: base.Head, taught: np.ndarray | None) -> FineTuned:
    """Fine-tunes a network.

    Args:
        data: What there is to learn from.
        ready: The training, ready to begin.
        head: The head to start from.
        taught: Logits of a teacher, if there is one.
    """
    objective = ClassObjective(
        data.targets, data.parts.train, ready.settings, multilabel=data.multilabel, teacher=taught is not None
    )
    layers: list[Any] = []

    def attach(body: keras.Model) -> tuple[keras.Model, Sequence[Any]]:
        model, added = base.attach(body, head, logits=True)
        layers.extend(added)
        return model, added

    parts = data.parts
    found = finetune(
        ready.prepared,
        attach,
        objective,
        data.targets,
        parts,
        ready.settings,
        ready.running,
        folder=ready.folder,
        teacher=taught,
    )
    final = base.from_layers(layers, head)
    logits = final.logits(found.features(np.concatenate([parts.test, parts.val])))
    return FineTuned(
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
        head=final,
        logits=logits[: len(parts.test)],
        val_logits=logits[len(parts.test) :],
    )


def teach(
    teacher: str | os.PathLike[str] | None, data: TrainingData, engine: str | engines.Engine, cache: bool | str | Path
) -> np.ndarray | None:
    """Returns the logits of a teacher: a classifier of the same classes, or a probe on a larger network.

    Args:
        teacher: As :func:`resfit.fit` takes it; ``None`` is for none.
        data: The images.
        engine: As :func:`resfit.engines.create` takes it.
        cache: As :func:`resfit.fit` takes it.

    Raises:
        ArgumentError: The classifier has other classes.
    """
    if teacher is None:
        return None
    if artifact.is_artifact(Path(teacher)):
        found = Classifier.load(teacher)
        if found.classes != data.classes:
            raise ArgumentError(
                f"a teacher must have the classes of the data. Received: {', '.join(found.classes[:8])}."
            )
        body, head = found.body(), found.head()
        rows = feature_store.extract(body, data.images, input_spec=found.input_spec, engine=engine, cache=cache).rows
        return head.logits(np.asarray(rows))
    body, _ = backbone.body_of(teacher)
    rows = np.asarray(feature_store.extract(body, data.images, engine=engine, cache=cache).rows)
    train = data.parts.train
    return fit_linear(rows[train], data.labels(train), classes=len(data.classes)).logits(rows)
