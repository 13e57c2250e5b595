"""How a fit is done: what there is time for, and the settings of its fine-tuning."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines, processors
from resfit.data import dataset, members, stratification
from resfit.data.dataset import ImageSet
from resfit.errors import ArgumentError, closest
from resfit.storage.atomic import write_json
from resfit.tasks import backbone
from resfit.tasks.config import FitOptions
from resfit.tasks.timings import Timings
from resfit.training import loop, recipes, replicas, runs, speed
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

    from resfit.networks.spec import ArchitectureSpec


def facts(images: ImageSet, count: int, spec: ArchitectureSpec | None, size: tuple[int, int]) -> recipes.Facts:
    """Returns what a recipe needs to know of images and network.

    Args:
        images: The images.
        count: How many of them are learned from.
        spec: The architecture, if it is known.
        size: Height and width of the network's input.
    """
    counts = np.array([*images.counts().values()] or [1])
    imbalance = float(counts.max() / max(1, counts.min()))
    return recipes.facts_of(spec, count, len(images.classes), size, max(1.0, imbalance))


def subsample_to_budget(
    images: ImageSet,
    spec: ArchitectureSpec | None,
    size: tuple[int, int],
    minutes: float | None,
    seed: int,
    hardware: recipes.Hardware | None = None,
) -> tuple[ImageSet, str]:
    """Returns the images that there is time to look at, and in words what was left out.

    Images that the data sets aside for testing are all there, of the others the same share of each class.

    Args:
        images: The images.
        spec: The architecture, if it is known.
        size: Height and width of the network's input.
        minutes: Time for everything; ``None`` is no limit.
        seed: Of the choice.
        hardware: The machine, if a GPU's speed was measured.
    """
    if minutes is None or not len(images):
        return images, ""
    tested = np.array([part == "test" for part in images.splits])
    others = np.flatnonzero(~tested)
    looked = [
        members.size(path) for path in images.paths[:: max(1, len(images) // 64)] if members.container(path).is_file()
    ]
    known = facts(images, max(1, len(others)), spec, size)
    seconds = recipes.seconds_an_image(known, float(np.mean(looked or [0])), processors.available(), hardware)
    share = recipes.share_in_time(len(others), int(tested.sum()), seconds, minutes)
    if share == 1.0:
        return images, ""
    generator = np.random.default_rng(seed)
    if images.targets is not None:
        parts = stratification.stratify(images.targets[others], (1 - share, share), generator)
        chosen = [others[parts == 1]]
    else:
        order = generator.permutation(others)
        labels = images.labels[order]
        chosen = [order[labels == label][: math.ceil(share * (labels == label).sum())] for label in np.unique(labels)]
    kept = np.sort(np.concatenate([np.flatnonzero(tested), *chosen]))
    count = len(kept) - int(tested.sum())
    said = f"{count:,} of {len(others):,} images to learn from, the same share of each class: the time allows no more"
    return images.subset(kept), said


def check_scan_options(options: Mapping[str, Any], own: Iterable[str]) -> None:
    """Makes sure that what is no option of a fit is one of its scan.

    Args:
        options: Keywords that are none of the fit's own.
        own: Names of the fit's own keywords, besides :class:`resfit.tasks.config.FitOptions`.

    Raises:
        ArgumentError: The scan knows no such option.
    """
    known = [name for name in inspect.signature(dataset.scan).parameters if name != "numbers"]
    settings = [field.name for field in dataclasses.fields(Tuning)]
    shared = [field.name for field in dataclasses.fields(FitOptions)]
    for name in options:
        if name in settings and name not in known:
            raise ArgumentError(f"{name} is a setting of the fine-tuning. Pass tuning={{{name!r}: …}}.")
        if name not in known:
            raise ArgumentError(f"fit has no argument {name!r}.{closest(name, [*own, *shared, *known, *settings])}")


# what was decided by the clock, in the folder of a run
_PLAN = "plan.json"
# share of the time that is expected to be left when images are decoded and some of them have gone through the network
_AFTER_DECODING = 0.7


class PlanRecord:
    """What was decided by the clock, kept beside the run, so that a fit that was killed goes the same way again.

    Attributes:
        decisions: By name, JSON-ready.
    """

    def __init__(self) -> None:
        self.decisions: dict[str, Any] = {}
        self._path: Path | None = None
        self._run: dict[str, Any] = {}

    def open(self, folder: Path | None, described: Mapping[str, Any]) -> None:
        """Takes up the decisions of a fit that was interrupted.

        Args:
            folder: Of the run; ``None`` keeps nothing.
            described: What must be equal for it to be the same fit, JSON-ready.
        """
        self._run = json.loads(json.dumps(described))
        self._path = None if folder is None else folder / _PLAN
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                found = json.loads(self._path.read_text("utf-8"))
                self.decisions = dict(found["decisions"]) if found["run"] == self._run else {}

    def decide(self, name: str, choose: Callable[[], Any]) -> Any:
        """Returns what was decided before, or decides and keeps it.

        Args:
            name: Of the decision.
            choose: Decides; the value is JSON-ready.
        """
        if name not in self.decisions:
            self.decisions[name] = choose()
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {"run": self._run, "decisions": self.decisions})
        return self.decisions[name]

    def close(self) -> None:
        """Forgets what is on disk: the fit has ended."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a run is in it, or it was never made
                self._path.parent.rmdir()


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """What decides on the settings of a fine-tuning run.

    Attributes:
        body: The frozen network.
        strategy: As :func:`resfit.fit` takes it.
        minutes: Time for everything; ``None`` is no limit.
        trainable_from: As :func:`resfit.fit` takes it.
        tuning: As :func:`resfit.fit` takes it.
        seed: As :func:`resfit.fit` takes it.
        head: Kind of the head.
        lr_find: Whether a range test chooses the learning rate.
        options: Settings that :func:`resfit.fit` takes as arguments of their own; ``tuning`` overrules them.
        taught: Whether there is a teacher.
        defaults: Settings of the task, in place of the recipe's.
        precision: In which features are computed.
        cache: Where measurements are kept.
        record: What was decided by the clock.
    """

    body: keras.Model
    strategy: str
    minutes: float | None
    trainable_from: int | float | str | None
    tuning: Tuning | Mapping[str, Any] | None
    seed: int
    head: str
    lr_find: bool
    options: dict[str, Any]
    taught: bool
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: str = "float32"
    cache: bool | str | Path = True
    record: PlanRecord = dataclasses.field(default_factory=PlanRecord)

    @property
    def probes(self) -> bool:
        """Whether a head is fitted to the frozen network first."""
        return self.strategy in ("probe", "auto")

    @property
    def tunes(self) -> bool:
        """Whether there may be fine-tuning."""
        return not self.probes or (self.strategy == "auto" and self.minutes is not None)

    @property
    def sets_time(self) -> bool:
        """Whether the user has set the time of the training itself."""
        return self._given().get("minutes") is not None

    def settings(
        self,
        images: ImageSet,
        count: int,
        out: str | os.PathLike[str] | None,
        cache: bool | str | Path,
        journal: Timings,
    ) -> tuple[Tuning | None, Path | None]:
        """Returns the settings, ``None`` where a probe is all that is worth while, and the folder of the run.

        Args:
            images: The images.
            count: How many of them are learned from.
            out: As :func:`resfit.fit` takes it.
            cache: As :func:`resfit.fit` takes it.
            journal: Says what is left of the time, and takes the reasons.
        """
        described, given = self._described(images), self._all_given()
        folder = runs.run_folder(None if out is None else Path(out), described, cache)

        def choose() -> Tuning | None:
            return self._chosen(images, count, given, journal)

        def opened() -> Tuning | None:
            return choose() if folder is None else runs.open_run(folder, described, choose, journal.note)

        together = replicas.joined()
        if together is None:
            chosen = opened()
        else:  # the first worker opens the run that all go on with
            mine = opened() if together.writes else None
            fields = together.agreed(None if mine is None else mine.to_dict())
            chosen = None if fields is None else runs.tuning_from(fields)
        self.record.decisions["tuning"] = None if chosen is None else chosen.to_dict()
        return chosen, folder

    def open_record(
        self, images: ImageSet, out: str | os.PathLike[str] | None, cache: bool | str | Path, *, always: bool = False
    ) -> None:
        """Takes up what a fit that was interrupted had decided by the clock.

        Args:
            images: The images, before they are decoded.
            out: As :func:`resfit.fit` takes it.
            cache: As :func:`resfit.fit` takes it.
            always: Whether there is something to decide without a budget too.
        """
        if always or (self.tunes and self.minutes is not None):
            described = self._described(images)
            self.record.open(runs.run_folder(None if out is None else Path(out), described, cache), described)

    def to_dict(self) -> dict[str, Any]:
        """Returns what was asked for and what was decided, JSON-ready."""
        return {"strategy": self.strategy, "minutes": self.minutes, "seed": self.seed, **self.record.decisions}

    def minutes_left(self, journal: Timings) -> float:
        """Returns what is left of the time: the one place where the clock is asked.

        Args:
            journal: Knows when the fit began.
        """
        return math.inf if self.minutes is None else self.minutes - journal.minutes

    def _all_given(self) -> dict[str, Any]:
        """Returns the settings that were asked for, in whatever argument."""
        given = self._given()
        for key, value in self.options.items():
            if value:
                given.setdefault(key, value)
        if self.taught:
            given["distillation"] = given.get("distillation") or 0.5
        if self.trainable_from is not None:
            given["trainable_from"] = self.trainable_from
        runs.tuning_from(given)  # refuses what is out of range before any work
        return given

    def _described(self, images: ImageSet) -> dict[str, Any]:
        """Returns what must be equal for a run to go on."""
        return {
            "data": images.fingerprint,
            "network": engines.fingerprint(self.body),
            "strategy": self.strategy,
            "minutes": self.minutes,
            "tuning": self._all_given(),
            "seed": self.seed,
            "head": self.head,
            "lr_find": self.lr_find,
        }

    @functools.cached_property
    def hardware(self) -> recipes.Hardware:
        """The machine: the network's speed on it, measured once, and the same where a fit goes on."""

        def measure() -> dict[str, Any]:
            return dataclasses.asdict(speed.hardware(self.body, self.precision, self.cache))

        return recipes.Hardware(**self.record.decide("hardware", measure))

    def _left(self, journal: Timings) -> float | None:
        return None if self.minutes is None else max(1e-3, self.minutes_left(journal))

    def _recipe(
        self, images: ImageSet, count: int, journal: Timings, *, probed: bool, share: float = 1.0
    ) -> recipes.Recipe:
        known = facts(images, count, getattr(self.body, "architecture", None), self.body.input_spec.size)
        left = self._left(journal)
        return recipes.recipe(
            dataclasses.replace(known, statistics=backbone.has_statistics(self.body)),
            self.hardware,
            strategy=self.strategy,
            minutes=None if left is None else share * left,
            probed=probed,
            seed=self.seed,
        )

    def leaves(self, seconds: float, journal: Timings, what: str = "a probe of all images") -> bool:
        """Says whether there is time for something.

        Args:
            seconds: That it takes.
            journal: Says what is left of the time.
            what: It is; decided once.
        """
        return bool(self.record.decide(f"time for {what}", lambda: bool(seconds / 60 <= self.minutes_left(journal))))

    def too_late(self, images: ImageSet, count: int, folder: Path | None, journal: Timings) -> bool:
        """Says whether what came before the training has left too little of the time for it.

        Args:
            images: As :meth:`settings` takes them.
            count: As :meth:`settings` takes it.
            folder: Of the run; one that goes on is not late.
            journal: Says what is left of the time.
        """
        if self.minutes is None or not self.probes or self._given() or self.trainable_from is not None:
            return False
        if folder is not None and loop.load_checkpoint(folder) is not None:
            return False

        def late() -> bool:
            return self._recipe(images, count, journal, probed=True).tuning is None

        return bool(self.record.decide("too late for fine-tuning", late))

    def reads_pixels(self, images: ImageSet, count: int, journal: Timings) -> bool:
        """Says whether a training after the probe is to be expected that reads the images themselves.

        Args:
            images: As :meth:`settings` takes them.
            count: As :meth:`settings` takes it.
            journal: Says what is left of the time.
        """
        if not self.probes or not self.tunes:
            return False

        def reads() -> bool:
            start = self._given().get("trainable_from", self.trainable_from)
            if start is None:
                found = self._recipe(images, count, journal, probed=True, share=_AFTER_DECODING).tuning
                start = None if found is None else found.trainable_from
            return bool(start == 0)

        return bool(self.record.decide("training reads pixels", reads))

    def _given(self) -> dict[str, Any]:
        return self.tuning.to_dict() if isinstance(self.tuning, Tuning) else dict(self.tuning or {})

    def _chosen(self, images: ImageSet, count: int, given: dict[str, Any], journal: Timings) -> Tuning | None:
        """Returns the settings of a new run: what is given, over the recipe's."""
        left = self._left(journal)
        found = self._recipe(images, count, journal, probed=self.probes)
        if not isinstance(self.tuning, Tuning):
            for reason in found.reasons:
                journal.note(reason)
        if found.tuning is None and not given:
            return None
        base = found.tuning or Tuning(seed=self.seed)
        chosen = runs.tuning_from({**base.to_dict(), **self.defaults, **given})
        if left is not None and chosen.minutes is None:
            chosen = dataclasses.replace(chosen, minutes=left)
        return chosen
