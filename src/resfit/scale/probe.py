"""A probe on the features of a run: workers hold the rows, and what travels is the sum of their gradients."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import resfit
from resfit import artifact
from resfit.data import class_names
from resfit.errors import ArgumentError, DataError
from resfit.evaluation.calibrated import calibrate
from resfit.evaluation.figures import figures
from resfit.evaluation.inference import measured
from resfit.numerics import activated
from resfit.scale import finishing, networks, planning
from resfit.scale.drivers import ray as cluster
from resfit.scale.planning import Plan
from resfit.scale.tables import matrix as matrix_of
from resfit.scale.tables import read_columns
from resfit.tasks import preparation
from resfit.tasks.classification import Classifier
from resfit.tasks.classification.heads import base, linear, solver
from resfit.tasks.classification.results import FitRecipe

#: Rows that the strength of the regularisation is chosen on, and those for tests that come back to be measured.
CHOOSING, MEASURED = 20_000, 1_000_000
ENGINES = ("local", "ray")


class Known(NamedTuple):
    """Sums and counts over a worker's rows.

    Attributes:
        labels: Number of rows for training, by class; a row of several labels counts for each.
        tested: Number of rows for testing, by class.
        learned: Number of rows for training.
        measured: Number of rows for testing.
        unused: Rows without a label or features.
        total: Sum of the features over the rows for training, float64 ``(features,)``.
    """

    labels: dict[str, int]
    tested: dict[str, int]
    learned: int
    measured: int
    unused: int
    total: np.ndarray


class RowSample(NamedTuple):
    """Some rows.

    Attributes:
        rows: float32 array ``(n, features)``, or their logits ``(n, classes)``.
        classes: The class of each, as a number; where there may be several, an array ``(n, classes)`` of 0 and 1.
        groups: The group of each, or ``None``.
    """

    rows: np.ndarray
    classes: np.ndarray
    groups: list[str | None]


class LabelTable:
    """The classes of rows that may have several, as one number for each; rows of it are arrays of 0 and 1.

    Args:
        labels: For each row the names of its classes.
        classes: All names, in the order of the columns.
    """

    ndim = 2

    def __init__(self, labels: Sequence[Sequence[str]], classes: Sequence[str]):
        places = {name: place for place, name in enumerate(classes)}
        self._edges = np.cumsum([0, *map(len, labels)])
        self._places = np.array([places[name] for names in labels for name in names], np.int32)
        self._width = len(classes)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns some rows, float32 ``(n, classes)``."""
        found = np.zeros((len(rows), self._width), np.float32)
        for place, row in enumerate(rows.tolist()):
            found[place, self._places[self._edges[row] : self._edges[row + 1]]] = 1
        return found


