"""What a task is: the protocol that classification, regression and detection follow, and the registry of tasks.

A task recognises its data, fits a model to it, and knows the kind of folder that the model is saved as. Everything
above, the command line, exports, server and reports, asks the task or the fitted model and knows of neither classes nor
boxes. A new task is one :class:`Task` and one :class:`FittedModel`, registered with :func:`register_task`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from resfit.errors import ArgumentError, ArtifactError, closest

if TYPE_CHECKING:
    import keras

    from resfit.artifact import ArtifactKind
    from resfit.data.dataset import Skipped
    from resfit.engines import StoredNetwork
    from resfit.preprocessing import InputSpec

#: ``task=`` for the task that the data is of.
AUTO = "auto"


class Strength(enum.IntEnum):
    """How much speaks for data being of a task."""

    NONE = 0  #: The task cannot read it.
    POSSIBLE = 1  #: The task can read it, and so may others.
    CERTAIN = 2  #: It states what only this task uses, such as boxes.


@dataclasses.dataclass(frozen=True)
class Recognition:
    """Whether data is of a task.

    Attributes:
        strength: How much speaks for it.
        reason: Why, as a clause without a capital or a stop: ``"the folder holds Pascal VOC annotations"``.
    """

    strength: Strength
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Rows for people.

    Attributes:
        title: May be empty.
        columns: Headings; one that begins with ``>`` is set to the right.
        rows: A cell for each column.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Plot:
    """Points of a report's plot, with a line if there is one.

    Attributes:
        title: What it shows.
        x_label: What is on the horizontal axis, with the unit.
        y_label: What is on the vertical axis, with the unit.
        x: float array ``(n,)``.
        y: float array ``(n,)``.
        diagonal: Whether points on the line ``y = x`` are right, which is then drawn.
        joined: Whether the points are joined to a line.
    """

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    y: np.ndarray
    diagonal: bool = False
    joined: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a report.

    Attributes:
        image: JPEG or PNG, or uint8 ``(height, width, 3)``.
        caption: What it shows.
        group: Heading under which it stands, such as ``"largest errors"``.
        file: Name of the file, where names may be told; it is no part of the caption.
    """

    image: bytes | np.ndarray
    caption: str
    group: str = ""
    file: str = ""


class PredictionResult(Protocol):
    """What a fitted model says about one image; a frozen dataclass."""

    @property
    def path(self) -> Path | None:
        """The file; ``None`` for an array."""

    @property
    def error(self) -> str:
        """Why the image could not be used; empty if it could."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values, ``"path"`` and ``"error"`` (``None`` for none) among them."""


class EvaluationResult(Protocol):
    """What a measurement on labelled images came to."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Images that could not be used, with the reason."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the source, with the argument that changes it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values."""

    def tables(self) -> list[TextTable]:
        """Returns the figures for people, the most important table first."""

    def plots(self) -> list[Plot]:
        """Returns what a report draws."""

    def pictures(self) -> list[Picture]:
        """Returns the images that a report shows, such as those with the largest errors."""


class CheckResult(Protocol):
    """What is wrong with a data set."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the source, with the argument that changes it."""

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""

    def tables(self) -> list[TextTable]:
        """Returns it for people."""


