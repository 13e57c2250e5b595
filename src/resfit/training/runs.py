"""One run of a training: how it is run, where its checkpoints are, and how it goes on after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact
from resfit.storage.atomic import write_json
from resfit.storage.locks import USERS, folder_of, is_writable, keep
from resfit.training import loop
from resfit.training import trainer as finetune
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    from resfit import engines
    from resfit.features.progress import Progress

#: Files that a run leaves behind.
LOG, CURVES, RATES = "training.csv", "training.png", "learning_rates.png"
_CONFIG, _RATE = "run.json", "learning_rate.json"


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
        callbacks: Keras' callbacks, which are told of epochs and steps and may end the training.
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
    callbacks: Sequence[Any] = ()


def run(trainer: finetune.Trainer, running: RunOptions, title: str) -> finetune.TrainingHistory:
    """Runs a trainer to its end, from where its last checkpoint stands, and leaves the log and its curves.

    Args:
        trainer: A fresh trainer.
        running: How it is run.
        title: Of the curves.
    """
    writes = trainer.replicas is None or trainer.replicas.writes
    place = running.folder if writes else Path(tempfile.mkdtemp(prefix="resfit-log-"))
    if running.lr_find:
        trainer.tuning = dataclasses.replace(trainer.tuning, learning_rate=_found_rate(trainer, running))
    log = loop.Log(place, running.tensorboard and writes, name=LOG, speak=False)
    try:
        learned = finetune.train(
            trainer,
            running.folder,
            log,
            checkpoint_seconds=running.checkpoint_seconds,
            report=_reporter(running),
            stop=running.stop,
            say=running.say,
            callbacks=running.callbacks,
        )
    finally:
        log.close()
        if not writes:
            shutil.rmtree(place, ignore_errors=True)
    from resfit.training.curves import draw_training

    if writes:
        draw_training(place / CURVES, learned.history, kept=learned.epoch, title=title)
    return learned


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
        metric = trainer.objective.metric
        score = f"{figures[metric]:.1%}" if metric.endswith("accuracy") else f"{figures[metric]:.3f}"
        text = f"epoch {trainer.epoch + 1}, loss {figures['loss']:.3f}, {metric} {score}"
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


def files(folder: Path) -> dict[str, bytes]:
    """Returns what a run leaves in the fitted model, by name: its log, its curves and TensorBoard's files.

    Args:
        folder: Of the run.
    """
    paths = [folder / name for name in (LOG, CURVES, RATES)]
    paths += [*sorted(folder.glob(f"{artifact.TENSORBOARD}/*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
