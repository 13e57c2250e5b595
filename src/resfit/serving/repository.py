"""Models and their versions on disk, and which of them are served now.

A folder is one classifier, or holds models: ``MODEL/`` is a classifier itself, or holds versions ``MODEL/1``,
``MODEL/2``. The folder is looked at again and again; what is new is loaded and warmed up beside what is served, and
then takes its place. What it replaces goes once the last request that uses it is answered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError
from resfit.serving import detection as _detection  # noqa: F401  # registers what answers for detectors
from resfit.serving import folders, logs
from resfit.serving.adapter import Served
from resfit.serving.batching import Batcher
from resfit.serving.folders import FoundModel
from resfit.serving.metrics import Metrics
from resfit.serving.settings import ServerSettings

#: Names of models; the same go into URLs, and nothing that could be a path.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_MOST_REASONS = 5
_PATIENCE = 10.0  # seconds

#: States of a version, by TensorFlow Serving's names.
LOADING, AVAILABLE, END = "LOADING", "AVAILABLE", "END"


class NotServed(LookupError):
    """There is no such model, version or label.

    Attributes:
        is_loading: Whether it is on its way.
    """

    def __init__(self, is_loading: bool = False):
        super().__init__("not served")
        self.is_loading = is_loading


class Version:
    """One version of a model that is loaded.

    Attributes:
        model: Name of the model.
        number: Its version.
        served: What answers.
    """

    def __init__(self, model: str, number: int, served: Served, settings: ServerSettings, metrics: Metrics):
        self.model, self.number, self.served = model, number, served
        self._settings, self._metrics = settings, metrics
        self._batchers: dict[str, Batcher] = {}
        self._users = 0
        self._retired = False
        self._lock = threading.Lock()
        self._closers: list[threading.Thread] = []

    def batcher(self, task: str) -> Batcher:
        """Returns what collects the images of a task, ``"predict"`` or ``"embed"``."""
        with self._lock:
            if task not in self._batchers:
                self._batchers[task] = Batcher(
                    getattr(self.served, task),
                    max_batch=self._settings.max_batch,
                    max_delay=self._settings.max_delay,
                    workers=self._settings.workers,
                    observer=self._metrics,
                    name=f"{self.model}-{task}",
                )
            return self._batchers[task]

    @property
    def waiting(self) -> int:
        """Images in its queues."""
        return sum(batcher.waiting for batcher in list(self._batchers.values()))

    def enter(self) -> bool:
        """Notes a user; ``False`` if it is too late."""
        with self._lock:
            if self._retired:
                return False
            self._users += 1
            return True

    def leave(self) -> None:
        """Notes that a user has gone; the last one of a retired version takes it down."""
        with self._lock:
            self._users -= 1
            over = self._retired and not self._users
        if over:
            self._close()

    def retire(self) -> None:
        """Takes no more users; goes as soon as the last one has gone."""
        with self._lock:
            self._retired = True
            over = not self._users
        if over:
            self._close()

    def _close(self) -> None:
        batchers, self._batchers = list(self._batchers.values()), {}
        for batcher in batchers:  # its threads may be busy, and whoever left last must not wait for them
            closer = threading.Thread(target=batcher.close, name=f"{self.model} closing", daemon=True)
            closer.start()
            self._closers.append(closer)
        logs.event("version retired", model=self.model, version=self.number)

    def join(self, patience: float) -> bool:
        """Waits until the threads of a retired version have ended, and says whether they have.

        Args:
            patience: Seconds for which that is waited for.
        """
        end = time.monotonic() + patience
        for closer in self._closers:
            closer.join(max(0.0, end - time.monotonic()))
        return not any(closer.is_alive() for closer in self._closers) and not self._batchers


@dataclasses.dataclass(frozen=True)
class State:
    """What is known of a version.

    Attributes:
        state: ``LOADING``, ``AVAILABLE`` or ``END``, as TensorFlow Serving calls them.
        error: Why it could not be loaded; empty if it could.
    """

    state: str
    error: str = ""


class Repository:
    """The models that are served, and the folder that they come from.

    Args:
        root: A classifier, or a folder of models.
        settings: How many versions, and how they are run.
        metrics: Told of versions that come and go.
        load: Loads a classifier; for tests.

    Attributes:
        failure: Why nothing of what was there at the start can be served; empty while that is not known, or not so.

    Raises:
        ArgumentError: The folder holds something, and no classifier. An empty one is waited for.
    """

    def __init__(
        self,
        root: Path,
        settings: ServerSettings,
        metrics: Metrics,
        load: Callable[[Path, str], Served] = Served.load,
    ):
        self.failure = ""
        self._root, self._settings, self._metrics, self._load = root, settings, metrics, load
        self._versions: dict[str, dict[int, Version]] = {}  # replaced as a whole, never changed
        self._labels: dict[str, dict[str, int]] = {}
        self._states: dict[tuple[str, int], State] = {}
        self._marks: dict[tuple[str, int], tuple[Any, ...]] = {}
        self._retired: list[Version] = []
        self._stop = threading.Event()
        self._first = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="models", daemon=True)
        self._waits = not self.scan()
        if self._waits and not folders.is_empty(root):
            raise ArgumentError(
                "a server needs a classifier that `resfit fit` wrote, or a folder of them as MODEL/ or MODEL/VERSION/. "
                f"Received: {str(root)!r}, which holds none."
            )

    def start(self) -> None:
        """Begins to load what is there, and to look for more."""
        if self._waits:
            logs.event("no models yet", level=30, folder=str(self._root))
        self._watcher.start()

    def close(self, patience: float = _PATIENCE) -> bool:
        """Ends the watching and takes every version down.

        Args:
            patience: Seconds for which threads are waited for: one that reads from a disk that does not answer, or runs
                a network, cannot be stopped.

        Returns:
            Whether all have ended.
        """
        end = time.monotonic() + patience
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(patience)
        versions, self._versions = self._versions, {}
        for by_number in versions.values():
            for version in by_number.values():
                self._retire(version)
        # a thread in the network's own code that lives on while Python ends brings the process down
        ended = [version.join(max(0.0, end - time.monotonic())) for version in self._retired]
        return all(ended) and not self._watcher.is_alive()

    def _retire(self, version: Version) -> None:
        version.retire()
        self._retired = [other for other in self._retired if not other.join(0)] + [version]

    @property
    def is_ready(self) -> bool:
        """Whether everything that was there at the start has been loaded, and something is served."""
        return self._first.is_set() and bool(self._versions)

    @property
    def models(self) -> Mapping[str, Mapping[int, Version]]:
        """The versions that are served, by model and number."""
        return self._versions

    @property
    def waiting(self) -> int:
        """Images in all queues."""
        return sum(version.waiting for found in self._versions.values() for version in found.values())

    def states(self, model: str) -> dict[int, State]:
        """Returns what is known of a model's versions, the newest first."""
        found = {number: state for (name, number), state in list(self._states.items()) if name == model}
        return dict(sorted(found.items(), reverse=True))

    def number(self, model: str, version: int | None = None, label: str | None = None) -> int:
        """Returns the version that a request means: the one it names, the one its label names, or the newest.

        Raises:
            NotServed: There is none.
        """
        found = self._versions.get(model, {})
        if label is not None:
            version = self._labels.get(model, {}).get(label)
            if version is None:
                raise NotServed
        if version is None:
            if not found:
                raise NotServed(any(state.state == LOADING for state in self.states(model).values()))
            return max(found)
        if version not in found:
            raise NotServed(self._states.get((model, version), State(END)).state == LOADING)
        return version

    @contextlib.contextmanager
    def lease(self, model: str, version: int | None = None, label: str | None = None) -> Iterator[Version]:
        """Yields a version that stays until the block ends, whatever takes its place meanwhile.

        Args:
            model: Its name.
            version: Its number; ``None`` for the newest.
            label: A name for a number, in place of it.

        Raises:
            NotServed: There is none.
        """
        while True:
            try:
                found = self._versions[model][self.number(model, version, label)]
            except KeyError:
                if model not in self._versions:
                    raise NotServed from None
                continue
            if found.enter():  # else it was replaced at this moment: the next look finds its successor
                break
        try:
            yield found
        finally:
            found.leave()

    def scan(self) -> dict[tuple[str, int], FoundModel]:
        """Returns the classifiers on disk that are to be served, by model and version."""
        if folders.is_classifier(self._root):
            mark = folders.mark_of(self._root)
            return {(self._only_name(), 1): FoundModel(self._root, mark)} if mark else {}
        found: dict[tuple[str, int], FoundModel] = {}
        for folder in folders.inside(self._root):
            if not NAME.fullmatch(folder.name):
                continue
            if folders.is_classifier(folder):
                numbered = {1: folder}
            else:
                inner = {int(sub.name): sub for sub in folders.inside(folder) if _VERSION.fullmatch(sub.name)}
                whole = sorted(number for number, sub in inner.items() if folders.is_classifier(sub))
                numbered = {number: inner[number] for number in whole[-self._settings.versions :]}
            for number, place in numbered.items():
                mark = folders.mark_of(place)
                if mark:
                    found[folder.name, number] = FoundModel(place, mark)
        return found

    def refresh(self) -> None:
        """Looks at the folder, loads what is new, and takes down what is gone or replaced."""
        found = self.scan()
        if not found:  # nothing is better than what was there: an empty disk must not end a service
            return
        self._labels = {model: folders.labels_of(self._root / model) for model, _ in found}
        new = {key: one for key, one in found.items() if self._marks.get(key) != one.mark}
        for key in new:
            if key not in self._states or self._states[key].state == END:
                self._states[key] = State(LOADING)
        for key in sorted(new, key=lambda key: (key[0], -key[1])):
            self._take(*key, new[key])
            if self._stop.is_set():
                return
        failed = {key for key in found if self._states[key].state == END}
        for model, versions in list(self._versions.items()):
            for number in list(versions):
                # an older version stays for as long as a newer one that should replace it does not work
                replaced = not any(name == model for name, _ in failed)
                if (model, number) not in found and replaced:
                    self._remove(model, number)

    def _take(self, model: str, number: int, found: FoundModel) -> None:
        self._marks[model, number] = found.mark
        try:
            served = self._load(found.folder, self._settings.engine)
            served.warm_up(self._settings.max_batch)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            serves = number in self._versions.get(model, {})
            self._states[model, number] = State(AVAILABLE, text) if serves else State(END, text)
            logs.event("version cannot be loaded", level=40, model=model, version=number, error=text)
            return
        if self._stop.is_set():  # loaded too late
            return
        version = Version(model, number, served, self._settings, self._metrics)
        version.batcher("predict")
        before = self._versions.get(model, {}).get(number)
        self._versions = {**self._versions, model: {**self._versions.get(model, {}), number: version}}
        self._states[model, number] = State(AVAILABLE)
        self._metrics.loaded(model, number, True)
        logs.event("version serves", model=model, version=number, engine=served.engine, classes=len(served.classes))
        if before is not None:
            self._retire(before)

    def _remove(self, model: str, number: int) -> None:
        left = dict(self._versions[model])
        version = left.pop(number)
        others = {name: versions for name, versions in self._versions.items() if name != model}
        self._versions = {**others, **({model: left} if left else {})}
        self._marks.pop((model, number), None)
        self._states[model, number] = State(END)
        self._metrics.loaded(model, number, False)
        self._retire(version)

    def _watch(self) -> None:
        while True:
            try:
                self.refresh()
            except Exception:
                logs.event("the folder of models cannot be looked at", level=40, exception=True)
            if self._versions:
                self._first.set()
            elif not (self._waits or self._first.is_set() or self._stop.is_set()):
                self.failure = self._hopeless()
            if self._stop.wait(self._settings.poll):
                return

    def _hopeless(self) -> str:
        """Returns why nothing can be loaded; ``""`` where something may yet, as it is still being written."""
        found = self.scan()
        if any(self._marks.get(key) != one.mark for key, one in found.items()):
            return ""
        reasons = [f"{model} version {number}: {self._states[model, number].error}" for model, number in found]
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        return "; ".join(reasons[:_MOST_REASONS]) + more

    def _only_name(self) -> str:
        if self._settings.name:
            if not NAME.fullmatch(self._settings.name):
                raise ArgumentError(
                    "the name of a model consists of letters, digits, '.', '_' and '-', at most 128. "
                    f"Received: {self._settings.name!r}."
                )
            return self._settings.name
        stem = self._root.resolve().name.removesuffix(".resfit")
        return re.sub(r"[^A-Za-z0-9._-]", "-", stem).strip("-._")[:128] or "model"