class RowHolder:
    """Holds the features of some shards in memory, as they were stored.

    Args:
        url: Folder of the run.
        shards: Numbers of the shards.
        test_share: Share of the rows that are measured with, where the source does not state it.
        seed: Of that choice, which is made by group or path.
    """

    def __init__(self, url: str, shards: Sequence[int], test_share: float, seed: int):
        plan = planning.load(url)
        self._separator = plan.options.get("separator") or ""
        rows, labels, groups, tested = [], [], [], []
        self._unused = 0
        for number in shards:
            table = read_columns(plan, number, ["path", "label", "split", "group", "features"])
            found, there = matrix_of(table, "features")
            names = np.array([name or "" for name in table["label"].to_pylist()], object)
            usable = there & ((names != "") | bool(self._separator))  # of several labels none is one as well
            self._unused += int((~usable).sum())
            table = table.filter(usable)
            columns = [table[name].to_pylist() for name in ("path", "split", "group")]
            rows.append(found[usable])
            labels += names[usable].tolist()
            groups += columns[2]
            tested += [
                split == "test" if split else _is_for_tests(group or path, test_share, seed)
                for path, split, group in zip(*columns, strict=True)
            ]
        width = max((part.shape[1] for part in rows), default=0)
        self._rows = np.concatenate([part for part in rows if len(part)] or [np.zeros((0, width), np.float32)])
        self._labels, self._groups = np.array(labels, object), np.array(groups, object)
        self._tested = np.array(tested, bool)
        self._classes: np.ndarray | LabelTable | None = None

    def known(self) -> Known:
        """Returns what the rows are of."""
        parts = (~self._tested, self._tested)
        learned, tested = (
            Counter(name for row in np.flatnonzero(own).tolist() for name in self._names(row)) for own in parts
        )
        rows, measured_on = (int(own.sum()) for own in parts)
        return Known(
            labels=dict(learned),
            tested=dict(tested),
            learned=rows,
            measured=measured_on,
            unused=self._unused,
            total=self._sum(lambda rows: rows),
        )

    def _names(self, row: int) -> list[str]:
        """Returns the classes of a row."""
        text = self._labels[row]
        return sorted(set(text.split(self._separator)) - {""}) if self._separator else [text]

    def squares(self, mean: np.ndarray) -> np.ndarray:
        """Returns the sum of the squared distances from the mean of all rows."""
        return self._sum(lambda rows: (rows - mean) ** 2)

    def sums(
        self, matrix: np.ndarray, classes: Sequence[str], mean: np.ndarray, scale: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Returns loss and gradient of the rows for training; see :func:`solver.sums`."""
        taken, multilabel = np.flatnonzero(~self._tested), bool(self._separator)
        targets: Any = self._targets(classes)
        return solver.sums(matrix, self._rows, targets, mean=mean, scale=scale, multilabel=multilabel, indices=taken)

    def sample(self, count: int, seed: int, classes: Sequence[str]) -> RowSample:
        """Returns some rows for training, chosen at random."""
        mine = np.flatnonzero(~self._tested)
        some = np.sort(np.random.default_rng(seed).permutation(mine)[:count])
        return RowSample(np.asarray(self._rows[some], np.float32), *self._of(some, classes))

    def tested(self, kernel: np.ndarray, bias: np.ndarray, most: int, classes: Sequence[str]) -> RowSample:
        """Returns the logits of rows for testing."""
        some = np.flatnonzero(self._tested)[:most]
        return RowSample(np.asarray(self._rows[some], np.float32) @ kernel + bias, *self._of(some, classes))

    def _of(self, some: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, list[str | None]]:
        return self._targets(classes)[some], self._groups[some].tolist()

    def _targets(self, classes: Sequence[str]) -> np.ndarray | LabelTable:
        """Returns the class of each row as a number, or its classes; a holder that was begun anew finds them again."""
        if self._classes is None and self._separator:
            self._classes = LabelTable([self._names(row) for row in range(len(self._labels))], classes)
        if self._classes is None:
            places = {name: place for place, name in enumerate(classes)}
            self._classes = np.array([places[name] for name in self._labels], np.int64)
        return self._classes

    def _sum(self, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(self._rows.shape[1])
        places = np.flatnonzero(~self._tested)
        for start in range(0, len(places), 8192):
            total += of(np.asarray(self._rows[places[start : start + 8192]], np.float64)).sum(axis=0)
        return total


def _is_for_tests(name: str, share: float, seed: int) -> bool:
    """Says whether an image is measured with; whatever else there is, and whoever asks, it is the same."""
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


class _Here:
    """Holders in this process."""

    def __init__(self, plan: Plan, parts: Sequence[Sequence[int]], *options: Any):
        self._holders = [RowHolder(plan.url, part, *options) for part in parts]

    def ask(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Yields what each says."""
        for holder in self._holders:
            yield getattr(holder, method)(*arguments)


class _OnRay:
    """Holders that are actors on a Ray cluster."""

    def __init__(self, plan: Plan, parts: Sequence[Sequence[int]], *options: Any):
        import ray

        cluster.check(len(parts), 1)
        kind = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(RowHolder)
        self._holders = [kind.remote(plan.url, part, *options) for part in parts]

    def ask(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Yields what each says, in order; the arguments travel once to each node."""
        import ray

        shared = [ray.put(argument) for argument in arguments]
        asked = [getattr(holder, method).remote(*shared) for holder in self._holders]
        for answer in asked:
            yield ray.get(answer)


def fit_features(
    run: Plan | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    test_share: float = 0.2,
    seed: int = 0,
    on: str = "local",
    workers: int | None = None,
    strength: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Classifier:
    """Fits a probe on the features that a run of ``"embed"`` has computed.

    The optimum is that of :func:`resfit.fit` on the same images: its objective is a sum over rows, of which each worker
    gives its part. The strength of the regularisation, and the temperature, come from cross-validation on 20,000 rows.
    An image is measured with if the source states so, or by a digest of its group, or of its path where it has none.

    Args:
        run: A plan of ``task="embed"``, or the folder of its run, all of whose shards are there.
        out: Folder to save the classifier in.
        force: As :func:`resfit.fit` takes it.
        test_share: Share of the images to measure with, where the source states no split.
        seed: Of that choice and of the folds.
        on: ``"local"``: this process holds all rows; ``"ray"``: actors on the nodes of a cluster do.
        workers: Actors; ``None`` is one a processor of the cluster, at most one a shard.
        strength: C, the inverse strength of the regularisation; ``None`` chooses it.
        say: Called with a line for people.

    Returns:
        The classifier.

    Raises:
        ArgumentError: An argument breaks its rule, or the run is of another task or network.
        DataError: Shards are missing, or there are labels of fewer than two classes.
    """
    plan = run if isinstance(run, Plan) else planning.load(run)
    finishing.check_task(plan, "embed")
    finishing.check_done(plan)
    _check(plan, on, workers, test_share)
    if out is not None:
        artifact.check_target(Path(out), force=force)
    if on == "ray":
        workers = min(plan.shards, workers or sum(cluster.processors()))
    parts = [part for part in np.array_split(np.arange(plan.shards), workers or 1) if len(part)]
    kind: type[_Here] | type[_OnRay] = _OnRay if on == "ray" else _Here
    holders = kind(plan, [part.tolist() for part in parts], test_share, seed)
    known = list(holders.ask("known"))
    classes = sorted({name for part in known for name in (*part.labels, *part.tested)})
    class_names.check(classes)
    counts = np.array([sum(part.labels.get(name, 0) for part in known) for name in classes])
    tested = sum(part.measured for part in known)
    rows = sum(part.learned for part in known)
    if rows == 0 or not classes:
        raise DataError("a classifier needs images with labels. Received: none in the shards of the run.")
    mean = (sum(part.total for part in known) / rows).astype(np.float32).astype(np.float64)
    deviation = np.sqrt(sum(holders.ask("squares", mean)) / rows)
    some = _together(holders.ask("sample", -(-CHOOSING // len(parts)), seed, classes))
    passes = [0]

    def total(matrix: np.ndarray) -> tuple[float, np.ndarray]:
        passes[0] += 1
        losses, gradients = zip(*holders.ask("sums", matrix, classes, mean, linear.scale_of(deviation)), strict=True)
        return sum(losses), np.sum(gradients, axis=0)

    head = linear.fit_sums(
        total,
        some.rows,
        some.classes,
        counts=counts,
        mean=mean,
        deviation=deviation,
        sample_groups=some.groups,
        rows=rows,
        multilabel=bool(plan.options.get("separator")),
        seed=seed,
        strength=strength,
    )
    if say is not None:
        say(f"{rows} rows of {len(mean)} features held by {len(parts)} workers, read {passes[0]} times")
    fitted = _classifier(plan, head, classes, some.classes, holders, known, tested, test_share, seed)
    if out is not None:
        fitted.save(out, force=force)
    return fitted


def _hot(classes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns classes as float32 array ``(n, classes)`` of 0 and 1."""
    return classes.astype(np.float32) if classes.ndim == 2 else np.eye(len(names), dtype=np.float32)[classes]


def _together(parts: Iterable[RowSample]) -> RowSample:
    rows, classes, groups = zip(*parts, strict=True)
    return RowSample(np.concatenate(rows), np.concatenate(classes), [group for part in groups for group in part])


def _check(plan: Plan, on: str, workers: int | None, test_share: float) -> None:
    if on not in ENGINES:
        raise ArgumentError(f"on must be one of {ENGINES}. Received: {on!r}.")
    if workers is not None and (workers < 1 or on == "local"):
        raise ArgumentError(f"workers must be at least 1, and are of on='ray'. Received: {workers} with on={on!r}.")
    if not 0 <= test_share < 1:
        raise ArgumentError(f"test_share must lie in [0, 1). Received: {test_share}.")
    if plan.version != resfit.__version__:
        raise ArgumentError(f"the run is of resfit {plan.version}. Received: {resfit.__version__}. Install the same.")


def _classifier(
    plan: Plan,
    head: linear.LinearHead,
    classes: Sequence[str],
    labels: np.ndarray,
    holders: _Here | _OnRay,
    known: Sequence[Known],
    tested: int,
    test_share: float,
    seed: int,
) -> Classifier:
    network = networks.load(networks.place_of(plan.folder, plan.model, plan.fingerprint), "embed")
    if network.fingerprint != plan.fingerprint or network.body is None:
        raise ArgumentError(f"the network {plan.model!r} is another one than that of the run. Embed with it again.")
    separator = plan.options.get("separator") or ""
    spared = head.held_out
    calibration = calibrate(
        None if spared is None else spared.logits,
        _hot(labels if spared is None else labels[spared.positions], classes),
        head.activation,
        "cross-validation",
    )
    result = None
    if tested:
        most = max(1, MEASURED // len(known))
        found = _together(holders.ask("tested", head.kernel, head.bias, most, classes))
        truth = found.classes.astype(int)
        shares = activated(found.rows / np.float32(calibration.temperature), head.activation)
        stated = found.groups if any(group is not None for group in found.groups) else None
        result = measured(_hot(truth, classes), shares, classes, bool(separator), (), groups=stated, seed=seed)
        result = dataclasses.replace(result, figures=figures(truth, shares, classes, groups=stated, seed=seed))
    learned = sum(part.learned for part in known)
    unused = sum(part.unused for part in known)
    return Classifier(
        model=base.attach(network.body, head)[0],
        classes=classes,
        input_spec=network.contract,
        recipe=FitRecipe(
            model=plan.model,
            strategy="probe",
            seed=seed,
            test_share=test_share,
            C=head.C,
            folds=head.folds,
            grouped=False,
            asked="probe",
            features=network.body.layers[-1].name,
            separator=separator,
        ),
        metrics={
            "images": {"found": plan.images, "skipped": unused, "train": learned, "test": tested, "ignored": 0},
            "cross_validation": [dataclasses.asdict(score) for score in head.cv_scores],
            "test": None if result is None else result.to_dict(),
            "run": {"shards": plan.shards, "fingerprint": plan.fingerprint, "dtype": plan.options["dtype"]},
        },
        fingerprint=hashlib.sha256("".join(plan.shard(n).key for n in range(plan.shards)).encode()).hexdigest(),
        versions=preparation.package_versions(),
        calibration=calibration,
    )
