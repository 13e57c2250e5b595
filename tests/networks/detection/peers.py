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


def two_stage(kind: str, classes: int = 5, seed: int = 0) -> Any:
    """torchvision's Faster R-CNN on a residual network of ten layers: ``"v1"`` or ``"v2"``."""
    torchvision()
    import torch
    from torch import nn
    from torchvision.models import resnet
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, RPNHead, _default_anchorgen

    torch.manual_seed(seed)
    body = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    if kind == "v1":
        return randomized(FasterRCNN(_resnet_fpn_extractor(body, 5), classes).eval(), seed)
    anchors = _default_anchorgen()
    model = FasterRCNN(
        _resnet_fpn_extractor(body, 5, norm_layer=nn.BatchNorm2d),
        classes,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(256, anchors.num_anchors_per_location()[0], conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
    )
    return randomized(model.eval(), seed)


def _pooling() -> None:
    """Lets torchvision's pooling of regions run where it was compiled for another torch: in Python, part by part."""
    import sys

    import torch
    from torchvision.ops import poolers

    module = sys.modules["torchvision.ops.roi_align"]
    if module._has_ops() or hasattr(module, "_of_tests"):
        return
    plain, interpolated = module._roi_align.__wrapped__, module._bilinear_interpolate

    def inside(image: Any, numbers: Any, y: Any, x: Any, ymask: Any, xmask: Any) -> Any:
        # what the compiled kernels have and the Python form lacks: nothing lies more than a pixel outside
        height, width = image.shape[2:]
        rows, columns = (((one >= -1) & (one <= side)).to(one) for one, side in ((y, height), (x, width)))
        shown = rows[:, None, :, None, :, None] * columns[:, None, None, :, None, :]
        return interpolated(image, numbers, y, x, ymask, xmask) * shown

    module._bilinear_interpolate = inside

    def parts(image: Any, boxes: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Any:
        found = [plain(image, some, spatial_scale, *output_size, sampling_ratio, False) for some in boxes.split(100)]
        return torch.cat(found)

    module._of_tests, poolers.roi_align = parts, parts


def two_stages(
    model: Any, images: np.ndarray, given: np.ndarray
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """What both stages of a Faster R-CNN say of normalised images, and the detections of each.

    The head looks at ``given`` boxes ``(batch, n, 4)`` for the first, at torchvision's own proposals for the second.
    """
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    _pooling()
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    sizes = [tuple(images.shape[1:3])] * len(images)
    with torch.no_grad():
        maps = model.backbone(x)
        objectness, codes = concat_box_prediction_layers(*model.rpn.head(list(maps.values())))
        proposals, _ = model.rpn(ImageList(x, sizes), maps)
        heads = model.roi_heads

        def said(some: Any) -> Any:
            return heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, some, sizes)))

        logits, deltas = said([torch.from_numpy(one) for one in given])
        boxes, scores, labels = heads.postprocess_detections(*said(proposals), proposals, sizes)
    raw = {
        "objectness": objectness.numpy().reshape(len(images), -1, 1),
        "proposal_codes": codes.numpy().reshape(len(images), -1, 4),
        "proposals": [one.numpy() for one in proposals],
        "class_logits": logits.numpy().reshape(*given.shape[:2], -1),
        "box_codes": deltas.numpy().reshape(*given.shape[:2], -1),
    }
    found = [
        {"boxes": one.numpy(), "scores": two.numpy(), "labels": three.numpy()}
        for one, two, three in zip(boxes, scores, labels, strict=True)
    ]
    return raw, found


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
        "faster_rcnn_resnet50": detection.fasterrcnn_resnet50_fpn,
        "faster_rcnn_resnet50_v2": detection.fasterrcnn_resnet50_fpn_v2,
    }[name]
    model = build(weights=None, weights_backbone=None).eval()
    if name in ("retinanet_resnet50", "faster_rcnn_resnet50"):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps, module.num_batches_tracked = 0.0, None  # frozen, as in the published files
    return randomized(model, seed)


def randomized(model: Any, seed: int) -> Any:
    """Every weight random, statistics of norms too; scores spread around the thresholds."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
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
