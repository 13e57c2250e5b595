"""From the bytes of a request to answers: places in the queue, decoding, batches, time-outs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from resfit import processors
from resfit.serving import adapter
from resfit.serving.batching import Slots, Work
from resfit.serving.metrics import Metrics
from resfit.serving.problems import Problem, malformed, unusable
from resfit.serving.repository import Version
from resfit.serving.settings import ServerSettings

#: An image in a request: the bytes of a file, or an array ``(height, width, channels)``, RGB 0..255.
Source = bytes | np.ndarray

# A progressive JPEG may hold any number of scans, each of which costs as much as the whole image.
_MOST_SCANS = 100
_SCAN = b"\xff\xda"
_MOST_EXPLANATIONS = 16
_LONG = 1 << 14  # bytes of a body that are read in about a millisecond
_READERS = 2
_T = TypeVar("_T")


class Pipeline:
    """Turns images into answers, within bounds.

    Args:
        settings: The bounds.
        metrics: Told of times.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics):
        self._settings, self._metrics = settings, metrics
        self.slots = Slots(settings.queue)
        self._explanations = Slots(_MOST_EXPLANATIONS)
        self._decoders = concurrent.futures.ThreadPoolExecutor(processors.available(), "decode")
        self._explainer = concurrent.futures.ThreadPoolExecutor(1, "explain")
        self._files = concurrent.futures.ThreadPoolExecutor(_READERS, "files")
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, "read")
        self._decoding: dict[Work, float] = {}
        self._lock = threading.Lock()

    def close(self, patience: float = math.inf) -> bool:
        """Ends the threads, once what they do is done.

        Args:
            patience: Seconds for which that is waited for.

        Returns:
            Whether all have ended.
        """
        pools = (self._decoders, self._explainer, self._readers, self._files)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)

        def wait() -> None:
            for pool in pools:
                pool.shutdown()

        waiting = threading.Thread(target=wait, name="closing", daemon=True)
        waiting.start()
        waiting.join(None if patience == math.inf else patience)
        return not waiting.is_alive()

    async def run(self, version: Version, task: str, sources: Sequence[Source]) -> list[Any]:
        """Answers for every image of a request.

        Args:
            version: A leased version.
            task: ``"predict"`` or ``"embed"``.
            sources: The images.

        Returns:
            For each image its result, or the :class:`Problem` that it has.

        Raises:
            Problem: There are too many images (413), no place for them (429), or no answer in time (504).
        """
        self._check_count(len(sources))
        self.slots.take(len(sources))
        futures = [self._begin(version, task, source) for source in sources]
        try:
            async with asyncio.timeout(self._settings.timeout):
                found = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        except TimeoutError:
            raise self._late() from None
        finally:
            for future in futures:  # nobody waits any more: what has not begun does not begin
                future.cancel()
        for result in found:
            if isinstance(result, BaseException) and not isinstance(result, Problem):
                raise result
        return list(found)

    async def explain(self, version: Version, source: Source, method: str) -> adapter.ServedExplanation:
        """Explains the most probable class of one image.

        Raises:
            Problem: As :meth:`run`, or the image cannot be used.
        """

        def work() -> adapter.ServedExplanation:
            served = version.served
            image = self._array(served, source)
            return served.explain(image, method, source, self._settings.max_pixels)

        return await self._apart(work)

    async def draw(self, version: Version, source: Source, found: Any) -> bytes:
        """Returns a picture with the boxes that were found in it, as PNG.

        Raises:
            Problem: As :meth:`explain`.
        """
        served: Any = version.served
        return await self._apart(lambda: served.drawn(source, found, self._settings.max_pixels))

    async def nearest(self, version: Version, source: Source) -> list[adapter.Neighbour] | None:
        """Returns the training images nearest to one; ``None`` where none are kept."""
        served = version.served
        return await self._apart(lambda: served.nearest(self._array(served, source)))

    async def aside(self, work: Callable[[], _T], size: int = _LONG) -> _T:
        """Does what takes long beside the event loop, so that it can answer others meanwhile.

        Args:
            work: What is done, in steps of milliseconds: a thread that never lets go of Python stalls all the others.
            size: Of how many bytes; what is small is done at once.
        """
        if size < _LONG:
            return work()
        return await asyncio.wrap_future(self._readers.submit(work))

    async def from_disk(self, work: Callable[[], _T]) -> _T:
        """Reads files beside the event loop: a disk may keep a thread waiting.

        Raises:
            Problem: It does, for too long (504).
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await asyncio.wrap_future(self._files.submit(work))
        except TimeoutError:
            raise self._late() from None

    def expire(self) -> None:
        """Gives up on images whose decoding takes too long; called now and then.

        The thread itself cannot be stopped. It goes on to the end, which the bounds on pixels and scans keep near, and
        the image's place stays taken until then.
        """
        latest = time.monotonic() - self._settings.decode_timeout
        with self._lock:
            late = [work for work, begin in self._decoding.items() if begin < latest]
        for work in late:
            if not work.future.done():
                problem = unusable(f"decoding takes more than the {self._settings.decode_timeout:g} s that are allowed")
                try:
                    work.future.set_exception(problem)
                except concurrent.futures.InvalidStateError:
                    continue

    def _begin(self, version: Version, task: str, source: Source) -> concurrent.futures.Future[Any]:
        work = Work(concurrent.futures.Future(), self.slots.give, since=time.monotonic())
        batcher = version.batcher(task)
        batcher.announce()

        def prepare() -> None:
            try:
                if work.future.done():
                    raise concurrent.futures.CancelledError
                with self._lock:
                    self._decoding[work] = time.monotonic()
                try:
                    work.image = self._array(version.served, source)
                finally:
                    with self._lock:
                        del self._decoding[work]
                if work.future.done():
                    raise concurrent.futures.CancelledError
            except BaseException as error:
                batcher.miss()
                work.fail(error)
            else:
                batcher.submit(work)

        self._decoders.submit(prepare)
        return work.future

    def _array(self, served: adapter.Served, source: Source) -> np.ndarray:
        begin = time.monotonic()
        if isinstance(source, bytes):
            if source.count(_SCAN) > _MOST_SCANS and source.startswith(b"\xff\xd8"):
                raise unusable(f"a JPEG of more than {_MOST_SCANS} scans")
            image = served.decode(source, self._settings.max_pixels)
        else:
            image = served.fit(source)
        self._metrics.stage("decode", time.monotonic() - begin)
        return image

    async def _apart(self, work: Callable[[], Any]) -> Any:
        """Does what is slow and rare, one at a time."""
        self._explanations.take(1)

        def timed() -> Any:
            begin = time.monotonic()
            try:
                return work()
            finally:
                self._explanations.give()
                self._metrics.stage("explain", time.monotonic() - begin)

        future = self._explainer.submit(timed)
        future.add_done_callback(lambda done: self._explanations.give() if done.cancelled() else None)
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise self._late() from None

    def _check_count(self, count: int) -> None:
        if count < 1:
            raise malformed("a request must have at least one image. Received: none.")
        if count > self._settings.max_files:
            raise Problem(413, f"a request may have at most {self._settings.max_files} images. Received: {count}.")

    def _late(self) -> Problem:
        return Problem(504, f"no answer within {self._settings.timeout:g} s. Try again.", retry_after=1)
