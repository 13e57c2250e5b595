"""What a fit came to, for programs that keep records of experiments: MLflow, Weights & Biases, TensorBoard.

Parameters, every epoch, figures with their intervals, and report and model as artifacts. Where a record goes is what
those programs say: ``MLFLOW_TRACKING_URI``, ``WANDB_MODE=offline``, and ``OUT.tensorboard`` beside
``OUT``, whose own files have checksums.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resfit import dependencies
from resfit.errors import ArgumentError, closest
from resfit.registries import Registry
from resfit.report import task_page
from resfit.tasks.base import FittedModel, Plot, TextTable

_LONGEST = 500  # characters of a parameter
_ENDS = ("low", "high")
_TITLES = ("name", "label", "class")  # what the rows of a list are called by
_ODD = re.compile(r"[^\w\-. /]")  # what names of figures may not have


class Tracker(abc.ABC):
    """One record of a fit.

    Args:
        name: Of the record.
        out: The folder of the fitted model.
    """

    def __init__(self, name: str, out: Path):
        self.name, self.out = name, out

    @abc.abstractmethod
    def parameters(self, values: Mapping[str, Any]) -> None:
        """Records what the fit was asked for."""

    @abc.abstractmethod
    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Records numbers of a step."""

    @abc.abstractmethod
    def artifact(self, path: Path, name: str) -> None:
        """Records a file or folder."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the record."""


TRACKERS: Registry[Callable[[str, Path], Tracker]] = Registry("a tracker")


def _register(name: str) -> Callable[[type[Tracker]], type[Tracker]]:
    def register(kind: type[Tracker]) -> type[Tracker]:
        TRACKERS.add(name, kind)
        return kind

    return register


def check(name: str) -> None:
    """Makes sure that a tracker can be used.

    Args:
        name: ``"mlflow"``, ``"wandb"`` or ``"tensorboard"``.

    Raises:
        ArgumentError: There is none of this name.
        MissingDependencyError: It is not installed.
    """
    if name not in TRACKERS:
        known = tuple(TRACKERS)
        raise ArgumentError(f"log must be one of {known}. Received: {name!r}.{closest(name, known)}")
    dependencies.require(f"--log {name}", name)


@_register("mlflow")
class _MLflow(Tracker):
    def __init__(self, name: str, out: Path):
        import mlflow

        super().__init__(name, out)
        self._client = mlflow
        self._own = mlflow.active_run() is None
        if self._own:
            mlflow.start_run(run_name=name)

    def parameters(self, values: Mapping[str, Any]) -> None:
        self._client.log_params({key: str(value)[:_LONGEST] for key, value in values.items()})

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self._client.log_metrics(dict(values), step=step)

    def artifact(self, path: Path, name: str) -> None:
        if path.is_dir():
            self._client.log_artifacts(str(path), artifact_path=name)
        else:
            self._client.log_artifact(str(path))

    def close(self) -> None:
        if self._own:
            self._client.end_run()


@_register("wandb")
class _Wandb(Tracker):
    def __init__(self, name: str, out: Path):
        import wandb

        super().__init__(name, out)
        self._module = wandb
        self._own = wandb.run is None
        self._run = wandb.run or wandb.init(name=name)

    def parameters(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "epoch": step})

    def artifact(self, path: Path, name: str) -> None:
        kind = "model" if path.is_dir() else "report"
        found = self._module.Artifact(f"{self._run.id}-{kind}", type=kind)
        if path.is_dir():
            found.add_dir(str(path))
        else:
            found.add_file(str(path), name)
        self._run.log_artifact(found)

    def close(self) -> None:
        if self._own:
            self._run.finish()


@_register("tensorboard")
class _TensorBoard(Tracker):
    """Its files hold numbers and texts; report and model are named, not copied."""

    def __init__(self, name: str, out: Path):
        import tensorflow as tf

        super().__init__(name, out)
        self._writer = tf.summary.create_file_writer(str(out.with_name(f"{out.name}.tensorboard")))

    def parameters(self, values: Mapping[str, Any]) -> None:
        import tensorflow as tf

        rows = [f"| {key} | {value} |" for key, value in values.items()]
        with self._writer.as_default(step=0):
            tf.summary.text("parameters", "\n".join(["| parameter | value |", "| --- | --- |", *rows]))

    def figures(self, values: Mapping[str, float], step: int) -> None:
        import tensorflow as tf

        with self._writer.as_default(step=step):
            for key, value in values.items():
                tf.summary.scalar(key, value)

    def artifact(self, path: Path, name: str) -> None:
        import tensorflow as tf

        with self._writer.as_default(step=0):
            tf.summary.text(f"artifact/{name}", str(path))

    def close(self) -> None:
        self._writer.close()


