"""DETR: names of three programs, architecture, raw outputs, the best class of a query, gaps in COCO's ids."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import numpy as np
import pytest

import resfit
from resfit import zoo
from resfit.errors import CheckpointError
from resfit.networks.detection import build, catalog, kinds
from resfit.weights import canonical, registry, write
from resfit.weights import detectors as reading
from resfit.weights.conventions import detr
from resfit.weights.formats import safetensors
from tests import torchside
from tests.networks.detection.rtdetr_peers import randomized

CLASSES = ("N/A", "person", "car", "N/A", "dog")


@functools.cache
def source() -> tuple[Any, dict[str, np.ndarray]]:
    """A small DETR of transformers on its own backbone, and its tensors as the library of today names them."""
    library = torchside.library("transformers")
    import torch

    torch.manual_seed(0)
    body = library.ResNetConfig(
        out_features=["stage4"], depths=[1] * 4, hidden_sizes=[16, 16, 32, 32], embedding_size=16, layer_type="basic"
    )
    config = library.DetrConfig(
        use_timm_backbone=False,
        backbone_config=body,
        num_queries=12,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        id2label=dict(enumerate(CLASSES)),
    )
    model = randomized(library.DetrForObjectDetection(config).eval(), 0)
    return model, {name: value.numpy().copy() for name, value in model.state_dict().items()}


def old(tensors: dict[str, np.ndarray], *, timm: bool) -> dict[str, np.ndarray]:
    """Tensors as the files of 2021 name them, with transformers' backbone or timm's."""
    found = {}
    for name, array in tensors.items():
        for new, before in (("o_proj", "out_proj"), (".mlp.fc", ".fc"), ("backbone.", "backbone.conv_encoder.")):
            name = name.replace(new, before)
        found[timm_name(name) if timm else name] = array
    return found


def timm_name(name: str) -> str:
    """The name of a tensor of the backbone as timm and torchvision have it."""
    rules = [
        (r"embedder\.embedder\.convolution", "conv1"),
        (r"embedder\.embedder\.normalization", "bn1"),
        (r"encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}"),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
        (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
        (r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def authors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as DETR's authors name them."""
    rules = [
        (r"^model\.backbone\.model\.", "backbone.0.body."),
        (r"^model\.input_projection", "input_proj"),
        (r"^model\.query_position_embeddings", "query_embed"),
        (r"^model\.decoder\.layernorm", "transformer.decoder.norm"),
        (r"^class_labels_classifier", "class_embed"),
        (r"^bbox_predictor", "bbox_embed"),
        (r"(decoder.*)final_layer_norm", r"\1norm3"),
        (r"encoder_attn_layer_norm", "norm2"),
        (r"final_layer_norm", "norm2"),
        (r"self_attn_layer_norm", "norm1"),
        (r"encoder_attn", "multihead_attn"),
        (r"mlp\.fc([12])", r"linear\1"),
        (r"o_proj", "out_proj"),
        (r"^model\.(en|de)coder", r"transformer.\1coder"),
    ]
    found: dict[str, np.ndarray] = {}
    packed: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        name = timm_name(name)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        match = re.fullmatch(r"(.*attn\.)([qkv])_proj\.(weight|bias)", name)
        if match:
            packed.setdefault((match[1], match[3]), {})[match[2]] = array
        else:
            found[name] = array
    for (path, leaf), parts in packed.items():
        found[f"{path}in_proj_{leaf}"] = np.concatenate([parts[letter] for letter in "qkv"])
    return found


