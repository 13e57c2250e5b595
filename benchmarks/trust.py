"""Whether a classifier knows how sure it may be: calibration, prediction sets, foreign images, corrupted images.

    python benchmarks/trust.py [--cifar cifar10-jpeg.tar.gz] [--seeds 5] [--images 500]

Fits a probe on the embedded network to the Fashion-MNIST that ships with resfit, and to CIFAR-10 as JPEG where its
archive is given (train/ and test/ with a folder a class). All figures are of test images that nothing was fitted or
chosen on. They come twice: of the split that the data states, where each seed draws the folds of the cross-validation
anew, and of splits of the same sizes drawn at random from all images, one a seed. What coverage lacks in the first and
not in the second is a difference between the two parts of the data; what it lacks in both, beyond its standard error,
is the fault of the method. The likeliest class is always in a set: asked for less than it covers, sets cover more. With
both data sets, each is the other's foreign folder. ``--images 0`` corrupts none.
"""

from __future__ import annotations

import argparse
import csv
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

COVERAGES = (0.8, 0.9, 0.95)


def random_split(folder: Path, seed: int) -> Path:
    """Writes a table of all images of a folder, as many of them for the test as there are in its test/."""
    from resfit.data.dataset import scan

    images = scan(folder)
    splits = np.array(images.splits)[np.random.default_rng(seed).permutation(len(images))]
    table = folder.with_name(f"{folder.name}-{seed}.csv")
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for path, label, split in zip(images.paths, images.labels, splits, strict=True):
            writer.writerow((path, images.classes[label], split))
    return table


def calibration_table(title: str, source: Callable[[int], Path], seeds: int, splits: int, cache: Path) -> Any:
    """Prints log-loss, Brier score and calibration error with and without the temperature, and coverage of sets.

    Args:
        title: What is measured.
        source: From a seed to the images.
        seeds: How many there are.
        splits: How many of them draw test images of their own, by which the error of the mean shrinks.
        cache: For the features.
    """
    import resfit
    from resfit.evaluation import calibration, conformal
    from resfit.evaluation.inference import judge

    losses: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    covered = {(method, asked): [] for method in conformal.METHODS for asked in COVERAGES}
    accuracies, temperatures, begin = [], [], time.perf_counter()
    for seed in range(seeds):
        classifier = resfit.fit(source(seed), strategy="probe", seed=seed, cache=cache, check=False)
        judged = judge(classifier, source(seed), part="test", cache=cache)
        truth = judged.truth
        accuracies.append((judged.probabilities.argmax(axis=1) == truth).mean())
        temperatures.append(classifier.temperature)
        for scaled in losses:
            logits = judged.logits * (1.0 if scaled else classifier.temperature)
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            lost = calibration.losses(truth, shares)
            ece = calibration.expected_error(shares.max(axis=1), shares.argmax(axis=1) == truth)
            losses[scaled].append((lost["log_loss"].mean(), lost["brier"].mean(), ece))
        for (method, asked), found in covered.items():
            sets = classifier.calibration.conformal.sets(judged.probabilities, asked, method)
            found.append((sets[np.arange(len(truth)), truth].mean(), sets.sum(axis=1).mean()))
    calibrated = classifier.calibration.count
    print(
        f"{title}: {calibrated} images to calibrate on, {len(truth)} test images; mean and standard deviation over "
        f"{seeds} seeds ({time.perf_counter() - begin:.0f} s)"
    )
    print(f"  accuracy {_spread(accuracies)}, temperature {_spread(temperatures)}")
    for scaled, rows in losses.items():
        loss, brier, ece = (_spread(column) for column in zip(*rows, strict=True))
        print(f"  {'with it' if scaled else 'without':7}  log-loss {loss}  Brier {brier}  ECE {ece}")
    for (method, asked), found in covered.items():
        coverage, size = zip(*found, strict=True)
        one = np.sqrt(asked * (1 - asked) * (1 / calibrated + 1 / len(truth)))
        off = (np.mean(coverage) - asked) / (one / np.sqrt(splits))
        alone = "; less than the likeliest class alone" if asked < np.mean(accuracies) else ""
        print(
            f"  {method} asked {asked:.2f}  covered {_spread(coverage)} (standard error of one split {one:.4f}, of the "
            f"mean {one / np.sqrt(splits):.4f}: off by {off:+.1f} of these{alone})  mean size {np.mean(size):.2f}"
        )
    return classifier, judged


def corruption_table(classifier: Any, judged: Any, images: int) -> None:
    """Prints the accuracy on images corrupted in every way and strength, and the mean of each kind."""
    from resfit.evaluation.robustness import STRENGTHS, robustness

    begin = time.perf_counter()
    table = robustness(classifier, judged, most=images)
    plain, *rows = table.rows
    print(
        f"{table.images} corrupted images ({time.perf_counter() - begin:.0f} s): accuracy {plain.accuracy:.1%} "
        f"({plain.low:.1%} to {plain.high:.1%}) as they are"
    )
    print(f"  {'strength':15} {'  '.join(f'{strength:6}' for strength in STRENGTHS)}    mean")
    for kind in dict.fromkeys(row.corruption for row in rows):
        shares = [row.accuracy for row in rows if row.corruption == kind]
        print(f"  {kind:15} {'  '.join(f'{share:6.1%}' for share in shares)}  {np.mean(shares):6.1%}")
    means = [np.mean([row.accuracy for row in rows if row.strength == strength]) for strength in STRENGTHS]
    print(f"  {'all':15} {'  '.join(f'{share:6.1%}' for share in means)}  {table.mean_accuracy:6.1%}")


def _spread(values: Any) -> str:
    return f"{np.mean(values):.4f} +- {np.std(values, ddof=1):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="at least 3")
    parser.add_argument("--images", type=int, default=500, help="how many are corrupted")
    arguments = parser.parse_args()
    if arguments.seeds < 3:
        parser.error("a spread needs at least 3 seeds")

    from resfit.data import samples
    from resfit.evaluation.ood_evaluation import measure_foreign

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        sources = {"Fashion-MNIST": Path(folder) / "fashion"}
        samples.unpack(sources["Fashion-MNIST"])
        if arguments.cifar is not None:
            sources["CIFAR-10 as JPEG"] = Path(folder) / "cifar"
            with tarfile.open(arguments.cifar) as archive:
                archive.extractall(sources["CIFAR-10 as JPEG"], filter="data")
        found = {}
        for name, source in sources.items():
            seeds = arguments.seeds
            tables = [random_split(source, seed) for seed in range(seeds)]
            found[name] = calibration_table(f"{name}, its own split", lambda _, f=source: f, seeds, 1, cache)
            calibration_table(f"{name}, random splits", tables.__getitem__, seeds, seeds, cache)
        for name, (classifier, judged) in found.items():
            for other, source in sources.items():
                if other == name:
                    continue
                measured = measure_foreign(classifier, judged, source, cache=cache)
                for method, area in measured.areas.items():
                    print(
                        f"{other} as foreign to {name}: {method:11} AUROC {area.value:.4f} "
                        f"({area.low:.4f} to {area.high:.4f}), flagged {measured.flagged[method]:.1%}, "
                        f"own images {measured.false[method]:.1%}"
                    )
            if arguments.images:
                print(f"{name}, ", end="")
                corruption_table(classifier, judged, arguments.images)


if __name__ == "__main__":
    main()
