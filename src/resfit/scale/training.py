"""Training on the workers of a Ray cluster: Ray Train starts them, and starts all again when one is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resfit import artifact, dependencies
from resfit.data import remote
from resfit.errors import ArgumentError, ResfitError
from resfit.storage.atomic import write_json
from resfit.tasks import dispatch
from resfit.tasks.base import FittedModel
from resfit.training import replicas
from resfit.training.pretrain import PretrainResult, pretrain

_RESULT, _ERROR = "result.json", "error.json"


def pretrain_on_ray(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int,
    threads: int | None = None,
    gpus: bool = False,
    restarts: int = 3,
    **options: Any,
) -> PretrainResult:
    """Runs :func:`resfit.pretrain` on several workers of a Ray cluster.

    Ray Train starts the workers, tells each of the others, and starts all of them again when one is lost; they go on
    from the checkpoint.

    Args:
        source: As :func:`resfit.pretrain` takes it; every worker reads it.
        output: The same, on a disk that all workers share.
        workers: How many.
        threads: Processors of each; ``None`` is 1.
        gpus: Whether each has a GPU of its own.
        restarts: How often the training is begun again after the loss of a worker.
        **options: Further ones of :func:`resfit.pretrain`.

    Returns:
        The result.

    Raises:
        ArgumentError: There are more workers than images in a batch, or the cluster has too few processors.
        ResfitError: The training ended without a result.
    """
    place = Path(output).absolute()
    for name in ("validation", "labels"):
        if options.get(name) is not None:
            options[name] = os.path.abspath(options[name])
    work = {"source": os.path.abspath(source), "output": str(place), "options": options}
    _train(_pretrain_worker, work, place, workers=workers, threads=threads, gpus=gpus, restarts=restarts)
    return PretrainResult(**{**json.loads((place / _RESULT).read_text("utf-8")), "output": place})


def fit_on_ray(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    workers: int,
    threads: int | None = None,
    gpus: bool = False,
    restarts: int = 3,
    task: str = "auto",
    force: bool = False,
    **options: Any,
) -> FittedModel:
    """Runs :func:`resfit.fit` with a fine-tuning that several workers of a Ray cluster share.

    Each worker finds, decodes and checks the images, and computes what stays frozen; in the training it takes its share
    of every batch. The first one measures the result and writes it. A worker that is lost begins all again from the
    checkpoint, which lies beside ``out``.

    Args:
        source: As :func:`resfit.fit` takes it, where every worker can read it: a path or a handle.
        out: Folder to save the fitted model in, on a disk that all workers share.
        workers: How many.
        threads: Processors of each; ``None`` is 1.
        gpus: Whether each has a GPU of its own.
        restarts: How often all is begun again after the loss of a worker.
        task: As :func:`resfit.fit` takes it; not ``"detection"``.
        force: As :func:`resfit.fit` takes it.
        **options: Further ones of :func:`resfit.fit`.

    Returns:
        The fitted model, as it was saved.

    Raises:
        ArgumentError: There is no training to share, an option needs one clock or this process, there are more workers
            than images in a batch, or the cluster has too few processors.
        ResfitError: The training ended without a result.
    """
    strategy = options.get("strategy") or "probe"
    if strategy == "probe":
        raise ArgumentError(
            "workers share a training, and a probe has none. Received: strategy='probe'. Pass strategy='finetune' "
            "(--strategy finetune); for a probe of many images, `resfit scale plan --task embed` and `resfit fit "
            "--features`."
        )
    for name, why in (
        ("budget", "their clocks differ"),
        ("lr_find", "the learning rate is the recipe's, or tuning={'learning_rate': ...}"),
        ("callbacks", "they live in this process"),
    ):
        if options.get(name):
            raise ArgumentError(f"several workers take no {name}: {why}. Received: {options[name]!r}.")
    place = Path(out).absolute()
    artifact.check_target(place, force=force)
    handle = remote.handle_of(source)
    where = handle or os.path.abspath(source)
    if dispatch.chosen(where, task, **options)[0].name == "detection":
        raise ArgumentError("detectors are trained in one process. Received: --on ray for pictures with boxes.")
    known = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in options.items()}
    work = {"source": where, "out": str(place), "task": task, "options": known}
    beside = place.with_name(f"{place.name}.ray")
    _train(_fit_worker, work, beside, workers=workers, threads=threads, gpus=gpus, restarts=restarts)
    return dispatch.load(place)


def _train(
    worker: Callable[[dict[str, Any]], None],
    work: dict[str, Any],
    place: Path,
    *,
    workers: int,
    threads: int | None,
    gpus: bool,
    restarts: int,
) -> None:
    """Lets workers train, and begins again with all of them when one is lost."""
    dependencies.require("--on ray", "ray")
    import ray
    from ray import train
    from ray.train.tensorflow import TensorflowTrainer

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    needed, there = workers * (threads or 1), int(ray.cluster_resources().get("CPU", 0))
    if workers < 1 or needed > there:
        raise ArgumentError(f"{workers} workers need {needed} processors. Received: {there} on the cluster.")
    place.mkdir(parents=True, exist_ok=True)
    for name in (_RESULT, _ERROR):
        (place / name).unlink(missing_ok=True)
    trainer = TensorflowTrainer(
        worker,
        train_loop_config={**work, "place": str(place)},
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": threads or 1, **({"GPU": 1} if gpus else {})},
        ),
        run_config=train.RunConfig(
            storage_path=str(place / "ray"), failure_config=train.FailureConfig(max_failures=restarts)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray has errors of its own
        said = place / _ERROR
        reason = json.loads(said.read_text("utf-8"))["error"] if said.is_file() else str(error)
        raise ResfitError(f"the training on {workers} workers ended: {reason}") from error


def _told(place: Path, function: Callable[[], Any]) -> Any:
    """Calls a function; what is wrong with the data or an argument is noted, and not tried again."""
    said = place / _ERROR
    if said.is_file():
        raise ResfitError(json.loads(said.read_text("utf-8"))["error"])
    try:
        return function()
    except ResfitError as error:
        write_json(said, {"error": str(error)})
        raise


def _pretrain_worker(work: dict[str, Any]) -> None:
    """What runs in each of Ray's workers."""
    workers = replicas.join()  # before TensorFlow computes anything
    place = Path(work["place"])
    result = _told(place, lambda: pretrain(work["source"], work["output"], replicas=workers, **work["options"]))
    if workers.writes:
        write_json(place / _RESULT, result.to_dict())


def _fit_worker(work: dict[str, Any]) -> None:
    """What runs in each of Ray's workers."""
    replicas.join()  # before TensorFlow computes anything
    options = {**work["options"], "task": work["task"], "out": work["out"], "force": True}
    _told(Path(work["place"]), lambda: dispatch.fit(work["source"], **options))
