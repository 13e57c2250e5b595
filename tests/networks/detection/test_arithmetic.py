"""DetectorSpec and what it costs, against torchvision's published counts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from resfit.errors import ArgumentError, UnknownNameError
from resfit.networks import catalog as networks
from resfit.networks.detection import arithmetic, catalog, kinds
from resfit.networks.detection.spec import DetectorSpec


@pytest.mark.parametrize(
    ("name", "parameters", "frozen", "gmacs"),
    [
        ("retinanet_resnet50", 34_014_999, True, 151.54),
        ("retinanet_resnet50_v2", 38_198_935, False, 152.238),
        ("fcos_resnet50", 32_269_600, True, 128.207),
    ],
)
def test_counts_are_those_that_torchvision_publishes(name, parameters, frozen, gmacs):
    """Of weights with frozen batch norms, torchvision counts none of these norms; its GFLOPS are MACs at 800x800."""
    counted = arithmetic.count(catalog.get(name).spec)
    own = counted.parameters_with_frozen_norms if frozen else counted.trainable_parameters
    assert own == parameters
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=6e-4)


def test_counts_are_those_that_the_installed_torchvision_states():
    from tests.networks.detection import peers

    peers.torchvision()
    from torchvision.models import detection

    for name, weights in {
        "retinanet_resnet50": detection.RetinaNet_ResNet50_FPN_Weights,
        "retinanet_resnet50_v2": detection.RetinaNet_ResNet50_FPN_V2_Weights,
        "fcos_resnet50": detection.FCOS_ResNet50_FPN_Weights,
    }.items():
        meta = weights.DEFAULT.meta
        counted = arithmetic.count(catalog.get(name).spec)
        assert meta["num_params"] in (counted.parameters_with_frozen_norms, counted.trainable_parameters)
        assert round(counted.macs / 1e9, 3) == pytest.approx(meta["_ops"], abs=1e-3)
        assert len(meta["categories"]) == catalog.get(name).spec.classes


def test_the_parts_sum_up():
    counted = arithmetic.count(catalog.get("retinanet_resnet50").spec, input_size=(800, 1333))
    parts = [counted.part(name) for name in ("backbone", "pyramid", "head")]
    assert tuple(map(sum, zip(*parts, strict=True))) == (counted.parameters, counted.macs)
    # two branches of four convolutions; 9 anchors of 91 classes and 4 values
    assert parts[2][0] == 8 * (9 * 256 * 256 + 256) + (9 * 256 + 1) * (9 * 91 + 9 * 4)
    assert counted.levels == {3: (100, 167), 4: (50, 84), 5: (25, 42), 6: (13, 21), 7: (7, 11)}
    assert counted.boxes == 9 * (100 * 167 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11)


def test_the_light_detector_is_light():
    light = arithmetic.count(catalog.get("fcos_light_resnet18").spec, input_size=(800, 800))
    usual = arithmetic.count(catalog.get("fcos_resnet50").spec)
    assert light.part("head")[1] < usual.part("head")[1] / 7
    assert light.macs < usual.macs / 3


def test_every_residual_network_carries_a_light_detector():
    for row in networks.rows().values():
        spec = catalog.light(row.spec)
        assert arithmetic.count(spec, input_size=(64, 96)).parameters > 0
        taps = spec.taps
        assert taps[max(taps)] == f"stage{len(row.spec.depths) + 1}"
    # it ends at stride 16: two levels more are made of its last map
    assert catalog.light(networks.get("resnet10_tiny").spec).taps == {3: "stage4", 4: "stage5"}
    assert catalog.light(networks.get("resnet20").spec).levels == (2, 3, 4, 5, 6)


@pytest.mark.parametrize("name", catalog.names())
def test_a_spec_survives_json(name):
    spec = catalog.get(name).spec
    assert kinds.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(spec.replace())


BROKEN = {
    "levels": [(), (3, 5), (4, 3), (3, 4), (6, 7), (0, 1)],
    "anchor_sizes": [(), ((8,),) * 4, ((8,), (8, 16), (8,), (8,), (8,)), ((0,),) * 5, ((),) * 5],
    "anchor_ratios": [(), (-1.0,)],
    "box_coding": ["delta"],
    "classes": [0],
    "candidates": [0],
    "prior": [0.0, 1.0],
    "score_threshold": [-0.1],
    "nms_threshold": [1.1],
    "delta_stds": [(1.0, 1.0), (1.0, 1.0, 0.0, 1.0)],
    "head_depth": [-1],
    "norm_groups": [0, 48],
    "norm_epsilon": [-1.0],
    "quality": ["iou"],
    "extra_input": ["c4"],
    "anchor_offset": [2.0],
    "input_size": [(0, 4)],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BROKEN for value in BROKEN[field]])
def test_a_spec_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ArgumentError, match=field.removesuffix("s")):
        catalog.get("fcos_resnet50").spec.replace(**{field: value})


def test_unknown_fields_and_names_are_refused():
    fields = catalog.get("fcos_resnet50").spec.to_dict()
    with pytest.raises(ArgumentError, match="anchor_size"):
        DetectorSpec.from_dict({**fields, "anchor_size": 8})
    with pytest.raises(ArgumentError, match="backbone"):
        DetectorSpec.from_dict({key: value for key, value in fields.items() if key != "backbone"})
    with pytest.raises(UnknownNameError, match="retinanet_resnet50"):
        catalog.get("retinanet_resnet5O")


def test_counting_imports_no_keras():
    code = (
        "import sys\nfrom resfit.networks.detection import anchors, arithmetic, catalog\n"
        "arithmetic.count(catalog.get('fcos_resnet50').spec)\n"
        "anchors.anchors(catalog.get('fcos_resnet50').spec, (64, 64))\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
