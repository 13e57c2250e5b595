"""What is wrong with a set of images, before a classifier learns it: found from records, features and labels.

Everything here works on what a pass over the images has left behind; no image is read again.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import dependencies, processors
from resfit.data import image_statistics
from resfit.data.medical import privacy
from resfit.errors import ArgumentError, DataError
from resfit.features import extract as feature_store
from resfit.wording import counted

if TYPE_CHECKING:
    import keras

    from resfit.data.dataset import ImageSet, Skipped

#: Share of near duplicates among the test images from which on they stop a fit. A single exact copy does.
LEAK_SHARE = 0.005
#: Images of a class against those of the largest from which on a set is called unbalanced.
IMBALANCE = 5.0
#: Share of the listed labels that really were wrong, where 5 % of a set's labels had been made so
#: (``benchmarks/checks.py``): on Fashion-MNIST, and on CIFAR-10, whose classes the features tell less well.
LABEL_PRECISION = (0.81, 0.37)
#: How to find label errors.
LABEL_METHODS = ("ridge", "cleanlab")

_PROBED = 5000
_LEAST_PROBED = 50
_LABELS_PROBED = 20  # labels that shortcuts are looked for of, where an image may have several
_DOUBT = 0.05  # of what a class gets on average from its own images
_STRONG = 0.5  # of the way from chance to certainty
_KINDS = {"exact": "an exact copy", "near": "a near duplicate"}
_RIDGES = tuple(float(value) for value in np.logspace(-4, 2, 7))


@dataclasses.dataclass(frozen=True)
class LabelError:
    """An image whose label is worth a look: other images speak for another class.

    It is no verdict. Where 5 % of all labels were wrong, 37 to 81 % of those listed were (:data:`LABEL_PRECISION`);
    where all are right, none of them is wrong.

    Attributes:
        position: Which image.
        label: Its class, as an index; where an image may have several labels, the label that is in question.
        suggested: The class that the other images speak for; with several labels the same label.
        probability: That of its own class, or of having or not having the label as it does, from a classifier that has
            not seen it.
        has: With several labels an image, whether it has the label; ``None`` for one class an image.
    """

    position: int
    label: int
    suggested: int
    probability: float
    has: bool | None = None

    def texts(self, names: Sequence[str]) -> tuple[str, str]:
        """Returns what is stated and what is suggested, in words.

        Args:
            names: Of the classes.
        """
        if self.has is None:
            return names[self.label], names[self.suggested]
        name = names[self.label]
        return (name, f"not {name}") if self.has else (f"not {name}", name)


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """How well something that is not the picture tells the classes.

    Attributes:
        cue: What: ``"file size"``, ``"image size"``, ``"metadata"``, ``"mean colour"`` or ``"border"``.
        accuracy: Cross-validated balanced accuracy of a small classifier that sees this alone, 0..1.
        interval: 95 % interval of it.
        chance: What guessing gives.
        given_away: Classes, as indices, that it tells from all others with precision and recall of at least 0.9.
        label: With several labels an image, the one that it tells images with from those without.
    """

    cue: str
    accuracy: float
    interval: tuple[float, float]
    chance: float
    given_away: tuple[int, ...] = ()
    label: int | None = None

    @property
    def above_chance(self) -> bool:
        """Whether it tells more than guessing does."""
        return self.interval[0] > self.chance

    @property
    def strong(self) -> bool:
        """Whether a classifier may learn it in place of the picture."""
        reach = self.chance + _STRONG * (1 - self.chance)
        return self.above_chance and (self.interval[0] > reach or bool(self.given_away))


@dataclasses.dataclass(frozen=True, eq=False)
class Checks:
    """What was found. All positions are those of ``images``.

    Attributes:
        images: The images that could be read.
        exact: Groups of files with the same bytes.
        near: Pairs of images that show the same and are no exact copies, int64 ``(n, 2)``.
        leaks: Images in both training and test set: ``(test, other, "exact" or "near")``.
        conflicts: Pairs of duplicates with different labels.
        looks: Blank, dark, bright, blurred and odd-sized images.
        marks: The same small picture on many images of one class.
        shortcuts: What else tells the classes.
        label_errors: Images whose label is worth a look, the most doubtful first.
        probed: With several labels an image, the labels that shortcuts were looked for of: those of most images.
        skipped: Images that could not be read.
        ignored: Number of files that each rule left out.
        leak_effect: Accuracy on all test images, and on those that do not leak; ``None`` where it was not measured.
        not_run: Checks that were not run, each with the reason: ``"leaks"``, ``"label_errors"``, ``"shortcuts"``.
    """

    images: ImageSet
    exact: tuple[tuple[int, ...], ...]
    near: np.ndarray
    leaks: tuple[tuple[int, int, str], ...]
    conflicts: tuple[tuple[int, int], ...]
    looks: image_statistics.ImageIssues
    marks: tuple[image_statistics.Mark, ...]
    shortcuts: tuple[Shortcut, ...]
    label_errors: tuple[LabelError, ...]
    skipped: tuple[Skipped, ...] = ()
    leak_effect: tuple[float, float] | None = None
    probed: tuple[int, ...] | None = None
    ignored: dict[str, int] = dataclasses.field(default_factory=dict)
    not_run: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the source, with the argument that changes it."""
        return self.images.notes

    @property
    def imbalance(self) -> float:
        """Images of the largest class for one of the smallest."""
        counts = [count for count in self.images.counts().values() if count]
        return max(counts) / min(counts) if counts else 1.0

    @property
    def stops(self) -> bool:
        """Whether so many test images are in the training set too that their accuracy says little of new images."""
        near = {test for test, _, kind in self.leaks if kind == "near"}
        tested = sum(split == "test" for split in self.images.splits)
        return any(kind == "exact" for *_, kind in self.leaks) or len(near) > LEAK_SHARE * tested

    def measured_leaks(self, test: np.ndarray, right: np.ndarray) -> Checks:
        """Returns the same with what the leaks do to the accuracy.

        Args:
            test: Positions of the test images.
            right: For each whether it was told right.
        """
        clean = ~np.isin(test, [position for position, *_ in self.leaks])
        if clean.all() or not clean.any():
            return self
        return dataclasses.replace(self, leak_effect=(float(right.mean()), float(right[clean].mean())))

    def require_no_leaks(self) -> None:
        """Stops where the test images tell too little of new ones.

        Raises:
            DataError: There are too many leaks; the text says what they do to the accuracy.
        """
        if not self.stops:
            return
        leaked = {test: (other, kind) for test, other, kind in self.leaks}
        tested = sum(split == "test" for split in self.images.splits)
        test, (other, kind) = min(leaked.items(), key=lambda item: item[1][1] != "exact")
        effect = f"it can raise the accuracy by up to {100 * len(leaked) / tested:.1f} points"
        if self.leak_effect is not None:
            whole, clean = self.leak_effect
            effect = f"with them a probe is right on {whole:.1%} of the test images, without them on {clean:.1%}"
        raise DataError(
            f"{len(leaked)} of {counted(tested, 'test image')} are in the training set too, such as "
            f"{self.name(test)}, {_KINDS[kind]} of {self.name(other)}; {effect}. `resfit check` lists "
            "them: remove them, or pass --allow-leakage (allow_leakage=True)."
        )

    def name(self, position: int) -> str:
        """Returns what is written for an image: its path below the folder, or its pseudonym in a medical set.

        Args:
            position: Of the image.
        """
        root, path = self.images.root, privacy.shown(self.images, self.images.paths[position])
        return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)

    def findings(self) -> list[str]:
        """Returns what a person should look at, one sentence each."""
        names = self.images.classes
        copies = sum(len(group) - 1 for group in self.exact)
        leaked = len({test for test, *_ in self.leaks})
        pairs, conflicts, doubtful = len(self.near), len(self.conflicts), len(self.label_errors)
        largest, smallest = ("largest class", "smallest")
        if self.images.multilabel:
            largest, smallest = "most frequent label", "rarest"
        found = [
            (copies, counted(copies, "exact copy of another image", "exact copies of other images")),
            (pairs, counted(pairs, "pair of near duplicates", "pairs of near duplicates")),
            (leaked, counted(leaked, "image in both training and test set", "images in both training and test set")),
            (
                conflicts,
                counted(
                    conflicts, "pair of duplicates with different labels", "pairs of duplicates with different labels"
                ),
            ),
            (doubtful, f"{counted(doubtful, 'label', 'labels')} worth a look ({label_precision()})"),
            *((len(at), counted(len(at), f"{name} image")) for name, at in vars(self.looks).items()),
            (
                self.imbalance > IMBALANCE,
                f"the {largest} has {self.imbalance:.0f} times as many images as the {smallest}",
            ),
            *(
                (1, f"the same mark is on {len(mark.positions)} images, most of class {names[mark.label]!r}")
                for mark in self.marks
            ),
            *((shortcut.strong, self._sentence(shortcut)) for shortcut in self.shortcuts),
        ]
        return [text for number, text in found if number]

    def _sentence(self, shortcut: Shortcut) -> str:
        low, high = shortcut.interval
        what = "the class" if shortcut.label is None else f"the label {self.images.classes[shortcut.label]!r}"
        text = (
            f"the {shortcut.cue} alone tells {what} with {shortcut.accuracy:.0%} balanced accuracy "
            f"({low:.0%} to {high:.0%}; chance {shortcut.chance:.0%})"
        )
        if shortcut.given_away:
            names = ", ".join(repr(self.images.classes[label]) for label in shortcut.given_away[:5])
            text += f"; it gives away {names}"
        return text

    def to_dict(self, most: int | None = 20) -> dict[str, Any]:
        """Returns everything as JSON-ready values.

        Args:
            most: Entries of each list; ``None`` is all.
        """
        names, name = self.images.classes, self.name
        found = {
            "found": len(self.images) + len(self.skipped) + sum(self.ignored.values()),
            "images": len(self.images),
            "skipped": len(self.skipped),
            "ignored": self.ignored,
            "findings": self.findings(),
            "classes": self.images.counts(),
            "imbalance": self.imbalance,
            "exact_duplicates": _listed([[name(place) for place in group] for group in self.exact], most),
            "near_duplicates": _listed([[name(a), name(b)] for a, b in self.near.tolist()], most),
            "leaks": _listed(
                [{"test": name(test), "other": name(other), "kind": kind} for test, other, kind in self.leaks], most
            ),
            "leak_effect": None if self.leak_effect is None else list(self.leak_effect),
            "conflicting_labels": _listed([[name(a), name(b)] for a, b in self.conflicts], most),
            "label_errors": _listed(
                [
                    {
                        "path": name(item.position),
                        **dict(zip(("label", "suggested"), item.texts(names), strict=True)),
                        "probability": item.probability,
                    }
                    for item in self.label_errors
                ],
                most,
            ),
            **{key: _listed([name(place) for place in at], most) for key, at in vars(self.looks).items()},
            "marks": [
                {
                    "class": names[mark.label],
                    "box": list(mark.box),
                    **_listed([name(place) for place in mark.positions], most),
                }
                for mark in self.marks
            ],
            "shortcuts": [
                {
                    "cue": item.cue,
                    "balanced_accuracy": item.accuracy,
                    "interval": list(item.interval),
                    "chance": item.chance,
                    "above_chance": item.above_chance,
                    "strong": item.strong,
                    "gives_away": [names[label] for label in item.given_away],
                    **({} if item.label is None else {"label": names[item.label]}),
                }
                for item in self.shortcuts
            ],
            **({} if self.probed is None else {"shortcuts_of_labels": [names[label] for label in self.probed]}),
            "not_run": self.not_run,
        }
        for key in self.not_run:  # what was not computed is not reported as zero
            found[key] = None if key == "shortcuts" else {"count": None, "items": []}
        return found


