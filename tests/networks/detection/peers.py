"""torchvision's detectors with random weights, to be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import torchside


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Indices that the loop keeps, as torchvision's kernel for processors is written: in float32, the best first."""
    boxes = boxes.astype(np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    gone = np.zeros(len(boxes), bool)
    kept = []
    for place, one in enumerate(order):
        if gone[one]:
            continue
        kept.append(int(one))
        rest = order[place + 1 :]
        low = np.maximum(boxes[one, :2], boxes[rest, :2])
        size = np.maximum(np.minimum(boxes[one, 2:], boxes[rest, 2:]) - low, np.float32(0))
        inter = size[:, 0] * size[:, 1]
        with np.errstate(invalid="ignore"):
            overlap = inter / (areas[one] + areas[rest] - inter)
        gone[rest[overlap.astype(np.float64) > threshold]] = True
    return kept


def torchvision() -> Any:
    """torchvision with its detection module; where it was compiled for another torch, its suppression is the loop."""
    library = torchside.library("torchvision")
    import torch
    import torchvision.ops.boxes as operators

    if torchside._KEPT and not getattr(library, "_loop_of_tests", None):
        operators._assert_has_ops = lambda: None

        def nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
            return torch.tensor(greedy(dets.numpy(), scores.numpy(), iou_threshold), dtype=torch.int64)

        torchside._KEPT[0].impl("nms", nms, "CPU")
        library._loop_of_tests = nms
    return library


def small(kind: str, classes: int = 5, seed: int = 0) -> Any:
    """A detector of torchvision on a residual network of ten layers: ``"v1"``, ``"v2"`` or ``"fcos"``."""
    library = torchvision()
    import torch
    from torch import nn
    from torchvision.models import resnet
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(seed)
    extra = LastLevelP6P7(512 if kind == "v2" else 256, 256)
    body = _resnet_fpn_extractor(
        resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]), 5, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    if kind == "fcos":
        model = FCOS(body, classes)
    else:
        anchors, head = _default_anchorgen(), None
        if kind == "v2":
            norm = lambda width: nn.GroupNorm(32, width)  # noqa: E731
            head = RetinaNetHead(256, anchors.num_anchors_per_location()[0], classes, norm_layer=norm)
            head.regression_head._loss_type = "giou"
        model = RetinaNet(body, classes, anchor_generator=anchors, head=head)
    assert library
    return randomized(model.eval(), seed)


def published(name: str, seed: int = 0) -> Any:
    """One of torchvision's three detectors on its ResNet-50, as the published weights run."""
    torchvision()
    import torch
    from torchvision.models import detection

    torch.manual_seed(seed)
    build = {
        "retinanet_resnet50": detection.retinanet_resnet50_fpn,
        "retinanet_resnet50_v2": detection.retinanet_resnet50_fpn_v2,
        "fcos_resnet50": detection.fcos_resnet50_fpn,
    }[name]
    model = build(weights=None, weights_backbone=None).eval()
    if name == "retinanet_resnet50":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
    return randomized(model, seed)


def randomized(model: Any, seed: int) -> Any:
    """Every weight random, statistics of norms too; scores spread around the thresholds."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
            if name.endswith("cls_logits"):
                module.bias.fill_(-3.0)
    return model


def raw(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the head says of normalised images ``(batch, height, width, 3)``, and the anchors."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        maps = list(model.backbone(x).values())
        found = model.head(maps)
        anchors = model.anchor_generator(ImageList(x, [images.shape[1:3]] * len(images)), maps)
    names = {"cls_logits": "class_logits", "bbox_regression": "box_codes", "bbox_ctrness": "quality"}
    return {**{names[key]: value.numpy() for key, value in found.items()}, "anchors": anchors[0].numpy()}


def detections(model: Any, images: np.ndarray) -> list[dict[str, np.ndarray]]:
    """What torchvision's whole postprocessing leaves of normalised images."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    sizes = [tuple(images.shape[1:3])] * len(images)
    with torch.no_grad():
        maps = list(model.backbone(x).values())
        found = model.head(maps)
        anchors = model.anchor_generator(ImageList(x, sizes), maps)
        counts = [one.shape[2] * one.shape[3] for one in maps]
        each = found["cls_logits"].shape[1] // sum(counts)
        counts = [each * count for count in counts]
        split = {key: list(value.split(counts, dim=1)) for key, value in found.items()}
        results = model.postprocess_detections(split, [list(one.split(counts)) for one in anchors], sizes)
    return [{key: value.numpy() for key, value in one.items()} for one in results]


def tensors(model: Any) -> dict[str, np.ndarray]:
    """Its state dict as arrays."""
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}
