"""Fine-tuning: the part of a network behind the frozen boundary is trained, the part before it is only looked up.

The images come through a feed (:mod:`resfit.training.feeds`): stored outputs of the frozen part, or pixels that are
changed at random and go through the frozen part, if there is one, on a fast engine. Order, changes and learning rate
are functions of the seed, the epoch and the step, and a checkpoint holds the rest, so that a run that was killed goes
on where it stood.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from resfit import devices
from resfit.training import boundary, loop
from resfit.training.callbacks import Callbacks

if TYPE_CHECKING:
    import keras

    from resfit.training.feeds import Feed
    from resfit.training.objective import Objective
    from resfit.training.replicas import Replicas
    from resfit.training.settings import Tuning

_PREDICT = 64
# share by which the loss must fall to count as better at equal accuracy
_NOTICEABLE = 1e-3
# what is kept of the time for the end of a run: times that an image takes in float32 against fewer bits, and seconds
_SLOWER_IN_FLOAT32, _SECONDS_TO_END = 2.0, 2.0
# steps after which loss and metric are read from a card, which has to wait for it
_READ_EVERY = 20
# what a loss in float16 is multiplied by at first, and after how many steps without an infinite gradient it is doubled
_FIRST_SCALE, _STEADY = 2.0**15, 2000.0


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingHistory:
    """What a run came to. The network itself holds the best weights.

    Attributes:
        history: A row for each epoch, JSON-ready; epoch 0 is what the network said before it learned.
        epoch: The epoch whose weights were kept.
        score: The metric of these on the validation images, such as the accuracy 0..1; ``None`` without any.
        loss: The same, mean loss.
        steps: Optimiser steps.
        seconds: Time of training and validation, interruptions excluded.
        ending: Why it ended: ``"epochs"``, ``"time"``, ``"patience"``, ``"diverged"``, ``"callback"`` or
            ``"stopped"``.
    """

    history: tuple[dict[str, Any], ...]
    epoch: int
    score: float | None
    loss: float | None
    steps: int
    seconds: float
    ending: str


@dataclasses.dataclass(frozen=True, eq=False)
class RateCurve:
    """What the loss does as the learning rate rises.

    Attributes:
        rates: Learning rates, ascending.
        losses: The smoothed loss at each.
        suggestion: The rate at which the loss falls fastest.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


