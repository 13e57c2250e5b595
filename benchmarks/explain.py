"""Whether explanations are right: pointing game, mass on the cue, completeness, weights at random, deletion, insertion.

    python benchmarks/explain.py [--images 60] [--slow]

A classifier learns pictures of coloured noise whose class is told by a patch of stripes or checks at a random place,
and by nothing else. --slow adds integrated gradients and occlusion, which run the network hundreds of times an image.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from tests.explain.cues import cue_pictures, fit_cues


def _count_empty() -> None:
    """Counts the maps of real images for whose most probable class Grad-CAM finds nothing, by how sure it is."""
    import resfit
    from resfit.data import samples
    from resfit.data.dataset import scan

    with tempfile.TemporaryDirectory() as folder:
        images = samples.unpack(Path(folder) / "images")
        fitted = resfit.fit(images, cache=False)
        found = scan(images)
        test = [path for path, part in zip(found.paths, found.splits, strict=True) if part == "test"]
        print(f"Fashion-MNIST, {len(test)} test images, the most probable class of each:")
        for stage in (None, "stage3", "stage4", "stage5"):
            made = fitted.explain(test, stage=stage)
            empty = [one for one in made if one.empty]
            sure = sum(one.probability >= 0.9 for one in empty)
            kinds = {kind: sum(one.evidence == kind for one in empty) for kind in ("positive", "negative", "none")}
            name = made[0].stage + (" (default)" if stage is None else "")
            print(f"{name:32} Grad-CAM finds nothing for {len(empty)} ({sure} at a probability of 90 % and more): "
                  f"HiResCAM shows {kinds['positive']}, {kinds['negative']} show what speaks against the class, "
                  f"{kinds['none']} are empty", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--slow", action="store_true", help="also integrated gradients and occlusion, on 12 images")
    arguments = parser.parse_args()
    import keras
    from scipy.ndimage import gaussian_filter
    from scipy.stats import spearmanr
    from tests.numeric import randomize

    from resfit.explain import METHODS, attribute, quality

    with tempfile.TemporaryDirectory() as folder:
        fitted = fit_cues(Path(folder))
    pictures, masks, kinds = cue_pictures(arguments.images, seed=2)
    print(f"classifier: {fitted.run.test.accuracy:.1%} on {fitted.run.test.n} test images; "
          f"the cue covers {masks.mean():.1%} of an image")  # fmt: skip
    print("empty: nothing found for the class by the method itself; against: the map shows what speaks against it")
    columns = f"{'points':>7} {'mass':>7} {'missed':>7} {'empty':>7} {'against':>8} {'ms/image':>9}"
    print(f"{'method':22} {'stage':18} {columns}")
    for method, row in METHODS.items():
        if not row.reads_maps and not arguments.slow:
            continue
        count = arguments.images if row.reads_maps else min(12, arguments.images)
        for stage in (None, "stage3", "stage5") if row.reads_maps else (None,):
            begin = time.perf_counter()
            found = attribute(fitted.model, pictures[:count], method=method, stage=stage, target=list(kinds[:count]))
            taken = 1000 * (time.perf_counter() - begin) / count
            hits = np.mean([quality.points_at(one.map, mask) for one, mask in zip(found, masks, strict=False)])
            mass = np.mean([quality.mass_on(one.map, mask) for one, mask in zip(found, masks, strict=False)])
            gap = max(one.gap for one in found)
            name = found[0].stage + (" (default)" if row.reads_maps and stage is None else "")
            empty, against = (sum(bools) for bools in ((one.empty for one in found),
                                                       (one.evidence == "negative" for one in found)))  # fmt: skip
            print(f"{method:22} {name:18} {hits:7.1%} {mass:7.1%} {gap:7.2%} {empty:7} {against:8} {taken:9.0f}",
                  flush=True)  # fmt: skip

    _count_empty()

    known = attribute(fitted.model, pictures, target=list(kinds))
    twin = keras.models.clone_model(fitted.model)
    ranks = []
    for seed in range(6):
        other = attribute(randomize(twin, seed), pictures, target=list(kinds), stage=known[0].stage)
        ranks += [spearmanr(a.raw.ravel(), b.raw.ravel()).statistic for a, b in zip(known, other, strict=True)]
    print(f"rank correlation with maps of random weights: {np.mean(ranks):.3f} (mean of {len(ranks)})")

    random, areas = np.random.default_rng(0), []
    for picture, kind, one in list(zip(pictures, kinds, known, strict=True))[:20]:
        nothing = gaussian_filter(picture.astype(np.float32), (6, 6, 0), mode="nearest")

        def probability(some, kind=kind):
            return np.asarray(fitted.model(some.astype("float32"), training=False))[:, kind]

        own = quality.curves(probability, picture, one.map, nothing)
        chance = quality.curves(probability, picture, random.random(one.map.shape), nothing)
        areas.append((own.deletion_area, chance.deletion_area, own.insertion_area, chance.insertion_area))
    figures = np.mean(areas, axis=0)
    print("area under deletion {:.3f} (random order {:.3f}; lower is better)".format(*figures[:2]))
    print("area under insertion {:.3f} (random order {:.3f}; higher is better)".format(*figures[2:]))


if __name__ == "__main__":
    main()