@dataclasses.dataclass(frozen=True, eq=False)
class FitRun:
    """What one fit did, beyond the fitted model itself.

    Attributes:
        test: The measurement on images that nothing was chosen on; ``None`` if there were none.
        skipped: Images that could not be used, with the reason.
        warnings: What looked odd about the data but did not stop anything.
        seconds: Time of each step.
        computed: Images that went through the network.
        reused: Images whose features were in the cache.
        engine: What ran the network; ``"none"`` if nothing had to.
        history: A row for each epoch of training, epoch 0 being the network before it learned.
        notes: What was decided on the way, one sentence each.
        device: What computed, as :meth:`resfit.devices.Device.to_dict` tells it.
    """

    test: Any
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    computed: int
    reused: int
    engine: str
    history: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Exportable:
    """What a fitted model is to other runtimes.

    Attributes:
        network: The Keras model: RGB 0..255 of shape ``(batch, height, width, channels)`` in, one output, or several by
            name.
        outputs: Names of the outputs in the export, in the order of the network's: ``("scores",)`` for a classifier,
            ``("values",)`` for a regressor, ``("boxes", "scores", "classes", "count")`` for a detector.
        labels: Names of the columns of the (first) output, or of the classes.
        activation: Of the last layer: ``"softmax"``, ``"sigmoid"`` or ``"linear"``.
        features: Name of the layer whose output the head reads; empty where there is no such layer.
        temperature: What logits are divided by before the activation.
        facts: What the model card says of it, JSON-ready.
        tests: Files that it was tested on, with the text of their labels; empty where that is not known.
    """

    network: keras.Model
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    activation: str = "linear"
    features: str = ""
    temperature: float = 1.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    tests: tuple[tuple[Path, str], ...] = ()


