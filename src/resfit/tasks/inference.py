"""Images through a fitted model's network, up to what its head reads: the one path of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.data import inputs
from resfit.features import extract as feature_store
from resfit.training.augment import prediction_views

if TYPE_CHECKING:
    from resfit.features.progress import Progress
    from resfit.tasks.base import FittedModel

_FIRST = 4  # images that engines are compared on
_MANY = 256  # images from which an engine of its own may be worth it


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Some images, in order.

    Attributes:
        paths: Their files; ``None`` for an array.
        usable: Positions among these of the images that could be used.
        rows: For each view of them, the features ``(usable, features)``.
        errors: By position among ``paths`` why an image could not be used.
        first: A few of the images that could be used, as the network takes them; ``None`` where there are none.
    """

    paths: list[Path | None]
    usable: np.ndarray
    rows: list[np.ndarray]
    errors: dict[int, str]
    first: np.ndarray | None = None


class BodyRunner:
    """Runs images through the network of a fitted model, without its head.

    Args:
        fitted: The fitted model.
    """

    def __init__(self, fitted: FittedModel):
        self._fitted = fitted
        self._engines: dict[tuple[str, bool], engines.Engine] = {}

    def batches(
        self,
        images: Any,
        engine: str | engines.Engine = "auto",
        batch_size: int | None = None,
        progress: Progress | None = None,
        views: int = 1,
    ) -> Iterator[FeatureBatch]:
        """Yields features, some images at a time.

        Args:
            images: As :func:`resfit.data.inputs.listed` takes them.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            views: Views of each image, 1 to 10.
        """
        contract = self._fitted.input_spec
        sources = inputs.listed(images, contract)
        count, paths, done = len(sources), sources.paths, 0
        running = self._engine(engine, count * views)
        size = batch_size or feature_store.default_batch_size(contract.size, getattr(running, "device", None))
        for batch in inputs.batches(sources, contract, size):
            errors = dict(batch.failures)
            rows = []
            if len(batch.indices):
                rows = [running.run(view) for view in prediction_views(batch.images, views)]
            end = max([*batch.indices.tolist(), *errors]) + 1
            yield FeatureBatch(
                paths[done:end],
                np.asarray(batch.indices) - done,
                rows,
                {index - done: text for index, text in errors.items()},
                batch.images[:_FIRST] if rows else None,
            )
            done = end
            if progress is not None:
                progress("network", done, count)

    def _engine(self, engine: str | engines.Engine, images: int) -> engines.Engine:
        if not isinstance(engine, str):
            return engines.create(self._fitted.network(), engine, images=images)
        many = images > _MANY
        if (engine, many) not in self._engines:
            self._engines[engine, many] = engines.create(self._fitted.network(), engine, images=images)
        return self._engines[engine, many]
