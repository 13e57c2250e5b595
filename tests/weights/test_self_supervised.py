"""Checkpoints of self-supervised training as their programs write them, with optimisers and heads: what loads."""

from __future__ import annotations

import argparse
import itertools
from collections import OrderedDict

import keras
import numpy as np
import pytest

from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights import canonical, load
from resfit.weights.conventions import pytorch
from tests.numeric import randomize, relative_error

torch = pytest.importorskip("torch")

SPEC = ArchitectureSpec(
    depths=(1, 1, 1, 1),
    widths=(16, 16, 24, 32),
    inner_widths=(4, 4, 6, 8),
    stem=(StemConv(8, 7, 2),),
    classes=5,
)
SEQUENTIAL = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def network():
    return randomize(build(SPEC))


@pytest.fixture(scope="module")
def whole(network):
    return {name: torch.from_numpy(np.array(array)) for name, array in pytorch.to_torch(network).items()}


def body_of(state: dict, shift: float = 0.0) -> dict:
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    return {name: tensor + shift if tensor.is_floating_point() else tensor for name, tensor in body.items()}


def under(prefix: str, state: dict) -> dict:
    return OrderedDict((f"{prefix}{name}", tensor) for name, tensor in state.items())


def cut(state: dict) -> dict:
    """As ``nn.Sequential(*list(resnet.children())[:-1])`` names it."""
    parts = {name: name.partition(".") for name in state}
    return {f"{SEQUENTIAL[first]}.{rest}": state[name] for name, (first, _, rest) in parts.items()}


def linear(name: str, into: int, out: int, bias: bool = True) -> dict:
    return {f"{name}.weight": torch.ones(out, into)} | ({f"{name}.bias": torch.ones(out)} if bias else {})


def norm(name: str, width: int, affine: bool = True) -> dict:
    found = {f"{name}.running_mean": torch.ones(width), f"{name}.running_var": torch.ones(width)}
    found[f"{name}.num_batches_tracked"] = torch.tensor(3)
    return found | ({f"{name}.weight": torch.ones(width), f"{name}.bias": torch.ones(width)} if affine else {})


def mlp(name: str, *widths: int, start: int = 0, step: int = 3) -> dict:
    """Linear, norm and activation in turn; the last linear stands alone."""
    found: dict = {}
    for number, (into, out) in enumerate(itertools.pairwise(widths)):
        found |= linear(f"{name}.{start + step * number}", into, out, bias=False)
        if number < len(widths) - 2:
            found |= norm(f"{name}.{start + step * number + 1}", out)
    return found


def sgd() -> dict:
    return {
        "state": {0: {"momentum_buffer": torch.ones(3)}, 1: {"momentum_buffer": torch.ones(2, 2)}},
        "param_groups": [{"lr": 0.03, "momentum": 0.9, "params": [0, 1]}],
    }


def moco_v1(own, other):
    state = under("module.encoder_q.", own | linear("fc", 32, 6)) | under("module.encoder_k.", other)
    state |= {"module.queue": torch.ones(6, 40), "module.queue_ptr": torch.tensor([8])}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": sgd()}


def moco_v2(own, other):
    head = linear("fc.0", 32, 32) | linear("fc.2", 32, 6)
    state = under("module.encoder_q.", own | head) | under("module.encoder_k.", other | head)
    state |= {"module.queue": torch.ones(6, 40), "module.queue_ptr": torch.tensor([8])}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": sgd()}


def moco_v3(own, other):
    head = mlp("fc", 32, 40, 6) | norm("fc.4", 6, affine=False)
    state = under("module.base_encoder.", own | head) | under("module.momentum_encoder.", other | head)
    state |= mlp("module.predictor", 6, 40, 6)
    return {"epoch": 1000, "arch": "resnet50", "state_dict": state, "optimizer": sgd(), "scaler": {"scale": 65536.0}}


def simclr(own, other):
    """The port to PyTorch that is met most."""
    state = under("backbone.", own | linear("fc.0", 32, 32) | linear("fc.2", 32, 6))
    return {"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": sgd()}


