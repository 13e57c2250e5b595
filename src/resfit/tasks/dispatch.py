"""One way in for all tasks: fit to data of any task, and load a fitted model by the kind of its folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resfit import artifact
from resfit.errors import ArtifactError
from resfit.tasks import base
from resfit.tasks.base import FittedModel, Task
from resfit.tasks.classification import task as _classification
from resfit.tasks.config import FitConfig
from resfit.tasks.detection import task as _detection
from resfit.tasks.regression import task as _regression

# imported, they are registered; the first is taken where data is of no task
_TASKS = (_classification, _regression, _detection)


def chosen(source: Any, task: str = base.AUTO, **options: Any) -> tuple[Task, str]:
    """Returns the task that a fit would be of, and the sentence that says why; empty where nothing had to be decided.

    Args:
        source: The data.
        task: Name of a task, or ``"auto"``.
        **options: The arguments of the fit that were given.

    Raises:
        ArgumentError: There is no such task, or the data may be of several.
    """
    if task != base.AUTO:
        return base.task_named(task), ""
    return base.task_for(source, options)


def fit(
    source: Any,
    *,
    task: str = base.AUTO,
    config: FitConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> FittedModel:
    """Fits a model to data.

    Args:
        source: The data, as the task takes it: a folder, a table, or a pair of images and labels.
        task: ``"classification"``, ``"regression"`` or ``"detection"``; ``"auto"`` sees which from the data, and says
            so.
        config: Options by group (:class:`resfit.tasks.config.FitConfig`), or a YAML, TOML or JSON file of them.
        **options: Those of the task's fit, over those of ``config``: :func:`resfit.tasks.classification.fit.fit`,
            :func:`resfit.tasks.regression.fit.fit`, :func:`resfit.tasks.detection.fit.fit`.

    Returns:
        The fitted model; for classification a :class:`resfit.Classifier`.

    Raises:
        ArgumentError: There is no such task, the data may be of several, or an option breaks its rule.
        DataError: The data cannot be trained on.
    """
    if config is not None:
        stated = config_of(config)
        task = stated.task if task == base.AUTO else task
        options = {**stated.keywords(), **options}
    found, reason = chosen(source, task, **options)
    say = options.get("say")
    if reason and say is not None:
        say(reason)
    fitted = found.fit(source, **options)
    if reason and fitted.run is not None:
        fitted.run = dataclasses.replace(fitted.run, notes=(reason, *fitted.run.notes))
    return fitted


def config_of(config: FitConfig | Mapping[str, Any] | str | os.PathLike[str]) -> FitConfig:
    """Returns options however they were given.

    Args:
        config: As :func:`fit` takes it.

    Raises:
        ArgumentError: It cannot be read, or an option is unknown or of the wrong type.
    """
    if isinstance(config, FitConfig):
        return config
    return FitConfig.from_dict(config) if isinstance(config, Mapping) else FitConfig.from_file(config)


def plan(source: Any, *, task: str = base.AUTO, **options: Any) -> Any:
    """Says what :func:`fit` would do and how long it would take, without doing it.

    Args:
        source: As :func:`fit` takes it.
        task: As :func:`fit` takes it.
        **options: As :func:`fit` takes them.

    Returns:
        A :class:`resfit.training.recipes.Recipe`.
    """
    found, reason = chosen(source, task, **options)
    recipe = found.plan(source, **options)
    return dataclasses.replace(recipe, reasons=(reason, *recipe.reasons)) if reason else recipe


def check(source: Any, *, task: str = base.AUTO, **options: Any) -> Any:
    """Looks for what is wrong with a data set.

    Args:
        source: As :func:`fit` takes it.
        task: As :func:`fit` takes it.
        **options: ``model``, ``seed``, ``engine``, ``cache``, ``batch_size``, ``progress``, and those of the scan.

    Returns:
        What was found: for classes :class:`resfit.quality.checking.Checks`.

    Raises:
        DataError: The data cannot be read.

    Example:
        >>> dispatch.check("photos/").findings()  # doctest: +SKIP
        ('2 exact duplicates', ...)
    """
    return chosen(source, task, **options)[0].check(source, **options)


def load(path: str | os.PathLike[str]) -> FittedModel:
    """Loads a fitted model of any task.

    Args:
        path: A folder that ``resfit fit`` wrote.

    Raises:
        ArtifactError: It is none, or it is damaged.

    Example:
        >>> dispatch.load("photos.resfit")  # doctest: +SKIP
        <Classifier resnet10_tiny, 2 classes: cat, dog>
    """
    return task_of(Path(path)).load(Path(path))


def task_of(folder: Path) -> Task:
    """Returns the task that the fitted model in a folder is of; the first one where there is none.

    Args:
        folder: A folder.

    Raises:
        ArtifactError: It is of a task that is not registered.
    """
    kind = artifact.kind_of(folder)
    known = {task.kind.name: task for task in base.tasks().values()}
    if kind and kind not in known:
        raise ArtifactError(
            f"a fitted model must be of one of the kinds {', '.join(known)}. Received: {kind!r:.60} in "
            f"{str(folder)!r}. Use the version of resfit that wrote it, or import the module that registers its task."
        )
    return known.get(kind, next(iter(known.values())))


def load_or_pretrained(source: str | os.PathLike[str]) -> FittedModel:
    """Loads a fitted model of any task, or a published network as a classifier or detector of its own classes.

    Args:
        source: A folder that ``resfit fit`` wrote, or what :func:`resfit.load` takes.

    Raises:
        ArtifactError: It is neither, or damaged.
        CheckpointError: The network has no classifier, or cannot be read.
    """
    if artifact.kind_of(Path(source)):
        return load(source)
    from resfit.tasks.classification import pretrained
    from resfit.tasks.detection import Detector
    from resfit.tasks.detection import pretrained as detectors

    if not artifact.kind_of(Path(source)) and detectors.recognises(source):
        return Detector.pretrained(source)
    return pretrained.load(source)


def load_or_detector(source: str | os.PathLike[str]) -> FittedModel:
    """Loads a fitted model of any task, or a published detector with its own classes.

    Args:
        source: A folder that ``resfit fit`` wrote; or a name, handle or file of a detector.

    Raises:
        ArtifactError: It is neither, or damaged.
    """
    from resfit.tasks.detection import Detector
    from resfit.tasks.detection import pretrained as detectors

    if not artifact.kind_of(Path(source)) and detectors.recognises(source):
        return Detector.pretrained(source)
    return load(source)
