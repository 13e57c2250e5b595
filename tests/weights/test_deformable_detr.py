"""Deformable DETR in its three forms: names of two programs, architecture, raw outputs."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks.detection import build, catalog, kinds
from resfit.weights import canonical, completeness, detectors
from resfit.weights.conventions import deformable_detr, detr
from tests import torchside
from tests.networks.detection.rtdetr_peers import randomized
from tests.weights.test_detr import timm_name

FORMS = {"plain": {}, "refine": {"with_box_refine": True}, "two_stage": {"with_box_refine": True, "two_stage": True}}


@functools.cache
def source(form: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A small Deformable DETR of transformers, and its tensors as the library of today names them."""
    library = torchside.library("transformers")
    import torch

    torch.manual_seed(0)
    body = library.ResNetConfig(
        out_features=["stage2", "stage3", "stage4"],
        **{"depths": [1] * 4, "hidden_sizes": [16, 16, 32, 32], "embedding_size": 16, "layer_type": "basic"},
    )
    config = library.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=body,
        num_queries=12,
        two_stage_num_proposals=12,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_n_points=4,  # so that eight heads fit too, as is assumed without a configuration
        decoder_n_points=2,
        num_labels=5,
        **FORMS[form],
    )
    model = library.DeformableDetrForObjectDetection(config).eval()
    randomized(model, 0)
    model.tie_weights()
    heads = model.model.decoder
    if form != "plain":
        heads.bbox_embed = model.bbox_embed
    if form == "two_stage":
        heads.class_embed = model.class_embed
    return model, {name: value.numpy().copy() for name, value in model.state_dict().items()}


def old(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as the published files name them, with timm's backbone."""
    found = {}
    for name, array in tensors.items():
        for new, before in (("o_proj", "out_proj"), (".mlp.fc", ".fc"), ("backbone.", "backbone.conv_encoder.")):
            name = name.replace(new, before)
        found[timm_name(name)] = array
    return found


def authors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as the authors name them."""
    rules = [
        (r"^model\.backbone\.model\.", "backbone.0.body."),
        (r"^model\.input_proj", "input_proj"),
        (r"^model\.query_position_embeddings", "query_embed"),
        (r"(decoder\.layers.*)encoder_attn_layer_norm", r"\1norm1"),
        (r"(decoder\.layers.*)self_attn_layer_norm", r"\1norm2"),
        (r"(decoder\.layers.*)final_layer_norm", r"\1norm3"),
        (r"self_attn_layer_norm", "norm1"),
        (r"final_layer_norm", "norm2"),
        (r"encoder_attn\.", "cross_attn."),
        (r"mlp\.fc([12])", r"linear\1"),
        (r"o_proj", "out_proj"),
        (r"^model\.", "transformer."),
    ]
    found: dict[str, np.ndarray] = {}
    packed: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        name = timm_name(name)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        match = re.fullmatch(r"(.*self_attn\.)([qkv])_proj\.(weight|bias)", name)
        if match:
            packed.setdefault((match[1], match[3]), {})[match[2]] = array
        else:
            found[name] = array
    for (path, leaf), parts in packed.items():
        found[f"{path}in_proj_{leaf}"] = np.concatenate([parts[letter] for letter in "qkv"])
    return found


@pytest.mark.parametrize("form", FORMS)
def test_raw_outputs_are_transformers(form):
    import torch

    model, tensors = source(form)
    translation = deformable_detr.translate(tensors)
    assert not translation.leftover
    spec, assumptions = deformable_detr.identify(translation, heads=4, queries=12)
    assert (spec.levels, spec.extra_levels, spec.encoder_points, spec.points) == ((3, 4, 5), 1, 4, 2)
    assert (spec.refines, spec.proposes) == (form != "plain", form == "two_stage")
    assert not any("heads" in text for text in assumptions)
    assert completeness.problem(translation.arrays, {}, kinds.count(spec).layers) == ""
    own = build.build(spec, outputs="raw")
    assert own.count_params() == kinds.count(spec).parameters
    canonical.fill(own, translation.arrays)
    x = np.random.default_rng(0).normal(0, 1, (2, 97, 130, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    received = {name: np.asarray(value) for name, value in own(x).items()}
    assert np.std(expected.logits.numpy()) > 0.1
    np.testing.assert_allclose(received["class_logits"], expected.logits.numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(received["box_codes"], expected.pred_boxes.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_gives_the_same_and_tensors_come_back(form):
    _, tensors = source(form)
    usual = deformable_detr.translate(tensors)
    for other in (old(tensors), authors(tensors)):
        found = deformable_detr.translate({f"module.{name}": array for name, array in other.items()})
        assert not found.leftover
        assert found.arrays.keys() == usual.arrays.keys()
        assert all(np.array_equal(found.arrays[name], usual.arrays[name]) for name in usual.arrays)
        assert deformable_detr.is_detector(other)
        assert not detr.is_detector(other)
    spec, _ = deformable_detr.identify(usual, heads=4)
    written = deformable_detr.to_torch(spec, usual.arrays)
    expected = {name: a for name, a in old(tensors).items() if not name.endswith("num_batches_tracked")}
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in expected)


def test_costs_are_those_that_the_authors_state():
    counted = {name: kinds.count(catalog.get(name).spec) for name in catalog.names("deformable_detr_*")}
    assert [round(one.trainable_parameters / 1e6) for one in counted.values()] == [40, 41, 41]
    for one in counted.values():
        assert one.macs / 1e9 == pytest.approx(173, rel=0.1)


def test_configurations_are_read_and_other_forms_refused():
    _, tensors = source("two_stage")
    translation = deformable_detr.translate(tensors)
    config = {"model_type": "deformable_detr", "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    spec, assumptions = deformable_detr.identify(translation, config={**config, "two_stage_num_proposals": 12})
    assert (spec.heads, spec.queries, spec.classes) == (4, 12, 5)
    assert not any("queries" in text for text in assumptions)
    _, assumed = deformable_detr.identify(translation, heads=4)
    assert any("queries=300" in text for text in assumed)
    with pytest.raises(CheckpointError, match="position_embedding_type='learned'"):
        deformable_detr.identify(translation, config={**config, "position_embedding_type": "learned"})
    with pytest.raises(CheckpointError, match="Pass heads="):
        deformable_detr.identify(translation, heads=7)


def test_published_names_have_their_rows():
    source_of = detectors.named("deformable_detr_resnet50_two_stage")
    assert source_of.spec.proposes
    assert source_of.input_spec.resize_mode == "fit"
    assert detectors.name_of(source_of.spec.replace(classes=7)) == "deformable_detr_resnet50_two_stage"