def _listed(items: list[Any], most: int | None) -> dict[str, Any]:
    return {"count": len(items), "items": items[:most]}


def check(
    body: keras.Model,
    images: ImageSet,
    *,
    label_method: str = "ridge",
    seed: int = 0,
    **options: Any,
) -> Checks:
    """Checks a set of images; each is read and decoded once, or not at all where that was done before.

    Args:
        body: A network that gives one vector an image.
        images: The set.
        label_method: How to find label errors: ``"ridge"`` or ``"cleanlab"``.
        seed: Of the folds.
        **options: Further options of :func:`resfit.features.extract.extract`.

    Raises:
        MissingDependencyError: cleanlab is asked for and not installed.

    Example:
        >>> body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
        >>> check(body, scan("photos/")).findings()
        ['3 exact copies of other images']
    """
    check_label_method(label_method)
    found = feature_store.extract(body, images, records=True, **options)
    kept = images.subset(found.indices)
    same = duplicates(found.digests, found.records, np.asarray(found.rows))
    checked = examine(
        kept,
        np.asarray(found.rows),
        found.records,
        same,
        label_method=label_method,
        seed=seed,
        skipped=(*images.skipped, *found.skipped),
    )
    return dataclasses.replace(checked, ignored=images.ignored_counts())


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Images that are there more than once.

    Attributes:
        exact: Groups of files with the same bytes, as positions.
        near: Pairs that show the same and are no exact copies, int64 ``(n, 2)``.
    """

    exact: tuple[tuple[int, ...], ...]
    near: np.ndarray

    def pairs(self) -> list[tuple[int, int, str]]:
        """Returns all pairs, with ``"exact"`` or ``"near"``; of a group each with the first."""
        found = [(group[0], other, "exact") for group in self.exact for other in group[1:]]
        return found + [(int(a), int(b), "near") for a, b in self.near]

    def groups(self, count: int) -> np.ndarray:
        """Returns for each of so many images the number of its group; alone it is a group of its own."""
        return _components([(a, b) for a, b, _ in self.pairs()], count)


def duplicates(digests: Sequence[str], records: np.ndarray, features: np.ndarray | None = None) -> Duplicates:
    """Finds images that are there more than once.

    Args:
        digests: SHA-256 of each file.
        records: What was measured of each.
        features: Array ``(n, features)``; ``None`` does without.
    """
    _, first, inverse = np.unique(np.asarray(digests, dtype=np.str_), return_index=True, return_inverse=True)
    members: dict[int, list[int]] = {}
    for position, number in enumerate(inverse.tolist()):
        members.setdefault(number, []).append(position)
    exact = tuple(sorted(tuple(group) for group in members.values() if len(group) > 1))
    first = np.sort(first)
    rows = None if features is None else features[first]
    with processors.blas_threads(records.nbytes):
        return Duplicates(exact, first[image_statistics.near_duplicates(records[first], rows)])


def examine(
    images: ImageSet,
    features: np.ndarray,
    records: np.ndarray,
    same: Duplicates,
    *,
    label_method: str = "ridge",
    seed: int = 0,
    skipped: Sequence[Skipped] = (),
) -> Checks:
    """Finds what else is wrong with a set.

    Args:
        images: Images that could be read.
        features: Array ``(n, features)``; with no columns, what needs features is left out.
        records: Array ``(n,)`` of dtype :data:`resfit.data.image_statistics.RECORD`.
        same: Images that are there more than once.
        label_method: As :func:`check` takes it.
        seed: Of the folds.
        skipped: Passed on.
    """
    labels: np.ndarray = images.labels if images.targets is None else images.targets
    splits, probed = images.splits, None
    groups = same.groups(len(images))
    pairs = same.pairs()
    if images.targets is None:
        found = shortcuts(records, labels, groups, seed)
    else:
        probed = tuple(np.argsort(-labels.sum(axis=0), kind="stable")[:_LABELS_PROBED].tolist())
        found = [
            dataclasses.replace(item, label=label)
            for label in probed
            for item in shortcuts(records, labels[:, label].astype(np.int64), groups, seed)
        ]
    return Checks(
        images=images,
        exact=same.exact,
        near=same.near,
        leaks=leaks_between(same, splits),
        conflicts=tuple((a, b) for a, b, _ in pairs if _differ(labels[a], labels[b])),
        looks=image_statistics.image_issues(records),
        marks=tuple(image_statistics.marks(records, labels, len(images.classes))),
        shortcuts=tuple(found),
        label_errors=tuple(label_errors(features, labels, method=label_method, seed=seed)),
        skipped=tuple(skipped),
        probed=probed,
        not_run=_not_run(features, labels, groups, splits),
    )


def _not_run(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, splits: Sequence[str | None]
) -> dict[str, str]:
    """Returns the checks that this set does not allow, each with the reason."""
    found = {}
    if "test" not in splits:
        found["leaks"] = "the data states no test set"
    if reason := _too_little_for_label_errors(features, labels):
        found["label_errors"] = reason
    columns = labels.T.astype(np.int64) if labels.ndim == 2 else labels[None]
    if all(not len(_probed(own, groups)) for own in columns):
        found["shortcuts"] = f"fewer than {_LEAST_PROBED} images of at least two classes with 5 images each"
    return found


def _too_little_for_label_errors(features: np.ndarray, labels: np.ndarray) -> str:
    if not features.shape[1]:
        return "no features were computed"
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        usable = ((counts >= 3) & (counts <= len(labels) - 3)).any()
        return "" if usable else "no label has 3 images with it and 3 without it"
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    if len(counts) < 2:
        return "fewer than two classes"
    return "a class has fewer than 3 images" if counts.min() < 3 else ""


def _probed(labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the positions of the images that shortcuts are looked for on; none where there are too few."""
    some = np.unique(groups, return_index=True)[1]
    some = some[labels[some] >= 0]
    some = np.sort(np.random.default_rng(seed).permutation(some)[:_PROBED])
    known, counts = np.unique(labels[some], return_counts=True)
    some = some[np.isin(labels[some], known[counts >= 5])]
    return some if len(some) >= _LEAST_PROBED and len(np.unique(labels[some])) > 1 else some[:0]


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Says whether two images have different classes or labels; one without a class differs from none."""
    return bool((one != other).any()) if np.ndim(one) else bool(one != other and min(one, other) >= 0)


def leaks_between(same: Duplicates, splits: Sequence[str | None]) -> tuple[tuple[int, int, str], ...]:
    """Returns images in both training and test set: ``(test, other, "exact" or "near")``.

    Args:
        same: Images that are there more than once.
        splits: For each image its split.
    """
    return tuple(_leaks(same.groups(len(splits)), splits, same.pairs()))


def _leaks(
    groups: np.ndarray, splits: Sequence[str | None], pairs: Sequence[tuple[int, int, str]]
) -> list[tuple[int, int, str]]:
    """Returns test images with an image for training in their group: the closest one that is known."""
    tested = np.array([split == "test" for split in splits])
    exact = {frozenset((a, b)) for a, b, kind in pairs if kind == "exact"}
    digest_of = {position: min(pair) for pair in exact for position in pair}
    trained: dict[int, list[int]] = {}
    for position in np.flatnonzero(~tested):
        trained.setdefault(int(groups[position]), []).append(int(position))
    found = []
    for test in np.flatnonzero(tested).tolist():
        others = trained.get(int(groups[test]), [])
        copies = [other for other in others if digest_of.get(other, -1) == digest_of.get(test, -2)]
        if others:
            found.append((test, (copies or others)[0], "exact" if copies else "near"))
    return found


def shortcuts(records: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> list[Shortcut]:
    """Measures how well the labels can be told from file size, image size, metadata, mean colour and border alone.

    A small classifier is cross-validated on each, on at most 5,000 images, of duplicates the first. What is the same
    for all images is left out.

    Args:
        records: Array ``(n,)`` of dtype :data:`resfit.data.image_statistics.RECORD`.
        labels: Classes as indices; -1 for none.
        groups: Images of one number are duplicates.
        seed: Of the folds.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold
    from sklearn.tree import DecisionTreeClassifier

    some = _probed(labels, groups, seed)
    truth = labels[some]
    known = np.unique(truth)
    if not len(some):
        return []
    found = []
    for cue, columns in image_statistics.cues(records[some]).items():
        columns = columns[:, np.ptp(columns, axis=0) > 0]
        if not columns.shape[1]:
            continue
        if columns.shape[1] > 8:
            model: Any = LinearDiscriminantAnalysis(
                solver="lsqr", shrinkage="auto", priors=np.full(len(known), 1 / len(known))
            )
        else:
            leaf = max(3, len(some) // 500)
            model = DecisionTreeClassifier(max_depth=10, min_samples_leaf=leaf, class_weight="balanced", random_state=0)
        guesses = np.full(len(some), -1)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        with warnings.catch_warnings(), processors.blas_threads(columns.size):
            warnings.simplefilter("ignore")
            for train, test in folds.split(columns, truth):
                guesses[test] = model.fit(columns[train], truth[train]).predict(columns[test])
        found.append(_shortcut(cue, truth, guesses, known))
    return found


def _shortcut(cue: str, truth: np.ndarray, guesses: np.ndarray, known: np.ndarray) -> Shortcut:
    recalls, variance, given_away = [], 0.0, []
    for label in known:
        own, called = truth == label, guesses == label
        hits, count = int((own & called).sum()), max(1, int(own.sum()))
        recalls.append(hits / count)
        share = (hits + 1) / (count + 2)
        variance += share * (1 - share) / count
        if hits >= 0.9 * count and hits >= 0.9 * called.sum() and count >= 20:
            given_away.append(int(label))
    accuracy = float(np.mean(recalls))
    half = 1.96 * float(np.sqrt(variance)) / len(known)
    interval = max(0.0, accuracy - half), min(1.0, accuracy + half)
    # two classes that are told apart are one finding for the set, not for one class
    return Shortcut(cue, accuracy, interval, 1 / len(known), tuple(given_away) if len(known) > 2 else ())


def label_errors(features: np.ndarray, labels: np.ndarray, *, method: str = "ridge", seed: int = 0) -> list[LabelError]:
    """Finds images whose label is worth a look, by confident learning.

    An image is listed where a classifier that has not seen it finds another class as likely as it does for the images
    that are of it, and the image's own class twenty times less likely than for the other images of that.

    Args:
        features: Array ``(n, features)``.
        labels: Classes as indices; images with -1 are passed over. Or an array ``(n, labels)`` of 0 and 1: each label
            is then judged by itself.
        method: ``"ridge"``: ridge regression with each image left out in turn, in closed form; ``"cleanlab"``: the same
            probabilities, judged by cleanlab.
        seed: For cleanlab.

    Returns:
        The most doubtful first. See :data:`LABEL_PRECISION` for how many of them are wrong.

    Raises:
        MissingDependencyError: cleanlab is asked for and not installed.

    Source:
        Northcutt et al. 2021, arXiv:1911.00068.
    """
    check_label_method(method)
    if labels.ndim == 2:
        return _errors_of_labels(features, labels, method)
    if _too_little_for_label_errors(features, labels):
        return []
    some = np.flatnonzero(labels >= 0)
    known, truth = np.unique(labels[some], return_inverse=True)
    probabilities = left_out(features[some], truth, len(known))
    judged = _JUDGES[method](probabilities, truth)
    own = probabilities[np.arange(len(truth)), truth]
    rivals = probabilities.copy()
    rivals[np.arange(len(truth)), truth] = -1
    order = sorted(judged, key=lambda row: own[row] - rivals[row].max())
    return [
        LabelError(int(some[row]), int(known[truth[row]]), int(known[rivals[row].argmax()]), float(own[row]))
        for row in order
    ]


def label_precision() -> str:
    """Says how many of the labels that are listed can be expected to be wrong."""
    high, low = LABEL_PRECISION
    return (
        f"if 5 % of all labels are wrong, {low:.0%} to {high:.0%} of these are; if none is, none of these; measured on "
        "CIFAR-10 and Fashion-MNIST, see docs/checks.md"
    )


def _errors_of_labels(features: np.ndarray, labels: np.ndarray, method: str) -> list[LabelError]:
    """Finds wrong labels where an image may have several: each label is there or not, and judged by itself."""
    counts = labels.sum(axis=0)
    usable = np.flatnonzero((counts >= 3) & (counts <= len(labels) - 3))
    if not len(usable) or features.shape[1] == 0:
        return []
    shares = left_out(features, labels[:, usable], len(usable))
    # of two answers that are told well, neither is quite as sure of an image that is labelled wrongly
    judge = functools.partial(_confident, enough=1 - _DOUBT) if method == "ridge" else _JUDGES[method]
    found = []
    for column, label in enumerate(usable.tolist()):
        truth = labels[:, label].astype(np.int64)
        both = np.stack([1 - shares[:, column], shares[:, column]], axis=1)
        for row in judge(both, truth).tolist():
            found.append(LabelError(row, label, label, float(both[row, truth[row]]), bool(truth[row])))
    return sorted(found, key=lambda error: error.probability)


def check_label_method(method: str) -> None:
    """Makes sure that label errors can be found in this way.

    Raises:
        ArgumentError: It is unknown.
        MissingDependencyError: It needs a package that is not installed.
    """
    if method not in LABEL_METHODS:
        raise ArgumentError(f"label_method must be one of {LABEL_METHODS}. Received: {method!r}.")
    if method == "cleanlab":
        dependencies.require('label_method="cleanlab"', "cleanlab")


def left_out(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns for each image the probabilities by a classifier that has seen all others: float64 ``(n, classes)``.

    Ridge regression on the standardised features, whose predictions for an image left out follow from one
    decomposition; the strength of the penalty and the softmax' temperature are those with the best likelihood.

    Args:
        features: Array ``(n, features)``.
        labels: Integers ``0..classes-1``; or an array ``(n, classes)`` of 0 and 1, each of which is told by itself.
        classes: Number of classes.
    """
    with processors.blas_threads(features.size):
        return _left_out(features, labels, classes)


def _left_out(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    from scipy.linalg import eigh
    from scipy.special import expit, log_expit, log_softmax

    count = len(labels)
    mean = np.mean(features, axis=0, dtype=np.float64)
    scale = np.std(features, axis=0, dtype=np.float64)
    rows = ((features - mean) / np.where(scale > 1e-9, scale, 1)).astype(np.float32)
    multilabel = labels.ndim == 2
    goal = labels.astype(np.float32) if multilabel else np.eye(classes, dtype=np.float32)[labels]
    offset = goal.mean(axis=0)
    goal = goal - offset
    best: tuple[float, np.ndarray] = (np.inf, np.zeros((count, classes)))
    if count <= rows.shape[1]:
        values, vectors = eigh(rows @ rows.T)
        turned = vectors
    else:
        values, axes = eigh(rows.T @ rows)
        turned = rows @ axes / np.sqrt(np.maximum(values, 1e-6 * values[-1]))
    values = np.maximum(values, 0)
    products = turned.T @ goal
    for ridge in _RIDGES:
        shrink = values / (values + ridge * count)
        fitted = turned @ (shrink[:, None] * products)
        leverage = np.minimum(turned**2 @ shrink + 1 / count, 0.999)[:, None]
        scores = (goal - (goal - fitted) / (1 - leverage) + offset).astype(np.float64)
        for temperature in (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5):
            if multilabel:
                odds = (scores - 0.5) / temperature
                loss = -float(log_expit(np.where(labels, odds, -odds)).mean())
                if loss < best[0]:
                    best = (loss, odds)
                continue
            logs = log_softmax(scores / temperature, axis=1)
            loss = -float(logs[np.arange(count), labels].mean())
            if loss < best[0]:
                best = (loss, logs)
    return np.asarray(expit(best[1]) if multilabel else np.exp(best[1]))


def _confident(probabilities: np.ndarray, labels: np.ndarray, enough: float = 1.0) -> np.ndarray:
    """Returns the rows that have a likely class, and for which their own is far less likely than for others of it.

    A class is likely from its average over its own images on, or from ``enough`` on where that is less.
    """
    classes = probabilities.shape[1]
    limits = np.array([probabilities[labels == label, label].mean() for label in range(classes)])
    likely = np.where(probabilities >= np.minimum(limits, enough), probabilities, -1)
    best = likely.argmax(axis=1)
    own = probabilities[np.arange(len(labels)), labels]
    doubted = own < _DOUBT * limits[labels]
    return np.flatnonzero((likely.max(axis=1) > 0) & (best != labels) & doubted)


def _by_cleanlab(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    return np.flatnonzero(find_label_issues(labels, probabilities, n_jobs=1))


_JUDGES = {"ridge": _confident, "cleanlab": _by_cleanlab}


def group_duplicates(images: ImageSet, same: Duplicates) -> ImageSet:
    """Returns a set in which duplicates are in one group, so that no split puts them on two sides.

    Groups that the data has are kept, and joined where they share a duplicate. Duplicates that the data itself puts on
    two sides stay there.

    Args:
        images: The set.
        same: Its duplicates.
    """
    edges = [(a, b) for a, b, _ in same.pairs() if images.splits[a] == images.splits[b]]
    if not edges:
        return images
    first: dict[str, int] = {}
    edges += [(first.setdefault(group, place), place) for place, group in enumerate(images.groups) if group is not None]
    numbers = _components(edges, len(images))
    sizes = np.bincount(numbers)
    groups = tuple(
        f"together {number}" if sizes[number] > 1 or group is not None else None
        for number, group in zip(numbers.tolist(), images.groups, strict=True)
    )
    return dataclasses.replace(images, groups=groups)


def _components(edges: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.array(edges, np.int64).reshape(-1, 2)
    return connected_components(coo_matrix((np.ones(len(ends)), ends.T), (count, count)), directed=False)[1]
