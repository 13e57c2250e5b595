"""Features in few bits: kept where the head loses next to nothing by them, and measured as the classifier computes.

The classifier itself computes in float32. A head that has learned from features in bfloat16 or int8 must do as well on
features in float32, which the images to be measured on get in any case. Predictions on many images may be in few bits
where the classifier says the same on images that it was tested on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.data import decode, inputs
from resfit.engines import auto_precision, int8
from resfit.engines.auto_precision import AUTO
from resfit.errors import DataError
from resfit.features.extract import Features
from resfit.tasks import preparation
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.heads import base

if TYPE_CHECKING:
    from resfit.preprocessing import InputSpec

#: Most accuracy, as a share, that few bits may cost on held-out images; one image they may cost in any case.
TOLERANCE = 0.005
#: Images that are looked at where none is set aside.
_HELD_OUT = 256
#: Fewest images of a prediction whose number format is chosen.
FEWEST = 500
#: Fewest images that a classifier was tested on, on this machine, to calibrate it and compare its answers on.
LEAST_TESTED = 64
# images that are looked at first, where as few as possible shall be
_STEP = 32
_TIMED = 8  # images that a network is timed on
_MOST_TESTED = 304


class CorrectedRows:
    """Rows of which some were computed again in float32.

    Args:
        rows: Array ``(n, features)``.
        positions: Of the others.
        exact: These, ``(k, features)``.
    """

    def __init__(self, rows: np.ndarray, positions: np.ndarray, exact: np.ndarray):
        self._rows, self._exact = rows, exact
        self._place = np.full(len(rows), -1, np.int64)
        self._place[positions] = np.arange(len(positions))

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found, places = np.array(self._rows[positions]), self._place[positions]
        found[places >= 0] = self._exact[places[places >= 0]]
        return found


#: Features of images by position.
Rows = np.ndarray | CorrectedRows


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether features in few bits are kept.

    Attributes:
        kept: Whether they are.
        rows: All rows: those of the held-out images in float32, and where few bits are not kept the others too.
        narrow: Accuracy on held-out images, by their features in few bits, 0..1.
        exact: The same by their features in float32.
        text: In words.
    """

    kept: bool
    rows: Rows
    narrow: float
    exact: float
    text: str


def judge(
    data: TrainingData,
    head: base.Head,
    rows: np.ndarray,
    precision: str,
    exact_of: Callable[[np.ndarray], Features],
) -> Verdict:
    """Computes features of held-out images in float32 and compares what a head says of both.

    Args:
        data: The images. Test images are looked at, or where there are none some of the others.
        head: What has learned from ``rows``.
        rows: Features in few bits ``(n, features)``.
        precision: What they are in.
        exact_of: Computes features of images by position in float32.

    Raises:
        DataError: An image cannot be read any more.
    """
    held = data.parts.test
    if not len(held):
        held = np.unique(np.linspace(0, len(rows) - 1, min(_HELD_OUT, len(rows))).round().astype(np.int64))
    exact = _exactly(exact_of, held)
    narrow, wide = (_accuracy(data, head.logits(some), held) for some in (rows[held], exact))
    text = (
        f"accuracy on {len(held)} held-out images {narrow:.1%} by features in {precision}, {wide:.1%} by those in "
        "float32, in which the classifier computes"
    )
    tolerance = max(TOLERANCE, 1 / len(held))  # a single image says nothing
    kept = wide >= narrow - tolerance - 1e-9
    end = "" if kept else f": it may cost at most {TOLERANCE:.1%}, or a single image, so all are computed in float32"
    right = CorrectedRows(rows, held, exact) if kept else _exactly(exact_of, np.arange(len(rows)))
    return Verdict(kept, right, narrow, wide, text + end)


