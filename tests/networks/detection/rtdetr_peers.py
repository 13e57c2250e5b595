"""transformers' RT-DETR with random weights, to be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import torchside

SIZES = {
    "r18vd": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "r34vd": {"depths": [3, 4, 6, 3], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "r50vd_m": {},
    "r50vd": {},
    "r101vd": {"depths": [3, 4, 23, 3]},
}
_FIELDS: dict[str, dict[str, Any]] = {
    "r18vd": {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 3},
    "r34vd": {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5, "decoder_layers": 4},
    "r50vd_m": {"hidden_expansion": 0.5},
    "r50vd": {},
    "r101vd": {"encoder_ffn_dim": 2048, "encoder_hidden_dim": 384, "decoder_in_channels": [384, 384, 384]},
}


def published(name: str, version: int = 2, seed: int = 0, *, meta: bool = False, **fields: Any) -> Any:
    """The network that transformers has for a published name, such as ``"r18vd"``."""
    return _built(version, SIZES[name], {**_FIELDS[name], **fields}, seed, meta)


def small(version: int = 2, seed: int = 0, **fields: Any) -> Any:
    """An RT-DETR of two layers on a residual network of one block a stage, 40 queries and 5 classes."""
    body = {"depths": [1, 1, 1, 1], "layer_type": "basic", "hidden_sizes": [64, 32, 48, 64]}
    own = {
        **{"encoder_in_channels": [32, 48, 64], "hidden_expansion": 0.5, "decoder_layers": 2, "encoder_hidden_dim": 32},
        **{"encoder_ffn_dim": 48, "d_model": 16, "decoder_ffn_dim": 24, "decoder_in_channels": [32, 32, 32]},
        **{"num_queries": 40, "num_labels": 5, "decoder_attention_heads": 4, "encoder_attention_heads": 4},
        **{"decoder_n_points": 2},
    }
    return _built(version, body, {**own, **fields}, seed, False)


def _built(version: int, body: dict[str, Any], fields: dict[str, Any], seed: int, meta: bool) -> Any:
    library = torchside.library("transformers")
    import torch

    torch.manual_seed(seed)
    kind = "RTDetrV2" if version == 2 else "RTDetr"
    config = getattr(library, f"{kind}Config")(
        backbone_config=library.RTDetrResNetConfig(out_indices=[2, 3, 4], **body), **{"num_labels": 80, **fields}
    )
    with torch.device("meta" if meta else "cpu"):
        model = getattr(library, f"{kind}ForObjectDetection")(config)
    return model.eval() if meta else randomized(model.eval(), seed)


def randomized(model: Any, seed: int) -> Any:
    """Every weight random, statistics of norms too; scores and boxes spread."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif weight is not None:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                if hasattr(module, "running_mean"):
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
            if name.endswith("sampling_offsets"):
                module.bias.normal_(0, 2.0, generator=generator)
            if "class_embed." in name or name.endswith("score_head"):
                module.weight.mul_(3)
    return model


def tensors(model: Any, *, published: bool = True) -> dict[str, np.ndarray]:
    """The tensors as the published files name them, or as the library of today does."""
    found = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    return {old_name(name): array for name, array in found.items()} if published else found


def old_name(name: str) -> str:
    """The name that a tensor has in the files of 2024."""
    for new, old in (("o_proj", "out_proj"), (".mlp.fc", ".fc"), (".aifi.", ".encoder.")):
        name = name.replace(new, old)
    return name


def raw(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits and boxes of normalised images ``(batch, height, width, 3)``.

    The library doubles maps, which fits sides that divide by 32 alone; other sizes take the same pixels as nearest
    interpolation to the finer map does.
    """
    import torch
    from torch.nn import functional

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    sides = [tuple(-(-side // stride) for side in images.shape[1:3]) for stride in (16, 8)]
    usual = functional.interpolate

    def interpolate(given: Any, *args: Any, **options: Any) -> Any:
        if options.get("scale_factor") == 2.0:
            size = next(own for own in sides if all(-(-a // 2) == b for a, b in zip(own, given.shape[2:], strict=True)))
            return usual(given, size=size, mode="nearest")
        return usual(given, *args, **options)

    functional.interpolate = interpolate
    try:
        with torch.no_grad():
            found = model(x)
    finally:
        functional.interpolate = usual
    return {"class_logits": found.logits.numpy(), "box_codes": found.pred_boxes.numpy()}
