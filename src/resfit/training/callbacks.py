"""Keras' callbacks in a training: told of epochs and steps as ``Model.fit`` tells them; they may end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError

if TYPE_CHECKING:
    import keras

# they set the learning rate of a compiled model's optimiser
_OF_THE_RATE = ("LearningRateScheduler", "ReduceLROnPlateau")


class Callbacks:
    """The callbacks of one run.

    Args:
        callbacks: Keras' callbacks, perhaps none.
        model: The network with its head. Its weights are those that learn, not their moving average.
        epochs: How many there are at most.
        steps: Batches in an epoch.
        metric: Name of the metric.

    Raises:
        ArgumentError: One is no callback, or is one that only works on a compiled model.
    """

    def __init__(
        self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model, epochs: int, steps: int, metric: str
    ):
        self._metric, self._list, self._model = metric, None, model
        check(callbacks)
        if callbacks:
            import keras

            self._list = keras.callbacks.CallbackList(
                list(callbacks),
                add_history=False,
                add_progbar=False,
                model=model,
                epochs=epochs,
                steps=steps,
                verbose=0,
            )
            model.stop_training = False

    @property
    def stopped(self) -> bool:
        """Whether one of them has ended the training."""
        return self._list is not None and bool(getattr(self._model, "stop_training", False))

    def begin(self) -> None:
        """The training begins, or goes on."""
        if self._list is not None:
            self._list.on_train_begin()

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins.

        Args:
            epoch: Its number, from 0 as Keras counts.
        """
        if self._list is not None:
            self._list.on_epoch_begin(epoch)

    def end_step(self, step: int, figures: Mapping[str, float]) -> None:
        """A batch has been learned from.

        Args:
            step: Its number in the epoch, from 0.
            figures: Loss and metric of the epoch so far.
        """
        if self._list is not None:
            self._list.on_train_batch_begin(step)
            self._list.on_train_batch_end(step, dict(figures))

    def end_epoch(self, epoch: int, row: Mapping[str, Any]) -> None:
        """An epoch has ended.

        Args:
            epoch: Its number, from 0.
            row: Its row of the log; callbacks see Keras' names: ``loss``, ``val_loss``, ``accuracy``, ``val_accuracy``.
        """
        if self._list is not None:
            names = {key: key.removeprefix("train_") for key in row if key not in ("epoch", "step", "seconds")}
            self._list.on_epoch_end(epoch, {name: row[key] for key, name in names.items()})

    def end(self) -> None:
        """The training has ended; the network holds the weights that are kept."""
        if self._list is not None:
            self._list.on_train_end()


def check(callbacks: Sequence[Any]) -> None:
    """Makes sure that callbacks can be used.

    Args:
        callbacks: What the user passes.

    Raises:
        ArgumentError: One cannot.
    """
    for one in callbacks:
        names = [kind.__name__ for kind in type(one).__mro__]
        if "Callback" not in names or not hasattr(one, "set_model"):
            raise ArgumentError(f"callbacks must be keras.callbacks.Callback. Received: {type(one).__name__}.")
        if any(name in _OF_THE_RATE for name in names):
            raise ArgumentError(
                f"the learning rate is set by tuning=: schedule, learning_rate and warmup. Received: the callback "
                f"{type(one).__name__}, which sets that of a compiled model."
            )