class FittedModel(abc.ABC):
    """What a task fits: it predicts, measures, explains, saves, exports and serves.

    Attributes:
        task: Name of its task.
        model: The Keras model: RGB 0..255 in.
        input_spec: How images become the model's input.
        metrics: JSON-ready figures of the fit.
        run: What the fit did, right after it; ``None`` after :meth:`load`.
    """

    task: ClassVar[str]
    model: keras.Model
    input_spec: InputSpec
    metrics: dict[str, Any]
    run: FitRun | None

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, or of the numbers that are predicted."""

    @abc.abstractmethod
    def predict(self, images: Any, *args: Any, **options: Any) -> Sequence[Any]:
        """Predicts on images, as :func:`resfit.data.inputs.listed` takes them.

        Args:
            images: One or several.
            *args: None.
            **options: ``engine``, ``batch_size`` and ``progress`` in every task, and those of the task.

        Returns:
            A :class:`PredictionResult` for each image, in order.
        """

    @abc.abstractmethod
    def evaluate(self, source: Any, **options: Any) -> Any:
        """Measures on labelled images.

        Args:
            source: As the task's fit takes it.
            **options: ``part``, ``engine``, ``cache``, ``batch_size``, ``seed`` and ``progress`` in every task, and
                those of the task.

        Returns:
            An :class:`EvaluationResult`.
        """

    @abc.abstractmethod
    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the model as a folder, whole or not at all.

        Args:
            path: A new or empty folder, or an earlier fitted model, which is replaced.
            force: Whether files that are not a fitted model's may be deleted with the earlier one's folder.
        """

    @classmethod
    @abc.abstractmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Reads what :meth:`save` wrote.

        Args:
            path: The folder.

        Raises:
            ArtifactError: It is missing, incomplete, damaged, of another kind or format.
        """

    @abc.abstractmethod
    def exportable(self) -> Exportable:
        """Returns what an export needs."""

    @abc.abstractmethod
    def arrays(self, predictions: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns predictions as the arrays that clients of a server get, a row for each.

        Args:
            predictions: What :meth:`predict` returned, none with an error.

        Returns:
            By the name of the output, in the order of :attr:`Exportable.outputs`.
        """

    def texts(self, predictions: Sequence[Any]) -> dict[str, list[str]]:
        """Returns what clients of a server get as text, one for each prediction, by name; nothing by default.

        Args:
            predictions: What :meth:`predict` returned, none with an error.
        """
        return {}

    @abc.abstractmethod
    def prediction_table(self, predictions: Sequence[Any]) -> TextTable:
        """Returns predictions for people and for CSV files, a row for each, the path first.

        Args:
            predictions: What :meth:`predict` returned, none with an error.
        """

    def write_predictions(self, path: str | os.PathLike[str], predictions: Sequence[Any]) -> None:
        """Writes predictions as a CSV file: the table for people, and a column with the error.

        Args:
            path: The file.
            predictions: What :meth:`predict` returned.
        """
        from resfit.data import csv_cells
        from resfit.storage.atomic import atomic_open

        table = self.prediction_table([item for item in predictions if not item.error])
        usable = iter(table.rows)
        empty = ("",) * (len(table.columns) - 1)
        rows = [(*((item.path, *empty) if item.error else next(usable)), item.error) for item in predictions]
        with atomic_open(path) as file:
            heads = ("path", *(name.removeprefix(">") for name in table.columns[1:]), "error")
            file.write(csv_cells.table(heads, rows))

    @abc.abstractmethod
    def card(self) -> list[tuple[str, object]]:
        """Returns what the model is and how good it is, as names and values for people: for ``fit`` and ``info``."""

    def explain(self, images: Any, **options: Any) -> Sequence[Any]:
        """Shows which parts of images a prediction comes from.

        Args:
            images: As :meth:`predict` takes them.
            **options: Of the task.

        Raises:
            ArgumentError: The task has no explanations.
        """
        raise ArgumentError(f"explain is not available for task {self.task!r}.")

    def body(self) -> keras.Model:
        """Returns the network without its head: RGB 0..255 in, features ``(batch, features)`` out."""
        import keras

        features = self.exportable().features
        output = self.model.get_layer(features).output if features else self.model.layers[-1].input
        return keras.Model(self.model.inputs, output, name=f"{self.model.name}_body")

    def network(self) -> keras.Model | StoredNetwork:
        """Returns the network without its head, as :func:`resfit.engines.create` takes it."""
        return self.body()

    def keep_for_later(self, images: np.ndarray) -> None:
        """Has later programs start sooner, where the task knows how; the answers stay the same.

        Args:
            images: Some as the network takes them, ``(n, height, width, channels)``, to compare on.
        """
        del images  # nothing is kept unless a task overrides it

    def check_finite(self) -> None:
        """Makes sure that all weights are numbers.

        Raises:
            ArtifactError: One is not.
        """
        for variable in self.model.variables:  # an engine may hide a NaN behind a maximum with 0
            if not np.isfinite(np.asarray(variable, np.float32)).all():
                raise ArtifactError(
                    f"every weight of a network must be finite. Received: NaN or infinity in {variable.path}. "
                    "Fit the model again."
                )

    def export(self, out: str | os.PathLike[str], *, format: str = "tf_saved_model", **options: Any) -> Any:
        """Writes the model for another runtime, and compares the result with Keras there.

        Args:
            out: A new or empty folder, or an earlier export, which is replaced.
            format: One of :data:`resfit.export.FORMATS`.
            **options: Further options of :func:`resfit.export.export`, such as ``precision``.

        Returns:
            A :class:`resfit.export.Export`.
        """
        import resfit  # exports stand on a floor above this one, and are loaded by the package when asked for

        return resfit.export.export(self, out, format=format, **options)

    def serve(self, **options: Any) -> Any:
        """Serves the model over HTTP until it is interrupted.

        Args:
            **options: Fields of :class:`resfit.serving.settings.ServerSettings`, such as ``port``.
        """
        import resfit

        return resfit.serving.serve(self, **options)


