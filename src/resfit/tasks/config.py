"""The options of a fit: grouped, documented and checked once, and read from a file."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from resfit.errors import ArgumentError, closest
from resfit.training.settings import Tuning

_MOST_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, what their labels are, and how they are split. ``None`` is found out, or the task's default.

    Attributes:
        path_column: Column of a table with the paths.
        label_column: Column with the class, the labels or the number.
        split_column: Column with ``train``, ``val`` or ``test``.
        group_column: Column with what must stay together.
        image_root: Folder where the relative paths of a table start.
        label_separator: What stands between the labels of an image that may have several.
        multilabel: Whether an image may have several labels.
        label_from: Pattern that finds the label in the name of a file.
        train: Folder or table of the training images.
        val: The same for validation images.
        test: The same for test images.
        test_share: Share of the images set aside for the measurement, in [0, 1).
        val_share: Share of the other images set aside to choose the epoch on, in (0, 1).
        max_skipped: Largest fraction of unreadable images, in [0, 1].
        rare: Of a classifier: what becomes of classes of one or two images: ``"drop"``, ``"error"`` or ``"other"``.
        channels: 1 for grey images, 3 for colour.
        check: Whether the images are checked for duplicates, leaks and more.
        allow_leakage: Whether to continue although images are in both training and test set.
    """

    path_column: str | None = None
    label_column: str | list[str] | None = None
    split_column: str | None = None
    group_column: str | None = None
    image_root: str | None = None
    label_separator: str | None = None
    multilabel: bool | None = None
    label_from: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    test_share: float | None = None
    val_share: float | None = None
    max_skipped: float | None = None
    rare: str | None = None
    channels: int | None = None
    check: bool | None = None
    allow_leakage: bool | None = None


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The network and its head. ``None`` is the task's default.

    Attributes:
        model: A name of the zoo or a source that :func:`resfit.load` takes.
        head: Of a classifier: ``"linear"``, ``"mlp"``, ``"nearest_mean"`` or ``"knn"``.
        trainable_from: First layer that learns.
        teacher: A larger network, or a fitted classifier, to learn from as well.
        size: Of a detector: height and width of its input in pixels.
        tiles: Of a detector: height and width in pixels of the overlapping tiles that pictures are cut into.
        references: Whether a classifier keeps some training images.
    """

    model: str | None = None
    head: str | None = None
    trainable_from: int | float | str | None = None
    teacher: str | None = None
    size: int | None = None
    tiles: int | None = None
    references: bool | None = None


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How it is learned. ``None`` is the task's default.

    Attributes:
        strategy: ``"auto"``, ``"probe"``, ``"finetune"`` or ``"full"``.
        budget: Time for everything, such as ``"10m"``.
        seed: Seed of the split and of all that is random.
        loss: Of a regressor: ``"huber"`` or ``"mse"``.
        balance: Whether each class counts the same in the loss.
        label_smoothing: Share of the target that is spread over all classes.
        focal: gamma of the focal loss.
        lr_find: Whether a range test chooses the learning rate.
    """

    strategy: str | None = None
    budget: str | float | None = None
    seed: int | None = None
    loss: str | None = None
    balance: bool | None = None
    label_smoothing: float | None = None
    focal: float | None = None
    lr_find: bool | None = None


