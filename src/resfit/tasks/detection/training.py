"""The training of a detector in phases: pyramid and head on stored maps, then more and more of the body on pictures.

Everything random is a function of the seed, the epoch and the place in it, and a checkpoint holds the rest: a run that
was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.tasks.detection import feeds
from resfit.tasks.detection.phases import PhaseSettings
from resfit.tasks.detection.training_step import TrainingStep
from resfit.training import loop
from resfit.training.callbacks import Callbacks

if TYPE_CHECKING:
    import keras

    from resfit.tasks.detection.objectives import DetectionObjective

_CHECKPOINT_SECONDS = 20.0
#: Share of the training's time that validations may take.
_VALIDATION_SHARE = 0.15


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """A phase of the training.

    Attributes:
        settings: What decides it.
        model: From what the feed gives, and what training adds to it, to raw outputs; its layers are those of the
            whole network.
        unpack: From a batch's inputs, a tensor, to the model's.
        feed: Where batches come from.
        trainable: Names of the layers of the whole network that learn.
    """

    settings: PhaseSettings
    model: Callable[..., Any]
    unpack: Callable[[Any], Any]
    feed: feeds.BatchSource
    trainable: frozenset[str]


@dataclasses.dataclass(frozen=True)
class History:
    """What a training did.

    Attributes:
        rows: One for each validation: its number, step, training loss, AP and AP50 on the validation pictures,
            seconds, phase, passes over the pictures in this phase, and pictures that went through a step.
        best_ap: Validation AP of the weights that were kept.
        best_epoch: The epoch they are from, over all phases; 0 is before the training.
        passes: Pictures that went through a training step.
        seconds: Of training and validation.
    """

    rows: tuple[dict[str, Any], ...]
    best_ap: float
    best_epoch: int
    passes: int
    seconds: float


class DetectorTrainer:
    """Runs phases one after the other and leaves the best weights in the network.

    Args:
        whole: The network to raw outputs, with all layers.
        objective: What it learns.
        phases: The phases.
        validate: Returns ``(ap, ap50)`` of the network as it is.
        folder: Where checkpoints are kept; ``None`` for none.
        key: What decides the run; a checkpoint of another one is not used.
        say: Called with a line for each validation.
        clock: Seconds; another one than the wall's makes runs comparable on a busy machine.
        stop: Called after each step with the number of steps so far; where it returns True the run ends as if it had
            been killed.
        callbacks: Keras' callbacks (:mod:`resfit.training.callbacks`). An epoch of theirs ends with a validation; where
            one ends the training, no further phase begins.
    """

    def __init__(
        self,
        whole: keras.Model,
        objective: DetectionObjective,
        phases: Sequence[Phase],
        validate: Callable[[], tuple[float, float]],
        *,
        folder: Path | None = None,
        key: str = "",
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        stop: Callable[[int], bool] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ):
        self._told = Callbacks(callbacks, whole, sum(phase.settings.epochs or 0 for phase in phases), 0, "ap")
        self._batches = 0  # since the last validation
        self._objective, self._phases = objective, list(phases)
        self._validate, self._folder, self._key = validate, folder, key
        self._say, self._clock, self._stop = say, clock, stop
        learning = frozenset().union(*(phase.trainable for phase in phases))
        self._layers = [layer for layer in whole.layers if layer.name in learning]
        for layer in self._layers:
            layer.trainable = True
        self._variables = [v for layer in self._layers for v in layer.trainable_variables]
        self._owners = [layer.name for layer in self._layers for _ in layer.trainable_variables]
        self._state: dict[str, Any] = {
            "key": key,
            "phase": 0,
            "epoch": 0,
            "step": 0,
            "done": 0.0,
            "seconds": [0.0] * len(self._phases),
            "steps": 0,
            "passes": 0,
            "validated": 0.0,
            "best_ap": -1.0,
            "best_epoch": 0,
            "rows": [],
            "parts": [1] * len(self._phases),
        }
        self._best = self._values()
        self._ema: list[np.ndarray] = []

    def run(self) -> History:
        """Trains. The weights of the network are the best ones afterwards."""
        restored = self._restore()
        state = self._state
        if restored is None:
            started = self._clock()
            self._judge(0.0, started)
        self._told.begin()
        for number in range(state["phase"], len(self._phases)):
            if state.get("stopped"):
                break
            if restored is None or state["phase"] != number:
                state.update(phase=number, epoch=0, step=0, done=0.0)
                self._set(self._best)
                restored = None
            self._run_phase(number, restored)
            restored = None
        self._set(self._best)
        self._told.end()
        return History(
            tuple(state["rows"]), state["best_ap"], state["best_epoch"], state["passes"], sum(state["seconds"])
        )

    def _run_phase(self, number: int, restored: loop.TrainingCheckpoint | None) -> None:
        """Runs one phase, or what is left of it."""
        import tensorflow as tf

        phase, state = self._phases[number], self._state
        settings = phase.settings
        if settings.seconds is not None and state["seconds"][number] >= settings.seconds:
            return
        learning = [i for i, owner in enumerate(self._owners) if owner in phase.trainable]
        for layer in self._layers:
            layer.trainable = layer.name in phase.trainable
        variables = [self._variables[i] for i in learning]
        head = {layer.name for layer in self._layers} & self._phases[0].trainable
        scales = [1.0 if self._owners[i] in head else settings.body_rate for i in learning]
        optimizer = loop.Optimizer(variables, settings.optimizer, scales=scales, weight_decay=settings.weight_decay)
        averages = [tf.Variable(v.value, trainable=False) for v in variables]
        self._current = (optimizer, averages, learning)
        if restored is not None:
            for name, values in (("slot", optimizer.slots), ("ema", averages)):
                for i, variable in enumerate(values):
                    variable.assign(restored.arrays[f"{name}{i}"])
        parts = state.setdefault("parts", [1] * len(self._phases))
        step = TrainingStep(
            self._objective, phase.model, phase.unpack, settings, variables, optimizer, averages, parts[number]
        )
        count, batch = len(phase.feed), min(settings.batch_size, max(len(phase.feed), 1))
        per_epoch = len(feeds.epoch_order(count, batch, settings.seed, 0))
        began, before = self._clock(), state["seconds"][number]
        saved = began
        last = began
        while state["done"] < 1.0:
            order = feeds.epoch_order(count, batch, settings.seed, state["epoch"])
            total, seen = 0.0, 0
            for one in phase.feed.batches(order, state["epoch"]):
                rate = loop.rate("cosine", settings.learning_rate, settings.warmup, state["done"])
                if not self._batches:
                    self._told.begin_epoch(len(state["rows"]) - 1)
                total += step(one, rate, state["step"])
                parts[number] = step.parts
                seen += 1
                self._told.end_step(self._batches, {"loss": total / seen})
                self._batches += 1
                now = self._clock()
                state["step"] += 1
                state["steps"] += 1
                state["passes"] += batch
                elapsed = before + now - began
                state["done"] = self._progress(settings, per_epoch, elapsed, now - last)
                last = now
                if self._stop is not None and self._stop(state["steps"]):
                    raise KeyboardInterrupt
                if self._told.stopped:
                    state.update(done=1.0, stopped=True)
                if state["done"] >= 1.0:
                    break
            state["epoch"] += 1
            state["seconds"][number] = before + self._clock() - began
            if settings.epochs is not None and state["epoch"] >= settings.epochs:
                state["done"] = 1.0
            started = self._clock()
            waited = state["validated"] <= _VALIDATION_SHARE * sum(state["seconds"])
            if state["done"] >= 1.0 or waited:
                with self._averaged():
                    self._judge(total / max(seen, 1), started)
                if self._told.stopped:
                    state.update(done=1.0, stopped=True)
                state["seconds"][number] = before + self._clock() - began
            if self._clock() - saved >= _CHECKPOINT_SECONDS or self._stop is not None:
                self._save()
                saved = self._clock()

    def _progress(self, settings: PhaseSettings, per_epoch: int, elapsed: float, step: float) -> float:
        """Share of the phase that is done: by steps, by the clock, or the larger of the two."""
        shares = [0.0]
        if settings.epochs is not None:
            shares.append(self._state["step"] / (settings.epochs * per_epoch))
        if settings.seconds is not None:
            # the last step should end within the time
            shares.append(min(1.0, (elapsed + 0.5 * step) / settings.seconds))
        return min(1.0, max(shares))

    def _judge(self, loss: float, started: float) -> None:
        """Validates the network as it is, and keeps its weights if they are the best so far."""
        state = self._state
        ap, ap50 = self._validate()
        state["validated"] += self._clock() - started
        epochs = len(state["rows"])
        name = self._phases[state["phase"]].settings.name if self._phases else ""
        row = {
            "epoch": epochs,
            "step": state["steps"],
            "train_loss": round(loss, 6),
            "val_ap": ap,
            "val_ap50": ap50,
            "seconds": round(sum(state["seconds"]), 2),
            "phase": name,
            "pass": state["epoch"],
            "passes": state["passes"],
        }
        state["rows"].append(row)
        if epochs:
            told = {name: row[name] for name in ("epoch", "step", "train_loss", "val_ap", "val_ap50", "seconds")}
            self._told.end_epoch(epochs - 1, told)
            self._batches = 0
        if self._say is not None and epochs:
            self._say(
                f"{name}, epoch {row['pass']}: loss {loss:.3f}, validation AP {ap:.3f}, AP50 {ap50:.3f}, "
                f"{row['seconds']:.0f} s"
            )
        if ap > state["best_ap"] or not epochs:
            state["best_ap"], state["best_epoch"] = ap, epochs
            self._best = self._values()

    def _averaged(self) -> Any:
        """Within it, the network has the averages as weights."""
        _, averages, learning = self._current

        @contextlib.contextmanager
        def swapped() -> Any:
            kept = [self._variables[i].numpy() for i in learning]
            for i, average in zip(learning, averages, strict=True):
                self._variables[i].assign(average)
            try:
                yield
            finally:
                for i, value in zip(learning, kept, strict=True):
                    self._variables[i].assign(value)

        return swapped()

    def _values(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._variables]

    def _set(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)

    def _save(self) -> None:
        """Writes a checkpoint."""
        if self._folder is None:
            return
        optimizer, averages, _ = self._current
        arrays = {f"v{i}": variable.numpy() for i, variable in enumerate(self._variables)}
        arrays |= {f"best{i}": value for i, value in enumerate(self._best)}
        arrays |= {f"slot{i}": slot for i, slot in enumerate(optimizer.slots)}
        arrays |= {f"ema{i}": average for i, average in enumerate(averages)}
        self._folder.mkdir(parents=True, exist_ok=True)
        loop.save_checkpoint(self._folder, self._state, arrays)

    def _restore(self) -> loop.TrainingCheckpoint | None:
        """Goes back to the newest checkpoint of this very run, if there is one."""
        if self._folder is None:
            return None
        shapes = {f"{name}{i}": tuple(v.shape) for name in ("v", "best") for i, v in enumerate(self._variables)}
        found = loop.load_checkpoint(self._folder, shapes)
        if found is None or found.state.get("key") != self._key:
            return None
        self._state = found.state
        self._set([found.arrays[f"v{i}"] for i in range(len(self._variables))])
        self._best = [found.arrays[f"best{i}"] for i in range(len(self._variables))]
        if self._say is not None:
            self._say(f"going on with a run that was interrupted, from epoch {found.state['epoch']}")
        return found
