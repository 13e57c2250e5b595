"""The body of a detector, a segmenter or a self-supervised program: found, computed as there, and the rest listed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights.conventions import pytorch
from resfit.weights.load import load_source, read_source
from tests.numeric import relative_error
from tests.torchside import library

TOLERANCE = 1e-4
SIDES = (96, 75)  # no multiples of the stride
STAGES = ("stage2", "stage3", "stage4", "stage5")


def randomized(module):
    """Gives norms statistics and affine parts that are not those of a fresh network."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.ndim > 1:
                tensor.normal_(0, 1 / np.sqrt(np.prod(tensor.shape[1:])), generator=generator)
            elif name.endswith(("running_var", "weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1, generator=generator)
    return module.eval()


def picture() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *SIDES, 3)).astype(np.float32)


def as_torch(image: np.ndarray):
    return pytest.importorskip("torch").from_numpy(image.transpose(0, 3, 1, 2).copy())


def saved(module, folder, wrap=lambda state: state):
    torch = pytest.importorskip("torch")
    torch.save(wrap(module.state_dict()), folder / "model.pth")
    return folder / "model.pth"


def within(prefix, beside):
    """What puts a network into a larger one."""
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()} | beside


def body(path, **reading):
    return load_source(path, include_top=False, taps=STAGES, preprocess=False, **reading)


def compared(model, expected) -> float:
    """The largest relative error over all maps; expected ones are torch's."""
    maps = model(picture(), training=False)
    assert len(maps) == len(expected)
    return max(
        relative_error(found, wanted.detach().numpy().transpose(0, 2, 3, 1))
        for found, wanted in zip(maps.values(), expected, strict=True)
    )


def stages(network, x, names=("layer1", "layer2", "layer3", "layer4")):
    """Feature maps of a network that is built as torchvision's."""
    x = (
        network.maxpool(network.act1(network.bn1(network.conv1(x))))
        if hasattr(network, "act1")
        else network.maxpool(network.relu(network.bn1(network.conv1(x))))
    )
    found = []
    for name in names:
        x = getattr(network, name)(x)
        found.append(x)
    return found


