"""A task from outside: how bright a photo is, as a line through one feature. It shows all that a task has to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit import artifact
from resfit.artifact import ArtifactKind
from resfit.data import dataset
from resfit.features.extract import extract
from resfit.preprocessing import InputSpec
from resfit.tasks.backbone import body_of
from resfit.tasks.base import Exportable, FitRun, FittedModel, Recognition, Strength, Task, TextTable, register_task
from resfit.tasks.inference import BodyRunner
from resfit.weights import keras_models

KIND = ArtifactKind("light meter")


@dataclasses.dataclass(frozen=True)
class Brightness:
    path: Path | None
    value: float = float("nan")
    error: str = ""

    def to_dict(self):
        return {"path": str(self.path), "value": self.value, "error": self.error or None}


@dataclasses.dataclass(frozen=True)
class Closeness:
    error: float
    skipped: tuple = ()
    notes: tuple[str, ...] = ()

    def to_dict(self):
        return {"mean_error": self.error}

    def tables(self):
        return [TextTable("", (">mean error",), [(f"{self.error:.2f}",)])]

    def plots(self):
        return []

    def pictures(self):
        return []


class LightMeter(FittedModel):
    task = "brightness"
    labels = ("brightness",)

    def __init__(self, model, input_spec, metrics, run=None):
        self.model, self.input_spec, self.metrics, self.run = model, input_spec, metrics, run
        self._runner = BodyRunner(self)

    def predict(self, images, *, engine="auto", batch_size=None, progress=None):
        kernel, bias = self.model.layers[-1].get_weights()
        found = []
        for batch in self._runner.batches(images, engine, batch_size, progress):
            rows = (batch.rows[0] @ kernel + bias)[:, 0] if batch.rows else []
            values = dict(zip(batch.usable, rows, strict=True))
            found += [
                Brightness(path, float(values[place]))
                if place in values
                else Brightness(path, error=batch.errors[place])
                for place, path in enumerate(batch.paths)
            ]
        return found

    def evaluate(self, source, *, part=None, seed=0, cache=True, engine="auto", batch_size=None, progress=None, **scan):
        images = dataset.scan(source, numbers=True, **scan)
        said = [one.value for one in self.predict(list(images.paths), engine=engine)]
        return Closeness(float(np.abs(np.array(said) - images.values[:, 0]).mean()), notes=images.notes)

    def save(self, path, *, force=False):
        description = {"input": self.input_spec.to_dict(), "metrics": self.metrics}
        artifact.write(Path(path), self.model.save, description, {"notes.txt": b"a toy"}, kind=KIND, force=force)

    @classmethod
    def load(cls, path):
        description, _ = artifact.read(Path(path), KIND)
        contract = InputSpec.from_dict(description["input"])
        return cls(keras_models.load(Path(path) / artifact.MODEL), contract, description["metrics"])

    def exportable(self):
        features = self.model.layers[-1].input._keras_history.operation.name
        facts = {"kind": "network", "assumptions": []}
        return Exportable(self.model, ("values",), self.labels, features=features, facts=facts)

    def arrays(self, predictions):
        return {"values": np.array([[one.value] for one in predictions], np.float32).reshape(-1, 1)}

    def prediction_table(self, predictions):
        return TextTable("", ("image", ">brightness"), [(one.path, f"{one.value:.1f}") for one in predictions])

    def card(self):
        return [("measures", "the brightness of photos")]


@register_task
class BrightnessTask(Task):
    name, kind, fitted = "brightness", KIND, "LightMeter"

    def recognises(self, source, options):
        return Recognition(Strength.NONE)  # by name alone

    def fit(self, source, *, model="resnet10_tiny", out=None, force=False, cache=True, engine="auto", **options: Any):
        import keras

        scan = {name: value for name, value in options.items() if name.endswith("_column")}
        images = dataset.scan(source, numbers=True, **scan)
        body, _ = body_of(model)
        found = extract(body, images, engine=engine, cache=cache)
        rows, values = np.asarray(found.rows, np.float64), images.values[found.indices]
        mean = rows.mean(axis=0)
        kernel = np.linalg.lstsq(rows - mean, values - values.mean(axis=0), rcond=1e-2)[0]
        dense = keras.layers.Dense(1, name="brightness")
        network = keras.Model(body.inputs, dense(body.outputs[0]), name="light_meter")
        dense.set_weights([kernel, values.mean(axis=0) - mean @ kernel])
        run = FitRun(None, found.skipped, (), {}, found.computed, found.reused, found.engine)
        fitted = LightMeter(network, body.input_spec, {"images": {"train": len(rows)}}, run)
        if out is not None:
            fitted.save(out, force=force)
        return fitted

    def plan(self, source, **options):
        raise NotImplementedError

    def load(self, folder):
        return LightMeter.load(folder)

    def check(self, source, **options):
        raise NotImplementedError