def raw(images: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers says of normalised images."""
    import torch

    with torch.no_grad():
        found = source()[0](torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    return {"class_logits": found.logits.numpy(), "box_codes": found.pred_boxes.numpy()}


def test_raw_outputs_are_transformers():
    translation = detr.translate(source()[1])
    assert not translation.leftover
    spec, assumptions = detr.identify(translation, heads=4)
    assert (spec.classes, spec.queries, spec.encoder_depth, spec.decoder_depth, spec.width) == (5, 12, 2, 2, 32)
    assert any(text.startswith("backbone.output_stride=32") for text in assumptions)
    own = build.build(spec, outputs="raw")
    assert own.count_params() == kinds.count(spec).parameters
    canonical.fill(own, translation.arrays)
    for size in ((128, 160), (97, 130)):
        x = np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype(np.float32)
        expected, received = raw(x), own(x)
        for key, value in expected.items():
            np.testing.assert_allclose(received[key], value, rtol=0, atol=1e-5)
        assert expected["class_logits"].std() > 1


def test_every_spelling_is_the_same_network():
    _, tensors = source()
    usual = detr.translate(tensors)
    for other in (old(tensors, timm=False), old(tensors, timm=True), authors(tensors)):
        assert detr.is_detector(other)
        found = detr.translate({f"net.{name}": array for name, array in other.items()})
        assert not found.leftover
        assert found.arrays.keys() == usual.arrays.keys()
        assert all(np.array_equal(found.arrays[name], array) for name, array in usual.arrays.items())
        assert detr.identify(found, heads=4)[0] == detr.identify(usual, heads=4)[0]
    spec, _ = detr.identify(usual, heads=4)
    again, published = detr.to_torch(spec, usual.arrays), old(tensors, timm=True)
    assert again.keys() == published.keys()
    assert all(np.array_equal(again[name], array) for name, array in published.items())
    dilated, _ = detr.identify(usual, heads=4, config={"model_type": "detr", "dilation": True})
    assert (dilated.backbone.output_stride, dilated.heads, dilated.taps) == (16, 4, {4: "stage5"})
    with pytest.raises(CheckpointError, match="position_embedding_type='learned'"):
        detr.identify(usual, config={"model_type": "detr", "position_embedding_type": "learned"})


def test_parameters_and_rows_are_the_published_ones():
    # facebookresearch/detr: 41 M with ResNet-50 and 60 M with ResNet-101; frozen norms are no parameters there
    for name, millions in (("detr_resnet50", 41), ("detr_resnet50_dc5", 41), ("detr_resnet101", 60)):
        counted = kinds.count(catalog.get(name).spec)
        assert int(counted.parameters_with_frozen_norms / 1e6) == millions
    # its log of a training states 41302368: without the stem's convolution and the first stage, which are frozen too
    counted = kinds.count(catalog.get("detr_resnet50").spec)
    frozen = sum(one.trainable for one in counted.layers if one.stage in ("stage1", "stage2") and one.kind == "conv")
    assert counted.parameters_with_frozen_norms - frozen == 41_302_368
    row = registry.get_detector("detr_resnet50")
    assert (row.ap, row.licence, row.megabytes, row.input_spec) == (42.0, "apache-2.0", 167, reading.TORCHVISION)


def test_gaps_are_left_out_behind_the_softmax(tmp_path):
    import torch

    model, tensors = source()
    safetensors.write_arrays(tmp_path / "model.safetensors", old(tensors, timm=True), {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict(), default=str), "utf-8")
    contract = {"image_processor_type": "DetrImageProcessor", "size": 96, "max_size": 128, "do_normalize": True}
    contract |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_resize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(contract), "utf-8")
    whole = zoo.load(tmp_path)
    assert (whole.input_spec.size, whole.input_spec.resize_mode) == ((96, 128), "fit")
    assert whole.class_names == CLASSES
    detector = resfit.Detector.pretrained(tmp_path, threshold=0.0)
    assert detector.classes == ("person", "car", "dog")
    assert detector.spec.unreported == (0, 3)
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    expected = raw(detector.input_spec.normalize(photo[None]))
    scores = torch.softmax(torch.from_numpy(expected["class_logits"][0]), -1)[:, [1, 2, 4]]
    best, labels = scores.max(-1)
    order = best.argsort(descending=True)
    found = detector.predict(photo)[0]
    assert len(found) == 12  # one box for each query
    np.testing.assert_allclose(found.scores, best[order].numpy(), atol=1e-5)
    assert found.classes.tolist() == labels[order].tolist()
    shipped = detector.suppressed(size=(96, 128))(photo[None].astype("float32"))
    assert int(shipped["count"][0]) == 12
    np.testing.assert_allclose(np.asarray(shipped["scores"])[0, :12], found.scores, atol=1e-5)
    write.write(whole, tmp_path / "written.safetensors")
    again = zoo.load(tmp_path / "written.safetensors")
    assert again.architecture == whole.architecture
    np.testing.assert_allclose(again(photo[None])["scores"], whole(photo[None])["scores"], atol=1e-5)