class Task(abc.ABC):
    """A kind of problem.

    An object of it holds nothing, and making one imports neither Keras nor TensorFlow.

    Attributes:
        name: What ``task=`` and ``--task`` call it.
        kind: The kind of folder that its fitted models are saved as.
        fitted: What it fits, for ``isinstance`` and messages: the name of the class.
        reads_lazily: Whether :meth:`load` may do without Keras, as :class:`resfit.tasks.stored_network.LazyModel` does.
    """

    name: ClassVar[str]
    kind: ClassVar[ArtifactKind]
    fitted: ClassVar[str]
    reads_lazily: ClassVar[bool] = False

    @abc.abstractmethod
    def recognises(self, source: Any, options: Mapping[str, Any]) -> Recognition:
        """Says whether data is of this task. It is fast: nothing is decoded, and large files are not read whole.

        Args:
            source: As :meth:`fit` takes it.
            options: The arguments of the fit that were given, such as ``label_column``.
        """

    @abc.abstractmethod
    def fit(self, source: Any, **options: Any) -> FittedModel:
        """Fits a model.

        Args:
            source: The data.
            **options: Keywords. Those of every task: ``model``, ``out``, ``force``, ``strategy``, ``budget``, ``seed``,
                ``engine``, ``cache``, ``max_skipped``, ``test_share``, ``val_share``, ``check``, ``batch_size``,
                ``tuning``, ``trainable_from``, ``channels``, ``progress`` and ``say``.

        Raises:
            ArgumentError: An option is unknown or breaks its rule.
            DataError: The images cannot be trained on.
        """

    @abc.abstractmethod
    def plan(self, source: Any, **options: Any) -> Any:
        """Says what :meth:`fit` would do and how long it would take: a :class:`resfit.training.recipes.Recipe`.

        Args:
            source: As :meth:`fit` takes it.
            **options: As :meth:`fit` takes them.
        """

    @abc.abstractmethod
    def load(self, folder: Path) -> FittedModel:
        """Reads a folder of :attr:`kind`.

        Args:
            folder: What :meth:`FittedModel.save` wrote.
        """

    @abc.abstractmethod
    def check(self, source: Any, **options: Any) -> Any:
        """Looks for what is wrong with a data set.

        Args:
            source: As :meth:`fit` takes it.
            **options: ``model``, ``seed``, ``engine``, ``cache``, ``batch_size``, ``progress`` and those of the scan.

        Returns:
            A :class:`CheckResult`.
        """


_TASKS: dict[str, Task] = {}
_Kind = TypeVar("_Kind", bound=type[Task])


def register_task(kind: _Kind) -> _Kind:
    """Adds a task, as a decorator of its class.

    Args:
        kind: A :class:`Task`. One of the same name is replaced.

    Example:
        >>> @register_task
        ... class Counting(Task):
        ...     name = "counting"
    """
    task = kind()
    _TASKS[task.name] = task
    return kind


def tasks() -> dict[str, Task]:
    """Returns the registered tasks by name, in the order in which they were registered."""
    return dict(_TASKS)


def task_named(name: str) -> Task:
    """Returns a task.

    Args:
        name: Its name.

    Raises:
        ArgumentError: There is none of this name.
    """
    if name not in _TASKS:
        known = (AUTO, *_TASKS)
        raise ArgumentError(f"task must be one of {known}. Received: {name!r}.{closest(name, known)}")
    return _TASKS[name]


def task_for(source: Any, options: Mapping[str, Any]) -> tuple[Task, str]:
    """Returns the task that data is of, and the sentence that says why; empty where no other task could read it.

    Args:
        source: The data.
        options: The arguments of the fit that were given.

    Raises:
        ArgumentError: The data may be of several tasks.
    """
    found = {name: task.recognises(source, options) for name, task in _TASKS.items()}
    best = max(one.strength for one in found.values())
    likely = [name for name, one in found.items() if one.strength == best]
    if best == Strength.NONE:
        likely = likely[:1]  # the first task's own errors say what data should look like
    if len(likely) > 1:
        reasons = "; ".join(f"{name}, since {found[name].reason}" for name in likely)
        raise ArgumentError(
            f"the data may be of several tasks: {reasons}. Say which with task={likely[0]!r} (--task {likely[0]}) or "
            f"{_alternatives(likely[1:])}."
        )
    name = likely[0]
    reason = found[name].reason
    others = [other for other, one in found.items() if other != name and one.strength > Strength.NONE]
    if best < Strength.CERTAIN and not others:
        return _TASKS[name], ""  # nothing had to be decided
    changed = f"; {_alternatives(others)} takes it otherwise" if others else ""
    return _TASKS[name], f"task: {name}" + (f" ({reason}{changed})" if reason else "")


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(f"task={name!r} (--task {name})" for name in names)
