"""From image files to a fitted and measured classifier: resfit beside the usual pipelines of other libraries.

    python benchmarks/peers.py [--images 200 2000] [--rounds 5] [--network resnet50] [--peers timm keras ...]

Everyone gets the same JPEGs in class folders and a frozen ResNet with random weights, and is measured on the same test
images. ``keras``: the tutorial of Keras, ten epochs of two dense layers on the base. ``keras_hub``: its
ImageClassifier on a frozen backbone, as many epochs. ``timm`` and ``torchvision``: features in channels-last, the
latter compiled by torch.compile, and scikit-learn's LogisticRegressionCV. ``fastai``: vision_learner, frozen, ten
epochs. All take turns in processes of their own; imports are excluded, everything else is in. A library that is not
installed is named as such.

Prints for each number of images and each side the median, least and most seconds, the ratio to resfit in the same round
(least, median, most), accuracy and peak memory; ``--json FILE`` writes all of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CLASSES = 10
EPOCHS = 10
TEST = 50
SIZE = 224
MODULES = {
    "resfit": ("resfit", "tensorflow", "openvino"),
    "keras": ("keras", "tensorflow"),
    "keras_hub": ("keras_hub", "tensorflow"),
    "timm": ("torch", "timm", "sklearn"),
    "torchvision": ("torch", "torchvision", "sklearn"),
    "fastai": ("fastai",),
}
STAGES = {"resnet18": ([2, 2, 2, 2], "basic_block"), "resnet50": ([3, 4, 6, 3], "bottleneck_block")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", choices=list(STAGES), default="resnet50")
    parser.add_argument("--peers", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--child", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(one(*arguments.child, arguments.network)))
        return
    peers = list(dict.fromkeys(["resfit", *arguments.peers]))
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.images:
            folder = write_images(Path(temporary) / str(count), count)
            sides = found[count] = {peer: [] for peer in peers}
            for number in range(arguments.rounds):
                for peer in peers:
                    sides[peer].append(result := run(peer, folder, arguments.network))
                    print(f"{count} images, round {number + 1}, {peer}: {result}", flush=True)
            table(count, sides)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def write_images(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes train/ and test/ with ten class folders of JPEGs of 400x300: noisy gratings, each class a direction."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    down, across = np.mgrid[:300, :400]
    for part, number in (("train", count), ("test", TEST)):
        for index in range(number):
            label = index % CLASSES
            angle = np.pi * label / CLASSES + random.normal(0, 0.05)
            wave = np.sin((down * np.sin(angle) + across * np.cos(angle)) / random.uniform(5, 9) + random.uniform(0, 6))
            pixels = 128 + 60 * wave[..., None] * random.uniform(0.5, 1, 3) + random.normal(0, 25, (300, 400, 3))
            path = folder / part / f"class {label}" / f"{index:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def run(peer: str, folder: Path, network: str) -> dict[str, Any]:
    """Runs one side in a process of its own; says why where it cannot."""
    missing = [name for name in MODULES[peer] if importlib.util.find_spec(name) is None]
    if missing:
        return {"error": f"{', '.join(missing)} not installed"}
    command = [sys.executable, __file__, "--network", network, "--child", peer, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def one(peer: str, folder: str, network: str) -> dict[str, Any]:
    """Runs one side here: seconds, accuracy on the test images, peak memory."""
    warnings.filterwarnings("ignore")
    if peer == "torchvision" or peer == "timm":
        torchvision()
    for name in MODULES[peer]:
        importlib.import_module(name)
    begin = time.perf_counter()
    accuracy = SIDES[peer](Path(folder), network)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return {"seconds": round(seconds, 2), "accuracy": round(accuracy, 3), "MB": round(peak)}


def torchvision() -> None:
    """Imports torchvision, also one whose compiled operators are for another torch: networks do not need them."""
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        torch.peers_library = library  # it ends with its owner


def resfit_side(folder: Path, network: str) -> float:
    import keras

    import resfit

    keras.utils.set_random_seed(0)
    body = resfit.load(network, weights=None, include_top=False, pooling="avg")
    with tempfile.TemporaryDirectory() as work:
        options: dict[str, Any] = {"strategy": "probe", "allow_leakage": True}  # drawn images may be alike by chance
        found = resfit.fit(folder, model=body, cache=Path(work) / "cache", out=Path(work) / "out", **options)
    return float(found.run.test.accuracy)


def keras_data(folder: Path) -> tuple[Any, Any]:
    import keras

    return tuple(
        keras.utils.image_dataset_from_directory(
            folder / part, image_size=(SIZE, SIZE), batch_size=32, shuffle=part == "train", verbose=False
        )
        for part in ("train", "test")
    )


def keras_side(folder: Path, network: str) -> float:
    import keras

    import resfit

    keras.utils.set_random_seed(0)
    train, test = keras_data(folder)
    if network == "resnet50":
        base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
    else:  # Keras has no ResNet-18: a plain Keras model of the same layers
        base = resfit.load(network, weights=None, include_top=False, pooling=None, preprocess=False)
    base.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = base(keras.applications.resnet50.preprocess_input(inputs), training=False)
    x = keras.layers.Dense(1024, activation="relu")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, epochs=EPOCHS, verbose=0)
    return float(model.evaluate(test, verbose=0)[1])


def keras_hub_side(folder: Path, network: str) -> float:
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    train, test = keras_data(folder)
    blocks, kind = STAGES[network]
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=kind,
        image_shape=(SIZE, SIZE, 3),
    )
    backbone.trainable = False
    model = keras_hub.models.ImageClassifier(backbone, num_classes=CLASSES, activation="softmax")
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    scaled = [data.map(lambda images, labels: (images / 127.5 - 1, labels)) for data in (train, test)]
    model.fit(scaled[0], epochs=EPOCHS, verbose=0)
    return float(model.evaluate(scaled[1], verbose=0)[1])


def torch_features(model: Any, folder: Path, transform: Any) -> dict[str, tuple[Any, Any]]:
    """Returns features and labels of both parts: batches of a DataLoader in channels-last."""
    import numpy as np
    import torch
    from torchvision.datasets import ImageFolder

    found = {}
    for part in ("train", "test"):
        data = ImageFolder(str(folder / part), transform)
        rows, labels = [], []
        for images, targets in torch.utils.data.DataLoader(data, batch_size=32, num_workers=os.cpu_count() or 1):
            with torch.inference_mode():
                rows.append(model(images.to(memory_format=torch.channels_last)).numpy())
            labels.append(targets.numpy())
        found[part] = (np.concatenate(rows), np.concatenate(labels))
    return found


def logistic(found: dict[str, tuple[Any, Any]]) -> float:
    import numpy as np
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, int(np.bincount(found["train"][1]).min()))
    head = make_pipeline(StandardScaler(), LogisticRegressionCV(cv=folds, max_iter=1000))
    return float(head.fit(*found["train"]).score(*found["test"]))


def timm_side(folder: Path, network: str) -> float:
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(network, pretrained=False, num_classes=0).eval().to(memory_format=torch.channels_last)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return logistic(torch_features(model, folder, transform))


def torchvision_side(folder: Path, network: str) -> float:
    import torch
    import torchvision
    from torchvision import transforms

    torch.manual_seed(0)
    model = getattr(torchvision.models, network)(weights=None)
    model.fc = torch.nn.Identity()
    compiled = torch.compile(model.eval().to(memory_format=torch.channels_last), dynamic=True)
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return logistic(torch_features(compiled, folder, transform))


def fastai_side(folder: Path, network: str) -> float:
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, models, set_seed, vision_learner

    set_seed(0)
    loaders = ImageDataLoaders.from_folder(folder, train="train", valid="test", item_tfms=Resize(SIZE), bs=32)
    learner = vision_learner(loaders, getattr(models, network), pretrained=False, metrics=accuracy)
    learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(EPOCHS)
        return float(learner.validate()[1])


SIDES: dict[str, Callable[[Path, str], float]] = {
    "resfit": resfit_side,
    "keras": keras_side,
    "keras_hub": keras_hub_side,
    "timm": timm_side,
    "torchvision": torchvision_side,
    "fastai": fastai_side,
}


def table(count: int, sides: dict[str, list[dict[str, Any]]]) -> None:
    """Prints one size as a table of Markdown."""
    print(
        f"\n| {count} images | seconds: least, median, most | times resfit's | accuracy | MB |\n|---|---|---|---|---|"
    )
    for peer, results in sides.items():
        fine = [(result, own) for result, own in zip(results, sides["resfit"], strict=True) if "seconds" in result]
        if not fine:
            print(f"| {peer} | not run: {results[0]['error']} | | | |")
            continue
        ratios = [result["seconds"] / own["seconds"] for result, own in fine if "seconds" in own]
        shown = [spread([result["seconds"] for result, _ in fine]), spread(ratios)]
        accuracy = statistics.median(result["accuracy"] for result, _ in fine)
        print(f"| {peer} | {shown[0]} | {shown[1]} | {accuracy:.1%} | {max(result['MB'] for result, _ in fine)} |")
    print(flush=True)


def spread(values: list[float]) -> str:
    """Returns least, median and most."""
    return (
        ", ".join(f"{value:.1f}" for value in (min(values), statistics.median(values), max(values))) if values else "-"
    )


if __name__ == "__main__":
    main()