def simclr_lightning(own, other):
    state = under("encoder.", own | linear("fc", 32, 5)) | linear("projection.model.0", 32, 32)
    state |= norm("projection.model.1", 32) | linear("projection.model.3", 32, 6, bias=False)
    return {"epoch": 1, "global_step": 9, "state_dict": state, "optimizer_states": [sgd()], "lr_schedulers": []}


def simclr_solo(own, other):
    """solo-learn, whose linear classifier is trained beside; the momentum networks are of its BYOL."""
    state = under("backbone.", own) | linear("classifier", 32, 5) | linear("projector.0", 32, 32)
    state |= under("momentum_backbone.", other) | linear("momentum_projector.0", 32, 32)
    state |= linear("momentum_classifier", 32, 5)
    return {"epoch": 399, "state_dict": state, "optimizer_states": [sgd()]}


def byol(own, other):
    """A cut torchvision network; the projection is misspelt there."""
    return {
        "online_network_state_dict": under("encoder.", cut(own)) | mlp("projetion.net", 32, 40, 6),
        "target_network_state_dict": under("encoder.", cut(other)) | mlp("projetion.net", 32, 40, 6),
        "optimizer_state_dict": sgd(),
    }


def byol_ddp(own, other):
    state = under("module.online_network.encoder.", own) | mlp("module.online_network.projector", 32, 40, 6)
    state |= under("module.target_network.encoder.", other) | mlp("module.target_network.projector", 32, 40, 6)
    state |= mlp("module.predictor", 6, 40, 6)
    return {"config": {"base": {"epochs": 300}}, "epoch": 300, "steps": 9, "model": state, "optimizer": sgd()}


def dino(own, other):
    head = mlp("head.mlp", 32, 40, 6, step=2) | {
        "head.last_layer.weight_g": torch.ones(9, 1),
        "head.last_layer.weight_v": torch.ones(9, 6),
    }
    student = under("module.backbone.", other) | under("module.", head)
    teacher = under("backbone.", own) | head
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": sgd(),
        "epoch": 800,
        "args": argparse.Namespace(arch="resnet50", lr=0.3, local_crops_scale=(0.05, 0.14)),
        "dino_loss": {"center": torch.ones(1, 9)},
    }


def swav(own, other):
    head = mlp("projection_head", 32, 40, 6) | linear("prototypes", 6, 9, bias=False)
    return {"epoch": 800, "state_dict": under("module.", own | head), "optimizer": sgd(), "amp": {"loss_scaler0": 2.0}}


def deepcluster(own, other):
    head = mlp("projection_head", 32, 40, 6)
    head |= linear("prototypes.prototypes0", 6, 9, bias=False) | linear("prototypes.prototypes1", 6, 9, bias=False)
    return under("module.", own | head)


def barlow_twins(own, other):
    state = under("module.backbone.", own) | mlp("module.projector", 32, 40, 40, 40)
    return {"epoch": 1000, "model": state | norm("module.bn", 40, affine=False), "optimizer": sgd()}


def vicreg(own, other):
    state = under("module.backbone.", own) | mlp("module.projector", 32, 40, 40, 40)
    return {"epoch": 1000, "model": state, "optimizer": sgd()}


def simsiam(own, other):
    state = under("module.encoder.", own | mlp("fc", 32, 32, 32, 32) | norm("fc.7", 32, affine=False))
    return {"epoch": 100, "arch": "resnet50", "state_dict": state | mlp("module.predictor", 32, 8, 32)}


def openmmlab(own, other):
    """OpenMMLab's MoCo: encoders are a Sequential of backbone and neck."""
    state = under("encoder_q.0.", own) | linear("encoder_q.1.mlp.0", 32, 32) | linear("encoder_q.1.mlp.2", 32, 6)
    state |= under("encoder_k.0.", other) | linear("encoder_k.1.mlp.0", 32, 32) | linear("encoder_k.1.mlp.2", 32, 6)
    state |= {"queue": torch.ones(6, 40), "queue_ptr": torch.tensor([0])}
    return {"meta": {"epoch": 200}, "state_dict": state, "optimizer": sgd()}