class Trainer:
    """The state of a run: the part that learns, its optimiser, its average, and where in the images it stands.

    Args:
        model: The whole network, ending in what the loss reads, such as logits, of which each layer is called once. It
            is trained in place.
        layers: The layers of the head, behind the network that ``tuning.trainable_from`` counts; they always learn.
        tuning: What decides the result.
        feed: Where the inputs of the part that learns come from.
        objective: The loss, and the metric that the best epoch is chosen by.
        targets: float32 array ``(len(feed), ...)`` that the feed gets rows of, and may change or replace.
        train: Positions to learn from.
        val: Positions to choose the best epoch on; may be empty.
        teacher: Outputs of a teacher, an array with a row for each image, for objectives that read them.
        parts: The boundary and the part behind it, if the caller has cut the network already.
        closing: Images that will be measured afterwards, within ``tuning.minutes``.
        optimizer: What takes the steps.
        replicas: The workers that take shares of each batch, of which this process is one; ``None`` for this one alone,
            where several cards (``device="gpu:all"``) share it.

    In float16 the loss is scaled by as much as its gradients bear, so that small ones are not rounded to zero. A step
    whose gradients are infinite moves nothing, and halves the scale. Where the device's memory does not suffice for a
    batch, it goes through in parts whose gradients are added up.

    Attributes:
        measures_first: Whether the network is measured before it learns.
        closed_at: Seconds of the run when the last epoch ended.
        device: What computes.
        read_every: Steps after which loss and metric are read.
        parts: Parts in which a batch goes through.
    """

    measures_first = True

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[Any],
        tuning: Tuning,
        feed: Feed,
        objective: Objective,
        targets: np.ndarray,
        train: np.ndarray,
        val: np.ndarray,
        *,
        teacher: np.ndarray | None = None,
        parts: tuple[boundary.Boundary, keras.Model] | None = None,
        closing: int = 0,
        optimizer: type[loop.Optimizer] = loop.Optimizer,
        replicas: Replicas | None = None,
    ):
        import tensorflow as tf

        self.model, self.tuning, self.feed, self.objective = model, tuning, feed, objective
        self.device = devices.current()
        self.read_every = _READ_EVERY if self.device.kind == "gpu" else 1
        self.parts = 1
        self.head = [layer.name for layer in layers]
        self.targets, self.train, self.val = np.asarray(targets, np.float32), np.asarray(train), np.asarray(val)
        self.teacher = None if teacher is None else np.asarray(teacher, np.float32)
        self.boundary, self.second = parts or cut(model, layers, tuning.trainable_from)
        self.replicas = replicas or self._cards()
        self._mark(self.boundary)
        self.learned = list(self.second.trainable_variables)
        own = {*self.boundary.learning, *self.head}
        self.state = [
            v for layer in self.second.layers if layer.name in own for v in layer.variables if "float" in v.dtype
        ]
        if replicas is not None:  # a head that was fitted on another machine differs in its last digits
            replicas.copy_first(self.state)
        self.optimizer = optimizer(
            self.learned,
            tuning.optimizer,
            momentum=tuning.momentum,
            scales=self._scales(),
            weight_decay=tuning.weight_decay,
        )
        self.average = [tf.Variable(v.numpy(), trainable=False) for v in self.state] if tuning.ema_decay else []
        self.sums = (
            [tf.Variable(tf.zeros_like(v.value), trainable=False) for v in self.learned]
            if tuning.accumulate > 1
            else []
        )
        self._part_sums: list[Any] = []
        scaled = tuning.precision == "mixed_float16"
        # the scale of the loss, and the steps since it was changed
        self.scale = [tf.Variable(start, trainable=False) for start in (_FIRST_SCALE, 0.0)] if scaled else []
        self.best = [v.numpy() for v in self.state]
        self.score: dict[str, Any] = {"epoch": 0, "score": None, "loss": None}
        self.step, self.epoch, self.position, self.seconds, self.closed_at = 0, 0, 0, 0.0, 0.0
        self.waited, self.ending = 0, ""
        self.closing, self.pace = closing, math.inf  # seconds an image, the least that was seen
        self._totals = np.zeros(3)
        self._unread: list[tuple[int, Any]] = []
        self._phases = [boundary.find(body_of(model, layers), start) for _, start in sorted(tuning.unfreeze)]
        self._steps: dict[int, Any] = {}
        self._forward: Any = None

    def _cards(self) -> Replicas | None:
        """Returns the cards that share each batch; ``None`` where it is one, or there are fewer images than cards."""
        if not self.device.cards or self.size < len(self.device.cards):
            return None
        from resfit.training.replicas import CardReplicas

        return CardReplicas(self.device.cards)

    @property
    def size(self) -> int:
        """Images a step; fewer where there are not so many."""
        return max(1, min(self.tuning.batch_size, len(self.train)))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in a pass; the rest of the images waits for the next order."""
        return max(1, len(self.train) // self.size)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        total = self.tuning.epochs * self.steps_per_epoch
        done = self.step / total if total else 1.0
        if self.tuning.minutes is not None:
            seconds = 60 * self.tuning.minutes
            if self.closing and self.pace < math.inf:
                seconds -= min(self._closing_seconds(), seconds / 2)
            done = max(done, self.seconds / seconds)
        return min(1.0, done)

    def _closing_seconds(self) -> float:
        """Returns what is kept for the end: the last look at the validation images, and the measuring in float32."""
        slower = _SLOWER_IN_FLOAT32 if self.tuning.precision != "float32" else 1.0
        return _SECONDS_TO_END + self.pace * (len(self.val) + slower * self.closing)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.ending) or (self.progress >= 1.0 and self.position == 0)

    def share(self, number: int) -> float:
        """Returns the share of the run at a step, which decides the size of its images.

        Args:
            number: Of the step, from 0.
        """
        return number / max(1, self.tuning.epochs * self.steps_per_epoch)

    def epoch_steps(self) -> Iterator[dict[str, float]]:
        """Trains from where the run stands to the end of the epoch, a batch at a time."""
        order = np.random.default_rng([self.tuning.seed, self.epoch]).permutation(len(self.train))
        first = self.position

        def batches() -> Iterator[tuple[np.ndarray, Any, Any, Any]]:
            for index in range(first, self.steps_per_epoch):
                rows = np.sort(self.train[order[index * self.size : (index + 1) * self.size]])
                number = self.epoch * self.steps_per_epoch + index
                side = self.tuning.image_size(self.share(number))
                inputs, targets = self.feed.batch(rows, self.targets[rows], self.epoch, number, side)
                yield rows, inputs, targets, None if self.teacher is None else self.teacher[rows]

        with loop.prefetch(batches(), 2) as ready:
            started = time.perf_counter()  # waiting for images is training time, too
            for rows, inputs, targets, teacher in ready:
                if self.progress >= 1.0:  # the time is up inside an epoch
                    break
                self._unread.append((len(rows), self.take(inputs, targets, teacher)))
                if (len(self._unread) >= self.read_every or not self._totals[2]) and not self.read():
                    return
                self.position += 1
                self.seconds += time.perf_counter() - started
                count = max(self._totals[2], 1.0)
                yield {"loss": self._totals[0] / count, self.objective.metric: self._totals[1] / count}
                started = time.perf_counter()

    def read(self) -> bool:
        """Waits for the steps that were taken, and counts their loss and metric.

        Returns:
            Whether the loss is still a number; otherwise the run is at its end.
        """
        unread, self._unread = self._unread, []
        for count, figures in unread:
            loss, score, state = (float(value) for value in figures.numpy())
            if state < 0 or (state > 0 and not math.isfinite(loss)):
                self.ending = "diverged"
                return False
            if state > 0:  # otherwise the step was skipped
                self._totals += (loss * count, score, count)
        return True

    def learn(self, inputs: Any, targets: Any, teacher: Any = None) -> tuple[float, float]:
        """Takes one step on a batch and waits for it.

        Args:
            inputs: As :meth:`take` takes them.
            targets: As :meth:`take` takes them.
            teacher: As :meth:`take` takes it.

        Returns:
            The loss before the step, and the sum over the images of what the metric averages.
        """
        loss, score, _ = self.take(inputs, targets, teacher).numpy()
        return float(loss), float(score)

    def take(self, inputs: Any, targets: Any, teacher: Any = None) -> Any:
        """Takes one step on a batch; on a card this returns before it is done.

        Args:
            inputs: What the part behind the cut reads, ``(batch, ...)``, or several such.
            targets: What the objective reads, ``(batch, ...)``, or several such.
            teacher: Outputs of the teacher, a row for each image.

        Returns:
            A float32 tensor of three: the loss before the step, the sum over the images of what the metric averages,
            and 1; 0 for a step that was skipped, -1 for one that no scale of the loss makes finite.
        """
        # several workers place their shares themselves
        alone = self.replicas is None or self.replicas.alone
        with devices.using(self.device) if alone else contextlib.nullcontext():
            while True:
                try:
                    figures = self._taken(inputs, targets, teacher)
                except Exception as error:
                    if not devices.is_out_of_memory(error) or not self._take_smaller_parts(inputs):
                        raise
                    continue
                self.step += 1
                return figures

    def _taken(self, inputs: Any, targets: Any, teacher: Any) -> Any:
        import tensorflow as tf

        tuning = self.tuning
        rate = loop.rate(tuning.schedule, tuning.learning_rate, tuning.warmup, self.progress)
        step = self._step_function(self._phase())
        share = _tensors if self.replicas is None else self.replicas.share
        whole = (inputs, targets, np.zeros((1, 1), np.float32) if teacher is None else teacher)
        last = (self.step + 1) % tuning.accumulate == 0
        count = len(tf.nest.flatten(inputs)[0])
        found = []
        edges = np.linspace(0, count, self.parts + 1).astype(int).tolist()
        for begin, end in itertools.pairwise(edges):
            some = whole if self.parts == 1 else _rows(whole, begin, end)
            figures = step(
                share(some),
                tf.constant(rate, tf.float32),
                tf.constant(self.step // tuning.accumulate, tf.int32),
                tf.constant(last and end == count),
                # what a gradient is divided by before it is added up
                tf.constant(tuning.accumulate * (count / (end - begin)), tf.float32),
            )
            found.append((figures, (end - begin) / count))
        if len(found) == 1:
            return found[0][0]
        loss = tf.add_n([figures[0] * share for figures, share in found])
        return tf.stack([loss, tf.add_n([figures[1] for figures, _ in found]), found[-1][0][2]])

    def _take_smaller_parts(self, inputs: Any) -> bool:
        """Halves what goes through at once; returns whether it can be halved."""
        import tensorflow as tf

        replicas = self.replicas
        if replicas is not None and not replicas.alone:  # the other workers would wait for the other halves
            return False
        least = 1 if replicas is None else replicas.count
        parts = loop.smaller_parts(self.device, len(tf.nest.flatten(inputs)[0]), self.parts, least)
        if parts is not None:
            self._set_parts(parts)
        return parts is not None

    def _set_parts(self, parts: int) -> None:
        """Sets the parts in which a batch goes through; the graphs are made anew."""
        import tensorflow as tf

        self.parts = parts
        if parts > 1 and not self.sums and not self._part_sums:
            self._part_sums = [tf.Variable(tf.zeros_like(v.value), trainable=False) for v in self.learned]
        for total in self._part_sums:  # of a step that was not finished
            total.assign(tf.zeros_like(total))
        self._steps.clear()

    def close_epoch(self) -> dict[str, Any]:
        """Ends the epoch: measures, keeps the weights if they are the best so far, and returns the row of the log."""
        self.read()
        count = max(self._totals[2], 1.0)
        self.epoch += 1
        tuning = self.tuning
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "learning_rate": float(
                f"{loop.rate(tuning.schedule, tuning.learning_rate, tuning.warmup, self.progress):.6g}"
            ),
            "train_loss": round(self._totals[0] / count, 5),
            f"train_{self.objective.metric}": round(self._totals[1] / count, 5),
        }
        begin = time.perf_counter()
        row.update(self.judge())
        self.seconds += time.perf_counter() - begin
        row["seconds"] = round(self.seconds, 1)
        self.position, self.closed_at = 0, self.seconds
        self._totals = np.zeros(3)
        if not self.ending:
            if tuning.patience is not None and self.waited >= tuning.patience:
                self.ending = "patience"
            elif self.progress >= 1.0:
                self.ending = self.end
        return row

    @property
    def end(self) -> str:
        """What a run that is done has come to the end of: its ``"epochs"``, or its ``"time"``."""
        return "epochs" if self.epoch >= self.tuning.epochs else "time"

    def judge(self) -> dict[str, float]:
        """Measures on the validation images and keeps the weights if they are the best so far."""
        with self._averaged():
            if not len(self.val):
                self.best = [v.numpy() for v in self.state]
                self.score = {"epoch": self.epoch, "score": None, "loss": None}
                return {}
            if self.closing and self._forward is None:  # what it takes to begin is no part of the pace
                self.predict(self.val[:_PREDICT])
            begin = time.perf_counter()
            loss, score = self.objective.measure(self._outputs(self.val))
            if self.replicas is not None:  # all decide alike which epoch is the best, and which the last
                loss, score = self.replicas.agreed([float(loss), float(score)])
            self.pace = min(self.pace, (time.perf_counter() - begin) / len(self.val))
            if math.isfinite(loss) and self._is_better(score, loss):
                self.best = [v.numpy() for v in self.state]
                self.score = {"epoch": self.epoch, "score": score, "loss": loss}
                self.waited = 0
            else:
                self.waited += 1
        return {"val_loss": round(loss, 5), f"val_{self.objective.metric}": round(score, 5)}

    def _is_better(self, score: float, loss: float) -> bool:
        """Whether these figures beat the best; a loss that differs by its rounding does not."""
        if self.score["score"] is None:
            return True
        if score != self.score["score"]:
            return bool(score > self.score["score"])
        return bool(loss < (1 - _NOTICEABLE) * self.score["loss"])

    def keep_best(self) -> None:
        """Puts the best weights into the network."""
        for variable, value in zip(self.state, self.best, strict=True):
            variable.assign(value)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Returns the output, such as logits, for unchanged images with the weights as they stand.

        Args:
            rows: Positions in the feed, at least one.
        """
        return np.concatenate([outputs for _, outputs in self._outputs(rows)])

    def _outputs(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        if self._forward is None:
            self._forward = forward_of(self.second)
        with devices.using(self.device):
            yield from outputs_of(self._forward, self.feed, rows)

    def find_rate(self, *, low: float = 1e-6, high: float = 1.0, steps: int = 60) -> RateCurve:
        """Raises the learning rate from step to step and watches the loss; the network is left as it was.

        The range test of Smith 2015 (arXiv:1506.01186).

        Args:
            low: First learning rate.
            high: Last learning rate; it ends before where the loss is four times the lowest.
            steps: Number of steps.
        """
        kept = {name: np.array(value.numpy()) for name, value in self._arrays().items() if hasattr(value, "numpy")}
        place = (self.step, self.epoch, self.position, self.seconds, self.tuning, self._totals.copy())
        order = np.random.default_rng([self.tuning.seed, 2**31]).permutation(len(self.train))
        rates: list[float] = []
        losses: list[float] = []
        smooth = 0.0
        try:
            for number in range(steps):
                rate = low * (high / low) ** (number / max(1, steps - 1))
                start = number * self.size % max(1, len(order) - self.size + 1)
                rows = np.sort(self.train[order[start : start + self.size]])
                inputs, targets = self.feed.batch(rows, self.targets[rows], 0, number, None)
                self.tuning = dataclasses.replace(place[4], learning_rate=rate, schedule="constant", warmup=0.0)
                loss, _ = self.learn(inputs, targets, None if self.teacher is None else self.teacher[rows])
                smooth = 0.9 * smooth + 0.1 * loss
                value = smooth / (1 - 0.9 ** (number + 1))
                if not math.isfinite(loss) or (losses and value > 4 * min(losses)):
                    break
                rates.append(rate)
                losses.append(value)
        finally:
            self.step, self.epoch, self.position, self.seconds, self.tuning, self._totals = place
            for name, variable in self._arrays().items():
                if name in kept:
                    variable.assign(kept[name])
        return RateCurve(tuple(rates), tuple(losses), _steepest(rates, losses))

    def save(self, folder: Path) -> None:
        """Writes a checkpoint; of several workers one does."""
        self.read()
        if self.replicas is not None and not self.replicas.writes:
            return
        state = {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "seconds": self.seconds,
            "closed_at": self.closed_at,
            "waited": self.waited,
            "pace": None if self.pace == math.inf else self.pace,
            "ending": self.ending,
            "score": self.score,
            "totals": self._totals.tolist(),
            "parts": self.parts,
        }
        loop.save_checkpoint(folder, state, self._arrays())

    def restore(self, folder: Path) -> bool:
        """Goes back to the newest checkpoint that can be read. Returns whether there was one."""
        variables = self._arrays()
        found = loop.load_checkpoint(folder, {name: tuple(v.shape) for name, v in variables.items()})
        if found is None:
            return False
        for name, variable in variables.items():
            if hasattr(variable, "assign"):
                variable.assign(found.arrays[name])
        self.best = [found.arrays[f"best/{index}"] for index in range(len(self.state))]
        state = found.state
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.seconds, self.waited, self.ending = state["seconds"], state["waited"], state["ending"]
        self.score, self._totals = state["score"], np.array(state["totals"])
        self.pace, self.closed_at = state.get("pace") or math.inf, state.get("closed_at", 0.0)
        if state.get("parts", 1) != self.parts:
            self._set_parts(state["parts"])
        return True

    def _arrays(self) -> dict[str, Any]:
        named = {
            "weight": self.state,
            "slot": self.optimizer.slots,
            "average": self.average,
            "sum": self.sums,
            "scale": self.scale,
            "best": self.best,
        }
        return {f"{name}/{index}": v for name, values in named.items() for index, v in enumerate(values)}

    def _scales(self) -> list[float]:
        """Returns for each variable what its learning rate is multiplied by."""
        names = [layer.name for layer in self.second.layers if layer.trainable_variables]
        depths = dict(zip(names, boundary.groups(["head" if n in self.head else n for n in names]), strict=True))
        owner = {id(v): layer.name for layer in self.second.layers for v in layer.trainable_variables}
        return [self.tuning.layer_decay ** depths[owner[id(v)]] for v in self.learned]

    def _phase(self) -> int:
        """Returns which of the stages of gradual unfreezing it is; -1 is the head alone, or no such stages."""
        starts = [start for start, _ in sorted(self.tuning.unfreeze)]
        return sum(self.progress >= start for start in starts) - 1

    def _mark(self, where: boundary.Boundary | None) -> None:
        """Marks what learns: the head, and of the network what lies behind the boundary, if there is one."""
        learning = set() if where is None else set(where.learning)
        for layer in self.model.layers:
            if layer.weights:
                layer.trainable = layer.name in learning or layer.name in self.head

    def _step_function(self, phase: int) -> Any:
        if phase not in self._steps:
            where = self._phases[phase] if self._phases and phase >= 0 else None
            self._mark(where if self._phases else self.boundary)
            self._steps[phase] = self._make_step()
            self._mark(self.boundary)
        return self._steps[phase]

    def _make_step(self) -> Any:
        import tensorflow as tf

        from resfit.training.bn_folding import fold

        tuning = self.tuning
        fixed = tuning.fixed_statistics
        program = fold(self.second, lambda norm: fixed or not norm.trainable)
        live = {id(v) for v in self.second.trainable_variables}
        # what a stage of unfreezing keeps still is neither asked for its gradient nor moved
        moving = [v for v in self.learned if id(v) in live]
        trainable = {layer.name: layer.trainable for layer in self.model.layers}
        averages = list(zip(self.average, self.state, strict=True)) if self.average else []
        sums = self.sums or self._part_sums
        own = {id(v): total for v, total in zip(self.learned, sums, strict=True)} if sums else {}
        replicas = self.replicas
        statistics = [] if fixed or not self.scale else [v for v in self.state if id(v) not in live]

        def forward(inputs: Any) -> Any:
            outputs = program(inputs, training=not fixed)
            return tf.nest.map_structure(lambda output: tf.cast(output, tf.float32), outputs)

        def apply(gradients: list[Any], rate: Any, number: Any) -> Any:
            if tuning.clip is not None:
                gradients, _ = tf.clip_by_global_norm(gradients, tuning.clip)
            by_variable = {id(v): gradient for v, gradient in zip(moving, gradients, strict=True)}
            with tf.control_dependencies(gradients):  # memory that runs out leaves all variables as they were
                self.optimizer.apply([by_variable.get(id(v)) for v in self.learned], rate, number)
            return tf.constant(1.0)

        def apply_if_finite(gradients: list[Any], rate: Any, number: Any) -> Any:
            """Takes the step and lets the scale of the loss grow now and then, or halves it."""
            if not self.scale:
                return apply(gradients, rate, number)
            scale, steady = self.scale

            def taken() -> Any:
                apply(gradients, rate, number)
                grows = steady + 1.0 >= _STEADY
                scale.assign(tf.where(grows, scale * 2.0, scale))
                steady.assign(tf.where(grows, 0.0, steady + 1.0))
                return tf.constant(1.0)

            def skipped() -> Any:
                at_its_end = scale <= 1.0
                scale.assign(tf.maximum(scale / 2.0, 1.0))
                steady.assign(0.0)
                return tf.where(at_its_end, -1.0, 0.0)

            return tf.cond(_all_finite(gradients), taken, skipped)

        def gradients_of(batch: tuple[Any, Any, Any], watched: list[Any], scale: Any) -> tuple[Any, Any, list[Any]]:
            """Returns the loss of images, the sum of what the metric averages, and the gradients."""
            inputs, targets, teacher = batch
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                outputs = forward(inputs)
                losses = self.objective.loss(outputs, targets, teacher)
                loss = tf.reduce_mean(losses) if replicas is None else tf.reduce_sum(losses) / replicas.size
                target = loss if scale is None else loss * scale
            gradients = tape.gradient(target, watched, unconnected_gradients="zero")
            if scale is not None:
                gradients = [gradient / scale for gradient in gradients]
            return loss, tf.cast(self.objective.score(outputs, targets), tf.float32), gradients

        def shared(batch: Any, scale: Any) -> tuple[Any, Any, list[Any]]:
            """The same over the shares of a batch; what else changes, as statistics of norms do, is as of the first."""
            import keras

            assert replicas is not None
            variables = [*moving, *(v for v in self.second.variables if id(v) not in live)]
            changed: list[Any] = []

            def on_share(share: Any, values: list[Any], scale: Any) -> Any:
                own = [tf.identity(value) for value in values]  # where the share is
                with keras.StatelessScope(state_mapping=list(zip(variables, own, strict=True))) as scope:
                    totals = replicas.total(gradients_of(share, own[: len(moving)], scale))
                after = [scope.get_current_value(v) for v in variables]
                changed[:] = [v for v, old, new in zip(variables, own, after, strict=True) if new is not old]
                return totals, [new for old, new in zip(own, after, strict=True) if new is not old]

            values = [tf.convert_to_tensor(v.value) for v in variables]
            totals, news = replicas.run(on_share, batch, values, scale, model=self.model)
            for variable, value in zip(changed, news, strict=True):
                variable.assign(value)
            return cast("tuple[Any, Any, list[Any]]", totals)

        def step(batch: Any, rate: Any, number: Any, last: Any, divisor: Any) -> Any:
            before = [tf.identity(v.value) for v in statistics]
            scale = self.scale[0].read_value() if self.scale else None
            if replicas is None:
                loss, score, gradients = gradients_of(batch, [v.value for v in moving], scale)
            else:
                loss, score, gradients = shared(batch, scale)
            if statistics:  # an image that overflowed must not stay in them
                finite = _all_finite(gradients)
                for variable, value in zip(statistics, before, strict=True):
                    variable.assign(tf.where(finite, variable.value, value))
            if sums:
                with tf.control_dependencies(gradients):
                    for variable, gradient in zip(moving, gradients, strict=True):
                        own[id(variable)].assign_add(gradient / divisor)

                def flush() -> Any:
                    state = apply_if_finite([own[id(v)].read_value() for v in moving], rate, number)
                    for v in moving:
                        own[id(v)].assign(tf.zeros_like(own[id(v)]))
                    return state

                state = tf.cond(last, flush, lambda: tf.constant(1.0))
            else:
                state = apply_if_finite(gradients, rate, number)
            done = tf.cast(number, tf.float32)
            keep = tf.minimum(tuning.ema_decay, (1 + done) / (10 + done))
            if self._part_sums:  # a part is no step
                keep = tf.where(last, keep, 1.0)
            for mean, variable in averages:
                mean.assign(keep * mean + (1 - keep) * variable.value)
            return tf.stack([loss, score, state])

        # a graph for each size of images: one for all sizes rounds otherwise, and a run that goes on may see one alone
        graph = tf.function(step, autograph=False)

        def run(*arguments: Any) -> Any:
            for layer in self.model.layers:  # a trace reads the marks, whenever it happens
                layer.trainable = trainable[layer.name]
            return graph(*arguments)

        return run if self._phases else graph

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the moving average, if there is one, into the network for a while."""
        if not self.average or not self.step:
            yield
            return
        own = [v.numpy() for v in self.state]
        for variable, mean in zip(self.state, self.average, strict=True):
            variable.assign(mean)
        try:
            yield
        finally:
            for variable, value in zip(self.state, own, strict=True):
                variable.assign(value)


def train(
    trainer: Trainer,
    folder: Path,
    log: loop.Log,
    *,
    checkpoint_seconds: float = 60.0,
    report: Callable[[Trainer, dict[str, float]], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    say: Callable[[str], None] = loop.say,
    callbacks: Sequence[Any] = (),
) -> TrainingHistory:
    """Runs a trainer to its end, from where its last checkpoint in the folder stands.

    Args:
        trainer: A fresh trainer.
        folder: Of the run, with its checkpoints and its log.
        log: Gets a row for each epoch.
        checkpoint_seconds: Longest time between two checkpoints.
        report: Called after each step with loss and metric of the epoch so far.
        stop: Called after each step with its number; the run ends early, resumable, where it returns True.
        say: Called with lines for people.
        callbacks: Keras' callbacks (:mod:`resfit.training.callbacks`).

    Returns:
        What it came to. The network holds the best weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tuning = trainer.tuning
    told = Callbacks(callbacks, trainer.model, tuning.epochs, trainer.steps_per_epoch, trainer.objective.metric)
    resumed = trainer.restore(folder)
    if resumed and trainer.step:
        say(f"goes on at epoch {trainer.epoch + 1}, step {trainer.step}")
    log.cut(trainer.epoch if resumed else -1)
    if not resumed and trainer.measures_first:
        begin = time.perf_counter()
        figures = trainer.judge()
        trainer.seconds += time.perf_counter() - begin
        log.write({"epoch": 0, "step": 0, **figures, "seconds": round(trainer.seconds, 1)})
    saved = time.monotonic()
    stopped = False
    told.begin()
    while not trainer.finished and not stopped:
        told.begin_epoch(trainer.epoch)
        for figures in trainer.epoch_steps():
            told.end_step(trainer.position - 1, figures)
            if report is not None:
                report(trainer, figures)
            if stop is not None and stop(trainer.step):
                stopped = True
                break
            if time.monotonic() - saved >= checkpoint_seconds:
                trainer.save(folder)
                saved = time.monotonic()
        if not stopped and trainer.ending != "diverged":
            row = trainer.close_epoch()
            log.write(row)
            told.end_epoch(trainer.epoch - 1, row)
            if told.stopped and not trainer.ending:
                trainer.ending = "callback"
            if trainer.finished or time.monotonic() - saved >= checkpoint_seconds:
                trainer.save(folder)
                saved = time.monotonic()
    if not stopped:
        trainer.keep_best()
        told.end()
    return TrainingHistory(
        history=tuple(_numbers(row) for row in log.rows()),
        epoch=trainer.score["epoch"],
        score=trainer.score["score"],
        loss=trainer.score["loss"],
        steps=trainer.step,
        seconds=trainer.seconds,
        ending="stopped" if stopped else trainer.ending or trainer.end,
    )


def cut(
    model: keras.Model, layers: Sequence[Any], trainable_from: int | float | str
) -> tuple[boundary.Boundary, keras.Model]:
    """Finds the boundary of a network with a head, and returns it with the part behind it.

    Args:
        model: The whole network, head included.
        layers: The layers of the head.
        trainable_from: As :func:`resfit.training.boundary.resolve` takes it.
    """
    found = boundary.find(body_of(model, layers), trainable_from)
    _, second = boundary.split(model, found)
    return found, second


def forward_of(second: keras.Model) -> Callable[[Any], Any]:
    """Returns what runs the part behind the cut without learning, float32 in and float32 out.

    Args:
        second: The part, ending in what the loss reads.
    """
    import tensorflow as tf

    from resfit.training.bn_folding import fold

    program = fold(second, lambda _: True)

    def forward(inputs: Any) -> Any:
        return tf.nest.map_structure(lambda output: tf.cast(output, tf.float32), program(inputs, training=False))

    return tf.function(forward, autograph=False, reduce_retracing=True)


def outputs_of(
    forward: Callable[[Any], Any], feed: Feed, rows: np.ndarray, *, batch: int = _PREDICT
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields outputs for unchanged images, a batch at a time, each with its rows.

    Args:
        forward: What :func:`forward_of` returned.
        feed: Where its inputs come from.
        rows: Positions in the feed.
        batch: Images at once.
    """
    import tensorflow as tf

    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    with loop.prefetch(((part, feed.plain(part)) for part in parts), 2) as ready:
        for part, inputs in ready:
            yield part, tf.nest.map_structure(lambda output: output.numpy(), _in_memory(forward, inputs))


def _in_memory(forward: Callable[[Any], Any], inputs: Any) -> Any:
    """Runs a batch, or where the device's memory does not suffice, its halves."""
    import tensorflow as tf

    try:
        return forward(_tensors(inputs))
    except Exception as error:
        count = len(tf.nest.flatten(inputs)[0])
        if not devices.is_out_of_memory(error) or count < 2:
            raise
    halves = [_in_memory(forward, _rows(inputs, *edges)) for edges in ((0, count // 2), (count // 2, count))]
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *halves)


def _rows(values: Any, begin: int, end: int) -> Any:
    """Returns some rows of arrays, however they are nested; one that has a single row for all is passed on."""
    import tensorflow as tf

    return tf.nest.map_structure(lambda value: value[begin:end] if len(value) > 1 else value, values)


def _all_finite(tensors: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])


def _tensors(values: Any) -> Any:
    """Returns arrays, however they are nested, as float32 tensors."""
    import tensorflow as tf

    return tf.nest.map_structure(lambda value: tf.constant(value, tf.float32), values)


def body_of(model: keras.Model, layers: Sequence[Any]) -> keras.Model:
    """Returns the network without the layers of its head.

    Args:
        model: The whole network.
        layers: The layers of the head.
    """
    import keras

    first = next(layer for layer in model.layers if layer.name == layers[0].name)
    tensor = first._inbound_nodes[0].input_tensors[0]
    return keras.Model(model.inputs[0], tensor, name=model.name)


def _steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    if len(rates) < 3:
        return rates[0] if rates else 0.0
    slopes = np.gradient(np.asarray(losses), np.log(np.asarray(rates)))
    end = int(np.argmin(losses)) + 1
    return float(rates[int(np.argmin(slopes[: max(end, 1)]))])


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    return {
        key: int(value) if key in ("epoch", "step") else float(value)
        for key, value in row.items()
        if value not in ("", None)
    }
