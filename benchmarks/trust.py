"""Whether a classifier knows how sure it may be: calibration, prediction sets, foreign images, corrupted images.

    python benchmarks/trust.py [--cifar cifar10-jpeg.tar.gz] [--seeds 5] [--corruptions]

Fits a probe on the embedded network to the Fashion-MNIST that ships with resfit, and to CIFAR-10 as JPEG where its
archive is given (train/ and test/ with a folder a class). All figures are of test images that nothing was fitted or
chosen on; each seed splits the folds anew. With both data sets, each is the other's foreign folder.
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

COVERAGES = (0.8, 0.9, 0.95)


def calibration_table(source: Path, seeds: int, cache: Path) -> Any:
    """Prints log-loss, Brier score and calibration error with and without the temperature, and coverage of sets."""
    import resfit
    from resfit.evaluation import calibration, conformal
    from resfit.evaluation.judged import judge

    rows, covered = [], {(method, asked): [] for method in conformal.METHODS for asked in COVERAGES}
    for seed in range(seeds):
        classifier = resfit.fit(source, strategy="probe", seed=seed, cache=cache)
        judged = judge(classifier, source, part="test", cache=cache)
        truth = judged.truth
        for scaled in (False, True):
            logits = judged.logits * (1.0 if scaled else classifier.temperature)
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            lost = calibration.losses(truth, shares)
            ece = calibration.expected_error(shares.max(axis=1), shares.argmax(axis=1) == truth)
            rows.append((scaled, classifier.temperature, lost["log_loss"].mean(), lost["brier"].mean(), ece))
        for method, asked in covered:
            sets = classifier.calibration.conformal.sets(judged.probabilities, asked, method)
            found = sets[np.arange(len(truth)), truth].mean(), sets.sum(axis=1).mean()
            covered[method, asked].append(found)
    print(f"{len(truth)} test images, mean over {seeds} seeds")
    for scaled in (False, True):
        _, temperature, loss, brier, ece = np.mean([row for row in rows if row[0] == scaled], axis=0)
        label = f"temperature {temperature:.3f}" if scaled else "without temperature"
        print(f"  {label:22} log-loss {loss:.4f}  Brier {brier:.4f}  ECE {ece:.4f}")
    for (method, asked), pairs in covered.items():
        mean, size = np.mean(pairs, axis=0)
        spread = np.std([pair[0] for pair in pairs])
        print(f"  {method:4} asked {asked:.2f}  covered {mean:.4f} (+- {spread:.4f} over seeds)  mean size {size:.2f}")
    return classifier, judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--corruptions", action="store_true", help="also accuracy on corrupted images")
    arguments = parser.parse_args()

    from resfit.data import samples
    from resfit.evaluation.corruptions import robustness
    from resfit.evaluation.foreign import measure_foreign

    with tempfile.TemporaryDirectory() as folder:
        sources = {"Fashion-MNIST": Path(folder) / "fashion"}
        samples.unpack(sources["Fashion-MNIST"])
        if arguments.cifar is not None:
            sources["CIFAR-10 as JPEG"] = Path(folder) / "cifar"
            with tarfile.open(arguments.cifar) as archive:
                archive.extractall(sources["CIFAR-10 as JPEG"], filter="data")
        found = {}
        for name, source in sources.items():
            print(f"{name}: ", end="")
            found[name] = calibration_table(source, arguments.seeds, Path(folder) / "cache")
        for name, (classifier, judged) in found.items():
            for other, source in sources.items():
                if other == name:
                    continue
                measured = measure_foreign(classifier, judged, source, cache=Path(folder) / "cache")
                for method, area in measured.areas.items():
                    print(
                        f"{other} as foreign to {name}: {method:11} AUROC {area.value:.4f} "
                        f"({area.low:.4f} to {area.high:.4f}), flagged {measured.flagged[method]:.1%}, "
                        f"own images {measured.false[method]:.1%}"
                    )
            if arguments.corruptions:
                table = robustness(classifier, judged)
                print(f"{name}, {table.images} images: accuracy {table.rows[0].accuracy:.1%}")
                for kind in dict.fromkeys(row.corruption for row in table.rows[1:]):
                    shares = [f"{row.accuracy:.1%}" for row in table.rows if row.corruption == kind]
                    print(f"  {kind:15} {'  '.join(shares)}")
                print(f"  mean over all   {table.mean_accuracy:.1%}")


if __name__ == "__main__":
    main()
