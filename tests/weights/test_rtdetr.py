"""RT-DETR and RT-DETRv2: names, architecture, raw outputs, detections, files and the input contract."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import resfit
from resfit import zoo
from resfit.cli import classify
from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog, kinds
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.weights import canonical, describe, registry, write
from resfit.weights import detectors as reading
from resfit.weights.conventions import rtdetr
from resfit.weights.formats import safetensors
from tests.networks.detection import rtdetr_peers as peers

HEADS: dict[str, Any] = {"encoder_heads": 4, "decoder_heads": 4, "queries": 40}


@functools.cache
def source(version: int, **fields: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A small RT-DETR of transformers, and its tensors as published files name them."""
    model = peers.small(version, **fields)
    return model, peers.tensors(model)


def images(*size: int) -> np.ndarray:
    """Two images as they are after scaling."""
    return np.random.default_rng(0).uniform(0, 1, (2, *size, 3)).astype(np.float32)


def authors(tensors: dict[str, np.ndarray], version: int) -> dict[str, np.ndarray]:
    """Tensors under the names that the authors' programs give them."""
    first, second = ("0", "1") if version == 1 else ("conv", "norm")
    proposal = ("0", "1") if version == 1 else ("proj", "norm")
    renamed, packed = {}, {}
    rules = [
        (r"model\.backbone\.model\.embedder\.embedder\.(\d)\.", lambda m: f"backbone.conv1.conv1_{int(m[1]) + 1}."),
        (
            r"model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.",
            lambda m: f"backbone.res_layers.{m[1]}.blocks.{m[2]}.branch2{'abc'[int(m[3])]}.",
        ),
        (
            r"model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.(1\.)?",
            lambda m: f"backbone.res_layers.{m[1]}.blocks.{m[2]}.short.{'conv.' if m[3] else ''}",
        ),
        (r"\.convolution\.", ".conv."),
        (r"\.normalization\.", ".norm."),
        (r"model\.encoder_input_proj\.(\d)\.0", rf"encoder.input_proj.\1.{first}"),
        (r"model\.encoder_input_proj\.(\d)\.1", rf"encoder.input_proj.\1.{second}"),
        (r"model\.decoder_input_proj\.(\d)\.0", r"decoder.input_proj.\1.conv"),
        (r"model\.decoder_input_proj\.(\d)\.1", r"decoder.input_proj.\1.norm"),
        (r"model\.decoder\.layers\.(.*)final_layer_norm", r"decoder.decoder.layers.\1norm3"),
        (r"model\.decoder\.layers\.(.*)encoder_attn_layer_norm", r"decoder.decoder.layers.\1norm2"),
        (r"final_layer_norm", "norm2"),
        (r"self_attn_layer_norm", "norm1"),
        (r"\.encoder_attn\.", ".cross_attn."),
        (r"n_points_scale", "num_points_scale"),
        (r"\.fc([12])\.", r".linear\1."),
        (r"model\.decoder\.layers", "decoder.decoder.layers"),
        (r"model\.decoder\.class_embed", "decoder.dec_score_head"),
        (r"model\.decoder\.bbox_embed", "decoder.dec_bbox_head"),
        (r"model\.decoder\.query_pos_head", "decoder.query_pos_head"),
        (r"model\.enc_output\.0", f"decoder.enc_output.{proposal[0]}"),
        (r"model\.enc_output\.1", f"decoder.enc_output.{proposal[1]}"),
        (r"model\.(enc_score_head|enc_bbox_head|denoising_class_embed)", r"decoder.\1"),
        (r"^model\.encoder", "encoder"),
    ]
    for name, array in tensors.items():
        if name.startswith(("class_embed", "bbox_embed")):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        match = re.fullmatch(r"(.*self_attn\.)([qkv])_proj\.(weight|bias)", name)
        if match:
            packed.setdefault((match[1], match[3]), {})[match[2]] = array
        else:
            renamed[name] = array
    for (path, leaf), parts in packed.items():
        renamed[f"{path}in_proj_{leaf}"] = np.concatenate([parts[letter] for letter in "qkv"])
    renamed["decoder.anchors"], renamed["decoder.valid_mask"] = np.zeros((1, 5, 4)), np.zeros((1, 5, 1), bool)
    return renamed


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        (2, {"decoder_method": "discrete"}),
        pytest.param(1, {}, marks=pytest.mark.slow),
        pytest.param(2, {"hidden_expansion": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_raw_outputs_are_transformers(version, fields):
    model, tensors = source(version, **fields)
    translation = rtdetr.translate(tensors)
    assert not translation.leftover
    more = {"sampling": "discrete"} if "decoder_method" in fields else {}
    spec, _ = rtdetr.identify(translation, **HEADS, **more)
    assert (spec.version, spec.points, spec.classes, spec.decoder_depth) == (version, 2, 5, 2)
    own = build.build(spec, outputs="raw")
    assert own.count_params() == kinds.count(spec).parameters
    canonical.fill(own, translation.arrays)
    for size in ((128, 160), (97, 130)):
        expected = peers.raw(model, images(*size))
        received = {key: np.asarray(value) for key, value in own(images(*size)).items()}
        np.testing.assert_allclose(received["box_codes"], expected["box_codes"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(received["class_logits"], expected["class_logits"], rtol=0, atol=1e-4)
        assert expected["class_logits"].std() > 1
        assert expected["box_codes"].std() > 0.1


def test_detections_are_those_of_transformers_post_processing():
    import torch

    model, tensors = source(2)
    translation = rtdetr.translate(tensors)
    spec, _ = rtdetr.identify(translation, **HEADS, max_detections=40)
    own = build.build(spec, outputs="detections")
    canonical.fill(own, translation.arrays)
    x = images(97, 130)
    raw = peers.raw(model, x)
    scores = torch.sigmoid(torch.from_numpy(raw["class_logits"])).flatten(1)
    best, order = scores.topk(40, dim=1)
    received = {key: np.asarray(value) for key, value in own(x).items()}
    assert received["count"].tolist() == [40, 40]
    np.testing.assert_allclose(received["scores"], best.numpy(), atol=1e-5)
    assert (received["classes"] == (order % 5).numpy()).mean() > 0.95
    boxes = np.take_along_axis(raw["box_codes"], (order // 5).numpy()[..., None], axis=1)
    corners = np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    corners = corners.clip(0, 1) * [130, 97, 130, 97]
    assert (np.abs(received["boxes"] - corners).max(-1) < 0.1).mean() > 0.95


def test_both_spellings_and_the_authors_names_are_one_network():
    for version in (1, 2):
        model, tensors = source(version)
        usual = rtdetr.translate(tensors)
        today = peers.tensors(model, published=False)
        assert today.keys() != tensors.keys()
        own = authors(tensors, version)
        if version == 2:
            own = {f"ema.module.{name}": array for name, array in own.items()}
        for other in (today, own):
            assert rtdetr.is_detector(other)
            found = rtdetr.translate(other)
            assert not found.leftover
            assert found.arrays.keys() == usual.arrays.keys()
            assert all(np.array_equal(found.arrays[name], array) for name, array in usual.arrays.items())
            assert rtdetr.identify(found, **HEADS)[0] == rtdetr.identify(usual, **HEADS)[0]


def test_tensors_come_back():
    for version in (1, 2):
        _, tensors = source(version)
        translation = rtdetr.translate({f"net.{name}": array for name, array in tensors.items()})
        spec, assumptions = rtdetr.identify(translation)
        # RT-DETRv2's constants tell how many places a head samples
        assert (spec.queries, spec.decoder_heads, spec.points) == ((300, 8, 1) if version == 1 else (300, 4, 2))
        untold = {"encoder_heads", "queries", "sampling"} | ({"decoder_heads"} if version == 1 else set())
        assert {text.partition("=")[0] for text in assumptions} == untold
        again = rtdetr.to_torch(rtdetr.identify(translation, **HEADS)[0], translation.arrays)
        counted = {name for name in tensors if name.startswith("model.backbone") and name.endswith("tracked")}
        assert again.keys() == tensors.keys() - counted
        for name, array in again.items():
            assert np.array_equal(array, tensors[name]), name


@pytest.mark.parametrize("version", [1, 2])
def test_parameters_are_transformers_and_those_that_are_published(version):
    prefix = "rtdetr" if version == 1 else "rtdetrv2"
    tensors = {"r18vd": 526, "r50vd": 764} if version == 1 else {"r18vd": 553, "r50vd": 818}
    for name in peers.SIZES:
        model = peers.published(name, version, meta=True)
        counted = kinds.count(catalog.get(f"{prefix}_{name}").spec)
        learned = sum(value.numel() for key, value in model.named_parameters() if "backbone" not in key)
        body = sum(layer.trainable for layer in counted.layers if layer.stage.startswith("stage"))
        twice = ("class_embed", "bbox_embed") if "class_embed.0.weight" in dict(model.named_parameters()) else ()
        doubled = sum(value.numel() for key, value in model.named_parameters() if key.startswith(twice)) if twice else 0
        assert counted.trainable_parameters - body == learned - doubled
        row = registry.get_detector(f"{prefix}_{name}")
        # published in whole millions, cut
        assert int(counted.trainable_parameters / 1e6) == row.params_m
        kept = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
        if name in tensors and version == 1:
            kept = [key for key in kept if not key.startswith(("class_embed", "bbox_embed"))]
        assert name not in tensors or len(kept) + _counters(model) == tensors[name]


def _counters(model: Any) -> int:
    """Counters of the norms that are not frozen, as published files hold them."""
    return sum(key.endswith("num_batches_tracked") and "backbone" not in key for key in model.state_dict())


def test_costs_are_near_the_published_ones():
    """The authors state 60, 92, 136 and 259 GFLOPs at 640x640, two for each multiply-accumulate.

    (And 100 for ``r50vd_m``, of whose decoder they run three layers, and transformers and resfit all six.)
    """
    published = {"r18vd": 60, "r34vd": 92, "r50vd": 136, "r101vd": 259}
    for name, gflops in published.items():
        assert kinds.count(catalog.get(f"rtdetr_{name}").spec).macs / 1e9 == pytest.approx(gflops / 2, rel=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the hub has it."""
    model, tensors = source(2)
    place = tmp_path_factory.mktemp("rtdetr")
    safetensors.write_arrays(place / "model.safetensors", tensors, {"format": "pt"})
    config = model.config.to_dict()
    config["id2label"] = dict(enumerate(("person", "car", "dog", "cat", "tree")))
    config["architectures"] = ["RTDetrV2ForObjectDetection"]
    (place / "config.json").write_text(json.dumps(config, default=str), "utf-8")
    contract = {"do_resize": True, "size": {"height": 96, "width": 128}, "do_rescale": True, "do_normalize": False}
    contract |= {"rescale_factor": 1 / 255, "resample": 2, "image_processor_type": "RTDetrImageProcessor"}
    contract |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (place / "preprocessor_config.json").write_text(json.dumps(contract), "utf-8")
    return place


@pytest.fixture(scope="module")
def loaded(folder):
    """That folder as a network."""
    return zoo.load(folder)


PHOTO = np.random.default_rng(1).integers(0, 256, (90, 200, 3)).astype(np.uint8)


def test_a_folder_of_the_hub_says_everything_itself(folder, loaded):
    spec = loaded.architecture
    assert (spec.queries, spec.decoder_heads, spec.encoder_heads, spec.points) == (40, 4, 4, 2)
    assert loaded.class_names == ("person", "car", "dog", "cat", "tree")
    contract = loaded.input_spec
    assert (contract.size, contract.resize_mode, contract.scale) == ((96, 128), "squash", 1 / 255)
    assert (contract.mean, contract.std) == ((0.0,) * 3, (1.0,) * 3)
    assert not [text for text in loaded.assumptions if "changes it" in text]
    found = describe.describe(folder)
    assert not found.problem
    text = describe.text(found)
    assert "a detector of 5 class outputs: an encoder of 32 channels on levels 3 to 5, a decoder of 2 layers" in text
    assert found.parameters == loaded.count_params()


def test_a_detector_stretches_pictures_brings_boxes_back_and_is_saved(folder, tmp_path):
    import torch
    from PIL import Image

    detector = resfit.Detector.pretrained(folder, threshold=0.0)
    found = detector.predict(PHOTO)[0]
    assert detector.card()[2][1] == "stretched to 128x96 pixels"
    small = np.asarray(Image.fromarray(PHOTO).resize((128, 96), Image.Resampling.BILINEAR), np.float32) / 255
    raw = peers.raw(source(2)[0], small[None])
    scores, order = torch.sigmoid(torch.from_numpy(raw["class_logits"])).flatten(1).topk(200, dim=1)
    boxes = raw["box_codes"][0][(order[0] // 5).numpy()]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1).clip(0, 1)
    corners *= [200, 90, 200, 90]
    assert len(found) == 200
    np.testing.assert_allclose(found.scores, scores[0].numpy(), atol=1e-4)
    matched = (np.abs(found.boxes - corners).max(-1) < 0.1) & (found.classes == (order[0] % 5).numpy())
    assert matched.mean() >= 0.99
    detector.save(tmp_path / "kept")
    again = resfit.Detector.load(tmp_path / "kept")
    assert (again.spec, again.input_spec, again.classes) == (detector.spec, detector.input_spec, detector.classes)
    x = PHOTO[None].astype("float32")
    for name, value in detector.model(x).items():
        np.testing.assert_allclose(again.model(x)[name], value, atol=1e-4)


@pytest.mark.parametrize(
    "suffix",
    [".keras", *(pytest.param(kind, marks=pytest.mark.slow) for kind in (".safetensors", ".own.safetensors", ".pth"))],
)
def test_what_is_written_is_read_back(suffix, loaded, tmp_path):
    if suffix == ".pth":
        pytest.importorskip("torch")
    target = tmp_path / f"written{suffix}"
    write.write(loaded, target, naming="resfit" if "own" in suffix else None)
    again = zoo.load(target, **(HEADS if suffix == ".pth" else {}))
    x = PHOTO[None].astype("float32")
    for name, value in loaded(x).items():
        np.testing.assert_allclose(again(x)[name], value, atol=1e-4)
    assert again.architecture == loaded.architecture
    if suffix != ".pth":
        assert again.class_names == loaded.class_names
        assert again.input_spec == loaded.input_spec


def test_a_handle_of_the_hub_is_such_a_folder(folder, tmp_path):
    cache = tmp_path / "hub" / "models--PekingU--rtdetr_r50vd"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit, "utf-8")
    shutil.copytree(folder, cache / "snapshots" / commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "RESFIT_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "resfit", "info", "hf://PekingU/rtdetr_r50vd"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "a detector of 5 class outputs" in done.stdout
    assert "classes     person, car, dog, cat, tree" in done.stdout
    assert "changes it" not in done.stdout


def test_a_published_detector_is_measured_by_cocos_annotations(folder, tmp_path):
    from PIL import Image

    pictures = tmp_path / "val2017"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    listed, boxes = [], []
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (60, 90, 3)).astype(np.uint8)).save(pictures / f"{number}.jpg")
        listed.append({"id": number, "file_name": f"{number}.jpg", "width": 90, "height": 60})
        box = [10.0 + number, 5.0, 60.0, 40.0]
        boxes.append({"id": number + 1, "image_id": number, "category_id": 18, "bbox": box, "area": 2400, "iscrowd": 0})
    names = {1: "person", 3: "car", 18: "dog", 17: "cat", 90: "tree"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    truth = {"images": listed, "annotations": boxes, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(truth), "utf-8")
    app = typer.Typer()
    classify.register(app)
    asked = ["evaluate", str(folder), str(pictures), "--coco", str(tmp_path / "truth.json"), "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = resfit.Detector.pretrained(folder).evaluate(tmp_path / "truth.json", images=pictures, intervals=False)
    assert found["metrics"]["ap50"] == pytest.approx(expected.to_dict()["metrics"]["ap50"], nan_ok=True)
    assert found["metrics"]["ap50"] >= 0


@pytest.mark.slow
def test_own_classes_keep_everything_but_what_depends_on_them(folder, loaded):
    own = zoo.load(folder, classes=3, seed=1)
    theirs, mine = canonical.arrays(loaded), canonical.arrays(own)
    changed = {name for name in theirs if theirs[name].shape != mine[name].shape or (theirs[name] != mine[name]).any()}
    heads = ("decoder_1_class", "decoder_2_class", "decoder_proposal_class")
    assert changed == {
        *(f"{name}/{part}" for name in heads for part in ("kernel", "bias")),
        "decoder_denoising/embeddings",
    }
    assert np.asarray(own(PHOTO[None])["scores"]).mean() == pytest.approx(0.25, abs=0.15)
    assert own.class_names is None


def test_named_ones_are_built_and_their_body_is_found(folder):
    model = resfit.load("rtdetrv2_r18vd", weights=None)
    assert model.architecture == catalog.get("rtdetrv2_r18vd").spec
    assert model.input_spec == reading.RTDETR
    assert {name: value.shape for name, value in model(np.zeros((1, 160, 192, 3))).items()} == {
        "boxes": (1, 300, 4),
        "scores": (1, 300, 80),
    }
    row = registry.get_detector("rtdetrv2_r18vd")
    assert row.input_spec == reading.RTDETR
    assert (row.class_names[0], row.class_names[-1], len(row.class_names)) == ("person", "toothbrush", 80)
    with pytest.raises(ArgumentError, match=r"as many places as there are queries \(300\). Received: 84"):
        resfit.load("rtdetrv2_r18vd", weights=None, input_shape=(64, 64, 3))
    body = zoo.load(folder, include_top=False, pooling="avg")
    assert body.output_shape == (None, 64)
    with pytest.raises(CheckpointError, match="differs in"):
        zoo.load("rtdetrv2_r18vd", weights=folder)


def test_what_does_not_fit_is_refused(tmp_path):
    _, tensors = source(2)
    more = {**tensors, "model.decoder.lqe.0.weight": np.zeros((4, 4), np.float32)}
    assert set(rtdetr.translate(more).leftover) == {"model.decoder.lqe.0.weight"}
    other = {**tensors, "class_embed.0.weight": tensors["class_embed.0.weight"] + 1}
    with pytest.raises(CheckpointError, match="beside another one with other values"):
        rtdetr.translate(other)
    scale = "model.decoder.layers.0.encoder_attn.n_points_scale"
    uneven = rtdetr.translate({**tensors, scale: np.full(6, 0.25, np.float32)})
    with pytest.raises(CheckpointError, match="as many points"):
        rtdetr.identify(uneven, **HEADS)
    translation = rtdetr.translate(tensors)
    with pytest.raises(CheckpointError, match="normalize_before=True"):
        rtdetr.identify(translation, config={"model_type": "rt_detr_v2", "normalize_before": True})
    with pytest.raises(CheckpointError, match="decoder_heads="):
        rtdetr.identify(rtdetr.translate(source(1)[1]), decoder_heads=7)
    with pytest.raises(ArgumentError, match="levels must be strides"):
        RTDETRSpec(networks.get("resnet18").spec, levels=(3, 4))
    less = {name: array for name, array in tensors.items() if "pan_blocks.1.conv2" not in name}
    safetensors.write_arrays(tmp_path / "less.safetensors", less, {})
    with pytest.raises(CheckpointError, match=r"layers without tensors: encoder_bottom_up_2_2_conv"):
        zoo.load(tmp_path / "less.safetensors", **HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtdetr_r18vd", "rtdetrv2_r50vd", "rtdetrv2_r101vd"])
def test_published_networks_are_transformers(name):
    version = 2 if "v2" in name else 1
    model = peers.published(name.partition("_")[2], version)
    translation = rtdetr.translate(peers.tensors(model))
    spec, _ = rtdetr.identify(translation)
    assert spec == catalog.get(name).spec
    own = build.build(spec, outputs="raw")
    canonical.fill(own, translation.arrays)
    for size in ((320, 416), (600, 600), (640, 640), (800, 1333)):
        x = images(*size)[:1]
        expected = {key: value[0] for key, value in peers.raw(model, x).items()}
        received = {key: np.asarray(value)[0] for key, value in own(x).items()}
        boxes, logits = (
            np.abs(received[key][:, None] - expected[key][None]).max(-1) for key in ("box_codes", "class_logits")
        )
        alike = (boxes < 1e-4) & (logits < 1e-3)
        # near ties among places may come in another order
        assert alike.any(axis=1).mean() >= 0.99, size
        assert np.diag(alike).mean() >= 0.9, size
        scores = 1 / (1 + np.exp(-expected["class_logits"]))
        order = np.argsort(-scores.ravel(), kind="stable")[:300]
        own_scores = np.sort((1 / (1 + np.exp(-received["class_logits"]))).ravel())[::-1][:300]
        np.testing.assert_allclose(own_scores, scores.ravel()[order], atol=1e-4)
