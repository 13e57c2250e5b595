import pytest

import resfit
from resfit.engines import cut
from resfit.errors import ArgumentError, closest
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.training import boundary
from tests.pictures import tiny_body

NETWORKS = ["resnet50", "resnet56", "resnet101", "resnet50v2", "resnext50_32x4d", "resnet18"]


@pytest.mark.parametrize(
    ("received", "meant"),
    [
        ("resnet5O", "resnet50"),  # the letter
        ("resnetl8", "resnet18"),
        ("resnetIO1", "resnet101"),
        ("RESNET50", "resnet50"),
        ("resnet-50", "resnet50"),
        ("ResNet_50_V2", "resnet50v2"),
        ("resnext50-32X4D", "resnext50_32x4d"),
        ("resnet5", "resnet50"),
        ("RESNET5", "resnet50"),
    ],
)
def test_what_looks_the_same_is_meant(received, meant):
    assert closest(received, NETWORKS) == f" Did you mean {meant!r}?"


def test_nothing_is_suggested_for_what_is_like_nothing():
    assert closest("banana", NETWORKS) == ""
    assert closest("num_classes", NETWORKS) == ""  # what is meant is no choice here
    assert closest("layer3", ["layers3", "stage2"]) == " Did you mean 'layers3'?"


def test_load_names_the_network_and_the_argument():
    with pytest.raises(ArgumentError, match=r"'resnet5O'\. Did you mean 'resnet50'"):
        resfit.load("resnet5O")
    for received, meant in {
        "num_classes": "classes",
        "n_classes": "classes",
        "in_chans": "in_channels",
        "pretrained": "weights",
        "features_only": "taps",
        "pooling_": "pooling",
        "stride_in_blok": "stride_in_block",
    }.items():
        with pytest.raises(ArgumentError, match=rf"^load has no argument '{received}'\. Did you mean '{meant}'\?$"):
            resfit.load("resnet18", weights=None, **{received: 4})


def test_fit_names_the_argument():
    with pytest.raises(ArgumentError, match=r"fit has no argument 'random_state'\. Did you mean 'seed'"):
        resfit.fit("photos", random_state=1)
    with pytest.raises(ArgumentError, match=r"fit has no argument 'lable_column'\. Did you mean 'label_column'"):
        resfit.fit("photos", lable_column="a")
    with pytest.raises(ArgumentError, match=r"epochs is a setting of the fine-tuning\. Pass tuning={'epochs': …}"):
        resfit.fit("photos", epochs=3)
    with pytest.raises(ArgumentError, match=r"fit has no argument 'lr'\. Did you mean 'learning_rate'"):
        resfit.fit("photos", lr=0.1)


@pytest.mark.parametrize(
    ("received", "meant"),
    [("layer3", "stage4"), ("layer1", "stage2"), ("res5", "stage5"), ("C3", "stage3"), ("conv4_x", "stage4")],
)
def test_stages_by_the_names_of_other_libraries(received, meant):
    with pytest.raises(ArgumentError, match=f"Did you mean '{meant}'"):
        build(catalog.get("resnet18").spec, include_top=False, taps=(received,))


def test_stages_of_a_model_by_the_names_of_other_libraries():
    body = tiny_body(size=16)  # stage1 to stage3
    with pytest.raises(ArgumentError, match="Did you mean 'stage3'"):
        cut(body, "layer2")
    with pytest.raises(ArgumentError, match="Did you mean 'stage2'"):
        boundary.find(body, "block1")
