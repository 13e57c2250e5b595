"""mmdetection's RetinaNet, FCOS, ATSS and GFL, and detectron2's RetinaNet, rebuilt from their published sources, since
neither library is in the test extra. Names, boxes, scores and input contracts.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks.detection import build, catalog
from resfit.weights import canonical, registry
from resfit.weights import detectors as reading
from resfit.weights.conventions import dense_detection
from resfit.weights.conventions.base import find_convention
from resfit.weights.formats.base import Tensors
from tests import torchside

SIZE = (97, 130)


@functools.cache
def peer(kind: str) -> Any:
    """The network in torch: torchvision's residual network, the pyramid and head of the program."""
    torchside.library("torchvision")
    import torch
    from torch import nn
    from torchvision.models import resnet

    torch.manual_seed(0)
    width, classes, depth = 32, 4, 2
    anchors = 9 if kind in ("retina", "detectron2") else 1

    class Peer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
            self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (128, 256, 512))
            self.outer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
            first = 512 if kind in ("retina", "detectron2") else width
            self.extra = nn.ModuleList(nn.Conv2d(c, width, 3, stride=2, padding=1) for c in (first, width))
            norm = kind in ("conv", "atss", "gfl")
            self.towers = nn.ModuleList(
                nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=not norm) for _ in range(depth))
                for _ in range(2)
            )
            self.norms = nn.ModuleList(
                nn.ModuleList(nn.GroupNorm(32, width) for _ in range(depth if norm else 0)) for _ in range(2)
            )
            self.cls = nn.Conv2d(width, anchors * classes, 3, padding=1)
            self.reg = nn.Conv2d(width, anchors * (68 if kind == "gfl" else 4), 3, padding=1)
            self.quality = nn.Conv2d(width, 1, 3, padding=1) if kind in ("conv", "atss") else None
            self.scales = nn.Parameter(torch.rand(5) + 0.5) if norm else None

        def forward(self, x: Any) -> list[list[Any]]:
            b = self.body
            x = b.layer1(b.maxpool(b.relu(b.bn1(b.conv1(x)))))
            maps = []
            for stage in (b.layer2, b.layer3, b.layer4):
                x = stage(x)
                maps.append(x)
            up = [own(x) for own, x in zip(self.lateral, maps, strict=True)]
            for level in (1, 0):
                size = up[level].shape[2:]
                up[level] = up[level] + nn.functional.interpolate(up[level + 1], size=size, mode="nearest")
            found = [own(x) for own, x in zip(self.outer, up, strict=True)]
            found.append(self.extra[0](maps[-1] if kind in ("retina", "detectron2") else found[-1]))
            # mmdetection's FCOS and detectron2 activate before the second extra level, the others do not
            last = nn.functional.relu(found[-1]) if kind in ("conv", "detectron2") else found[-1]
            found.append(self.extra[1](last))
            outputs = []
            for level, x in enumerate(found):
                branches = []
                for tower, norms in zip(self.towers, self.norms, strict=True):
                    own = x
                    for number, convolution in enumerate(tower):
                        own = convolution(own)
                        own = nn.functional.relu(norms[number](own) if len(norms) else own)
                    branches.append(own)
                codes = self.reg(branches[1])
                if self.scales is not None:
                    codes = codes * self.scales[level]
                # mmdetection's FCOS asks the branch of the classes how central a place is
                quality = self.quality(branches[0 if kind == "conv" else 1]) if self.quality is not None else None
                outputs.append([self.cls(branches[0]), codes, quality])
            return outputs

    model = Peer().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
    return model