def judge_briefly(
    data: TrainingData,
    head: base.Head,
    rows: np.ndarray,
    precision: str,
    exact_of: Callable[[np.ndarray], Features],
    most: int,
    seed: int = 0,
) -> Verdict:
    """Decides as :func:`judge` does, on as few images in float32 as it takes.

    An image is right where its margin is positive: the logit of its class less the largest of the others. On images in
    a random order both margins are computed; their differences, put on the margins of all held-out images by features
    in few bits, give the accuracy that float32 would have, with its standard error. It ends as soon as the drop is
    below or above what is allowed by two of these.

    Args:
        data: As :func:`judge` takes it.
        head: As :func:`judge` takes it.
        rows: As :func:`judge` takes them.
        precision: As :func:`judge` takes it.
        exact_of: As :func:`judge` takes it.
        most: Most images in float32; where they do not decide it, the estimate does.
        seed: Of the order.

    Returns:
        The verdict; its rows are in float32 for the images that were looked at, where few bits are kept.

    Raises:
        DataError: As :func:`judge`.
    """
    held = data.parts.test
    if not len(held):
        held = np.unique(np.linspace(0, len(rows) - 1, min(_HELD_OUT, len(rows))).round().astype(np.int64))
    margins = _margins(data.targets[held], head.logits(rows[held]), multilabel=data.multilabel)
    narrow = float((margins > 0).mean())
    tolerance = max(TOLERANCE, 1 / len(held))
    order = np.random.default_rng(seed).permutation(len(held))[: max(_STEP, most)]
    exact, wide, kept = np.zeros((0, rows.shape[1]), np.float32), narrow, True
    end = 0
    while end < len(order):
        begin, end = end, min(len(order), max(_STEP, 2 * end))
        exact = np.concatenate([exact, _exactly(exact_of, held[order[begin:end]])])
        found = _margins(data.targets[held[order[:end]]], head.logits(exact), multilabel=data.multilabel)
        shifts = found - margins[order[:end]]
        if end == len(held):  # nothing is left to estimate
            wide, error = float((found > 0).mean()), 0.0
        else:
            each = np.array([(margins + shift > 0).mean() for shift in shifts])
            wide, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
        drop = narrow - wide
        kept = drop <= tolerance + 1e-9
        if drop + 2 * error <= tolerance or drop - 2 * error > tolerance:
            break
    text = (
        f"accuracy on {len(held)} held-out images {narrow:.1%} by features in {precision}, {wide:.1%} by those in "
        f"float32, in which the classifier computes, as {end} of them tell"
    )
    if kept:
        return Verdict(True, CorrectedRows(rows, held[order[:end]], exact), narrow, wide, text)
    text += f": it may cost at most {TOLERANCE:.1%}, or a single image, so all are computed in float32"
    return Verdict(False, _exactly(exact_of, np.arange(len(rows))), narrow, wide, text)


