"""Networks of timm, with random weights and statistics: the same numbers as timm computed.

The files are those of ``../shared/fixtures`` beside the checkout; without them the tests are skipped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from resfit.architecture import catalog
from resfit.architecture.catalog import eca_sizes, squeeze_sizes
from resfit.architecture.network import build
from resfit.architecture.spec import ArchitectureSpec, StemConv
from resfit.checkpoints import canonical
from tests.numbers import relative_error

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "timm"
NAMES = [
    "ecaresnet50d",
    "resnet18",
    "resnet50",
    "resnet50_gn",
    "resnet50d",
    "resnetblur50",
    "resnetrs50",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "resnext50_32x4d",
    "seresnet18",
    "seresnet50",
    "wide_resnet50_2",
]
STATISTICS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def spec_of(config: dict) -> ArchitectureSpec:
    """The catalog's network with the fixture's depths and widths."""
    name, given = config["architecture"], config["model_args"]
    spec = catalog.get({"resnet50": "resnet50v1.5"}.get(name, name)).spec
    channels = tuple(given["channels"])
    if spec.preactivation:
        widths, inner = channels, tuple(width // 4 for width in channels)
    else:
        groups = given.get("cardinality", spec.groups)
        base = given.get("base_width", 128 if "wide" in name else 64)
        bottleneck = spec.block == "bottleneck"
        widths = tuple(width * (4 if bottleneck else 1) for width in channels)
        inner = tuple(width * base // 64 * groups if bottleneck else width for width in channels)
        spec = spec.replace(groups=groups)
    sizes = None
    if spec.attention == "se":
        sizes = squeeze_sizes(widths, 1 / 4 if "rs" in name else 1 / 16)
    elif spec.attention == "eca":
        sizes = eca_sizes(widths)
    stem = spec.stem
    if width := given.get("stem_width"):
        stem = (StemConv(width, 3, 2), StemConv(width, 3, 1), StemConv(2 * width, 3, 1))
    return spec.replace(
        depths=tuple(given.get("layers", spec.depths)),
        widths=widths,
        inner_widths=inner,
        attention_sizes=sizes,
        stem=stem,
        classes=config["num_classes"],
    )


def canonical_name(name: str, spec: ArchitectureSpec) -> str:
    """Translates one of timm's names."""
    layer, leaf = name.rsplit(".", 1)
    norm = "gn" if spec.norm == "group" else "bn"
    kernel = "kernel" if leaf == "weight" else "bias"
    last = f"conv1_{len(spec.stem)}" if len(spec.stem) > 1 else "conv1"
    if match := re.fullmatch(r"conv1\.(\d)", layer):
        number, place = divmod(int(match[1]), 3)
        return f"conv1_{number + 1}_{f'conv/{kernel}' if place == 0 else f'bn/{STATISTICS[leaf]}'}"
    fixed = {
        "conv1": f"conv1_conv/{kernel}",
        "stem.conv": f"conv1_conv/{kernel}",
        "bn1": f"{last}_{norm}/{STATISTICS.get(leaf)}",
        "maxpool.0": f"pool1_conv/{kernel}",
        "maxpool.1": f"pool1_{norm}/{STATISTICS.get(leaf)}",
        "norm": f"post_{norm}/{STATISTICS.get(leaf)}",
        "fc": f"predictions/{kernel}",
        "head.fc": f"predictions/{kernel}",
    }
    if layer in fixed:
        return fixed[layer]
    match = re.fullmatch(r"(?:layer|stages\.)(\d+)(?:\.blocks)?\.(\d+)\.(.+)", layer)
    assert match, name
    stage = int(match[1]) + (2 if spec.preactivation else 1)
    block, part = f"conv{stage}_block{int(match[2]) + 1}", match[3]
    if part in ("se.fc1", "se.fc2"):
        return f"{block}_se_{'reduce' if part.endswith('1') else 'expand'}_conv/{kernel}"
    if part == "se.conv":
        return f"{block}_eca_conv/{kernel}"
    if part.startswith("conv"):
        return f"{block}_{part[4:]}_conv/{kernel}"
    if part.startswith("downsample"):
        is_norm = part.endswith(".2") or (part.endswith(".1") and spec.shortcut == "projection")
        return f"{block}_0_{f'{norm}/{STATISTICS[leaf]}' if is_norm else f'conv/{kernel}'}"
    number = int(re.sub(r"\D", "", part))
    if spec.preactivation:  # norm1 comes before the first convolution
        number -= 1
    return f"{block}_{number or 'preact'}_{norm}/{STATISTICS[leaf]}"


def translated(tensors: dict[str, np.ndarray], spec: ArchitectureSpec) -> dict[str, np.ndarray]:
    found = {}
    for name, array in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        target = canonical_name(name, spec)
        if target.startswith("predictions/") and array.ndim == 4:
            array = array[:, :, 0, 0]
        order = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        found[target] = array.transpose(order)
    return found


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside the checkout")
@pytest.mark.parametrize("name", NAMES)
def test_logits_features_and_maps(name):
    folder = FIXTURES / name
    spec = spec_of(json.loads((folder / "config.json").read_text()))
    arrays = translated(load_file(folder / "model.safetensors"), spec)
    expected = np.load(folder / "expected.npz")
    images = expected["input_nhwc"]

    model = build(spec, classifier_activation=None)
    canonical.fill(model, arrays)  # every weight filled, every array used
    assert relative_error(model(images, training=False), expected["logits"]) < 1e-4
    assert (np.argmax(model(images, training=False), 1) == expected["logits"].argmax(1)).all()
    for options, key in (({"pooling": "avg"}, "pooled"), ({}, "feature_map_nhwc")):
        body = build(spec, include_top=False, **options)
        canonical.fill(body, arrays, ignore=("predictions/*",))
        assert relative_error(body(images, training=False), expected[key]) < 1e-4