def tensors(kind: str) -> dict[str, np.ndarray]:
    """Its tensors as the program names them."""
    found: dict[str, np.ndarray] = {}
    detectron = kind == "detectron2"
    for name, value in peer(kind).state_dict().items():
        array, parts = value.numpy().copy(), name.split(".")
        head, rest = parts[0], ".".join(parts[1:])
        if head == "body":
            if rest.startswith("fc"):
                continue
            renamed = f"backbone.bottom_up.{detectron_body(rest)}" if detectron else f"backbone.{rest}"
        elif head in ("lateral", "outer", "extra"):
            number = int(parts[1]) + (3 if head == "extra" else 0)
            if detectron:
                own = {"lateral": "fpn_lateral", "outer": "fpn_output", "extra": "top_block.p"}[head]
                renamed = f"backbone.{own}{number + 3}.{parts[2]}"
            else:
                own = "lateral_convs" if head == "lateral" else "fpn_convs"
                renamed = f"neck.{own}.{number}.conv.{parts[2]}"
        elif head in ("towers", "norms"):
            branch, number = int(parts[1]), int(parts[2])
            if detectron:
                renamed = f"head.{('cls', 'bbox')[branch]}_subnet.{2 * number}.{parts[3]}"
            else:
                kind_of = "conv" if head == "towers" else "gn"
                renamed = f"bbox_head.{('cls', 'reg')[branch]}_convs.{number}.{kind_of}.{parts[3]}"
        elif head == "scales":
            found |= {f"bbox_head.scales.{level}.scale": array[level] for level in range(5)}
            continue
        else:
            own = {"cls": "cls", "reg": "reg", "quality": "centerness"}[head]
            two = {"cls": "cls_score", "reg": "bbox_pred"}.get(head, "")
            renamed = f"head.{two}.{parts[1]}" if detectron else f"bbox_head.{kind}_{own}.{parts[1]}"
        found[renamed] = array
    if kind == "gfl":
        found["bbox_head.integral.project"] = np.linspace(0, 16, 17, dtype=np.float32)
    if detectron:
        found["pixel_mean"] = np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1)
        found["pixel_std"] = np.ones((3, 1, 1), np.float32)
        found["anchor_generator.cell_anchors.0"] = np.zeros((9, 4), np.float32)
    return found


def detectron_body(name: str) -> str:
    """torchvision's name of a tensor of the body as detectron2 has it."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return f"stem.conv1.{'norm.' if parts[0] == 'bn1' else ''}{parts[1]}"
    stage, block, layer, *rest = parts
    if layer == "downsample":
        inner = "shortcut" if rest[0] == "0" else "shortcut.norm"
        rest = rest[1:]
    else:
        inner = f"conv{layer[-1]}" + (".norm" if layer.startswith("bn") else "")
    return f"res{int(stage[-1]) + 1}.{block}.{inner}.{'.'.join(rest)}"


def decoded(kind: str, outputs: list[list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores by the formulas of the program, cut to the image."""
    boxes, scores = [], []
    anchored = kind in ("retina", "detectron2", "atss")
    for level, (logits, codes, quality) in enumerate(outputs):
        stride = 2 ** (level + 3)
        rows, columns = logits.shape[2:]
        count = 9 if kind in ("retina", "detectron2") else 1
        values = codes.shape[1] // count
        logits = logits[0].numpy().transpose(1, 2, 0).reshape(-1, 4)
        codes = codes[0].numpy().transpose(1, 2, 0).reshape(-1, values).astype(np.float64)
        y, x = (part.ravel() for part in np.mgrid[:rows, :columns])
        centres = np.stack([x, y], 1) * stride + (0.5 * stride if kind == "conv" else 0)
        score = 1 / (1 + np.exp(-logits.astype(np.float64)))
        if quality is not None:
            score = score / (1 + np.exp(-quality[0].numpy().transpose(1, 2, 0).reshape(-1, 1).astype(np.float64)))
        centres = np.repeat(centres, count, axis=0)
        if anchored:
            sides = []
            if kind == "atss":
                sides = [(8 * stride, 8 * stride)]
            else:
                sizes = [4 * stride * 2 ** (k / 3) for k in range(3)]
                ratios = [0.5, 1.0, 2.0]
                pairs = (
                    [(s, r) for r in ratios for s in sizes]
                    if kind == "retina"
                    else [(s, r) for s in sizes for r in ratios]
                )
                sides = [(s / np.sqrt(r), s * np.sqrt(r)) for s, r in pairs]
            side = np.tile(np.array(sides, np.float64), (rows * columns, 1))
            stds = np.array([0.1, 0.1, 0.2, 0.2]) if kind == "atss" else np.ones(4)
            codes = codes * stds
            middle = centres + codes[:, :2] * side
            size = side * np.exp(np.minimum(codes[:, 2:], np.log(1000 / 16)))
            corners = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
        else:
            if kind == "gfl":
                shares = np.exp(codes.reshape(-1, 4, 17))
                shares /= shares.sum(-1, keepdims=True)
                distances = (shares * np.arange(17)).sum(-1) * stride
            else:
                distances = np.exp(codes)
            corners = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
        boxes.append(corners.clip(0, [SIZE[1], SIZE[0]] * 2))
        scores.append(score)
    return np.concatenate(boxes), np.concatenate(scores)


