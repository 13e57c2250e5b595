"""What a pass over images is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from resfit import engines
from resfit.data.views import Views
from resfit.features.progress import Progress

if TYPE_CHECKING:
    from resfit.data.box_views import BoxViews
    from resfit.features.pixels import DecodedPixels
    from resfit.preprocessing import InputSpec

#: Says whether a calibrated int8 network is worth it. Gets it, and what decodes some images as it takes them.
Worth: TypeAlias = "Callable[[engines.Engine, Callable[[], np.ndarray]], bool]"


@dataclasses.dataclass(frozen=True, eq=False)
class ExtractionJob:
    """The arguments of :func:`resfit.features.extract.extract`, the images as files."""

    model: Any
    files: list[Path]
    contract: InputSpec
    shape: tuple[int, ...]
    engine: str | engines.Engine
    resolved: engines.Resolved
    dtype: str
    views: Views | BoxViews | None
    threads: int | None
    batch_size: int
    progress: Progress | None
    records: bool
    thumbnails: Collection[int] = ()
    decoded: DecodedPixels | None = None
    worth: Worth | None = None

    def report(self, what: str, done: int, total: int) -> None:
        """Says how far the work is."""
        if self.progress is not None:
            self.progress(what, done, total)
