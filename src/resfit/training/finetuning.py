"""Fine-tuning a network with a head of any task: from the prepared images to the best weights, in float32."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.training import boundary, frozen, replicas, runs
from resfit.training import trainer as training
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

    from resfit.data.split import Split
    from resfit.training.objective import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class TunedBody:
    """A network that was fine-tuned; the layers of the head have learned in place.

    Attributes:
        body: Images to features, in float32.
        learned: What the run came to.
        tuning: The settings.
        boundary: Where the network was cut.
        features: Computes features of the tuned network for positions in the feed.
        files: What the run leaves: its log, its curves and TensorBoard's.
        folder: Of the run; ``None`` is one that is gone.
    """

    body: keras.Model
    learned: training.TrainingHistory
    tuning: Tuning
    boundary: boundary.Boundary
    features: Callable[[np.ndarray], np.ndarray]
    files: dict[str, bytes]
    folder: Path | None

    @property
    def strategy(self) -> str:
        """``"finetune"``, or ``"full"`` where nothing stayed frozen."""
        return "finetune" if self.boundary.frozen else "full"


def finetune(
    prepared: frozen.FrozenOutputs,
    attach: Callable[[keras.Model], tuple[keras.Model, Sequence[Any]]],
    objective: Objective,
    targets: np.ndarray,
    parts: Split,
    tuning: Tuning,
    running: runs.RunOptions,
    *,
    folder: Path | None,
    teacher: np.ndarray | None = None,
) -> TunedBody:
    """Fine-tunes a network, or goes on with a run that was interrupted.

    Args:
        prepared: The images, and the network.
        attach: Puts the head on a network, and returns the whole and the layers of the head.
        objective: The loss and the metric.
        targets: As :class:`resfit.training.trainer.Trainer` takes them.
        parts: Positions to learn from and to choose the best epoch on.
        tuning: What decides the result.
        running: How it is run.
        folder: Of the run; ``None`` is one that goes away.
        teacher: As :class:`resfit.training.trainer.Trainer` takes it.
    """
    model, layers = attach(boundary.copy(prepared.body, dtype=tuning.policy))
    with _run_folder(folder) as place:
        trainer = training.Trainer(
            model,
            layers,
            tuning,
            prepared.feed,
            objective,
            targets,
            parts.train,
            parts.val,
            teacher=teacher,
            closing=running.closing,
            replicas=replicas.joined(),
        )
        learned = runs.run(trainer, dataclasses.replace(running, folder=place), prepared.body.name)
        files = runs.files(place)  # of several workers the first one writes them
    body = training.body_of(model, layers)
    if tuning.policy:  # what is measured is what is kept: float32
        body = boundary.copy(body, dtype="float32")
    body = boundary.copy(body)
    _, second = boundary.split(body, boundary.find(body, tuning.trainable_from))
    suffix = frozen.Suffix(prepared, second, len(parts.test) + len(parts.val), running)
    return TunedBody(body, learned, trainer.tuning, trainer.boundary, suffix, files, folder)


@contextlib.contextmanager
def _run_folder(folder: Path | None) -> Iterator[Path]:
    """Yields the folder of a run; one that goes away where there is none."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="resfit-run-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)
