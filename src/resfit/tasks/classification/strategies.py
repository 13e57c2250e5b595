"""How a network is adapted to images: a probe, fine-tuning, or both with the better one kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.data import image_statistics
from resfit.data.dataset import Skipped
from resfit.data.views import Views
from resfit.features import pixels as storage
from resfit.features.extract import extract
from resfit.storage.atomic import write_json
from resfit.storage.locks import USERS, cache_root, folder_of, is_writable, keep
from resfit.tasks.classification.heads import base
from resfit.training import boundary, feeds, loop
from resfit.training import trainer as finetune
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

    from resfit.features.progress import Progress

#: Files that a run leaves behind.
LOG, CURVES, RATES = "training.csv", "training.png", "learning_rates.png"
_CONFIG, _RATE = "run.json", "learning_rate.json"
_BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class TuningTargets:
    """What there is to learn.

    Attributes:
        targets: float32 array ``(n, classes)``, rows of 0 and 1; ``n`` the images that could be used.
        train: Positions to learn from.
        val: Positions to choose on.
        test: Positions to measure on in the end.
        multilabel: Whether an image may have several labels.
        teacher: Logits of a teacher, an array like ``targets``, for distillation.
    """

    targets: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    multilabel: bool = False
    teacher: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is run; nothing of it changes the result.

    Attributes:
        folder: Where its checkpoints and its log are; a run that is found there with the same settings goes on.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        engine: As :func:`resfit.engines.create` takes it, for the frozen part.
        storage: Bytes that stored outputs of the frozen part may take up; ``None`` is the default.
        lr_find: Whether a range test chooses the learning rate first.
        tensorboard: Whether to write TensorBoard's files.
        checkpoint_seconds: Longest time between two checkpoints.
        progress: Called as work gets done.
        say: Called with lines for people.
        stop: Called after each step with its number; the run ends early, resumable, where it returns True.
        records: Whether images are measured (:mod:`resfit.data.image_statistics`) where the frozen part decodes them.
        thumbnails: Positions of images of which a thumbnail is kept there, too.
        closing: Images that are measured when the training is over, for which some of its time is kept.
    """

    folder: Path
    cache: bool | str | Path = True
    engine: str | engines.Engine = "auto"
    storage: int | None = None
    lr_find: bool = False
    tensorboard: bool = False
    checkpoint_seconds: float = 60.0
    progress: Progress | None = None
    say: Callable[[str], None] = loop.say
    stop: Callable[[int], bool] | None = None
    records: bool = False
    thumbnails: Collection[int] = ()
    closing: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FineTuned:
    """A network that was fine-tuned.

    Attributes:
        body: Images to features.
        head: The head on them.
        learned: What the run came to.
        tuning: The settings.
        boundary: Where the network was cut.
        logits: Of the test images, by the tuned network.
        val_logits: Of the validation images.
        features: Computes features of the tuned network for positions in the feed.
    """

    body: keras.Model
    head: base.Head
    learned: finetune.TrainingHistory
    tuning: Tuning
    boundary: boundary.Boundary
    logits: np.ndarray
    val_logits: np.ndarray
    features: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenOutputs:
    """Images as the part of a network that learns reads them.

    Attributes:
        body: The network. It is not changed.
        boundary: Where it is cut.
        second: A copy of the part behind the cut, images or feature maps to features.
        feed: What a run reads.
        indices: For each image of the feed the position of its file among those that were asked for, ascending.
        skipped: Files that cannot be used, with the reason.
        storage: Whether the frozen part's outputs are stored; ``None`` where nothing is frozen.
        computed: Images that went through the frozen part now.
        reused: Images whose outputs were on disk already.
        engine: What ran the frozen part; ``"none"`` if nothing did.
        digests: For each image of the feed the SHA-256 of its bytes, in hexadecimal digits.
        records: For each what was measured of it, of dtype :data:`resfit.data.image_statistics.RECORD`; empty where
            that was not
            asked for.
    """

    body: keras.Model
    boundary: boundary.Boundary
    second: keras.Model
    feed: feeds.Feed
    indices: np.ndarray
    skipped: tuple[Skipped, ...]
    storage: storage.Storage | None = None
    computed: int = 0
    reused: int = 0
    engine: str = "none"
    digests: tuple[str, ...] = ()
    records: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, image_statistics.RECORD))


