"""The options of a fit: grouped, documented and checked once, and read from a file."""

from __future__ import annotations

import ast
import dataclasses
import json
import numbers
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from resfit.engines.auto_precision import AUTO
from resfit.errors import ArgumentError, closest
from resfit.preprocessing import Reading
from resfit.tasks import backbone
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

_MOST_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Which images, what their labels are, and how they are split. ``None`` is found out, or the task's default.

    Attributes:
        path_column: Column of a table with the paths.
        label_column: Column with the class, the labels or the number; several numbers with commas between, or a list.
        split_column: Column with ``train``, ``val`` or ``test``.
        group_column: Column with what must stay together.
        image_root: Folder where the relative paths of a table start.
        label_separator: Where an image may have several labels, what stands between them in the label column or in the
            folder's name, such as ``";"``. Columns of 0 and 1 need none.
        multilabel: Whether an image may have several labels.
        label_from: Pattern that finds the label in the name of a file.
        train: Folder or table of the training images.
        val: The same for validation images.
        test: The same for test images.
        test_share: Share of the images set aside for the measurement, in [0, 1), where the data has no test split; 0
            measures nothing.
        val_share: Share of the other images set aside to choose the epoch on, in (0, 1), where the data has no such
            split and something is fine-tuned; for a detector in [0, 1). A probe chooses by cross-validation and learns
            from them as well.
        max_skipped: Largest fraction of unreadable images, in [0, 1].
        rare: Of a classifier: what becomes of classes of one or two images: ``"drop"`` leaves them out, ``"other"``
            makes one class of them, ``"error"`` refuses the data. What was done is a warning.
        channels: 1 for grey images, 3 for colour; by default what the network was trained on. Grey is repeated for a
            network of three channels.
        check: Whether the images are checked in the same pass (:mod:`resfit.quality.checking`); what is found stands in
            ``metrics["checks"]``. Duplicates are then kept on one side of a split that the data does not state.
        allow_leakage: Whether to continue although images, or near duplicates of them, are in both training and test
            set.
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
        model: A name of the zoo or a source that :func:`resfit.load` takes; in Python also a Keras model that gives one
            vector an image and has an ``input_spec``. It is not changed.
        head: Of a classifier: ``"linear"``, multinomial logistic regression; ``"mlp"``, one hidden layer of 1024; for a
            few images a class ``"nearest_mean"`` or ``"knn"``, with a probe alone.
        trainable_from: First layer that learns, as :func:`resfit.training.boundary.resolve` takes it; ``None`` leaves
            it to the recipe.
        teacher: A larger network, or the folder of a classifier of the same classes, whose predictions are learned as
            well in fine-tuning (distillation).
        size: Of a detector: height and width of its input in pixels.
        tiles: Of a detector: height and width in pixels of the overlapping tiles that pictures are cut into.
        references: Whether up to 1,000 training images, as features and thumbnails without names, are kept in a
            classifier: nearest examples come from them, and the better way to tell images that are unlike them.
            ``None`` keeps them unless they are medical.
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
        strategy: ``"probe"``; ``"finetune"``, the last stages or those from ``trainable_from`` on; ``"full"``, the
            whole network; or ``"auto"``: the probe first (of up to 10,000 images where the whole network is to follow),
            then, given a ``budget``, fine-tuning within it, and the one that is better on the validation images. A
            detector has ``"head"``, ``"last"`` and ``"full"``.
        budget: Time for everything, such as ``"10m"``, ``"90s"`` or a number of minutes; ``None`` is no limit, and
            ``"auto"`` then stays with the probe. Where there are more images than can be looked at in this time, a
            part of each class is learned from, and ``metrics["images"]["left_out"]`` says how many are not.
        seed: Seed of the split, of the cross-validation and of the training, at least 0.
        loss: Of a regressor's fine-tuning: ``"huber"``, which a few wrong numbers do not decide, or ``"mse"``.
        balance: Whether each class counts the same in the loss, however many images it has.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1); ``None`` is none for a probe,
            and the recipe's in fine-tuning.
        focal: gamma of the focal loss, at least 0, for the mlp head and for fine-tuning.
        lr_find: Whether a range test chooses the learning rate before the fine-tuning; its curve is kept as a picture.
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
    """How it is run; of it ``precision`` changes the result, and ``device`` its last digits. ``None`` is the default.

    Attributes:
        engine: As :func:`resfit.engines.create` takes it.
        device: What computes, as :func:`resfit.devices.find` takes it: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"gpu:1"``.
        deterministic: Whether a GPU gives the same bits each time, too, which makes it slower. It stays so for the rest
            of the process.
        precision: Of the arithmetic of a probe's features, as :func:`resfit.engines.create` takes it; ``"auto"`` takes
            bfloat16 or int8 where that ends sooner (:mod:`resfit.engines.auto_precision`), else float32. The classifier
            computes in float32. Where the head loses more than half a point of accuracy and more than one image by the
            change, all images get features in float32. A precision that is named is measured on test images in float32;
            with ``"auto"`` as many of them are looked at as decide it.
        batch_size: Images in one pass of the frozen network, at least 1; ``None`` chooses by their size.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        storage: Bytes that outputs of the frozen part may take up on disk; ``None`` is 20 GB, and in any case no more
            than half of what is free. Above that they are computed in every epoch.
        tensorboard: Whether the training writes TensorBoard's files, if that is installed.
    """

    engine: str | None = None
    device: str | None = None
    deterministic: bool | None = None
    precision: str | None = None
    batch_size: int | None = None
    cache: bool | str | None = None
    storage: int | None = None
    tensorboard: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The options that every fit to images has, with their defaults.

    Those that a file can state are documented by :class:`DataOptions`, :class:`ModelOptions`, :class:`TrainingOptions`
    and :class:`MachineOptions`. In Python there are these besides:

    Attributes:
        out: Folder to write the fitted model to; ``None`` keeps it in memory. An earlier one there is replaced, which
            is said in ``run.notes``; anything else is refused.
        force: Whether files of yours that lie in an earlier fitted model's folder may be deleted with it.
        tuning: Settings of the fine-tuning; a mapping overrules single ones of the recipe
            (:func:`resfit.training.recipes.recipe`), or in a probe those of the mlp head.
        callbacks: Keras' callbacks, told of each epoch and step of fine-tuning; ``EarlyStopping`` and its kind may end
            it. A probe has no epochs. Their model's weights are those that learn, not their moving average.
        reading: How scans (DICOM, NIfTI) become pictures: frame, window, plane, spacing; ``None`` is the usual way.
        progress: Called as images get done.
        say: Called with lines for people, such as where the outputs of the frozen part go.

    Raises:
        ArgumentError: An option is outside its range.
    """

    model: str | keras.Model = backbone.DEFAULT_MODEL
    out: str | os.PathLike[str] | None = None
    force: bool = False
    strategy: str = "auto"
    budget: str | float | None = None
    trainable_from: int | float | str | None = None
    tuning: Tuning | Mapping[str, Any] | None = None
    lr_find: bool = False
    storage: int | None = None
    tensorboard: bool = True
    callbacks: Sequence[Any] = ()
    seed: int = 0
    engine: str = "auto"
    device: str = "auto"
    deterministic: bool = False
    precision: str = AUTO
    cache: bool | str | Path = True
    max_skipped: float = 0.10
    test_share: float = 0.2
    val_share: float = 0.15
    check: bool = True
    allow_leakage: bool = False
    batch_size: int | None = None
    channels: int | None = None
    reading: Reading | None = None
    progress: Callable[..., None] | None = None
    say: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_ranges({name: getattr(self, name) for name in _RANGES if hasattr(self, name)}, needs_parts=True)

    @classmethod
    def taken(cls, options: Mapping[str, Any]) -> tuple[FitOptions, dict[str, Any]]:
        """Returns those of a mapping that are its fields, and the rest.

        Args:
            options: Keywords of a fit.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        own = cls(**{name: value for name, value in options.items() if name in names})
        return own, {name: value for name, value in options.items() if name not in names}

    @property
    def folder(self) -> Path | None:
        """Where the fitted model goes."""
        return None if self.out is None else Path(self.out)


