"""What TensorFlow's programs do that their tensors do not tell: strides, paddings, epsilons, and what they take in.

Beside each is the source it was read from. What a program leaves to its configuration is no fact here, but is assumed
by :mod:`resfit.weights.identify`, and said.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from resfit.networks.spec import StemConv
from resfit.preprocessing import CAFFE, TF, TORCH, InputSpec
from resfit.weights.assumption import sentence

# TF-Slim's "VGG" preprocessing, and that of the official models: the mean colour is taken off, nothing is scaled.
_MEAN_RGB = InputSpec(mean=(123.68, 116.779, 103.939))

# Programs whose classes may begin with a background.
_WITH_BACKGROUND = ("tf-slim", "model-garden-1", "model-garden", "model-garden-rs", "official")


@dataclasses.dataclass(frozen=True)
class FoundProgram:
    """A network that was found in a source.

    Attributes:
        arrays: Its weights by canonical name.
        is_saved_model: Whether the source is a SavedModel.
        colours: Mean colours that the source holds.
        pooled_shortcuts: Whether its shortcuts are known to average before they project.
    """

    arrays: Mapping[str, np.ndarray]
    is_saved_model: bool = False
    colours: tuple[np.ndarray, ...] = ()
    pooled_shortcuts: bool = False

    @property
    def stages(self) -> int:
        """How many stages it has, at least one."""
        return max(len({match[1] for match in map(_STAGE.match, self.arrays) if match}), 1)

    @property
    def classes(self) -> int:
        """Outputs of its classifier, 0 where it has none."""
        head = self.arrays.get("predictions/kernel")
        return int(head.shape[-1]) if head is not None and head.ndim else 0

    @property
    def is_preactivated(self) -> bool:
        """Whether a norm follows the last block."""
        return any(name.startswith("post_") for name in self.arrays)

    @property
    def all_project(self) -> bool:
        """Whether the first block of every stage has a projection."""
        return all(f"conv{stage + 2}_block1_0_conv/kernel" in self.arrays for stage in range(self.stages))

    def has(self, pattern: str) -> bool:
        """Whether a name matches a regular expression."""
        return any(re.fullmatch(pattern, name) for name in self.arrays)


@dataclasses.dataclass(frozen=True)
class ProgramDefaults:
    """What the program that wrote a source does.

    Attributes:
        facts: Fields of the architecture.
        input_spec: The input contract, or None where nothing speaks for one.
        remarks: What is assumed, one sentence each.
    """

    facts: dict[str, Any]
    input_spec: InputSpec | None
    remarks: tuple[str, ...]


_STAGE = re.compile(r"conv(\d{1,6})_block")


def habits(convention: str, found: FoundProgram) -> ProgramDefaults:
    """Returns what the program of a convention does.

    Args:
        convention: As :func:`resfit.weights.conventions.tensorflow.translate` calls it.
        found: The network.

    Raises:
        CheckpointError: It does what an architecture here cannot.
    """
    told = _PROGRAMS[convention](found)
    facts = told.facts if told.input_spec is None else {**told.facts, "input_size": told.input_spec.size}
    return ProgramDefaults(facts, told.input_spec, (*told.remarks, *_about_head(convention, found)))


def _slim(found: FoundProgram) -> ProgramDefaults:
    """``research/slim/nets/resnet_v1.py``, ``resnet_v2.py`` and ``resnet_utils.py`` of tensorflow/models."""
    facts = {
        **_common(found),
        "stride_in_stage": "last",
        "stage_strides": (*(2,) * (found.stages - 1), 1),
        "stem_pool_padding": "same",
        # only a block that changes the width has one, which is every first block of the published networks
        "project_first": found.is_preactivated and found.all_project,
        "norm_momentum": 0.997,
    }
    if found.colours and found.colours[0].ndim == 1 and found.colours[0].size:
        mean = tuple(round(float(value), 6) for value in found.colours[0])
        contract = dataclasses.replace(_MEAN_RGB, channels=len(mean), mean=mean, std=(1.0,) * len(mean))
        return ProgramDefaults(
            facts,
            contract,
            (
                sentence(
                    "images in RGB, not scaled, less a mean colour", "the source holds it as mean_rgb", "input_spec"
                ),
            ),
        )
    if found.is_saved_model:
        how = "scaled to -1..1 (modules of TensorFlow Hub take 0..1 and are assumed to scale on inside)"
        return ProgramDefaults(facts, TF, (_assumed(how),))
    if not found.is_preactivated and found.classes in (0, 1000):
        return ProgramDefaults(
            facts, _MEAN_RGB, (_assumed("less the mean colour (TF-Slim's for its published v1 networks)"),)
        )
    contract = dataclasses.replace(TF, size=(299, 299) if found.is_preactivated else (224, 224))
    side = contract.size[0]
    return ProgramDefaults(facts, contract, (_assumed(f"of {side}x{side}, scaled to -1..1 (TF-Slim's for v2)"),))


def _bit(found: FoundProgram) -> ProgramDefaults:
    """``bit_tf2/models.py`` of google-research/big_transfer (Kolesnikov et al. 2020, arXiv:1912.11370)."""
    facts = {
        **_common(found),
        "stem_pool_padding": "zero",
        "norm_groups": 32,
        "weight_standardization": True,
        "weight_standardization_epsilon": 1e-10,
    }
    if found.all_project:
        facts["project_first"] = True
    return ProgramDefaults(
        facts, TF, (_assumed("scaled to -1..1 (BiT's; Google's modules of it take 0..1 and scale on inside)"),)
    )


def _simclr(found: FoundProgram) -> ProgramDefaults:
    """``tf2/resnet.py`` of google-research/simclr (Chen et al. 2020, arXiv:2002.05709).

    The contract is that of ``preprocess_for_eval`` in ``tf2/data_util.py``.
    """
    facts = {**_common(found), "stem_pool_padding": "same"}
    contract = InputSpec(scale=1 / 255, interpolation="bicubic")
    return ProgramDefaults(facts, contract, (_assumed("scaled to 0..1 (SimCLR's)"),))


def _supcon(found: FoundProgram) -> ProgramDefaults:
    """``supcon/resnet.py`` and ``blocks.py`` of google-research/google-research (Khosla et al. 2020, arXiv:2004.11362).

    Its scripts set ``normalize_embedding``, so that the classifier takes features of length 1.
    """
    facts = {**_common(found), "stem_pool_padding": "same"}
    return ProgramDefaults(
        facts, TF, (_assumed("scaled to -1..1 (SupCon's; its modules take 0..1 and scale on inside)"),)
    )


def _haiku(found: FoundProgram) -> ProgramDefaults:
    """``haiku/_src/nets/resnet.py`` of google-deepmind/dm-haiku, which pads as TensorFlow does.

    The contract is that of BYOL: ``byol/utils/dataset.py`` of google-deepmind/deepmind-research.
    """
    facts = {**_common(found), "padding": "same", "stem_pool_padding": "same"}
    facts |= {"project_first": found.all_project} if found.is_preactivated else {}
    contract = dataclasses.replace(TORCH, interpolation="bicubic")
    return ProgramDefaults(
        facts, contract, (_assumed("scaled to 0..1, less ImageNet's mean, over its deviation (BYOL's)"),)
    )


def _keras(found: FoundProgram) -> ProgramDefaults:
    """``resnet.py`` and ``resnet_v2.py`` of keras.applications, where biases say that a network is one of them."""
    biased = found.has(r"conv1_conv/bias") and (found.is_preactivated or found.has(r"conv2_block1_1_conv/bias"))
    theirs = biased and found.has(r"conv2_block1_3_conv/kernel") and found.has(r".*_bn/gamma")
    reduced, inner = (found.arrays.get(f"conv2_block1_{number}_conv/kernel") for number in (1, 2))
    grouped = reduced is not None and inner is not None and inner.shape[2:3] != reduced.shape[3:4]
    is_next = grouped and not found.has(r".*_conv/bias")
    if not theirs and not is_next:
        remark = sentence(
            "what the tensors do not tell is as in most networks",
            "of the networks with Keras' names, only keras.applications' own are known in every detail",
            "architecture",
        )
        return ProgramDefaults({}, None, (remark,))
    facts = {**_common(found), "stem_pool_padding": "zero", "norm_epsilon": 1.001e-5, "norm_momentum": 0.99}
    if found.is_preactivated:
        facts |= {
            "stride_in_stage": "last",
            "stage_strides": (*(2,) * (found.stages - 1), 1),
            "project_first": found.all_project,
        }
        return ProgramDefaults(facts, TF, (_assumed("scaled to -1..1 (keras.applications' for v2)"),))
    if is_next:
        how = "scaled to 0..1, less ImageNet's mean, over its deviation (keras.applications' for ResNeXt)"
        return ProgramDefaults(facts, TORCH, (_assumed(how),))
    facts["stride_in_block"] = "first"
    return ProgramDefaults(facts, CAFFE, (_assumed("BGR, less ImageNet's mean colour (keras.applications' for v1)"),))


def _keras_legacy(found: FoundProgram) -> ProgramDefaults:
    """``resnet50.py`` of keras.applications before 2019."""
    facts = {
        **_common(found),
        "stem_pool_padding": "zero",
        "stride_in_block": "first",
        "norm_epsilon": 1e-3,
        "norm_momentum": 0.99,
    }
    remarks = (
        sentence(
            "stem_pool_padding='zero'",
            "keras.applications' from 2018 on; before, it did not pad the pooling, which is 'valid'",
            "stem_pool_padding",
        ),
        _assumed("BGR, less ImageNet's mean colour (keras.applications' for v1)"),
    )
    return ProgramDefaults(facts, CAFFE, remarks)


def _garden_1(found: FoundProgram) -> ProgramDefaults:
    """``official/legacy/image_classification/resnet/resnet_model.py`` of tensorflow/models."""
    facts = {**_common(found), "padding": "same", "stem_padding": "symmetric", "stem_pool_padding": "same"}
    how = "RGB, less ImageNet's mean colour (Model Garden's; its modules in the Hub take 0..1 and do this inside)"
    return ProgramDefaults(facts, _MEAN_RGB, (_assumed(how),))


def _garden(found: FoundProgram) -> ProgramDefaults:
    """``official/vision/modeling/backbones/resnet.py`` of tensorflow/models.

    Epsilon and activation are left to its configurations.
    """
    facts = {**_common(found), "stem_pool_padding": "same", "padding": "same"}
    for left_open in ("norm_epsilon", "activation"):
        del facts[left_open]
    if found.pooled_shortcuts:
        facts |= {"shortcut": "avgpool", "shortcut_pool": "always"}
    how = "scaled to 0..1, less ImageNet's mean, over its deviation (Model Garden's)"
    return ProgramDefaults(facts, TORCH, (_assumed(how),))


def _official(found: FoundProgram) -> ProgramDefaults:
    """``official/r1/resnet/resnet_model.py`` of tensorflow/models."""
    facts = {**_common(found), "stem_pool_padding": "same", "norm_momentum": 0.997}
    if found.is_preactivated:
        facts["project_first"] = found.all_project
    if facts["stem_pool"] == "none":
        how = "standardised one by one (the official models' for CIFAR), which an input contract cannot express"
        return ProgramDefaults(facts, None, (_assumed(how),))
    how = "RGB, less ImageNet's mean colour (the official models')"
    return ProgramDefaults(facts, _MEAN_RGB, (_assumed(how),))


def _tensorpack(found: FoundProgram) -> ProgramDefaults:
    """``examples/ResNet/resnet_model.py`` and ``imagenet_utils.py`` of tensorpack/tensorpack, which reads BGR.

    It resizes by OpenCV's cubic interpolation, and pads as TensorFlow does.
    """
    facts = {**_common(found), "padding": "same", "stem_pool_padding": "same", "norm_momentum": 0.9}
    contract = dataclasses.replace(TORCH, channel_order="bgr", mean=TORCH.mean[::-1], std=TORCH.std[::-1])
    contract = dataclasses.replace(contract, interpolation="bicubic")
    how = "BGR, scaled to 0..1, less ImageNet's mean, over its deviation (tensorpack's)"
    return ProgramDefaults(facts, contract, (_assumed(how),))


def _transformers(found: FoundProgram) -> ProgramDefaults:
    """``models/resnet/modeling_tf_resnet.py`` of transformers, which pads as its twin in PyTorch does.

    Its first version (``TFResNetConvLayer`` with ``padding="same"``, 2022) padded as TensorFlow does. The zeros that it
    pads the pooling with are the lowest values behind ReLU.
    """
    facts = {**_common(found), "stem_pool_padding": "lowest"}
    how = "scaled to 0..1, less ImageNet's mean, over its deviation (transformers')"
    why = "transformers' first version for TensorFlow padded with 'same' in both places"
    padded = sentence("padding='symmetric', stem_pool_padding='lowest'", why, "padding", "stem_pool_padding")
    return ProgramDefaults(facts, TORCH, (_assumed(how), padded))


_PROGRAMS: dict[str, Callable[[FoundProgram], ProgramDefaults]] = {
    "tf-slim": _slim,
    "bit": _bit,
    "simclr": _simclr,
    "haiku": _haiku,
    "supcon": _supcon,
    "keras": _keras,
    "keras-legacy": _keras_legacy,
    "model-garden-1": _garden_1,
    "model-garden": _garden,
    "model-garden-rs": _garden,
    "official": _official,
    "tensorpack": _tensorpack,
    "transformers-tf": _transformers,
}


#: What the programs are called in sentences.
PROGRAM_NAMES: dict[str, str] = {
    "tf-slim": "TF-Slim",
    "bit": "BiT",
    "simclr": "SimCLR",
    "haiku": "Haiku",
    "supcon": "SupCon",
    "keras": "keras.applications",
    "keras-legacy": "keras.applications before 2019",
    "model-garden-1": "TensorFlow's first Model Garden",
    "model-garden": "TensorFlow's Model Garden",
    "model-garden-rs": "TensorFlow's Model Garden",
    "official": "TensorFlow's official models",
    "tensorpack": "tensorpack",
    "transformers-tf": "transformers",
}


def _common(found: FoundProgram) -> dict[str, Any]:
    """What most of them do alike: a strided stem, a pooling, and a stride on the 3x3 of each stage's first block."""
    kernels = _stem_kernels(found.arrays)
    whole = bool(kernels) and all(len(kernel) == 4 and min(kernel) > 0 for kernel in kernels)
    small = whole and len(kernels) == 1 and kernels[0][0] <= 3
    facts: dict[str, Any] = {
        "stem_pool": "conv" if found.has("pool1_conv/kernel") else "none" if small else "max",
        "padding": "symmetric",
        "shortcut": "projection",
        "stride_in_stage": "first",
        "stride_in_block": "spatial",
        "stage_strides": (1, *(2,) * (found.stages - 1)),
        "norm_epsilon": 1e-5,
        "activation": "relu",
        "antialias": None,
    }
    if whole:
        strides = [1 if small else 2, *[1] * (len(kernels) - 1)]
        pairs = zip(kernels, strides, strict=True)
        facts["stem"] = tuple(StemConv(kernel[3], kernel[0], stride) for kernel, stride in pairs)
    return facts


def _stem_kernels(arrays: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    if "conv1_conv/kernel" in arrays:
        return [arrays["conv1_conv/kernel"].shape]
    kernels: list[tuple[int, ...]] = []
    while f"conv1_{len(kernels) + 1}_conv/kernel" in arrays:
        kernels.append(arrays[f"conv1_{len(kernels) + 1}_conv/kernel"].shape)
    return kernels


def _about_head(convention: str, found: FoundProgram) -> list[str]:
    remarks = []
    if found.classes == 1001 and convention in _WITH_BACKGROUND:
        remarks.append(
            "class 0 of the 1001 is the background, so that class n of ImageNet's usual numbering is number n + 1"
        )
    head = found.arrays.get("predictions/kernel")
    if head is not None and head.size and not np.any(head):
        remarks.append("the classifier is all zeros: it was meant to be trained anew")
    return remarks


def _assumed(how: str) -> str:
    return sentence(f"images {how}", "the weights do not say so", "input_spec")
