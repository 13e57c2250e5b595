"""Planted defects found again: precision and recall of the data checks.

    python benchmarks/checks.py [--cifar cifar10-jpeg.tar.gz] [--fashion FOLDER] [--cleanlab]

Into a copy of each set go: 5 % labels flipped, 100 near duplicates and 20 exact copies of training images in the test
images, 20 blurred images, and a watermark on one class. Fashion-MNIST is the sample that ships, or the four published
files in FOLDER. What the untouched set is found to hold is printed first, for it counts as false alarm below.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from planted import plant


def precision_recall(found: set, planted: set) -> str:
    hits = len(found & planted)
    precision = f"{hits / len(found):.1%}" if found else "-"
    return (
        f"precision {precision}, recall {hits / max(1, len(planted)):.1%} ({len(found)} found, {len(planted)} planted)"
    )


def unpack_fashion(source: Path, folder: Path, each: int) -> None:
    """Writes the first images of each class of the published files as PNGs."""
    from PIL import Image

    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = (
            np.frombuffer(gzip.decompress((source / f"{prefix}-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
            for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
        )
        for label in range(10):
            own = np.flatnonzero(labels == label)[:each]
            target = folder / part / str(label)
            target.mkdir(parents=True)
            for number in own:
                Image.fromarray(pixels.reshape(-1, 28, 28)[number]).save(target / f"{number:05}.png")


def measure(name: str, folder: Path, *, cleanlab: bool) -> None:
    import resfit
    from resfit.data.dataset import scan
    from resfit.quality import checking

    body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")

    def run():
        images = scan(folder)
        begin = time.perf_counter()
        found = checking.check(
            body, images, cache=folder.parent / "cache", label_method="cleanlab" if cleanlab else "ridge"
        )
        return found, time.perf_counter() - begin

    clean, seconds = run()
    print(f"\n{name}: {len(clean.images)} images, {seconds:.0f} s\n  untouched: " + "; ".join(clean.findings()))
    natural = {frozenset(clean.images.paths[place] for place in pair) for pair in clean.near.tolist()}
    print(f"  labels listed in the untouched set: {len(clean.label_errors)} of {len(clean.images)}")
    done = plant(folder)
    found, seconds = run()
    paths = found.images.paths
    errors = {paths[item.position] for item in found.label_errors}
    near = {frozenset((paths[a], paths[b])) for a, b in found.near.tolist()} - natural
    copies = {frozenset(pair) for pair in done.copies}
    leaks = {paths[test] for test, _, kind in found.leaks}
    before = {clean.images.paths[test] for test, *_ in clean.leaks}
    exact = {frozenset((paths[group[0]], paths[other])) for group in found.exact for other in group[1:]}
    marked = {paths[place] for mark in found.marks for place in mark.positions}
    print(f"  planted; {seconds:.0f} s")
    print(f"  flipped labels:   {precision_recall(errors, set(done.flipped))}")
    surest = {paths[item.position] for item in found.label_errors[: len(done.flipped)]}
    print(f"    as many as were planted, the surest first: {precision_recall(surest, set(done.flipped))}")
    print(f"  near duplicates:  {precision_recall(near, copies)}, beside {len(natural)} in the untouched set")
    print(f"  exact copies:     {precision_recall(exact, {frozenset(pair) for pair in done.exact})}")
    leaked = {pair[0] for pair in (*done.copies, *done.exact)}
    print(f"  leaked images:    {precision_recall(leaks - before, leaked)}, beside {len(before)}; stops: {found.stops}")
    print(f"  watermark:        {precision_recall(marked, set(done.marked))}")
    classes = {found.images.classes[mark.label] for mark in found.marks}
    print(f"    classes named: {', '.join(sorted(classes)) or 'none'}; planted on {done.marked_class}")
    blurred = {paths[place] for place in found.looks.blurred}
    print(f"  blurred images:   {precision_recall(blurred, set(done.blurred) & set(paths))}")
    for item in found.shortcuts:
        low, high = item.interval
        given = ", ".join(found.images.classes[label] for label in item.given_away)
        print(f"  {item.cue} alone: {item.accuracy:.1%} ({low:.1%} to {high:.1%}), chance {item.chance:.1%}"
              f"{'; strong' if item.strong else ''}{f'; gives away {given}' if given else ''}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="archive of train/ and test/ with class folders of JPEGs")
    parser.add_argument("--fashion", type=Path, help="folder of the published files; default: the sample")
    parser.add_argument("--each", type=int, default=1000, help="images a class and part, of the published files")
    parser.add_argument("--cleanlab", action="store_true", help="let cleanlab judge the labels")
    arguments = parser.parse_args()
    from resfit.data import samples

    with tempfile.TemporaryDirectory() as place:
        fashion = Path(place) / "fashion" / "images"
        if arguments.fashion:
            unpack_fashion(arguments.fashion, fashion, arguments.each)
        else:
            samples.unpack(fashion)
        measure("Fashion-MNIST", fashion, cleanlab=arguments.cleanlab)
        shutil.rmtree(fashion.parent)
        if arguments.cifar:
            cifar = Path(place) / "cifar" / "images"
            with tarfile.open(arguments.cifar) as archive:
                archive.extractall(cifar, filter="data")
            measure("CIFAR-10 as JPEG", cifar, cleanlab=arguments.cleanlab)


if __name__ == "__main__":
    main()
