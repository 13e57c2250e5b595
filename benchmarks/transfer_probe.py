"""A frozen ResNet-50 and a trained head, from image files to model: resfit against the usual Keras loop.

    python benchmarks/transfer_probe.py imagenet-samples.tar.gz [--epochs 10] [--images 400]

Both sides have the same random weights and the same images, crops of the samples. Keras: base with training=False,
GlobalAveragePooling2D, Dense(1024), Dense(10), Adam, so many epochs. resfit: the same head on features that are
computed once. Imports are excluded, everything else is in: decoding, the engine's preparation, training, measuring.
Both run in turn in one process. Prints one ratio, and the time of a second, changed run: another head, the same images.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
from transfer_common import in_turn, keras_side, random_weights, write_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keras-epochs", type=int, help="run fewer epochs of Keras and extrapolate")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "int8"], help="of resfit")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the images are written; default: a temporary folder")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    import openvino  # noqa: F401  # imports are no part of what is timed

    import resfit
    from resfit.tasks import classification

    if arguments.precision == "int8":
        import nncf  # noqa: F401

    weights = random_weights()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = write_images(arguments.samples, arguments.folder or work / "images", arguments.images)
        keras_epochs = arguments.keras_epochs or arguments.epochs

        def theirs() -> dict[str, float]:
            found = keras_side(folder, weights, epochs=keras_epochs, trainable_from=None)
            found["seconds"] += (arguments.epochs - keras_epochs) * found["epoch"]
            return found

        def body():
            model = resfit.load("resnet50", weights=None, include_top=False, pooling="avg")
            model.set_weights(weights)
            return model

        caches = iter(work / f"cache {number}" for number in range(1000))
        last = {}

        # the images are crops of a few, so some are near duplicates
        shared = {"strategy": "probe", "precision": arguments.precision, "allow_leakage": True}

        def ours() -> dict[str, float]:
            last["cache"] = next(caches)
            os.environ["RESFIT_CACHE"] = str(last["cache"])  # networks are converted anew, too
            begin = time.perf_counter()
            tuning = {"epochs": arguments.epochs, "patience": None}
            fitted = classification.fit(folder, model=body(), cache=last["cache"], head="mlp", tuning=tuning, **shared)
            return {"seconds": time.perf_counter() - begin, **fitted.run.seconds}

        def second() -> dict[str, float]:
            begin = time.perf_counter()
            fitted = classification.fit(folder, model=body(), cache=last["cache"], head="linear", **shared)
            assert fitted.run.computed == 0
            return {"seconds": time.perf_counter() - begin, **fitted.run.seconds}

        found = in_turn({"keras": theirs, "resfit": ours, "second run": second}, arguments.rounds)
    one, two, three = (np.median([run["seconds"] for run in found[name]]) for name in ("keras", "resfit", "second run"))
    print(f"ratio: {one / two:.1f} (Keras {one:.1f} s, resfit {two:.1f} s); second, changed run {three:.1f} s")


if __name__ == "__main__":
    main()
