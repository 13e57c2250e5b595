"""Accuracy over time with the embedded network on real data: resfit, the same from random weights, and plain Keras.

    python benchmarks/transfer_accuracy.py results.jsonl --cifar cifar10-jpeg.tar.gz \\
        --fashion /usr/share/datasets/fashion-mnist [--budgets 1 3 10] [--seeds 0 1 2] [--plot accuracy.png]

Data: CIFAR-10 as JPEG (5,000 to train on, 5,000 to test) and Fashion-MNIST (2,000 and 60,000 training images, 5,000 to
test). Methods, each with every budget of minutes and every seed:

- probe: resfit's probe; it takes what it takes.
- finetune, full, auto: resfit with this strategy and ``budget=``.
- random: the same network from random weights, all of it trained by resfit.
- keras: the same pre-trained network in a plain Keras loop: its batch norms in inference mode, a dropout and a dense
  layer behind it, random flips, Adam at 1e-4. One run for all budgets, measured as it stands when each is up.

The clock runs from the image files to the trained model. Keras' stands still while test images are measured; resfit
measures them within its time. Every result is a line of the file; a run that was killed goes on with what is missing,
and ``--plot`` draws what is there. Prints a table, mean and spread over the seeds, and one ratio for each strategy: in
how many of the budgets it is at least as good as plain Keras.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import struct
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

OURS = ("auto", "probe", "finetune", "full")
METHODS = (*OURS, "random", "keras")


def write_cifar(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(path.parent for path in sorted(folder.rglob("train")) if path.is_dir())


def write_fashion(source: Path, folder: Path, train: int) -> Path:
    from PIL import Image

    random = np.random.default_rng(0)
    for part, prefix, count in (("train", "train", train), ("test", "t10k", 5000)):
        images, labels = (read_idx(source, f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        for index in np.sort(random.permutation(len(labels))[:count]):
            path = folder / part / f"class {labels[index]}" / f"{index:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index]).convert("RGB").save(path)
    return folder


def read_idx(source: Path, name: str) -> np.ndarray:
    path = next(p for p in (source / f"{name}.gz", source / name) if p.exists())
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rank = data[3]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def with_resfit(folder: Path, method: str, minutes: float, seed: int) -> dict[str, Any]:
    import keras

    import resfit

    keras.utils.clear_session()
    begin = time.perf_counter()
    model: Any = "resnet10_tiny"
    if method == "random":
        model = resfit.load(model, weights=None, include_top=False, pooling="avg", seed=seed)
    strategy = "full" if method == "random" else method
    budget = None if method == "probe" else minutes
    with tempfile.TemporaryDirectory() as cache:  # nothing from earlier runs
        options = {"strategy": strategy, "budget": budget, "seed": seed, "cache": cache}
        # some of Fashion-MNIST's published test images are near duplicates of training images
        fitted = resfit.fit(folder, model=model, allow_leakage=True, **options)
        seconds = time.perf_counter() - begin
    history = [(row["seconds"], row.get("val_accuracy")) for row in fitted.run.history]
    return {
        "accuracy": fitted.run.test.accuracy,
        "seconds": seconds,
        "kept": fitted.recipe.strategy,
        "history": history,
    }


def with_keras(folder: Path, budgets: list[float], seed: int) -> list[dict[str, Any]]:
    """Trains once and measures at each budget; the clock stands still while it is measured."""
    import keras

    import resfit

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    begin = time.perf_counter()
    options = {"image_size": (64, 64), "batch_size": 32, "label_mode": "int", "verbose": False}
    data = keras.utils.image_dataset_from_directory(folder / "train", seed=seed, **options)
    classes = len(data.class_names)
    data = data.cache().prefetch(4)
    body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")

    class Classifier(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.flip = body, keras.layers.RandomFlip("horizontal", seed=seed)
            self.dropout, self.dense = keras.layers.Dropout(0.2, seed=seed), keras.layers.Dense(classes)

        def call(self, images: Any, training: bool | None = None) -> Any:
            images = self.flip(images, training=training)
            return self.dense(self.dropout(self.body(images, training=False), training=training))

    class Measure(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.left, self.paused, self.epoch = sorted(budgets), 0.0, 0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch + 1

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = time.perf_counter()
            if not self.left or now - begin - self.paused < 60 * self.left[0]:
                return
            test = keras.utils.image_dataset_from_directory(folder / "test", shuffle=False, **options)
            right = [self.model.predict_on_batch(images).argmax(axis=1) == labels for images, labels in test]
            found.append(
                {
                    "minutes": self.left.pop(0),
                    "accuracy": float(np.concatenate(right).mean()),
                    "seconds": now - begin - self.paused,
                    "epochs": self.epoch,
                }
            )
            self.paused += time.perf_counter() - now
            self.model.stop_training = not self.left

    found: list[dict[str, Any]] = []
    model = Classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    model.fit(data, epochs=10_000, verbose=0, callbacks=[Measure()])
    return found


def table(rows: list[dict[str, Any]], plot: Path | None) -> None:
    sets = sorted({row["data"] for row in rows})
    budgets = sorted({row["minutes"] for row in rows if row["minutes"]})

    def scores(data: str, method: str, minutes: float) -> list[float]:
        wanted = {"data": data, "method": method, "minutes": 0 if method == "probe" else minutes}
        found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
        # a probe has no budget: it counts where it is done in time
        return [100 * row["accuracy"] for row in found if method != "probe" or row["seconds"] <= 60 * minutes]

    wins, games = Counter[str](), Counter[str]()
    for data in sets:
        print(f"\n{data}: accuracy on the test images in percent, mean and spread over seeds")
        print(f"{'':10}" + "".join(f"{minutes:>14g} min" for minutes in budgets))
        for method in METHODS:
            cells = []
            for minutes in budgets:
                found = scores(data, method, minutes)
                cells.append(f"{np.mean(found):9.2f} ± {np.std(found):4.2f}  " if found else f"{'':18}")
            print(f"{method:10}" + "".join(cells))
        for minutes in budgets:
            theirs = scores(data, "keras", minutes)
            for method in OURS:
                ours = scores(data, method, minutes)
                if ours and theirs:
                    games[method] += 1
                    wins[method] += np.mean(ours) >= np.mean(theirs)
    print("\nratio: budgets in which resfit is at least as good as plain Keras: "
          + ", ".join(f"{method} {wins[method]} of {games[method]}" for method in OURS))  # fmt: skip
    if plot is not None:
        draw(plot, sets, budgets, scores)


def draw(path: Path, sets: list[str], budgets: list[float], scores: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sets), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, data in zip(np.atleast_1d(figure.subplots(1, len(sets))), sets, strict=True):
        for method in METHODS:
            points = [(m, found) for m in budgets if (found := scores(data, method, m))]
            if points:
                means = [np.mean(found) for _, found in points]
                spread = [np.std(found) for _, found in points]
                axis.errorbar([m for m, _ in points], means, spread, marker="o", capsize=3, label=method)
        axis.set_xscale("log")
        axis.set_xticks(budgets, [f"{m:g}" for m in budgets])
        axis.set_xlabel("budget in minutes")
        axis.set_ylabel("test accuracy in percent")
        axis.set_title(data)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--fashion-train", type=int, nargs="+", default=[2000, 60_000])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    rows = (
        [json.loads(line) for line in arguments.results.read_text().splitlines()] if arguments.results.exists() else []
    )
    done = {(row["data"], row["method"], row["minutes"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        folders: dict[str, Any] = {}
        if arguments.cifar:
            folders["cifar10"] = lambda: write_cifar(arguments.cifar, Path(temporary) / "cifar")
        if arguments.fashion:
            for count in arguments.fashion_train:
                place = Path(temporary) / f"fashion {count}"
                folders[f"fashion {count}"] = lambda place=place, count=count: write_fashion(
                    arguments.fashion, place, count
                )
        made: dict[str, Path] = {}

        def keep(data: str, method: str, seed: int, minutes: float, found: dict[str, Any]) -> None:
            row = {"data": data, "method": method, "seed": seed, "minutes": minutes, **found}
            rows.append(row)
            with open(arguments.results, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{data}, {method}, {minutes:g} min, seed {seed}: {100 * row['accuracy']:.2f} % in "
                  f"{row['seconds']:.0f} s", flush=True)  # fmt: skip

        for seed in arguments.seeds:
            for data, make in folders.items():
                for method in arguments.methods:  # the sides take turns
                    budgets = [0.0] if method == "probe" else arguments.budgets
                    missing = [minutes for minutes in budgets if (data, method, minutes, seed) not in done]
                    if missing and data not in made:
                        made[data] = make()
                    if method == "keras" and missing:
                        for found in with_keras(made[data], missing, seed):
                            keep(data, method, seed, found.pop("minutes"), found)
                        continue
                    for minutes in missing:
                        keep(data, method, seed, minutes, with_resfit(made[data], method, minutes, seed))
    table(rows, arguments.plot)


if __name__ == "__main__":
    main()
