"""Fine-tuning a ResNet-50 from layer 140 on, from image files to model: resfit against the usual Keras loop.

    python benchmarks/transfer_finetune.py imagenet-samples.tar.gz [--epochs 10] [--images 400]

Both sides have the same random weights, images, head, batches of 32, Adam at 1e-4 and number of epochs; images are not
changed at random. resfit also measures validation images after each epoch and test images at the end. Imports are
excluded, everything else is in. Both run in turn in one process. Prints one ratio.
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
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trainable-from", type=int, default=140)
    parser.add_argument("--folder", type=Path, help="where the images are written; default: a temporary folder")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    import resfit
    from resfit.tasks import classification

    weights = random_weights()
    tuning = {
        "epochs": arguments.epochs,
        "batch_size": 32,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "schedule": "constant",
        "warmup": 0.0,
        "layer_decay": 1.0,
        "weight_decay": 0.0,
        "clip": None,
        "ema_decay": 0.0,
        "label_smoothing": 0.0,
        "flip": False,
        "crop_scale": 1.0,
        "views": 1,
        "cutmix": 0.0,
        "batch_norm": "frozen",
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = write_images(arguments.samples, arguments.folder or work / "images", arguments.images)
        keras_epochs = arguments.keras_epochs or arguments.epochs

        def theirs() -> dict[str, float]:
            found = keras_side(folder, weights, epochs=keras_epochs, trainable_from=arguments.trainable_from)
            found["seconds"] += (arguments.epochs - keras_epochs) * found["epoch"]
            return found

        caches = iter(work / f"cache {number}" for number in range(1000))

        def ours() -> dict[str, float]:
            cache = next(caches)
            os.environ["RESFIT_CACHE"] = str(cache)  # networks are converted anew, too
            begin = time.perf_counter()
            body = resfit.load("resnet50", weights=None, include_top=False, pooling="avg")
            body.set_weights(weights)
            fitted = classification.fit(
                folder,
                model=body,
                cache=cache,
                strategy="finetune",
                head="mlp",
                trainable_from=arguments.trainable_from,
                tuning=tuning,
                tensorboard=False,
                allow_leakage=True,  # the images are crops of a few
            )
            seconds = time.perf_counter() - begin
            loop = fitted.run.history[-1]["seconds"]
            return {"seconds": seconds, "epoch": loop / arguments.epochs, **fitted.run.seconds}

        found = in_turn({"keras": theirs, "resfit": ours}, arguments.rounds)
    one, two = (np.median([run["seconds"] for run in found[name]]) for name in ("keras", "resfit"))
    epochs = [np.median([run["epoch"] for run in found[name]]) for name in ("keras", "resfit")]
    print(
        f"ratio: {one / two:.2f} (Keras {one:.1f} s, resfit {two:.1f} s); "
        f"an epoch {epochs[0]:.1f} and {epochs[1]:.1f} s"
    )


if __name__ == "__main__":
    main()
