"""Images as the part of a network that learns reads them: outputs of the frozen part, computed once, or pixels."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfit import devices, engines
from resfit.data import image_statistics
from resfit.data.dataset import Skipped
from resfit.data.views import Views
from resfit.engines import speed
from resfit.features import pixels as storage
from resfit.features.extract import extract
from resfit.storage.locks import cache_root
from resfit.training import boundary, feeds, loop
from resfit.training.runs import RunOptions
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

_BATCH = 64
# bytes a second that a good disk is expected to give where rows are read in any order
_READ = 1.5e9


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
        room = _worth_reading(room, first, shape, running)
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
    return Suffix(prepared, prepared.second, len(rows), running)(rows)


def _worth_reading(
    room: storage.Storage, first: keras.Model, shape: Sequence[int], running: RunOptions
) -> storage.Storage:
    """Stores nothing where a GPU computes the frozen part's outputs faster than they are read from a disk."""
    device = devices.current()
    if not room.stored or device.kind == "cpu" or running.engine not in ("auto", "keras"):
        return room
    found = speed.forward(first, engines.resolve("keras", device=device), running.cache)
    size = math.prod(shape) * np.dtype(room.dtype).itemsize
    if size / _READ <= found.seconds:
        return room
    reason = (
        f"outputs of the frozen part are computed in every epoch: {device.label} takes {1e6 * found.seconds:.0f} us "
        f"for an image, and reading {size / 1e6:.2f} MB from a disk {1e6 * size / _READ:.0f} us"
    )
    return dataclasses.replace(room, stored=False, reason=reason)


def _views(tuning: Tuning) -> Views | None:
    """Returns the changed views that are stored beside the plain one."""
    if tuning.views < 2 or not tuning.changes_images:
        return None
    area = (tuning.crop_scale, 1.0)
    return Views(tuning.views - 1, tuning.seed, flip=tuning.flip, area=area, colour=min(tuning.colour, 0.99))


class Suffix:
    """The part of a network behind the cut, on the fastest engine, for images of a feed by position.

    Args:
        prepared: The images, and the network.
        second: The part; it may have learned meanwhile.
        images: How many will be asked for, which decides on the engine.
        running: How it is run.
    """

    def __init__(self, prepared: FrozenOutputs, second: keras.Model, images: int, running: RunOptions):
        self._feed, self._progress, self._width = prepared.feed, running.progress, second.output_shape[-1]
        if not prepared.boundary.frozen:  # the whole network, whose arithmetic is known
            second.architecture = getattr(prepared.body, "architecture", None)
        folder = Path(tempfile.mkdtemp(prefix="resfit-"))  # a network that nobody asks for again
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        name = running.engine if isinstance(running.engine, str) else "auto"  # an engine is of another part
        self._engine = engines.create(second, name, images=images, cache=folder)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns features ``(rows, features)``.

        Args:
            rows: Positions in the feed.
        """
        parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        found, done = [], 0
        with loop.prefetch(((len(part), self._feed.plain(part)) for part in parts), 2) as ready:
            for count, values in engines.stream(self._engine, ready):
                found.append(values)
                done += count
                if self._progress is not None:
                    self._progress("features", done, len(rows))
        return np.concatenate(found) if found else np.zeros((0, self._width), np.float32)
