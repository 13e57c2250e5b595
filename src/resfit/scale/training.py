"""Training on the workers of a Ray cluster: Ray Train starts them, and starts all again when one is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from resfit import dependencies
from resfit.errors import ArgumentError, ResfitError
from resfit.storage.atomic import write_json
from resfit.training.pretrain import PretrainResult, pretrain
from resfit.training.replicas import Replicas

_RESULT = "result.json"


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
    dependencies.require("--on ray", "ray")
    import ray
    from ray import train
    from ray.train.tensorflow import TensorflowTrainer

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    needed, there = workers * (threads or 1), int(ray.cluster_resources().get("CPU", 0))
    if workers < 1 or needed > there:
        raise ArgumentError(f"{workers} workers need {needed} processors. Received: {there} on the cluster.")
    place = Path(output).absolute()
    (place / _RESULT).unlink(missing_ok=True)
    for name in ("validation", "labels"):
        if options.get(name) is not None:
            options[name] = os.path.abspath(options[name])
    work = {"source": os.path.abspath(source), "output": str(place), "options": options}
    trainer = TensorflowTrainer(
        _pretrain_worker,
        train_loop_config=work,
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
        raise ResfitError(f"the training on {workers} workers ended: {error}") from error
    found = json.loads((place / _RESULT).read_text("utf-8"))
    return PretrainResult(**{**found, "output": place})


def _pretrain_worker(work: dict[str, Any]) -> None:
    """What runs in each of Ray's workers."""
    replicas = Replicas()  # before TensorFlow computes anything
    result = pretrain(work["source"], work["output"], replicas=replicas, **work["options"])
    if replicas.writes:
        write_json(Path(work["output"]) / _RESULT, result.to_dict())
