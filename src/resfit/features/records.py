"""What is kept of images where they are decoded, on disk under their content, whatever the network.

Of each image what was measured of it (:mod:`resfit.data.image_statistics`), of some a thumbnail
(:mod:`resfit.data.thumbnails`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resfit.data import image_statistics, thumbnails
from resfit.features.store import BYTES, FeatureStore, StoreKey

if TYPE_CHECKING:
    from PIL.Image import Image

    from resfit.data.decode import ImageHeader, Look

_AT_ONCE = 512
# of the thumbnails; raised whenever the same file gives another one
_FORMAT = 1
#: Bytes for a thumbnail with its length; the few that are larger are not kept.
ROOM = 6144


class _Kept:
    """Rows of bytes under the digest of an image. One thread adds and reads."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self._waiting: dict[bytes, bytes] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._store

    def drop_damaged(self, digests: Sequence[bytes]) -> None:
        """Forgets those of these images' rows whose checksum is wrong, so that they are made again."""
        self._store.drop_damaged(digests)

    def present(self, digests: Sequence[bytes]) -> np.ndarray:
        """Says for each image, by its SHA-256, whether its row is there: bool array ``(n,)``."""
        return self._store.find(digests) >= 0

    def flush(self) -> None:
        """Writes what was added."""
        if self._waiting:
            rows = np.frombuffer(b"".join(self._waiting.values()), np.uint8)
            self._store.append(list(self._waiting), rows.reshape(len(self._waiting), -1))
            self._waiting.clear()

    def _add(self, digest: bytes, row: bytes) -> None:
        self._waiting[digest] = row
        if len(self._waiting) >= _AT_ONCE:
            self.flush()


class Records(_Kept):
    """The records of a cache folder.

    Args:
        root: The cache folder.
    """

    def __init__(self, root: Path):
        described = {"format": image_statistics.FORMAT, "name": "image statistics", "kind": "records"}
        super().__init__(
            FeatureStore(root / "features", StoreKey.of(described), image_statistics.RECORD.itemsize, BYTES)
        )

    def add(self, digest: bytes, record: np.ndarray) -> None:
        """Adds the record of an image; it is on disk after :meth:`flush` at the latest."""
        self._add(digest, record.tobytes())

    def rows(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns records in memory, which has room for some 850 bytes an image.

        Args:
            digests: Of images whose records are there.

        Returns:
            Array ``(n,)`` of dtype :data:`resfit.data.image_statistics.RECORD`.
        """
        return np.ascontiguousarray(self._store.rows(digests)).reshape(-1).view(image_statistics.RECORD)


class Thumbnails(_Kept):
    """The thumbnails of a cache folder.

    Args:
        root: The cache folder.
    """

    def __init__(self, root: Path):
        described = {"format": _FORMAT, "name": "thumbnails", "kind": "thumbnails", "side": thumbnails.SIDE}
        super().__init__(FeatureStore(root / "features", StoreKey.of(described), ROOM, BYTES))

    def add(self, digest: bytes, image: bytes) -> None:
        """Adds a thumbnail, unless it is empty or larger than there is room for."""
        if 0 < len(image) <= ROOM - 2:
            self._add(digest, (len(image).to_bytes(2, "little") + image).ljust(ROOM, b"\0"))

    def rows(self, digests: Sequence[bytes]) -> list[bytes]:
        """Returns thumbnails that are there.

        Args:
            digests: Of their images.
        """
        rows = [row.tobytes() for row in self._store.rows(digests)]
        return [row[2 : 2 + int.from_bytes(row[:2], "little")] for row in rows]


class DecodeStatistics:
    """Looks at images where they are decoded, which is in many threads, and keeps what is seen, which one thread does.

    Attributes:
        records: Where each image is measured, its records; else ``None``.

    Args:
        root: The cache folder.
        records: Whether each is measured.
        thumbnails: Positions of the images that get a thumbnail.
    """

    def __init__(self, root: Path, *, records: bool = False, thumbnails: Collection[int] = ()):
        self.records = Records(root) if records else None
        self._thumbnails = Thumbnails(root) if len(thumbnails) else None
        self._positions = frozenset(thumbnails)
        self._seen: deque[tuple[bytes, np.ndarray | None, bytes]] = deque()

    def drop_damaged(self, digests: Sequence[bytes]) -> None:
        """Forgets what is damaged of these images, so that they are looked at again."""
        for kept in (self.records, self._thumbnails):
            if kept is not None:
                kept.drop_damaged(digests)

    def missing(self, digests: Sequence[bytes]) -> np.ndarray:
        """Says which images must be decoded to be measured: bool array ``(n,)``. A thumbnail alone is no reason."""
        return np.zeros(len(digests), bool) if self.records is None else ~self.records.present(digests)

    def look(self, position: int, digest: bytes) -> Look | None:
        """Returns what wants to be shown an image; ``None`` where all is known.

        Args:
            position: Of the image.
            digest: SHA-256 of its bytes.
        """
        measures = self.records is not None and digest not in self.records
        pictures = self._thumbnails is not None and position in self._positions and digest not in self._thumbnails
        if not measures and not pictures:
            return None

        def look(header: ImageHeader, image: Image) -> None:
            record = image_statistics.measure(header, image) if measures else None
            self._seen.append((digest, record, thumbnails.of_decoded(header, image) if pictures else b""))

        return look

    def keep(self) -> None:
        """Takes over what was seen; all of it is on disk after :meth:`flush`."""
        while self._seen:
            digest, record, thumbnail = self._seen.popleft()
            if record is not None and self.records is not None:
                self.records.add(digest, record)
            if self._thumbnails is not None:
                self._thumbnails.add(digest, thumbnail)

    def flush(self) -> None:
        """Writes what was seen."""
        self.keep()
        for kept in (self.records, self._thumbnails):
            if kept is not None:
                kept.flush()
