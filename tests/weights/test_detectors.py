"""Detectors by name and by file: what resfit.load, info, convert and the tables make of them."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from resfit import detectors, zoo
from resfit.errors import ArgumentError, CheckpointError, UnknownNameError
from resfit.network_summary import summary
from resfit.networks.detection import arithmetic, catalog, kinds
from resfit.weights import canonical, describe, labels, load, registry, write
from resfit.weights import detectors as reading
from resfit.weights.formats import safetensors
from tests.networks.detection import peers


@pytest.fixture(scope="module")
def tensors():
    """The small detectors of torchvision by kind."""
    return {kind: peers.tensors(peers.small(kind)) for kind in ("v1", "v2", "fcos")}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tensors):
    """Each as torchvision's own training script saves it, and as safetensors."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("detectors")
    for kind, arrays in tensors.items():
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
        state = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        torch.save({"model": weights, "optimizer": state, "epoch": 3}, folder / f"{kind}.pth")
        safetensors.write_arrays(folder / f"{kind}.safetensors", arrays, {})
    return folder


IMAGES = np.random.default_rng(0).integers(0, 256, (1, 65, 50, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def loaded(files):
    """The file of a kind as a network."""
    return functools.cache(lambda kind: zoo.load(files / f"{kind}.pth"))


@pytest.mark.parametrize("kind", ["v1", "v2", "fcos"])
def test_a_file_is_loaded_as_what_it_is(kind, files, loaded):
    model = loaded(kind)
    spec = model.architecture
    assert spec.classes == 5
    assert model.input_spec == reading.TORCHVISION
    assert any("anchor_sizes=" in text for text in model.assumptions)
    assert any("shorter side of 800" in text for text in model.assumptions)
    peer = peers.small(kind)
    assert spec.backbone.norm_epsilon == 1e-5  # norms that count their batches are torch's own
    if kind == "v1":
        other = zoo.load(files / f"{kind}.safetensors", **{"backbone.norm_epsilon": 0.5})
        assert other.architecture.backbone.norm_epsilon == 0.5
    received = {name: np.asarray(value) for name, value in model(IMAGES).items()}
    normal = model.input_spec.normalize(IMAGES)
    expected = peers.raw(peer, normal)
    scores = 1 / (1 + np.exp(-expected["class_logits"]))
    if "quality" in expected:
        scores = np.sqrt(scores / (1 + np.exp(-expected["quality"])))
    np.testing.assert_allclose(received["scores"], scores, rtol=0, atol=1e-4)
    assert received["boxes"].shape == (1, scores.shape[1], 4)


def test_own_classes_give_a_fresh_class_head_and_keep_the_rest(files, loaded):
    whole, own = loaded("v2"), zoo.load(files / "v2.pth", classes=3, seed=1)
    assert own.output["scores"].shape[-1] == 3
    assert own.class_names is None
    theirs, mine = canonical.arrays(whole), canonical.arrays(own)
    changed = {name for name in theirs if theirs[name].shape != mine[name].shape or (theirs[name] != mine[name]).any()}
    assert changed == {"class_logits_conv/kernel", "class_logits_conv/bias"}
    # a score at the start is the prior
    assert np.asarray(own(IMAGES)["scores"]).mean() == pytest.approx(own.architecture.prior, rel=0.5)


def test_one_channel_and_the_body_alone(files, tensors):
    grey = zoo.load(files / "fcos.safetensors", in_channels=1)
    assert grey.input_shape == (None, None, None, 1)
    kernel = "backbone.body.conv1.weight"
    summed = tensors["fcos"][kernel].sum(axis=1).transpose(1, 2, 0)
    np.testing.assert_allclose(canonical.arrays(grey)["conv1_conv/kernel"][:, :, 0], summed, atol=1e-6)
    body = zoo.load(files / "fcos.safetensors", include_top=False, pooling="avg")
    assert body.output_shape == (None, 512)
    assert any("left out" in text for text in body.assumptions)
    assert zoo.read("retinanet_resnet50_v2", None, needs_top=False).spec == catalog.get("fcos_resnet50").spec.backbone


def test_by_name_with_a_file(files, loaded, monkeypatch):
    row = catalog.get("fcos_resnet50")
    small = loaded("fcos").architecture
    monkeypatch.setitem(catalog.rows(), "small", catalog.DetectorRow("small", "FCOS", small, row.paper))
    model = zoo.load("small", weights=files / "fcos.pth")
    assert model.name == "small"
    assert not [text for text in model.assumptions if "changes it)" in text]
    with pytest.raises(CheckpointError, match=r"those of 'small' \(FCOS\). Received: those of a RetinaNet"):
        zoo.load("small", weights=files / "v1.pth")
    with pytest.raises(CheckpointError, match="no weights are published for 'small'"):
        zoo.load("small")
    with pytest.raises(ArgumentError, match="weights must be"):
        zoo.load("small", weights="imagenet")
    assert zoo.load("small", weights=None, classes=7).output["scores"].shape[-1] == 7


def test_what_does_not_fit_is_refused(files, loaded, tensors, tmp_path):
    with pytest.raises(ArgumentError, match="pooling"):
        zoo.load(files / "v2.pth", pooling="avg")
    with pytest.raises(ArgumentError, match="nms_threshold"):
        zoo.load(files / "v2.pth", nms_treshold=0.4)
    assert zoo.load(files / "v2.pth", nms_threshold=0.4).architecture.nms_threshold == 0.4
    more = {**tensors["v2"], "head.regression_head.iou.weight": np.zeros((1, 256, 3, 3), np.float32)}
    safetensors.write_arrays(tmp_path / "more.safetensors", more, {})
    with pytest.raises(CheckpointError, match=r"1 tensors left over.*iou"):
        zoo.load(tmp_path / "more.safetensors")
    kept = zoo.load(tmp_path / "more.safetensors", ignore=["*.iou.*"])
    assert kept.count_params() == loaded("v2").count_params()
    less = {name: array for name, array in tensors["v2"].items() if "regression_head.conv.2.0" not in name}
    safetensors.write_arrays(tmp_path / "less.safetensors", less, {})
    with pytest.raises(CheckpointError, match="without tensors"):
        zoo.load(tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="a detector"):
        load.read_source(files / "v2.pth")
    with pytest.raises(CheckpointError, match=r"resfit.Detector"):
        zoo.read(files / "v2.pth")


@pytest.mark.parametrize(
    "suffix",
    [
        *(".keras", ".safetensors", ".own.safetensors", ".h5"),
        *(pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".pth", ".weights.h5")),
    ],
)
def test_what_is_written_is_read_back(suffix, loaded, tmp_path, monkeypatch):
    model = loaded("fcos")
    monkeypatch.setattr(model, "class_names", tuple("abcde"))
    monkeypatch.setitem(catalog.rows(), "small", catalog.DetectorRow("small", "FCOS", model.architecture, ""))
    target = tmp_path / f"written{suffix}"
    write.write(model, target, naming="resfit" if "own" in suffix else None)
    again = zoo.load("small", weights=target) if suffix.endswith(".h5") else zoo.load(target)
    for name, value in model(IMAGES).items():
        np.testing.assert_allclose(again(IMAGES)[name], value, atol=1e-5)
    assert again.architecture == model.architecture
    if suffix in (".keras", ".safetensors", ".own.safetensors"):
        assert again.class_names == tuple("abcde")
        assert again.input_spec == model.input_spec
        assert not [text for text in again.assumptions if "changes it)" in text]
    if "own" in suffix:
        body = zoo.load(target, include_top=False)
        assert body.output_shape[-1] == 512


def test_a_file_is_described(files, loaded):
    found = describe.describe(files / "v1.pth")
    assert not found.problem
    assert found.architecture["classes"] == 5
    assert found.parameters == loaded("v1").count_params()
    text = describe.text(found)
    assert "a detector of 5 class outputs: levels 3 to 7 of 256 channels, 4 convolutions a branch, 9 anchors" in text
    assert "within 800x1333" in text
    assert "assumed     anchor_sizes=" in text


def test_the_summary_has_pyramid_and_head(loaded):
    model = loaded("fcos")
    found = summary(model, input_shape=(64, 64, 3))
    stages = {stage.name: stage for stage in found.stages}
    counted = arithmetic.count(model.architecture, input_size=(64, 64))
    assert found.parameters == counted.parameters
    assert (stages["pyramid"].parameters, stages["pyramid"].macs) == counted.part("pyramid")
    assert (stages["head"].parameters, stages["head"].macs) == counted.part("head")


def test_registry_rows_are_torchvisions():
    peers.torchvision()
    from torchvision.models import detection

    published = {
        "retinanet_resnet50": detection.RetinaNet_ResNet50_FPN_Weights,
        "retinanet_resnet50_v2": detection.RetinaNet_ResNet50_FPN_V2_Weights,
        "fcos_resnet50": detection.FCOS_ResNet50_FPN_Weights,
        "faster_rcnn_resnet50": detection.FasterRCNN_ResNet50_FPN_Weights,
        "faster_rcnn_resnet50_v2": detection.FasterRCNN_ResNet50_FPN_V2_Weights,
    }
    own = {name for name, row in registry.detectors().items() if row.source == "torchvision"}
    assert own == published.keys()
    for name, weights in published.items():
        row, meta = registry.get_detector(name), weights.COCO_V1.meta
        assert row.url == weights.COCO_V1.url
        assert row.url.endswith(f"-{row.sha256}.pth")
        assert row.ap == meta["_metrics"]["COCO-val2017"]["box_map"]
        assert (row.params_m, row.gmacs) == (meta["num_params"] / 1e6, meta["_ops"])
        assert row.megabytes == meta["_file_size"]
        # Faster R-CNN never reports the background
        assert row.class_names == tuple(meta["categories"][1 if name.startswith("faster") else 0 :])
        assert row.loadable
        assert (row.classes, row.licence) == (catalog.get(name).spec.classes, "")
        spec = row.input_spec
        assert spec == reading.TORCHVISION
        assert spec.fitted_size(480, 640) == (800, 1066)
        assert spec.fitted_size(640, 480) == (1066, 800)
        assert spec.fitted_size(300, 1200) == (333, 1333)
    with pytest.raises(UnknownNameError, match="fcos_resnet50"):
        registry.get_detector("fcos_resnet5")


def test_torchvision_resizes_so():
    torch = pytest.importorskip("torch")
    peers.torchvision()
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(800, 1333, [0, 0, 0], [1, 1, 1])
    for size in ((480, 640), (427, 640), (1080, 1920), (333, 500), (2000, 700), (97, 131)):
        found, _ = transform([torch.zeros(3, *size)])
        assert reading.TORCHVISION.fitted_size(*size) == found.image_sizes[0]


def test_listing_and_suggestions():
    found = {row.name: row for row in detectors.list_detectors()}
    assert list(found) == list(catalog.rows())
    best = found["retinanet_resnet50_v2"]
    assert (best.ap, best.evaluated_on, best.evaluation_size) == (41.5, "COCO val2017", (800, 1333))
    assert (best.backbone, best.loadable, found["fcos_light_resnet18"].loadable) == ("resnet50v1.5", True, False)
    own = [
        row for row in detectors.ordered(list(found.values()), "ap") if row.url.startswith("https://download.pytorch")
    ]
    assert [row.name for row in own] == [
        *("faster_rcnn_resnet50_v2", "retinanet_resnet50_v2", "fcos_resnet50"),
        *("faster_rcnn_resnet50", "retinanet_resnet50"),
    ]
    assert [row.name for row in detectors.suggest(max_gmacs=130, source="torchvision")] == ["fcos_resnet50"]
    chosen = detectors.suggest(source="torchvision")
    best_ones = {"faster_rcnn_resnet50_v2", "retinanet_resnet50_v2", "fcos_resnet50"}
    assert {row.name for row in chosen if row.pareto} == best_ones
    assert detectors.suggest(max_gmacs=20) == []
    smaller = detectors.at_smaller_sizes(30, list(found.values()))
    assert [one.info.name for one in smaller[:3]] == ["rtdetr_r18vd_o365", "rtdetrv2_r18vd", "rtdetr_r18vd"]
    for one in smaller:
        spec, (side, _) = catalog.get(one.info.name).spec, one.size
        costs = [kinds.count(spec, input_size=(more, more)).macs / 1e9 for more in (side, side + 32)]
        assert costs[0] == pytest.approx(one.gmacs, abs=1e-3)
        assert costs[0] <= 30 < costs[1]
    assert "faster_rcnn_resnet50_v2" not in {one.info.name for one in smaller}  # its proposals cost as much at any size
    assert detectors.suggest(licence="permissive", source="torchvision") == []  # none is stated for the weights
    small = detectors.suggest(max_gmacs=40, licence="permissive")
    assert [(row.name, row.ap) for row in small] == [
        ("rtdetr_r18vd_o365", 49.0),
        ("rtdetrv2_r18vd", 48.1),
        ("rtdetr_r18vd", 46.4),
    ]
    assert (small[1].evaluation_size, small[1].backbone, small[1].licence) == ((640, 640), "resnet_vd_18", "apache-2.0")
    described = detectors.describe("fcos_resnet50")
    assert described.class_names[1] == "person"
    assert json.loads(json.dumps(described.to_dict()))["parts"]["head"]["parameters"] == described.parts["head"][0]
    with pytest.raises(ArgumentError, match="max_gmacs"):
        detectors.suggest(max_gmacs=0)


def test_labels_have_gaps():
    names = labels.of("coco-91")
    assert len(names) == 91
    assert sum(reading.has_meaning(name) for name in names) == 80
    assert (names[1], names[90]) == ("person", "toothbrush")