@pytest.mark.parametrize(
    "kind", ["gfl", "detectron2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("retina", "conv", "atss"))]
)
def test_boxes_and_scores_are_those_of_the_program(kind):
    import torch

    read = Tensors(None, tensors(kind), {}, None, None, None)  # type: ignore[arg-type]
    convention = find_convention(read)
    assert convention is not None
    assert convention.is_larger
    found = reading.read(read, dense_detection, **{"backbone.stride_in_block": "spatial"})
    spec = found.spec
    assert (spec.levels, spec.classes, spec.head_depth, spec.pyramid_width) == ((3, 4, 5, 6, 7), 4, 2, 32)
    own = build.build(spec)
    canonical.fill(own, found.arrays)
    x = np.random.default_rng(0).normal(0, 1, (1, *SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        outputs = peer(kind)(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    boxes, scores = decoded(kind, outputs)
    received = {name: np.asarray(value)[0] for name, value in own(x).items()}
    if kind == "detectron2":  # anchors of a place come in another order
        order = np.arange(len(boxes)).reshape(-1, 3, 3).swapaxes(1, 2).ravel()
        boxes, scores = boxes[order], scores[order]
    np.testing.assert_allclose(received["scores"], scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(received["boxes"], boxes, rtol=0, atol=1e-2)


def test_contracts_and_licences_travel_along():
    expected = {
        "retina": ("rgb", 0.485),
        "conv": ("bgr", 102.9801),
        "atss": ("rgb", 0.485),
        "detectron2": ("bgr", 103.53),
    }
    for kind, (order, mean) in expected.items():
        found = reading.read(Tensors(None, tensors(kind), {}, None, None, None), dense_detection)  # type: ignore[arg-type]
        assert (found.input_spec.channel_order, found.input_spec.mean[0]) == (order, pytest.approx(mean))
        assert found.input_spec.resize_mode == "fit"
        said = " ".join(found.assumptions)
        assert "input_spec" in said
        assert ("CC BY-SA 3.0" in said) == (kind == "detectron2")


def of_full_size(name: str) -> dict[str, np.ndarray]:
    """Tensors of a published detector as its program names them, of its shapes; all are 0."""
    torchside.library("torchvision")
    import torch
    from torchvision.models import resnet

    detectron, two = "detectron2" in name, name.startswith("faster")
    with torch.device("meta"):
        body = (resnet.resnet101 if "101" in name else resnet.resnet50)().state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in body.items():
        if not key.startswith("fc"):
            own = f"backbone.bottom_up.{detectron_body(key)}" if detectron else f"backbone.{key}"
            shapes[own] = tuple(value.shape)

    def layer(key: str, inputs: int, outputs: int, side: int = 3, *, bias: bool = True) -> None:
        shapes[f"{key}.weight"] = (outputs, inputs, side, side) if side else (outputs, inputs)
        if bias:
            shapes[f"{key}.bias"] = (outputs,)

    widths = {2: 256, 3: 512, 4: 1024, 5: 2048}
    for place, level in enumerate(range(2 if two else 3, 6)):
        if detectron:
            layer(f"backbone.fpn_lateral{level}", widths[level], 256, 1)
            layer(f"backbone.fpn_output{level}", 256, 256)
        else:
            layer(f"neck.lateral_convs.{place}.conv", widths[level], 256, 1)
            layer(f"neck.fpn_convs.{place}.conv", 256, 256)
    if two:
        rpn = "proposal_generator.rpn_head"
        layer(f"{rpn}.conv", 256, 256)
        layer(f"{rpn}.objectness_logits", 256, 3, 1)
        layer(f"{rpn}.anchor_deltas", 256, 12, 1)
        for key, inputs, outputs in (
            ("box_head.fc1", 12544, 1024),
            ("box_head.fc2", 1024, 1024),
            ("box_predictor.cls_score", 1024, 81),
            ("box_predictor.bbox_pred", 1024, 320),
        ):
            layer(f"roi_heads.{key}", inputs, outputs, 0)
    elif detectron:
        layer("backbone.top_block.p6", 2048, 256)
        layer("backbone.top_block.p7", 256, 256)
        for number in (0, 2, 4, 6):
            layer(f"head.cls_subnet.{number}", 256, 256)
            layer(f"head.bbox_subnet.{number}", 256, 256)
        layer("head.cls_score", 256, 720)
        layer("head.bbox_pred", 256, 36)
    else:
        kind = {"retinanet": "retina", "fcos": "conv"}.get(name.split("_")[0], name.split("_")[0])
        anchors, values = 9 if kind == "retina" else 1, 68 if kind == "gfl" else 4
        layer("neck.fpn_convs.3.conv", 2048 if kind == "retina" else 256, 256)
        layer("neck.fpn_convs.4.conv", 256, 256)
        for branch in ("cls", "reg"):
            for number in range(4):
                layer(f"bbox_head.{branch}_convs.{number}.conv", 256, 256, bias=kind == "retina")
                if kind != "retina":
                    shapes |= {f"bbox_head.{branch}_convs.{number}.gn.{part}": (256,) for part in ("weight", "bias")}
        layer(f"bbox_head.{kind}_cls", 256, 80 * anchors)
        layer(f"bbox_head.{kind}_reg", 256, values * anchors)
        if kind in ("conv", "atss"):
            layer(f"bbox_head.{kind}_centerness", 256, 1)
        if kind != "retina":
            shapes |= {f"bbox_head.scales.{level}.scale": () for level in range(5)}
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


OTHERS = [row for row in registry.detectors().values() if row.source in registry.FILES_ONLY]


@pytest.mark.parametrize(
    "row", [pytest.param(one, id=one.name, marks=pytest.mark.slow if "101" in one.name else ()) for one in OTHERS]
)
def test_rows_of_other_programs_are_what_their_files_are_read_as(row):
    read = Tensors(None, of_full_size(row.name), {}, None, None, None)  # type: ignore[arg-type]
    convention = find_convention(read)
    assert convention is not None
    found = convention.translate(read)
    assert found.spec == catalog.get(row.name).spec
    assert catalog.get(reading.name_of(found.spec)).spec == found.spec
    assert found.convention == row.layout
    assert found.input_spec == row.input_spec
    assert not row.loadable
    assert row.licence == {"mmdetection": "apache-2.0", "detectron2": "cc-by-sa-3.0"}[row.source]
    assert len(row.sha256) == (8 if row.source == "mmdetection" else 0)
    assert row.url.endswith(f"-{row.sha256}.pth" if row.sha256 else ".pkl")
    named = reading.filled(reading.named(row.name), found)
    assert named.class_names is not None
    assert named.class_names[:2] == ("person", "bicycle")


def test_what_no_rule_knows_is_refused():
    more = {**tensors("gfl"), "bbox_head.reg_conf.0.weight": np.zeros((64, 20, 1, 1), np.float32)}
    with pytest.raises(CheckpointError, match="reg_conf"):
        reading.read(Tensors(None, more, {}, None, None, None), dense_detection)  # type: ignore[arg-type]
