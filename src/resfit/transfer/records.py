"""What was measured of images (:mod:`resfit.data.checks`), on disk under their content, whatever the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit.data import checks
from resfit.transfer.store import BYTES, FeatureStore, StoreKey

_AT_ONCE = 512


class Records:
    """The records of a cache folder. Images are measured where they are decoded; one thread adds and reads.

    Args:
        root: The cache folder.
    """

    def __init__(self, root: Path):
        described = {"format": checks.FORMAT, "name": "image statistics", "kind": "records"}
        self._store = FeatureStore(root / "features", StoreKey.of(described), checks.RECORD.itemsize, BYTES)
        self._waiting: dict[bytes, np.ndarray] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._store

    def drop_damaged(self, digests: Sequence[bytes]) -> None:
        """Forgets those of these images' records whose checksum is wrong, so that they are measured again."""
        self._store.drop_damaged(digests)

    def present(self, digests: Sequence[bytes]) -> np.ndarray:
        """Says for each image, by its SHA-256, whether its record is there: bool array ``(n,)``."""
        return self._store.find(digests) >= 0

    def add(self, digest: bytes, record: np.ndarray) -> None:
        """Adds the record of an image; it is on disk after :meth:`flush` at the latest."""
        self._waiting[digest] = record
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what was added."""
        if self._waiting:
            rows = b"".join(record.tobytes() for record in self._waiting.values())
            self._store.append(list(self._waiting), np.frombuffer(rows, np.uint8).reshape(len(self._waiting), -1))
            self._waiting.clear()

    def rows(self, digests: Sequence[bytes]) -> np.ndarray:
        """Returns records in memory, which has room for some 850 bytes an image.

        Args:
            digests: Of images whose records are there.

        Returns:
            Array ``(n,)`` of dtype :data:`resfit.data.checks.RECORD`.
        """
        return np.ascontiguousarray(self._store.rows(digests)).reshape(-1).view(checks.RECORD)