def prepare(
    body: keras.Model,
    files: Sequence[Path],
    tuning: Tuning,
    running: RunOptions,
    pixels: storage.DecodedPixels | None = None,
) -> FrozenOutputs:
    """Runs images through the frozen part of a network once, or decodes them where nothing is frozen or stored.

    Args:
        body: A network that gives one vector an image, with an ``input_spec``.
        files: Image files.
        tuning: What decides the boundary, and how images are changed.
        running: How it is run.
        pixels: The images, where they are decoded already and all of them can be used.
    """
    if pixels is not None:
        pixels = dataclasses.replace(pixels, indices=np.arange(len(pixels.images)), skipped=())
    working = boundary.copy(body)
    found = boundary.find(working, tuning.trainable_from)
    first, second = boundary.split(working, found)
    room = None
    if first is not None:
        first.input_spec, first.architecture = body.input_spec, getattr(body, "architecture", None)
        folder = cache_root() if isinstance(running.cache, bool) else Path(running.cache)
        shape = first.compute_output_shape((1, *body.input_spec.size, body.input_spec.channels))[1:]
        fresh = bool(tuning.sizes or tuning.rand_augment or tuning.erasing)
        room = storage.plan(len(files), 0 if fresh else tuning.views, shape, folder, budget=running.storage)
        running.say(room.reason)
    if first is not None and room is not None and room.stored:
        outputs = extract(
            first,
            files,
            engine=running.engine,
            cache=running.cache,
            progress=running.progress,
            feature_maps=True,
            dtype=room.dtype,
            views=_views(tuning),
            records=running.records,
            thumbnails=running.thumbnails,
            pixels=pixels if _views(tuning) is None else None,
        )
        feed: feeds.Feed = feeds.MapFeed([outputs.rows, *outputs.views], tuning)
        return FrozenOutputs(
            body=body,
            boundary=found,
            second=second,
            feed=feed,
            indices=outputs.indices,
            skipped=outputs.skipped,
            storage=room,
            computed=outputs.computed,
            reused=outputs.reused,
            engine=outputs.engine,
            digests=outputs.digests,
            records=outputs.records,
        )
    if pixels is None:
        pixels = storage.decoded(
            files,
            body.input_spec,
            running.cache,
            progress=running.progress,
            records=running.records,
            thumbnails=running.thumbnails,
        )
    images = pixels.images
    engine = None
    if first is not None:
        frozen = first if tuning.sizes else boundary.copy(first, size=images.shape[1:3])
        engine = engines.create(frozen, running.engine, images=len(images) * max(1, tuning.epochs))
    return FrozenOutputs(
        body=body,
        boundary=found,
        second=second,
        feed=feeds.PixelFeed(images, tuning, engine),
        indices=pixels.indices,
        skipped=pixels.skipped,
        storage=room,
        digests=pixels.digests,
        records=pixels.records,
    )


def features(prepared: FrozenOutputs, rows: np.ndarray, running: RunOptions) -> np.ndarray:
    """Computes features of the network as it is, for a head to start from.

    They come from the stored outputs of the frozen part, which costs less than the whole network.

    Args:
        prepared: The images, and the network.
        rows: Positions in the feed.
        running: How it is run.
    """
    return _Suffix(prepared, prepared.second, len(rows), running)(rows)


def tune(
    task: TuningTargets, prepared: FrozenOutputs, head: base.Head, tuning: Tuning, running: RunOptions
) -> FineTuned:
    """Fine-tunes a network, or goes on with a run that was interrupted.

    Args:
        task: What there is to learn.
        prepared: The images, and the network.
        head: The head to start from.
        tuning: What decides the result.
        running: How it is run.
    """
    model, layers = base.attach(boundary.copy(prepared.body, dtype=_policy(tuning)), head, logits=True)
    trainer = finetune.Trainer(
        model,
        layers,
        tuning,
        prepared.feed,
        task.targets,
        task.train,
        task.val,
        multilabel=task.multilabel,
        teacher=task.teacher,
        closing=running.closing,
    )
    if running.lr_find:
        trainer.tuning = tuning = dataclasses.replace(tuning, learning_rate=_found_rate(trainer, running))
    log = loop.Log(running.folder, running.tensorboard, name=LOG, speak=False)
    try:
        learned = finetune.train(
            trainer,
            running.folder,
            log,
            checkpoint_seconds=running.checkpoint_seconds,
            report=_reporter(running),
            stop=running.stop,
            say=running.say,
        )
    finally:
        log.close()
    from resfit.training.curves import draw_training

    draw_training(running.folder / CURVES, learned.history, kept=learned.epoch, title=prepared.body.name)
    body, final = finetune.body_of(model, layers), base.from_layers(layers, head)
    if _policy(tuning):  # what is measured is what is kept: float32
        body = boundary.copy(body, dtype="float32")
    body = boundary.copy(body)
    _, second = boundary.split(body, boundary.find(body, tuning.trainable_from))
    measured = np.concatenate([task.test, task.val])
    suffix = _Suffix(prepared, second, len(measured), running)
    logits = final.logits(suffix(measured))
    return FineTuned(
        body=body,
        head=final,
        learned=learned,
        tuning=tuning,
        boundary=trainer.boundary,
        logits=logits[: len(task.test)],
        val_logits=logits[len(task.test) :],
        features=suffix,
    )