@dataclasses.dataclass(frozen=True)
class MachineOptions:
    """How it is run; nothing of it changes the result but ``precision``. ``None`` is the default.

    Attributes:
        engine: As :func:`resfit.engines.create` takes it.
        precision: Of a probe's features: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        batch_size: Images in one pass of the frozen network.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        storage: Bytes that outputs of the frozen part may take up on disk.
        tensorboard: Whether the training writes TensorBoard's files.
    """

    engine: str | None = None
    precision: str | None = None
    batch_size: int | None = None
    cache: bool | str | None = None
    storage: int | None = None
    tensorboard: bool | None = None


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All options of a fit. Keywords of :func:`resfit.fit` are the fields of the groups, and overrule them.

    A file has the groups as tables (TOML), mappings (YAML) or objects (JSON)::

        task: classification
        data: {label_column: species, test_share: 0.3}
        training: {strategy: finetune, budget: 20m}
        tuning: {epochs: 12, mixup: 0.2}

    Attributes:
        task: ``"auto"``, ``"classification"``, ``"regression"`` or ``"detection"``.
        data: Which images.
        model: Which network.
        training: How it is learned.
        machine: How it is run.
        tuning: Settings of the fine-tuning, the fields of :class:`resfit.training.settings.Tuning`.
        extra: Further options of the task.

    Raises:
        ArgumentError: A setting of ``tuning`` is unknown.
    """

    task: str = "auto"
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)
    machine: MachineOptions = dataclasses.field(default_factory=MachineOptions)
    tuning: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the names of the settings; their values are checked where they are known all together."""
        known = [field.name for field in dataclasses.fields(Tuning)]
        for name, value in (*self.tuning.items(), *self.extra.items()):
            if not _is_plain(value):
                raise ArgumentError(f"an option must be a number, a text or a short list. Received: {name!r:.60}.")
        for name in self.tuning:
            if name not in known:
                raise ArgumentError(
                    f"settings of the fine-tuning are {', '.join(known)}. Received: {name!r}.{closest(name, known)}"
                )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> FitConfig:
        """Returns the options that a mapping states.

        Args:
            value: Groups of options, as a file has them.

        Raises:
            ArgumentError: An option is unknown or of the wrong type.
        """
        if not isinstance(value, Mapping):
            raise ArgumentError(f"a configuration must have groups of options. Received: {type(value).__name__}.")
        _check_names(value)
        try:
            return msgspec.convert(dict(value), cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise ArgumentError(f"the configuration cannot be used: {str(error).replace('`', chr(39))}.") from error

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> FitConfig:
        """Reads a configuration.

        Args:
            path: A file of YAML (``.yaml``, ``.yml``), TOML (``.toml``) or JSON (``.json``).

        Raises:
            ArgumentError: It cannot be read, or an option is unknown or of the wrong type.
        """
        place = Path(path)
        try:
            if place.stat().st_size > _MOST_BYTES:
                raise ArgumentError(
                    f"a configuration must have at most {_MOST_BYTES:,} bytes. Received: {str(place)!r}."
                )
            text = place.read_text("utf-8")
            return cls.from_dict(_parsed(place, text))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(f"the configuration {str(place)!r} cannot be read: {reason}.") from error

    def keywords(self) -> dict[str, Any]:
        """Returns the options that are stated, as keywords of a task's fit; ``task`` is not among them."""
        found: dict[str, Any] = {}
        for group in (self.data, self.model, self.training, self.machine):
            found |= {name: value for name, value in dataclasses.asdict(group).items() if value is not None}
        if self.tuning:
            found["tuning"] = dict(self.tuning)
        return found | self.extra

    def to_dict(self) -> dict[str, Any]:
        """Returns what is stated, JSON-ready."""
        whole = dataclasses.asdict(self)
        groups = {name: value for name, value in whole.items() if isinstance(value, dict)}
        stated = {name: {key: v for key, v in value.items() if v is not None} for name, value in groups.items()}
        return {"task": self.task, **{name: value for name, value in stated.items() if value}}


def assigned(pairs: Iterable[str]) -> dict[str, Any]:
    """Returns groups of options that were given as ``group.key=value``; without a group, of ``tuning``.

    Args:
        pairs: Such as ``"training.budget=10m"`` or ``"epochs=20"``.

    Raises:
        ArgumentError: One is none of these, or its option is unknown.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        group, dot, key = name.strip().rpartition(".")
        if not sign or not key:
            raise ArgumentError(f"--set takes name=value or group.name=value. Received: {pair!r}.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False}.get(text.lower(), text)
        place = found.setdefault(group, {}) if dot else found.setdefault("tuning", {})
        place[key] = value
    _check_names(found)
    return found


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns groups of options in one, the later over the earlier.

    Args:
        *parts: As :meth:`FitConfig.from_dict` takes them.
    """
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = {**found.get(name, {}), **value} if isinstance(value, Mapping) else value
    return found


def _check_names(value: Mapping[str, Any]) -> None:
    """Refuses groups and options that there are not."""
    groups = {field.name: field for field in dataclasses.fields(FitConfig)}
    kinds = {"data": DataOptions, "model": ModelOptions, "training": TrainingOptions, "machine": MachineOptions}
    kinds["tuning"] = Tuning
    for name, group in value.items():
        if name not in groups:
            raise ArgumentError(
                f"groups of options are {', '.join(groups)}. Received: {name!r:.60}.{closest(str(name), groups)}"
            )
        if name not in kinds or not isinstance(group, Mapping):
            continue
        known = [field.name for field in dataclasses.fields(kinds[name])]
        for key in group:
            if key not in known:
                raise ArgumentError(
                    f"{name} has the options {', '.join(known)}. Received: {key!r:.60}.{closest(str(key), known)}"
                )


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Says whether a value is what an option can be: YAML's references can make a few lines endless."""
    if isinstance(value, list | tuple):
        return depth > 0 and len(value) <= 100 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def _parsed(path: Path, text: str) -> Any:
    """Returns what a file states."""
    kind = path.suffix.lower()
    try:
        if kind in (".yaml", ".yml"):
            import yaml

            return yaml.safe_load(text) or {}
        if kind == ".toml":
            return tomllib.loads(text)
        if kind == ".json":
            return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path.name} must be a {kind[1:].upper()} file. Received: {error}.") from error
    except Exception as error:  # YAML's own
        raise ArgumentError(f"{path.name} must be a YAML file. Received: {' '.join(str(error).split())}.") from error
    raise ArgumentError(f"a configuration ends in .yaml, .yml, .toml or .json. Received: {path.name!r}.")
