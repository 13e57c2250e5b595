"""Keras' callbacks in a fine-tuning: what they are told, and that they end it."""

import keras
import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError
from resfit.training.callbacks import Callbacks, check
from tests.pictures import COLOURS, picture

X = np.stack([picture(name, seed) for name in sorted(COLOURS) for seed in range(8)])
Y = np.repeat(sorted(COLOURS), 8)


class Told(keras.callbacks.Callback):
    def __init__(self, last=None):
        super().__init__()
        self.calls, self.last = [], last

    def on_train_begin(self, logs=None):
        self.calls.append(("begin", self.params["epochs"], self.params["steps"]))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch", batch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("end", epoch, logs))
        self.model.stop_training = epoch == self.last

    def on_train_end(self, logs=None):
        self.calls.append(("over", len(self.model.layers)))


def test_epochs_steps_and_figures_are_told_and_training_ends_where_they_say(tmp_path):
    told = Told(last=1)
    csv = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    tuning = {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3}
    fitted = resfit.fit(
        (X, Y), strategy="finetune", tuning=tuning, callbacks=[told, csv], cache=tmp_path / "cache", tensorboard=False
    )
    history = fitted.run.history
    assert [row["epoch"] for row in history] == [0, 1, 2]
    steps = told.calls[0][2]
    assert told.calls[0] == ("begin", 4, steps)
    epochs = [call for call in told.calls if call[0] in ("epoch", "end")]
    assert [call[:2] for call in epochs] == [("epoch", 0), ("end", 0), ("epoch", 1), ("end", 1)]
    assert [call[1] for call in told.calls if call[0] == "batch"] == [*range(steps)] * 2
    for row, call in zip(history[1:], epochs[1::2], strict=True):
        logs = call[2]
        assert {"loss", "val_loss", "accuracy", "val_accuracy", "learning_rate"} <= set(logs)
        assert (logs["loss"], logs["val_loss"], logs["val_accuracy"]) == (
            row["train_loss"],
            row["val_loss"],
            row["val_accuracy"],
        )
    assert told.calls[-1][0] == "over"
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3


def test_what_is_no_callback_or_needs_a_compiled_model_is_refused_before_any_work():
    with pytest.raises(ArgumentError, match=r"keras\.callbacks\.Callback. Received: str"):
        check(["early"])
    with pytest.raises(ArgumentError, match="schedule, learning_rate and warmup"):
        check([keras.callbacks.ReduceLROnPlateau()])
    with pytest.raises(ArgumentError, match="Received: function"):
        resfit.fit((X, Y), callbacks=[lambda: None])


def test_none_is_nothing():
    nothing = Callbacks([], None, 1, 1, "accuracy")
    for call in (nothing.begin, nothing.end):
        call()
    assert not nothing.stopped