def log_fit(
    fitted: FittedModel, to: str, out: Path, options: Mapping[str, Any], *, source: str = ""
) -> dict[str, float]:
    """Records a fit.

    Args:
        fitted: What was fitted just now, and saved in ``out``.
        to: As :func:`check` takes it.
        out: Its folder.
        options: What the fit was asked for.
        source: Name of the data, for the report.

    Returns:
        The figures of the measurement that were recorded, with ``.low`` and ``.high`` for the ends of intervals.

    Raises:
        ArgumentError: There is no such tracker.
        MissingDependencyError: It is not installed.
    """
    check(to)
    figures = dict(_numbers(fitted.metrics.get("test") or {}, "test"))
    with contextlib.closing(TRACKERS[to](out.stem, out)) as tracker:
        recipe = getattr(fitted, "recipe", None)
        chosen = dataclasses.asdict(recipe) if dataclasses.is_dataclass(recipe) else {}  # type: ignore[arg-type]
        plain = {key: value for key, value in chosen.items() if isinstance(value, str | int | float | bool)}
        asked = {key: value for key, value in options.items() if isinstance(value, str | int | float | bool | Path)}
        tracker.parameters({"task": fitted.task, **plain, **{key: str(value) for key, value in asked.items()}})
        for row in fitted.run.history if fitted.run is not None else ():
            numbers = {f"epoch/{key}": float(value) for key, value in row.items() if key != "epoch"}
            tracker.figures(numbers, int(row["epoch"]))
        epochs = len(fitted.run.history) if fitted.run is not None else 0
        tracker.figures(figures, max(0, epochs - 1))
        with tempfile.TemporaryDirectory() as folder:
            if dependencies.is_installed("jinja2"):
                report = Path(folder) / "report.html"
                measured: Any = fitted.run.test if fitted.run is not None else None
                if not hasattr(measured, "tables"):
                    measured = _Measured(figures, getattr(measured, "skipped", ()))
                task_page.write(report, fitted, measured, source=source or out.stem, names=False)
                tracker.artifact(report, "report.html")
            tracker.artifact(out, "model")
    return figures


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Figures in the form that reports take."""

    figures: Mapping[str, float]
    skipped: Sequence[Any] = ()

    def tables(self) -> list[TextTable]:
        rows = [
            (name.removeprefix("test/"), f"{value:.4g}", *(self._end(name, end) for end in _ENDS))
            for name, value in self.figures.items()
            if name.rpartition(".")[2] not in _ENDS
        ]
        return [TextTable("", ("figure", ">value", ">from", ">to"), rows)]

    def _end(self, name: str, end: str) -> str:
        value = self.figures.get(f"{name}.{end}")
        return "" if value is None else f"{value:.4g}"

    def plots(self) -> list[Plot]:
        return []

    def pictures(self) -> list[Any]:
        return []


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Yields the numbers of nested mappings; a pair is an interval of the figure that it is named after.

    ``value``, ``low`` and ``high`` of a mapping are a figure and its interval; ``interval`` is that of ``accuracy``.
    """
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield _ODD.sub("_", name), float(value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            ends = f"{name}.{key}" if "value" in value else f"{name}/{key}"
            yield from _numbers(one, {"value": name, "interval": f"{name}/accuracy"}.get(key, ends))
    elif isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(one, int | float) for one in value):
        for end, one in zip(_ENDS, value, strict=True):
            yield _ODD.sub("_", f"{name.removesuffix('_interval')}.{end}"), float(one)
    elif isinstance(value, list | tuple):
        for one in value:
            title = next((one[key] for key in _TITLES if key in one), None) if isinstance(one, Mapping) else None
            if title is not None:
                yield from _numbers(one, f"{name}/{title}")