def open_run(
    folder: Path, described: dict[str, Any], choose: Callable[[], Tuning | None], say: Callable[[str], None]
) -> Tuning | None:
    """Returns the settings of a run: those of the one that was interrupted here, or new ones.

    Settings may depend on the clock and on measurements of the machine. A run goes on with those that it began with.

    Args:
        folder: Of the run.
        described: What must be equal for the run to go on, JSON-ready.
        choose: Called for the settings of a new run; ``None`` is for no run.
        say: Called with lines for people.
    """
    path = folder / _CONFIG
    wanted = json.loads(json.dumps(described))
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["run"] == wanted:
            return tuning_from(found["tuning"])
        say(f"{folder} holds another run; it starts afresh")
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for name in (LOG, CURVES, RATES, _RATE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    loop.forget_checkpoints(folder)
    tuning = choose()
    if tuning is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"run": wanted, "tuning": tuning.to_dict()})
    return tuning


def with_time_left(folder: Path | None, tuning: Tuning, minutes: float) -> Tuning:
    """Returns the settings of a run that begins with what is left of its time; one that goes on keeps its own.

    Args:
        folder: Of the run.
        tuning: Its settings.
        minutes: What is left.
    """
    if folder is not None and loop.load_checkpoint(folder) is not None:
        return tuning
    changed = dataclasses.replace(tuning, minutes=max(minutes, 1e-3))
    if folder is not None:
        found = json.loads((folder / _CONFIG).read_text("utf-8"))
        write_json(folder / _CONFIG, {**found, "tuning": changed.to_dict()})
    return changed


def tuning_from(fields: dict[str, Any]) -> Tuning:
    """Restores settings that :meth:`Tuning.to_dict` and JSON turned into lists."""
    values = dict(fields)
    for name in ("sizes", "unfreeze"):
        values[name] = tuple(tuple(pair) for pair in values.get(name, ()))
    if values.get("rand_augment") is not None:
        values["rand_augment"] = tuple(values["rand_augment"])
    return Tuning(**values)


def run_folder(out: Path | None, described: dict[str, Any], cache: bool | str | Path) -> Path | None:
    """Returns where a run keeps its checkpoints: beside the output, else in the cache; ``None`` for neither."""
    if out is not None:
        return out.with_name(f"{out.name}.run")
    root = folder_of(cache)
    if root is None or not is_writable(root):
        return None
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = root / "runs" / digest[:24]
    keep(folder / USERS)
    return folder


def _views(tuning: Tuning) -> Views | None:
    """Returns the changed views that are stored beside the plain one."""
    if tuning.views < 2 or not tuning.changes_images:
        return None
    area = (tuning.crop_scale, 1.0)
    return Views(tuning.views - 1, tuning.seed, flip=tuning.flip, area=area, colour=min(tuning.colour, 0.99))


class _Suffix:
    """The part of a network behind the cut, on the fastest engine, for images of a feed by position."""

    def __init__(self, prepared: FrozenOutputs, second: keras.Model, images: int, running: RunOptions):
        self._feed, self._progress, self._width = prepared.feed, running.progress, second.output_shape[-1]
        if not prepared.boundary.frozen:  # the whole network, whose arithmetic is known
            second.architecture = getattr(prepared.body, "architecture", None)
        folder = Path(tempfile.mkdtemp(prefix="resfit-"))  # a network that nobody asks for again
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        name = running.engine if isinstance(running.engine, str) else "auto"  # an engine is of another part
        self._engine = engines.create(second, name, images=images, cache=folder)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        found, done = [], 0
        with loop.prefetch(((len(part), self._feed.plain(part)) for part in parts), 2) as ready:
            for count, values in engines.stream(self._engine, ready):
                found.append(values)
                done += count
                if self._progress is not None:
                    self._progress("features", done, len(rows))
        return np.concatenate(found) if found else np.zeros((0, self._width), np.float32)


def _reporter(running: RunOptions) -> Callable[[finetune.Trainer, dict[str, float]], None] | None:
    progress = running.progress
    if progress is None:
        return None
    shown = time.monotonic()

    def report(trainer: finetune.Trainer, figures: dict[str, float]) -> None:
        nonlocal shown
        if time.monotonic() - shown < 0.2 and trainer.progress < 1:
            return
        shown = time.monotonic()
        text = f"epoch {trainer.epoch + 1}, loss {figures['loss']:.3f}, accuracy {figures['accuracy']:.1%}"
        progress(f"training\t{text}", round(1000 * trainer.progress), 1000)

    return report


def _found_rate(trainer: finetune.Trainer, running: RunOptions) -> float:
    """Returns the learning rate that a range test suggests; a run that goes on keeps the one it began with."""
    path = running.folder / _RATE
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(json.loads(path.read_text("utf-8"))["suggestion"])
    curve = trainer.find_rate()
    running.say(f"learning rate {curve.suggestion:.2g}: the loss falls fastest there")
    running.folder.mkdir(parents=True, exist_ok=True)
    from resfit.training.curves import draw_rates

    draw_rates(running.folder / RATES, curve)
    write_json(path, {"suggestion": curve.suggestion, "rates": curve.rates, "losses": curve.losses})
    return curve.suggestion


def _policy(tuning: Tuning) -> str | None:
    return None if tuning.precision == "float32" else tuning.precision