# what must hold of a number, and whether it does, in every task
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "test_share": ("lie in [0, 1)", lambda value: 0 <= value < 1),
    "val_share": ("lie in [0, 1)", lambda value: 0 <= value < 1),
    "max_skipped": ("lie in [0, 1]", lambda value: 0 <= value <= 1),
    "label_smoothing": ("lie in [0, 1)", lambda value: 0 <= value < 1),
    "focal": ("be at least 0", lambda value: value >= 0),
    "seed": ("be at least 0", lambda value: value >= 0),
    "batch_size": ("be at least 1", lambda value: value >= 1),
    "storage": ("be at least 0", lambda value: value >= 0),
}


# of images with one answer each, where something may be fine-tuned
_SHARES: dict[str, tuple[str, Callable[[Any], bool]]] = {"val_share": ("lie in (0, 1)", lambda value: 0 < value < 1)}


def check_ranges(options: Mapping[str, Any], *, needs_parts: bool = False) -> None:
    """Makes sure that numbers are in their ranges.

    Args:
        options: By name; ``None`` is in every range, and so is what has no range.
        needs_parts: Whether there must be images for validation.

    Raises:
        ArgumentError: One is not.
    """
    ranges = {**_RANGES, **_SHARES} if needs_parts else _RANGES
    for name, value in options.items():
        if value is None or name not in ranges:
            continue
        rule, holds = ranges[name]
        if not isinstance(value, numbers.Real) or not holds(value):
            raise ArgumentError(f"{name} must {rule}. Received: {value!r}.")


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
        ArgumentError: A setting of ``tuning`` is unknown, or an option is outside its range.
    """

    task: str = "auto"
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    training: TrainingOptions = dataclasses.field(default_factory=TrainingOptions)
    machine: MachineOptions = dataclasses.field(default_factory=MachineOptions)
    tuning: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks names and ranges; what depends on several options is checked where they are known all together."""
        for group in (self.data, self.training, self.machine):
            check_ranges(dataclasses.asdict(group))
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
