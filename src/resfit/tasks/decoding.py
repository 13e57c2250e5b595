"""The one pass of a fit in which its images are decoded and run through what is frozen."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resfit.data.dataset import ImageSet
from resfit.features.extract import Features
from resfit.features.pixels import DecodedPixels, decoded
from resfit.tasks.fit_plan import FitPlan
from resfit.tasks.preparation import UsableImages
from resfit.tasks.timings import Timings
from resfit.training import frozen, runs
from resfit.training.settings import Tuning

#: Computes features as :func:`resfit.features.extract.extract` does, of a network that is settled.
Extract = Callable[..., Features]


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedData:
    """Images after the one pass in which they are decoded.

    Attributes:
        used: Which of them can be used, and their features where they went through the network.
        precision: What the features are computed in.
        pixels: The images themselves, where a training will read them.
        prepared: Outputs of the frozen part, where nothing is probed first.
        settings: Of the fine-tuning, where they had to be chosen before the pass.
        folder: Of its run.
    """

    used: UsableImages
    precision: str
    pixels: DecodedPixels | None = None
    prepared: frozen.FrozenOutputs | None = None
    settings: Tuning | None = None
    folder: Path | None = None


def look(
    images: ImageSet,
    extract: Extract,
    choice: FitPlan,
    running: runs.RunOptions,
    journal: Timings,
    *,
    count: int,
    precision: str,
    pictured: Sequence[int],
    out: str | os.PathLike[str] | None,
) -> DecodedData:
    """Decodes the images, and runs them through as much of the network as is sure to be needed.

    Args:
        images: All of them.
        extract: Computes features.
        choice: What decides on the settings.
        running: How it is run.
        journal: Takes the reasons and the time.
        count: How many images are learned from.
        precision: What features are computed in.
        pictured: Positions of the images of which a thumbnail is kept.
        out: As :func:`resfit.fit` takes it.
    """
    if not choice.probes:
        settings, folder = choice.settings(images, count, out, running.cache, journal)
        assert settings is not None
        running = dataclasses.replace(running, thumbnails=pictured)
        prepared = frozen.prepare(choice.body, images.paths, settings, running)
        journal.lap("frozen part")
        return DecodedData(UsableImages(prepared), precision, None, prepared, settings, folder)
    shared: dict[str, Any] = {"records": running.records, "thumbnails": pictured}
    if choice.reads_pixels(images, count, journal):
        pixels = decoded(images.paths, choice.body.input_spec, running.cache, progress=running.progress, **shared)
        journal.lap("pixels")
        return DecodedData(UsableImages(pixels), precision, pixels)
    extracted = extract(images, precision=precision, **shared)
    journal.lap("features")
    return DecodedData(UsableImages(extracted, extracted.rows), extracted.precision)