def vissl(own, other):
    trunk = under("_feature_blocks.", own)
    heads = linear("0.clf.0", 32, 32) | linear("0.clf.2", 32, 6)
    return {
        "phase_idx": 9,
        "iteration": 100,
        "loss": {"info_average.dist_rank": torch.ones(1)},
        "classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}, "optimizer": {"optim": sgd()}},
    }


def plain(own, other):
    """What DINO, Barlow Twins and VICReg publish for others to use."""
    return own


LAYOUTS = [
    *(moco_v1, moco_v2, moco_v3, simclr, simclr_lightning, simclr_solo, byol, byol_ddp, dino, swav, deepcluster),
    *(barlow_twins, vicreg, simsiam, openmmlab, vissl, plain),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_body_has_the_weights_of_the_encoder(layout, whole, network, tmp_path):
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(layout(body_of(whole), body_of(whole, 0.5)), file)
    read = load.read_source(file)
    expected = {name: array for name, array in canonical.arrays(network).items() if not name.startswith("predictions/")}
    received = {name: array for name, array in read.arrays.items() if not name.startswith("predictions/")}
    assert received.keys() == expected.keys()
    assert all(np.array_equal(received[name], expected[name]) for name in received)
    assert read.spec.replace(classes=5) == SPEC


def test_it_is_a_model_without_a_head(whole, network, tmp_path):
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(moco_v3(body_of(whole), body_of(whole, 0.5)), file)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("f4")
    model = load.load_source(file, preprocess=False)
    features = keras.Model(network.input, network.get_layer("avg_pool").output)
    assert relative_error(model(images).numpy().mean((1, 2)), features(images).numpy()) < 1e-5


@pytest.mark.parametrize("layout", [moco_v1, moco_v2, moco_v3, byol_ddp, dino, swav, barlow_twins, vicreg, openmmlab])
def test_a_projection_head_is_no_classifier_and_is_told(layout, whole, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save(layout(body_of(whole), body_of(whole, 0.5)), file)
    read = load.read_source(file)
    assert not read.has_top
    assert any("left out a projection head" in sentence for sentence in read.assumptions), read.assumptions


@pytest.mark.parametrize("head", ["head.fc", "classifier", "fc"])
def test_a_classifier_beside_a_backbone(head, whole, network, tmp_path):
    state = under("backbone.", body_of(whole)) | {f"{head}.{leaf}": whole[f"fc.{leaf}"] for leaf in ("weight", "bias")}
    file = tmp_path / "checkpoint.pth"
    torch.save({"meta": {"epoch": 100}, "state_dict": state}, file)
    read = load.read_source(file)
    assert read.has_top
    expected = canonical.arrays(network)
    assert all(np.array_equal(read.arrays[name], expected[name]) for name in expected)
    assert any(f"'state_dict.{head}.weight', beside" in sentence for sentence in read.assumptions)


def test_a_linear_classifier_that_self_supervised_training_keeps_beside_is_left_out(whole, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save(simclr_solo(body_of(whole), body_of(whole, 0.5)), file)
    read = load.read_source(file)
    assert not read.has_top
    assert any("trained beside the network: state_dict.classifier.weight" in text for text in read.assumptions)


AVERAGES = {
    "timm's EMA": lambda own, mean: {"state_dict": own, "state_dict_ema": mean, "epoch": 3, "version": 2},
    "timm's ModelEma": lambda own, mean: {"model": own, "model_ema": mean},
    "a module beside": lambda own, mean: {"state_dict": under("model.", own) | under("ema_model.module.", mean)},
    "compiled": lambda own, mean: {"model": under("_orig_mod.", own), "ema": under("module._orig_mod.", mean)},
    "averaged weights": lambda own, mean: {"model": own, "averaged_model": under("module.", mean) | {
        "n_averaged": torch.tensor(5)}},
}  # fmt: skip


@pytest.mark.parametrize("name", AVERAGES)
def test_the_running_average_is_taken_on_request(name, whole, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save(AVERAGES[name](whole, {key: tensor + 1 for key, tensor in whole.items()}), file)
    bias = whole["fc.bias"].numpy()
    assert np.array_equal(load.read_source(file).arrays["predictions/bias"], bias)
    assert np.array_equal(load.read_source(file, averaged=True).arrays["predictions/bias"], bias + 1)
