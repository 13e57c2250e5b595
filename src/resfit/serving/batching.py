"""Images of many requests in one pass of the network: by size, and by delay where more are on their way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from resfit.serving.problems import Problem, busy

#: What a pass of the network is: images ``(height, width, channels)`` in, one result each out.
Run = Callable[[Sequence[np.ndarray]], Sequence[Any]]


class Observer(Protocol):
    """What is told how long things take, in seconds, and how large they are."""

    def stage(self, name: str, seconds: float) -> None:
        """One image has passed a stage."""

    def batch(self, images: int) -> None:
        """A batch has been run."""


class Slots:
    """Places for images that are accepted and not answered yet.

    Args:
        capacity: How many there are.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._taken = 0
        self._lock = threading.Lock()
        self._ends: deque[float] = deque(maxlen=64)  # when the last images were done

    @property
    def taken(self) -> int:
        """How many are in use."""
        return self._taken

    def take(self, count: int) -> None:
        """Takes places.

        Raises:
            Problem: There are too few of them, now (429) or ever (413).
        """
        with self._lock:
            if count > self._capacity:
                raise Problem(413, f"a request may have at most {self._capacity} images. Received: {count}.")
            if self._taken + count > self._capacity:
                raise busy(self._wait())
            self._taken += count

    def give(self) -> None:
        """Gives one place back."""
        with self._lock:
            self._taken -= 1
            self._ends.append(time.monotonic())

    def _wait(self) -> int:
        """Seconds until what is taken now is likely to be done."""
        if len(self._ends) < 2:
            return 1
        rate = len(self._ends) / max(1e-3, time.monotonic() - self._ends[0])
        return min(60, math.ceil(self._taken / rate))


@dataclasses.dataclass(eq=False)
class Work:
    """One image on its way to its result.

    Attributes:
        future: Its result. Whoever waits for it may cancel it.
        done: Called once when nothing is done for the image any more.
        image: The decoded image.
        since: When it entered the stage that it is in.
    """

    future: concurrent.futures.Future[Any]
    done: Callable[[], None]
    image: np.ndarray | None = None
    since: float = 0.0

    def succeed(self, result: Any) -> None:
        """Gives the result to whoever still waits for it."""
        if not self.future.done():
            _quietly(lambda: self.future.set_result(result))
        self.done()

    def fail(self, error: BaseException) -> None:
        """Gives an error to whoever still waits."""
        if not self.future.done():
            _quietly(lambda: self.future.set_exception(error))
        self.done()


def _quietly(give: Callable[[], None]) -> None:
    # it may be cancelled, or given up, at this very moment
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        give()


class Batcher:
    """Collects images and runs them together, in threads of its own.

    Args:
        run: Runs one batch. A batch that fails is run again image by image, so that one client's image cannot spoil
            another's answer.
        max_batch: Most images of a batch.
        max_delay: Seconds that an image waits at most for those that are on their way.
        workers: Threads.
        observer: Told of times and sizes.
        name: For the threads.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_delay: float,
        workers: int,
        observer: Observer,
        name: str = "batches",
    ):
        self._run, self._max_batch, self._max_delay, self._observer = run, max_batch, max_delay, observer
        self._waiting: deque[Work] = deque()
        self._coming = 0
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    def announce(self) -> None:
        """Says that an image is on its way: either :meth:`submit` or :meth:`miss` follows."""
        with self._changed:
            self._coming += 1

    def miss(self) -> None:
        """Says that an announced image does not come."""
        with self._changed:
            self._coming -= 1
            self._changed.notify_all()

    def submit(self, work: Work) -> None:
        """Puts an announced image into the queue."""
        work.since = time.monotonic()
        with self._changed:
            self._coming -= 1
            if self._closing:
                closed = True
            else:
                closed = False
                self._waiting.append(work)
                self._changed.notify()
        if closed:
            work.fail(Problem(503, "this version of the model is being taken down. Try again.", retry_after=1))

    def close(self) -> None:
        """Runs what is in the queue, then ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _serve(self) -> None:
        while True:
            batch = self._collect()
            if not batch:
                return
            wanted = []
            for work in batch:
                if work.future.done():  # cancelled or given up
                    work.done()
                else:
                    self._observer.stage("queue", time.monotonic() - work.since)
                    wanted.append(work)
            if wanted:
                self._answer(wanted)

    def _collect(self) -> list[Work]:
        """Returns the next images; none once there is nothing more to do."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                end = self._waiting[0].since + self._max_delay
                while self._waiting and self._coming and len(self._waiting) < self._max_batch and not self._closing:
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                if self._waiting:  # another thread may have been faster
                    return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    def _answer(self, batch: list[Work]) -> None:
        begin = time.monotonic()
        try:
            results = self._run([work.image for work in batch if work.image is not None])
        except Exception as error:
            if len(batch) > 1:
                for work in batch:
                    self._answer([work])
            else:
                batch[0].fail(error)
            return
        self._observer.batch(len(batch))
        self._observer.stage("engine", time.monotonic() - begin)
        for work, result in zip(batch, results, strict=True):
            work.succeed(result)
