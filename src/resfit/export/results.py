"""What an export came to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from resfit.export.verification import Verification


@dataclasses.dataclass(frozen=True)
class Export:
    """One export, or why there is none.

    Attributes:
        format: One of :data:`resfit.export.FORMATS`.
        precision: One of :data:`resfit.export.PRECISIONS`.
        folder: Where it stands; ``None`` if it does not.
        size: Bytes of the network's files.
        verification: How it compares with Keras; ``None`` if it was not made.
        problem: Why there is none; empty if there is.
        failed: Whether it was made and disagrees, rather than being left out.
    """

    format: str
    precision: str
    folder: Path | None = None
    size: int = 0
    verification: Verification | None = None
    problem: str = ""
    failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {
            "format": self.format,
            "precision": self.precision,
            "folder": None if self.folder is None else str(self.folder),
            "size": self.size,
            "verification": None if self.verification is None else self.verification.to_dict(),
            "problem": self.problem or None,
            "failed": self.failed,
        }