def listed(model) -> str:
    return "\n".join(model.assumptions)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_detectors_of_torchvision(kind, tmp_path):
    library("torchvision")
    from torchvision.models import detection

    network = randomized(getattr(detection, kind)(weights=None, weights_backbone=None, num_classes=3))
    path = saved(network, tmp_path)
    with pytest.raises(CheckpointError, match=r"include_top=False loads the body"):
        read_source(path)
    epsilon = {module.eps for module in network.backbone.body.modules() if hasattr(module, "running_mean")}
    model = body(path, norm_epsilon=epsilon.pop())
    expected = [network.backbone.body.conv1(as_torch(picture()))]
    inner = network.backbone.body
    x = inner.maxpool(inner.relu(inner.bn1(expected.pop())))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(inner, name)(x)
        expected.append(x)
    assert compared(model, expected) < TOLERANCE
    assert re.search(r"left out what stands beside the network: .*backbone\.fpn", listed(model))
    assert "norm_epsilon=0" in listed(body(path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmenters_of_torchvision_are_dilated(kind, tmp_path):
    library("torchvision")
    from torchvision.models import segmentation

    network = randomized(getattr(segmentation, kind)(weights=None, weights_backbone=None, aux_loss=True))
    path = saved(network, tmp_path)
    model = body(path)
    assert model.architecture.output_stride == 8
    assert re.search(r"output_stride=8 \(segmenters of torchvision.*output_stride=32 is", listed(model))
    assert re.search(r"beside the network: aux_classifier, classifier", listed(model))
    assert compared(model, stages(network.backbone, as_torch(picture()))) < TOLERANCE
    assert body(path, output_stride=32).architecture.output_stride == 32


def deep_stem(folder, *, pooled):
    """OpenMMLab's ResNetV1c and V1d: timm's network under their names."""
    network = small_network(block="bottleneck", stem_type="deep", stem_width=8, avg_down=pooled, num_classes=0)
    names = {"conv1.0": "stem.0", "conv1.1": "stem.1", "conv1.3": "stem.3", "conv1.4": "stem.4", "conv1.6": "stem.6"}
    names["bn1"] = "stem.7"

    def renamed(state):
        found = {
            "data_preprocessor.mean": state["bn1.bias"][:3],
            "neck.lateral_convs.0.conv.weight": state["conv1.6.weight"],
        }
        for name, tensor in state.items():
            layer, _, leaf = name.rpartition(".")
            found[f"backbone.{names.get(layer, layer)}.{leaf}"] = tensor
        return {"meta": {"epoch": 3}, "state_dict": {**found, "bbox_head.fc_cls.weight": state["bn1.bias"][:, None]}}

    return network, saved(network, folder, renamed)


@pytest.mark.parametrize("pooled", [True, False])
def test_deep_stems_of_openmmlab(pooled, tmp_path):
    network, path = deep_stem(tmp_path, pooled=pooled)
    model = body(path)
    assert compared(model, stages(network, as_torch(picture()))) < TOLERANCE
    assert re.search(r"beside the network: state_dict\.bbox_head, state_dict\.neck", listed(model))
    assert "input contract" in listed(model)


@pytest.mark.parametrize(("layer_type", "sizes"), [("bottleneck", (32, 48, 64, 96)), ("basic", (16, 24, 32, 40))])
def test_bodies_of_rt_detr(layer_type, sizes, tmp_path):
    transformers = library("transformers")
    config = transformers.RTDetrResNetConfig(
        depths=[1, 1, 2, 1], hidden_sizes=list(sizes), layer_type=layer_type, embedding_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    network = randomized(transformers.RTDetrResNetBackbone(config))
    beside = {"model.encoder_input_proj.0.0.weight": 0, "model.decoder.layers.0.self_attn.o_proj.weight": 1}

    def wrapped(state):
        found = {f"model.backbone.model.{name}": tensor for name, tensor in state.items()}
        return found | dict.fromkeys(beside, state["embedder.embedder.0.convolution.weight"])

    model = body(saved(network, tmp_path, wrapped))
    assert compared(model, network(as_torch(picture())).feature_maps) < TOLERANCE
    assert re.search(r"beside the network: model\.decoder, model\.encoder_input_proj", listed(model))


def test_rt_detr_under_its_authors_names(tmp_path):
    """``PResNet`` of lyuwenyu/RT-DETR: the same network, other names."""
    transformers = library("transformers")
    config = transformers.RTDetrResNetConfig(
        depths=[1, 2, 1, 1], hidden_sizes=[64, 128, 192, 256], embedding_size=32,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    network = randomized(transformers.RTDetrResNetBackbone(config))

    def renamed(state):
        found = {}
        for name, tensor in state.items():
            name = re.sub(r"embedder\.embedder\.(\d)", lambda m: f"conv1.conv1_{int(m[1]) + 1}", name)
            name = re.sub(r"encoder\.stages\.(\d)\.layers\.(\d)", r"res_layers.\1.blocks.\2", name)
            name = re.sub(r"layer\.(\d)\.", lambda m: f"branch2{'abc'[int(m[1])]}.", name)
            name = name.replace("shortcut.1.", "short.conv.").replace("shortcut.", "short.")
            name = name.replace("convolution", "conv").replace("normalization", "norm")
            found[f"ema.module.backbone.{name}"] = tensor
        return found | {"ema.module.encoder.input_proj.0.conv.weight": next(iter(state.values()))}

    model = body(saved(network, tmp_path, renamed))
    assert compared(model, network(as_torch(picture())).feature_maps) < TOLERANCE


def small_network(**options):
    timm = library("timm")
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    del timm
    block = options.pop("block", "basic")
    return randomized(
        ResNet(
            {"basic": BasicBlock, "bottleneck": Bottleneck}[block], (1, 2, 1, 1), channels=(8, 12, 16, 20), **options
        )
    )


def test_detrs_of_transformers(tmp_path):
    """DETR keeps a network of timm, or one of transformers, under ``conv_encoder``."""
    transformers = library("transformers")
    network = small_network(num_classes=0, block="bottleneck")
    state = network.state_dict()
    beside = {"model.input_projection.weight": state["layer4.0.conv1.weight"]}
    beside["class_labels_classifier.bias"] = state["bn1.bias"]
    wrap = within("model.backbone.conv_encoder.model.", beside)
    model = body(saved(network, tmp_path, wrap))
    assert compared(model, stages(network, as_torch(picture()))) < TOLERANCE
    assert re.search(r"beside the network: class_labels_classifier, model\.input_projection", listed(model))
    config = transformers.ResNetConfig(
        depths=[1, 1, 2, 1], hidden_sizes=[32, 48, 64, 96], embedding_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    network = randomized(transformers.ResNetBackbone(config))
    first = next(iter(network.state_dict().values()))
    wrap = within("model.backbone.model.", {"model.query_position_embeddings.weight": first})
    model = body(saved(network, tmp_path, wrap))
    assert compared(model, network(as_torch(picture())).feature_maps) < TOLERANCE


DETECTRON = [
    (r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm."), (r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}"),
    (r"\.bn(\d)\.", r".conv\1.norm."), (r"downsample\.0\.", "shortcut."), (r"downsample\.1\.", "shortcut.norm."),
]  # fmt: skip


def detectron(state, prefix):
    found = {}
    for name, tensor in state.items():
        for pattern, to in DETECTRON:
            name = re.sub(pattern, to, name)
        if "num_batches" not in name:
            found[prefix + name] = tensor
    return found


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_detectron2(ending, tmp_path):
    import pickle

    network = small_network(num_classes=0, block="bottleneck")
    state = detectron(network.state_dict(), "backbone.bottom_up.")
    state["backbone.fpn_lateral2.weight"] = state["proposal_generator.anchor_generator.cell_anchors.0"] = state[
        "backbone.bottom_up.stem.conv1.weight"
    ]
    path = tmp_path / f"model.{ending}"
    if ending == "pth":
        pytest.importorskip("torch").save({"model": state, "iteration": 90_000}, path)
    else:
        content = {"model": {name: tensor.numpy() for name, tensor in state.items()}, "__author__": "someone"}
        path.write_bytes(pickle.dumps(content, protocol=2))
    told = listed(body(path))
    assert re.search(r"stride_in_block='first' \(.*detectron2.*stride_in_block='spatial'", told)
    assert "BGR" in told
    assert "fpn_lateral2" in told
    model = body(path, stride_in_block="spatial")
    assert compared(model, stages(network, as_torch(picture()))) < TOLERANCE


@pytest.mark.parametrize(
    ("prefix", "beside", "stride"),
    [
        ("backbone.body.", "backbone.fpn.inner_blocks.0.0.weight", 32),  # torchvision's detectors
        ("backbone.", "classifier.4.weight", 8),  # torchvision's segmenters
        ("encoder.", "decoder.blocks.0.conv1.0.weight", 32),  # SMP's Unet
        ("encoder.", "decoder.aspp.0.convs.0.0.weight", 16),  # SMP's DeepLabV3+
        ("backbone.", "decode_head.conv_seg.weight", 8),  # mmsegmentation
        ("backbone.", "projection_head.layers.0.weight", 32),  # lightly, solo-learn
        ("backbone.", "criterion.teacher_bank", 32),
        ("module.encoder.", "module.decoder.up.weight", 32),
    ],
)
def test_prefixes_of_other_libraries(prefix, beside, stride, tmp_path):
    network = small_network(num_classes=0)
    wrap = within(prefix, {beside: network.conv1.weight})
    model = body(saved(network, tmp_path, wrap))
    assert model.architecture.output_stride == stride
    if stride == 32:
        assert compared(model, stages(network, as_torch(picture()))) < TOLERANCE


def test_fastai_and_lightly_cut_the_network_into_a_sequence(tmp_path):
    torch = pytest.importorskip("torch")
    network = small_network()
    cut = torch.nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool, *(
        getattr(network, f"layer{number}") for number in (1, 2, 3, 4)
    ))  # fmt: skip
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(40), torch.nn.Linear(40, 5))
    learner = torch.nn.Sequential(cut, head)
    path = saved(learner, tmp_path, lambda state: {"model": state, "opt": {"hypers": [{"lr": 0.1}]}})
    model = body(path)
    assert compared(model, stages(network, as_torch(picture()))) < TOLERANCE
    assert re.search(r"beside the network: model\.1", listed(model))


def test_a_bias_in_the_shortcut_alone(tmp_path):
    """MONAI's networks; their stem has stride 1 unless it is asked for 2."""
    torch = pytest.importorskip("torch")
    network = small_network(num_classes=3, block="bottleneck")
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        convolution = stage[0].downsample[0]
        convolution.bias = torch.nn.Parameter(torch.linspace(-1, 1, convolution.out_channels))
    path = saved(network, tmp_path)
    read = read_source(path)
    assert read.spec.conv_bias == "shortcut"
    assert any(text.startswith("stem=7x7/1 of 64 (MONAI") and "stem=((64, 7, 2),)" in text for text in read.assumptions)
    model = load_source(path, preprocess=False, classifier_activation=None, stem=((64, 7, 2),))
    expected = network(as_torch(picture())).detach().numpy()
    assert relative_error(model(picture(), training=False), expected) < TOLERANCE
    network.conv1.stride = (1, 1)
    expected = network(as_torch(picture())).detach().numpy()
    model = load_source(path, preprocess=False, classifier_activation=None)
    assert relative_error(model(picture(), training=False), expected) < TOLERANCE


# wrappers, things left out, several networks


@pytest.mark.parametrize(
    "wrap",
    [
        "_orig_mod.{}", "module._orig_mod.{}", "{0}._orig_mod.{1}",
        "model._fsdp_wrapped_module.{0}._checkpoint_wrapped_module.{1}",
        "_forward_module.module.{}", "{0}.module.{1}",
    ],
)  # fmt: skip
def test_wrappers_anywhere_in_a_name(wrap, tmp_path):
    network = small_network()

    def wrapped(state):
        found = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            found[wrap.format(name) if "{}" in wrap else wrap.format(first, rest)] = tensor
        return {"state_dict": found}

    (tmp_path / "plain").mkdir()
    expected = read_source(saved(network, tmp_path / "plain"))
    read = read_source(saved(network, tmp_path, wrapped))
    assert read.spec == expected.spec
    assert read.arrays.keys() == expected.arrays.keys()
    assert all(np.array_equal(array, expected.arrays[name]) for name, array in read.arrays.items())


LEFT_OUT = {
    "transformer.resblocks.0.ln_1.weight": "CLIP's text tower",
    "text.transformer.resblocks.0.attn.in_proj_weight": "CLIP's text tower",
    "logit_bias": "CLIP's text tower",
    "positional_embedding": "CLIP's text tower",
    "projection_head_momentum.layers.0.weight": "a projection head",
    "prediction_head.layers.0.weight": "a projection head",
    "criterion.centers": "state of the loss",
    "data_preprocessor.std": "the means and deviations",
}


@pytest.mark.parametrize("prefix", ["", "state_dict.module.", "model."])
def test_what_is_left_out_holds_below_any_prefix(prefix):
    state = {name: tensor.numpy() for name, tensor in small_network(num_classes=0).state_dict().items()}
    beside = {prefix + name: state["bn1.bias"] for name in LEFT_OUT}
    found = pytorch.translate({f"{prefix}visual.{name}": array for name, array in state.items()} | beside)
    assert not found.leftover
    for reason in set(LEFT_OUT.values()):
        (told,) = (text for text in found.left_out if text.startswith(f"left out {reason}"))
        own = [name.removeprefix("module.") for name, why in LEFT_OUT.items() if why == reason]
        assert own[0] in told


def test_a_supervised_head_of_two_layers_is_no_projection_head(tmp_path):
    torch = pytest.importorskip("torch")
    network = small_network()
    network.fc = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    read = read_source(saved(network, tmp_path))
    assert not read.has_top
    told = [text for text in read.assumptions if "fc." in text]
    assert len(told) == 1
    assert told[0].startswith("left out a head of several layers")


def test_two_networks_in_one_file(tmp_path):
    torch = pytest.importorskip("torch")
    streams = {"rgb": small_network(num_classes=0), "flow": small_network(num_classes=0, in_chans=2)}
    state = {
        f"{name}.{key}": tensor for name, network in streams.items() for key, tensor in network.state_dict().items()
    }
    torch.save(state, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"networks under \('flow\.', 'rgb\.'\)\. Pass prefix="):
        read_source(tmp_path / "two.pth")
    for name, channels in (("rgb", 3), ("flow.", 2)):
        read = read_source(tmp_path / "two.pth", prefix=name)
        assert read.spec.in_channels == channels
        assert any("another network under" in text for text in read.assumptions)
    with pytest.raises(CheckpointError, match=r"prefix must be one of \('flow\.', 'rgb\.'\).*Did you mean 'rgb\.'"):
        read_source(tmp_path / "two.pth", prefix="rbg")