def predicting(
    classifier: Any,
    sources: inputs.Sources,
    precision: str,
    *,
    engine: str = "auto",
    views: int = 1,
    say: Callable[[str], None] | None = None,
) -> engines.Engine | None:
    """Returns what computes the features of many images in fewer bits; ``None`` for float32 as always.

    With ``"auto"`` fewer bits are taken where the whole run is expected to end sooner by them, and where the classifier
    says the same by them on images that it was tested on: as many as decide it, for at most 5 % of the run. Where less
    than 64 of these are on this machine, or less than 500 images are to be predicted, it is float32.

    Args:
        classifier: A :class:`resfit.Classifier`.
        sources: The images.
        precision: As :func:`resfit.engines.create` takes it, or ``"auto"``.
        engine: As :func:`resfit.engines.create` takes it.
        views: Views of each image.
        say: Gets a sentence on what ``"auto"`` has chosen.

    Raises:
        ArgumentError: The precision is unknown, or the engine does not have it.
    """
    if precision == "float32":
        return None
    network, count = classifier.network(), len(sources) * views
    if precision != AUTO:
        places = np.unique(np.linspace(0, len(sources) - 1, min(int8.SAMPLES, len(sources))).round().astype(int))

        def samples() -> np.ndarray:
            return _pixels([sources.items[place] for place in places], classifier.input_spec)

        return engines.create(network, engine, images=count, precision=precision, samples=samples)
    files = _tested_files(classifier) if count >= FEWEST and auto_precision.candidates() else []
    if len(files) < LEAST_TESTED:
        return None
    say = say or (lambda text: None)
    few = lambda: _pixels(sources.items[:_TIMED], classifier.input_spec)  # noqa: E731
    choice = auto_precision.choose(network, count, few, engine=engine)
    if choice.precision == "float32":
        if choice.line:
            say(choice.line)
        return None
    exact = engines.create(network, "openvino")
    calibrating, checking = files[: min(int8.SAMPLES, len(files) // 2)], files[min(int8.SAMPLES, len(files) // 2) :]
    images = _pixels(calibrating, classifier.input_spec)
    running = engines.create(network, "openvino", precision=choice.precision, samples=images)
    if running.precision != choice.precision:  # which a warning has said
        return None
    if running.precision == "int8" and not auto_precision.worth(network, choice, say)(running, lambda: images[:_TIMED]):
        return None
    fine, text = same_answers(classifier, exact, running, checking, choice.most_checked // 2)
    taken = choice.precision if fine else "float32"
    other = "float32" if fine else choice.precision
    say(f"predictions in {taken}: {choice.reason}; {text} (--precision {other} changes it)")
    return running if fine else None


def same_answers(
    classifier: Any, exact: engines.Engine, running: engines.Engine, files: Sequence[Path], most: int
) -> tuple[bool, str]:
    """Says whether a classifier answers the same in fewer bits, on as few files as it takes.

    The margin of an image is the logit of its class in float32 less the largest of the others. The changes of the
    margins of files that were looked at, put on the margins of all of these, estimate the share of answers that change.
    It ends as soon as that is above or below what is allowed by two standard errors.

    Args:
        classifier: A :class:`resfit.Classifier`.
        exact: Its network without the head in float32.
        running: The same in fewer bits.
        files: Images in random order.
        most: Most of them to look at, or 32.

    Returns:
        Whether they are the same but for half a point, or a single image; and that in words.
    """
    head, multilabel = classifier.head(), classifier.recipe.multilabel
    tolerance, margins, shifts, share, looked = max(TOLERANCE, 1 / len(files)), [], [], 0.0, 0
    while looked < min(len(files), max(_STEP, most)):
        images = _pixels(files[looked : looked + _STEP], classifier.input_spec)
        one, other = (head.logits(engine.run(images)) for engine in (exact, running))
        said = one > 0 if multilabel else np.eye(one.shape[1])[one.argmax(axis=1)]
        margins.append(_margins(said, one, multilabel=multilabel))
        shifts.append(_margins(said, other, multilabel=multilabel) - margins[-1])
        looked += _STEP
        known, changes = np.concatenate(margins), np.concatenate(shifts)
        each = np.array([(known + change <= 0).mean() for change in changes])
        share, error = float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))
        if share + 2 * error <= tolerance or share - 2 * error > tolerance:
            break
    changed = int((known + changes <= 0).any(axis=1).sum())
    fine = share <= tolerance and changed <= max(1, TOLERANCE * len(known))
    answers = "the same answers" if changed == 0 else f"{len(known) - changed} of {len(known)} answers the same"
    return fine, f"{answers} on {len(known)} images that it was tested on"


def _tested_files(classifier: Any) -> list[Path]:
    """Returns files that a classifier was tested on and that are on this machine, in random order."""
    table = preparation.tested(classifier.attachment(artifact.TEST_PREDICTIONS))
    files = [path for path, _ in table if path.is_file()]
    return [files[place] for place in np.random.default_rng(0).permutation(len(files))[:_MOST_TESTED]]


def _pixels(items: Sequence[Any], contract: InputSpec) -> np.ndarray:
    """Returns those of some images that can be used, as the network takes them."""
    found = [batch.images for batch in decode.decode_many(list(items), contract, batch_size=max(1, len(items)))]
    return np.concatenate(
        [batch for batch in found if len(batch)] or [np.zeros((0, *contract.size, contract.channels))]
    )


def _margins(targets: np.ndarray, logits: np.ndarray, *, multilabel: bool) -> np.ndarray:
    """Returns by how much each image is on the right side, ``(n, 1)``, or each of its labels, ``(n, labels)``."""
    if multilabel:
        return np.asarray(logits * np.where(targets > 0.5, 1, -1))
    true = targets.argmax(axis=1)
    rows = np.arange(len(logits))
    others = np.array(logits, np.float64)
    own = others[rows, true].copy()
    others[rows, true] = -np.inf
    return np.asarray((own - others.max(axis=1))[:, None])


def _exactly(exact_of: Callable[[np.ndarray], Features], positions: np.ndarray) -> np.ndarray:
    found = exact_of(positions)
    if found.skipped:
        raise DataError(f"images changed while they were read, such as {found.skipped[0].path}. Start again.")
    return np.asarray(found.rows)


def _accuracy(data: TrainingData, logits: np.ndarray, positions: np.ndarray) -> float:
    targets = data.targets[positions]
    if data.multilabel:
        return float(((logits > 0) == (targets > 0.5)).mean())
    return float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())
