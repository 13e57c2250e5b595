"""Networks of odd sizes, written under other libraries' names and recovered from names and shapes alone."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.conventions import pytorch
from resfit.weights.formats import safetensors
from resfit.weights.identify import catalog_name, identify, nearest
from resfit.weights.load import load_source, read_source
from tests.numeric import randomize, relative_error

BASIC = ArchitectureSpec(
    depths=(2, 1, 1, 2),
    widths=(8, 12, 20, 24),
    inner_widths=(6, 12, 10, 24),
    block="basic",
    stem=(StemConv(8, 7, 2),),
    classes=7,
    in_channels=1,
)
BOTTLENECK = ArchitectureSpec(
    depths=(1, 2, 1), widths=(24, 16, 40), inner_widths=(8, 8, 12), stem=(StemConv(10, 7, 2),), classes=3,
    stage_strides=(1, 2, 2),
)  # fmt: skip
DEEP = (StemConv(4, 3, 2), StemConv(6, 3, 1), StemConv(8, 3, 1))
PREACTIVATED = BOTTLENECK.replace(preactivation=True, project_first=True)
CIFAR = BASIC.replace(
    depths=(2, 1, 2), widths=(8, 12, 20), inner_widths=(8, 12, 20), stem=(StemConv(8, 3, 1),), stem_pool="none",
    stage_strides=(1, 2, 2), shortcut="pad", input_size=(32, 32),
)  # fmt: skip

SPECS = {
    "basic": ("timm", BASIC),
    "torchvision": ("torchvision", BASIC.replace(inner_widths=BASIC.widths, in_channels=4)),
    "projection in the first stage": ("timm", BASIC.replace(project_first=True)),
    "bottleneck": ("timm", BOTTLENECK),
    "five stages": (
        "timm",
        BOTTLENECK.replace(depths=(1,) * 5, widths=(8, 12, 16, 20, 24), inner_widths=(4,) * 5,
                           stage_strides=(1, 2, 2, 2, 1), output_stride=32),
    ),
    "groups": ("timm", BOTTLENECK.replace(groups=4)),
    "reduced": ("timm", BOTTLENECK.replace(groups=4, reduce_widths=(4, 16, 20))),
    "senet": ("timm", BOTTLENECK.replace(reduce_widths=(4, 6, 2), shortcut_kernel=3, attention="se",
                                         attention_sizes=(3, 4, 5))),
    "deep stem, avgpool": ("timm", BOTTLENECK.replace(stem=DEEP, shortcut="avgpool")),
    "eca": ("timm", BASIC.replace(attention="eca", attention_sizes=(3, 3, 5, 7))),
    "pooled by convolution": ("timm", BOTTLENECK.replace(stem=DEEP, stem_pool="conv", shortcut="avgpool")),
    "group norm": ("timm", BOTTLENECK.replace(norm="group", widths=(32, 64, 64), inner_widths=(32, 32, 64),
                                              stem=(StemConv(32, 7, 2),))),
    "bias everywhere": ("timm", BOTTLENECK.replace(conv_bias="all")),
    "no norm": ("timm", BASIC.replace(conv_bias="all", norm="none")),
    "cifar": ("cifar", CIFAR),
    "pre-activated": ("timm-v2", PREACTIVATED),
    "pre-activated, deep": ("timm-v2", PREACTIVATED.replace(stem=DEEP, shortcut="avgpool")),
    "pre-activated, basic": ("timm-v2", BASIC.replace(preactivation=True)),
    "BiT": ("timm-v2", PREACTIVATED.replace(norm="group", widths=(32, 64, 64), inner_widths=(32, 32, 64),
                                            stem=(StemConv(32, 7, 2),), weight_standardization=True,
                                            stem_pool_padding="zero")),
    "transformers": ("transformers", BASIC),
    "transformers, bottleneck": ("transformers", BOTTLENECK),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name, tmp_path):
    convention, spec = SPECS[name]
    model = randomize(build(spec, classifier_activation=None), seed=1)
    file = tmp_path / "model.safetensors"
    safetensors.write_arrays(file, pytorch.to_torch(model, convention))

    source = read_source(file)
    # a projection that changes the width is there in either case
    assert source.spec.replace(project_first=spec.project_first) == spec
    images = np.random.default_rng(0).normal(size=(2, 48, 40, spec.in_channels)).astype(np.float32)
    loaded = load_source(source, preprocess=False, classifier_activation=None)
    assert relative_error(loaded(images, training=False), model(images, training=False)) < 1e-6
    assert loaded.architecture == source.spec
    assert loaded.assumptions == tuple(text for text in source.assumptions if not text.startswith("classifier_")) != ()


def arrays_of(spec: ArchitectureSpec, convention: str = "timm") -> dict[str, np.ndarray]:
    return pytorch.to_torch(randomize(build(spec)), convention)


@pytest.fixture(scope="module")
def basic() -> dict[str, np.ndarray]:
    return arrays_of(BASIC)


def test_overrides_win_and_are_no_assumptions(tmp_path):
    arrays = pytorch.translate(arrays_of(BOTTLENECK)).arrays
    usual = identify(arrays)
    assert usual.spec.stride_in_block == "spatial"
    assert any(sentence.startswith("stride_in_block='spatial'") for sentence in usual.assumptions)
    given = identify(arrays, stride_in_block="first", activation="silu")
    assert given.spec == usual.spec.replace(stride_in_block="first", activation="silu")
    assert not any(sentence.startswith(("stride_in_block", "activation")) for sentence in given.assumptions)
    with pytest.raises(ArgumentError, match=r"'stride_in_blok'.* Did you mean 'stride_in_block'"):
        identify(arrays, stride_in_blok="first")


def test_transformers_config_tells_strides_and_activation():
    arrays = pytorch.translate(arrays_of(BOTTLENECK, "transformers")).arrays
    config = {
        "model_type": "resnet",
        "downsample_in_bottleneck": True,
        "downsample_in_first_stage": True,
        "hidden_act": "gelu",
    }
    spec = identify(arrays, convention="transformers", config=config).spec
    assert (spec.stride_in_block, spec.stage_strides, spec.activation) == ("first", (2, 2, 2), "gelu")


def test_timm_config_tells_through_the_catalog():
    arrays = pytorch.translate(arrays_of(BOTTLENECK)).arrays
    config = {"architecture": "resnetblur50", "model_args": {"act_layer": "silu"}}
    found = identify(arrays, config=config)
    assert (found.spec.antialias, found.spec.stem_pool, found.spec.activation) == ("blur", "blur", "silu")
    assert found.architecture == "resnetblur50"
    assert any("'resnetblur50'" in sentence for sentence in found.assumptions)
    with pytest.raises(CheckpointError, match="must be those of 'resnet18'"):
        identify(arrays, config={"architecture": "resnet18.a1_in1k"})


def test_an_architecture_that_the_catalog_lacks_is_said_so():
    found = identify(pytorch.translate(arrays_of(BASIC)).arrays, config={"architecture": "resnet_of_tomorrow"})
    assert found.architecture == ""
    assert any("the catalog lacks 'resnet_of_tomorrow'" in sentence for sentence in found.assumptions)


def test_groups_of_a_norm_must_divide_the_channels():
    spec = BASIC.replace(norm="group", norm_groups=2)
    arrays = pytorch.translate(arrays_of(spec)).arrays
    with pytest.raises(CheckpointError, match=r"must divide by norm_groups=32.*Pass norm_groups="):
        identify(arrays)
    assert identify(arrays, norm_groups=2).spec == spec


def test_names_of_timm_in_the_catalog():
    assert catalog_name("resnet50.a1_in1k") == "resnet50v1.5"
    assert catalog_name("resnet18") == "resnet18"
    assert catalog_name("vit_base") is None


@pytest.mark.parametrize(
    "name", ["resnet18", "resnext50_32x4d", "resnetrs50", "seresnet50", "resnetv2_50d", "senet154"]
)
def test_the_catalogs_networks_are_found_by_shapes(name):
    """Arrays of the published sizes, as broadcast zeros that take no memory."""
    from resfit.weights import load

    row = catalog.get(name)
    model = build(row.spec.replace(depths=(1, 1, 1, 1)))
    arrays = {
        f"{layer.name}/{variable.name}": np.broadcast_to(np.float32(0), variable.shape)
        for layer in model.layers
        for variable in layer.weights
    }
    facts = {} if row.spec.preactivation else {"shortcut": row.spec.shortcut}
    found = identify(arrays, convention="timm-v2" if row.spec.preactivation else "timm", facts=facts)
    assert load.is_like(found.spec.replace(depths=row.spec.depths, project_first=row.spec.project_first), row.spec)
    assert nearest(found.spec.replace(depths=row.spec.depths))[0] == name


def test_nearest_names_what_differs():
    spec = catalog.get("resnet50d").spec.replace(depths=(3, 4, 7, 3))
    assert nearest(spec) == ("resnet50d", ("depths (3, 4, 7, 3), there (3, 4, 6, 3)",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda a: a.update({"layer1.0.conv3.extra": np.zeros(3)}),
            r"1 tensors left over: layer1.0.conv3.extra \(3,\)",
        ),
        (lambda a: a.update({"layer2.0.projection.weight": np.zeros((2, 2))}), "left over: layer2.0.projection.weight"),
        (
            lambda a: a.pop("layer3.0.bn1.weight"),
            r"left over: layer3.0.bn1.bias \(10,\).* layers without tensors: conv4_block1_1_bn",
        ),
        (lambda a: a.pop("layer3.0.conv2.weight"), r"convolutions .*\(1,\)"),
        (lambda a: a.update({"layer4.1.conv1.weight": np.zeros((3, 3, 3, 3), np.float32)}), "layers of other sizes"),
        (lambda a: a.update({"layer4.7.conv1.weight": np.zeros((3, 3, 3, 3), np.float32)}), "numbered without gaps"),
        (lambda a: a.update({"layer9.0.conv1.weight": np.zeros((3, 3, 3, 3), np.float32)}), "numbered without gaps"),
        (lambda a: a.pop("conv1.weight"), "must begin with convolutions"),
        (
            lambda a: a.update({"fc.weight": np.zeros((7, 9), np.float32)}),
            r"layers of other sizes: .*predictions/kernel \(9, 7\)",
        ),
        (lambda a: a.update({"conv1.weight": np.zeros((8, 1, 7, 7), np.int32)}), "no floating-point numbers"),
    ],
)
def test_what_does_not_fit_is_named(basic, tmp_path, change, told):
    arrays = dict(basic)
    change(arrays)
    file = tmp_path / "model.safetensors"
    safetensors.write_arrays(file, arrays)
    with pytest.raises(CheckpointError, match=told) as raised:
        load_source(file)
    assert str(file) in str(raised.value)


def test_leftovers_name_the_nearest_architecture_and_can_be_ignored(basic, tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.write_arrays(file, {**basic, "aux.0.weight": np.zeros((4, 4), np.float32)})
    with pytest.raises(
        CheckpointError, match=r"nearest architecture is 'resnet18', which differs in depths \(2, 1, 1, 2\)"
    ):
        read_source(file)
    source = read_source(file, ignore=("aux.*",))
    assert "left out what was asked for: aux.0.weight" in source.assumptions


def test_a_same_sized_kernel_of_another_shape_is_refused(basic, tmp_path):
    kernel = basic["layer1.1.conv2.weight"]
    file = tmp_path / "model.safetensors"
    safetensors.write_arrays(file, {**basic, "layer1.1.conv2.weight": kernel.reshape(kernel.shape[::-1])})
    with pytest.raises(CheckpointError, match="other shapes"):
        load_source(file)


def test_a_small_file_never_makes_a_large_network(tmp_path):
    """Widths come from output channels, so that a kernel with hardly any input channels promises a huge network."""
    arrays = dict(arrays_of(BASIC))
    arrays["layer1.0.conv2.weight"] = np.zeros((400_000, 1, 1, 1), np.float32)
    file = tmp_path / "bomb.safetensors"
    safetensors.write_arrays(file, arrays)
    with pytest.raises(CheckpointError, match="layers of other sizes"):
        load_source(file)


# what stands before the names, what stands beside them, whether there is a head, and what is said to be left out
WRAPPERS = {
    "module": ("module.", {}, True, None),
    "compiled": ("_orig_mod.", {}, True, None),
    "lightning": ("state_dict.model.", {"optimizer_states.0.state.0.exp_avg": (3,)}, True, "slots of an optimiser"),
    "averaged": ("model.", {"model_ema.": None}, True, "the running average under 'model_ema.'"),
    "MoCo v1": (
        "state_dict.module.encoder_q.",
        {"state_dict.module.encoder_k.": None, "state_dict.module.queue": (8, 9),
         "optimizer.state.1.momentum_buffer": (3,)},
        False,
        "a projection head of self-supervised training: state_dict.encoder_q.fc",
    ),
    "BYOL": (
        "online_encoder.net.",
        {"target_encoder.net.": None, "online_encoder.projector.net.0.weight": (4, 4),
         "online_predictor.net.1.bias": (4,)},
        False,
        "a projection head: online_encoder.projector.net.0.weight",
    ),
    "BYOL networks": ("online_network.", {"target_network.": None}, False, "running average under 'target_network.'"),
    "DINO": ("teacher.backbone.", {"student.module.backbone.": None, "teacher.head.mlp.0.weight": (4, 4),
                                   "student.module.head.mlp.0.weight": (4, 4)}, False,
             "another network under 'student."),
    "SwAV": ("module.", {"module.projection_head.0.weight": (4, 4), "module.prototypes.weight": (5, 4)}, None,
             "projection"),
    "SimCLR": ("backbone.", {"projection.0.weight": (4, 4)}, None, "a projection head: projection.0.weight"),
    "Barlow Twins": ("model.module.backbone.", {"model.module.projector.0.weight": (4, 4)}, None, "projector.0.weight"),
    "VICReg": ("encoder.", {}, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_met_in_the_wild(basic, name):
    prefix, beside, head, told = WRAPPERS[name]
    own = {key: array for key, array in basic.items() if head is not None or not key.startswith("fc.")}
    wrapped = {f"{prefix}{key}": array for key, array in own.items()}
    for key, shape in beside.items():
        if shape is None:
            wrapped |= {f"{key}{inner}": array + 1 for inner, array in own.items()}
        else:
            wrapped[key] = np.zeros(shape, np.float32)
    translated = pytorch.translate(wrapped)
    assert translated.prefix == prefix.replace("module.", "").replace("_orig_mod.", "")
    assert not translated.leftover
    plain = pytorch.translate(own).arrays
    expected = {key for key in plain if head or not key.startswith("predictions/")}
    assert translated.arrays.keys() == expected
    assert all(np.array_equal(translated.arrays[key], plain[key]) for key in expected)
    assert told is None or any(told in sentence for sentence in translated.left_out), translated.left_out


def test_the_running_average_on_request_and_prefixes(basic):
    both = {f"model.{key}": array for key, array in basic.items()}
    both |= {f"model_ema.module.{key}": array + 1 for key, array in basic.items()}
    averaged = pytorch.translate(both, averaged=True)
    assert averaged.prefix == "model_ema."
    assert np.array_equal(averaged.arrays["predictions/bias"], basic["fc.bias"] + 1)
    assert pytorch.translate(both, prefix="model_ema.module").prefix == "model_ema."
    with pytest.raises(CheckpointError, match=r"prefix must be one of \('model.', 'model_ema.'\)"):
        pytorch.translate(both, prefix="x.")
    with pytest.raises(CheckpointError, match="must hold a running average"):
        pytorch.translate(basic, averaged=True)
    twins = {f"{side}.{key}": array for side in ("left", "right") for key, array in basic.items()}
    with pytest.raises(CheckpointError, match=r"must hold one network.*'left.', 'right.'.* Pass prefix="):
        pytorch.translate(twins)


def test_a_head_behind_dropout_is_the_classifier_and_a_longer_one_is_not(basic):
    arrays = {key.replace("fc.", "fc.1."): array for key, array in basic.items()}
    translated = pytorch.translate(arrays)
    assert translated.arrays["predictions/kernel"].shape == (24, 7)
    assert "is the classifier" in translated.remarks[0]
    arrays |= {"fc.3.weight": np.zeros((3, 7), np.float32)}
    translated = pytorch.translate(arrays)
    assert "predictions/kernel" not in translated.arrays
    assert not translated.leftover


def test_sequential_children(basic):
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    body = {key: array for key, array in basic.items() if not key.startswith("fc.")}
    cut = {f"encoder.{places[key.partition('.')[0]]}.{key.partition('.')[2]}": array for key, array in body.items()}
    translated, plain = pytorch.translate(cut), pytorch.translate(body)
    assert translated.prefix == "encoder."
    assert translated.arrays.keys() == plain.arrays.keys()
    assert identify(translated.arrays, facts=translated.facts).spec == identify(plain.arrays, facts=plain.facts).spec


def test_clips_visual_tower():
    """Three convolutions and norms under names of their own, anti-aliased by average pooling."""
    spec = BOTTLENECK.replace(stem=DEEP, stem_pool="avg", antialias="avg", shortcut="avgpool")
    model = build(spec, include_top=False)
    arrays = pytorch.to_torch(randomize(model), "clip")
    assert {"conv3.weight", "bn3.running_var", "layer2.0.downsample.0.weight"} <= arrays.keys()
    tower = {f"visual.{key}": array for key, array in arrays.items()}
    tower |= {"visual.attnpool.q_proj.weight": np.zeros((4, 4), np.float32), "logit_scale": np.zeros((), np.float32)}
    translated = pytorch.translate(tower)
    assert not translated.leftover
    found = identify(translated.arrays, convention=translated.convention, facts=translated.facts)
    assert found.spec.replace(classes=spec.classes) == spec
    assert not found.has_top


def test_a_body_has_no_classifier_until_one_is_asked_for(basic, tmp_path):
    file = tmp_path / "body.safetensors"
    safetensors.write_arrays(file, {key: array for key, array in basic.items() if not key.startswith("fc.")})
    assert load_source(file).output_shape == (None, None, None, 24)
    assert load_source(file, classes=5).output_shape == (None, 5)
    with pytest.raises(CheckpointError, match="must hold the classifier"):
        load_source(file, include_top=True)


def test_classes_and_channels_may_change(basic, tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.write_arrays(file, arrays_of(BASIC.replace(in_channels=3)))
    model = load_source(file, classes=4, input_shape=(32, 32, 1), preprocess=False)
    assert model.output_shape == (None, 4)
    kernel = load_source(file).get_layer("conv1_conv").kernel.numpy()
    assert relative_error(model.get_layer("conv1_conv").kernel, kernel.sum(2, keepdims=True)) < 1e-6
    assert model.input_spec.channels == 1


def test_inputs_stay_as_they_are(basic):
    before = {key: array.copy() for key, array in basic.items()}
    identify(pytorch.translate(basic).arrays)
    assert all(np.array_equal(array, basic[key]) for key, array in before.items())


def test_to_torch_refuses_what_has_no_name():
    model = build(BASIC)
    with pytest.raises(ArgumentError, match=r"convention must be one of .*'timn'.*Did you mean 'timm'"):
        pytorch.to_torch(model, "timn")
    with pytest.raises(ArgumentError, match="without pre-activation has no names in 'timm-v2'"):
        pytorch.to_torch(model, "timm-v2")
    with pytest.raises(ArgumentError, match=r"must have a name for every layer.*se_reduce"):
        pytorch.to_torch(build(BASIC.replace(attention="se", attention_sizes=(2,) * 4)), "transformers")
