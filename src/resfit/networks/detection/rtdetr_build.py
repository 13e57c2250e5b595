"""build(): an RTDETRSpec as a Keras model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from resfit.networks.detection import transformer
from resfit.networks.detection.layers import CropToMatch
from resfit.networks.detection.query_layers import PlannedLayers
from resfit.networks.detection.rtdetr_plan import DENOISING, plan
from resfit.networks.detection.rtdetr_spec import RTDETRSpec


class QueryDecoder(PlannedLayers):
    """Encoder and decoder of an RT-DETR. Its layers are made once; every call uses the same.

    Args:
        spec: The detector.
    """

    def __init__(self, spec: RTDETRSpec):
        super().__init__(spec, plan(spec))

    def __call__(self, taps: Mapping[int, Any], denoising: Sequence[Any] = ()) -> dict[str, Any]:
        """Applies encoder and decoder.

        Args:
            taps: Maps of the backbone by level.
            denoising: For training: int32 classes ``(batch, d)``, logits of boxes ``(batch, d, 4)``, and a mask
                ``(d + queries, d + queries)`` that is added to the logits of the attention among queries.

        Returns:
            ``"class_logits"`` ``(batch, queries, classes)`` and ``"box_codes"`` ``(batch, queries, 4)``: centres and
            sides in shares of the image. For training also ``"proposal_logits"`` and ``"proposal_boxes"``, and for each
            layer of the decoder ``"logits_1"`` and ``"boxes_1"`` on, with the denoising queries before the others.
        """
        maps = self._encode([taps[level] for level in self.spec.levels])
        return self._decode(maps, denoising)

    def _encode(self, maps: list[Any]) -> list[Any]:
        maps = [self._conv(x, f"encoder_input_{number}", None) for number, x in enumerate(maps, start=1)]
        last, spec = len(maps) - 1, self.spec
        coarse = maps[last]
        if spec.encoder_depth:
            tokens = self._layer("encoder_places", lambda name: layers.Reshape((-1, spec.encoder_width), name=name))(
                coarse
            )
            for number in range(1, spec.encoder_depth + 1):
                name = f"encoder_attention_{number}"
                placed = self._layer(
                    f"{name}_positions",
                    lambda name: transformer.AddSinePositions(temperature=spec.temperature, name=name),
                )([tokens, coarse])
                tokens = self._attention(tokens, placed, name, spec.encoder_heads)
                tokens = self._feed_forward(tokens, name, spec.encoder_activation)
            coarse = self._layer("encoder_map", lambda name: transformer.PlacesToMap(name=name))([tokens, coarse])
        down = [coarse]
        for number in range(1, last + 1):
            lateral = self._conv(down[0], f"encoder_lateral_{number}")
            down[0] = lateral
            doubled = self._layer(
                f"encoder_doubled_{number}",
                lambda name: layers.UpSampling2D(2, interpolation="nearest", name=name),
            )(lateral)
            finer = maps[last - number]
            if None in finer.shape[1:3] or doubled.shape[1:3] != finer.shape[1:3]:
                doubled = self._layer(f"encoder_crop_{number}", lambda name: CropToMatch(name=name))([doubled, finer])
            down.insert(0, self._fused([doubled, finer], f"encoder_top_down_{number}"))
        up = [down[0]]
        for number in range(1, last + 1):
            coarser = self._conv(up[-1], f"encoder_downsample_{number}")
            up.append(self._fused([coarser, down[number]], f"encoder_bottom_up_{number}"))
        return up

    def _fused(self, maps: list[Any], name: str) -> Any:
        """Two maps as one: a branch of RepVGG blocks and a direct one."""
        x = self._layer(f"{name}_joined", lambda name: layers.Concatenate(name=name))(maps)
        deep, direct = (self._conv(x, f"{name}_{number}") for number in (1, 2))
        for block in range(1, self.spec.fusion_blocks + 1):
            part = f"{name}_block{block}"
            both = [self._conv(deep, f"{part}_{number}", None) for number in (1, 2)]
            deep = self._layer(f"{part}_add", lambda name: layers.Add(name=name))(both)
            deep = self._activation(deep, self.spec.activation, f"{part}_out")
        x = self._layer(f"{name}_add", lambda name: layers.Add(name=name))([deep, direct])
        return self._conv(x, f"{name}_3") if f"{name}_3" in self.plan else x

    def _decode(self, maps: list[Any], denoising: Sequence[Any]) -> dict[str, Any]:
        spec, width = self.spec, self.spec.decoder_width
        maps = [self._conv(x, f"decoder_input_{number}", None) for number, x in enumerate(maps, start=1)]
        places = [
            self._layer(f"decoder_places_{number}", lambda name: layers.Reshape((-1, width), name=name))(x)
            for number, x in enumerate(maps, start=1)
        ]
        memory = self._layer("decoder_memory", lambda name: layers.Concatenate(axis=1, name=name))(places)
        used = self._layer("decoder_used", lambda name: transformer.UsedPlaces(name=name))([memory, *maps])
        found = self._normed(self._dense(used, "decoder_proposal"), "decoder_proposal_norm")
        logits = self._dense(found, "decoder_proposal_class")
        codes = self._boxes(found, "decoder_proposal")
        codes = self._layer("decoder_proposed", lambda name: transformer.ProposedBoxes(name=name))([codes, *maps])
        best = self._layer("decoder_best", lambda name: transformer.BestPlaces(spec.queries, name=name))(
            [logits, codes, found]
        )
        outputs = {"proposal_logits": best[0], "proposal_boxes": self._sigmoid(best[1], "decoder_proposal_boxes")}
        x, codes = (self._stopped(one, f"decoder_start_{name}") for one, name in ((best[2], "x"), (best[1], "codes")))
        embedding = self._layer(
            DENOISING, lambda name: transformer.AuxiliaryEmbedding(spec.classes + 1, width, name=name)
        )
        mask: list[Any] = []
        if denoising:
            classes, noised, own = denoising
            mask = [own]
            x, codes = (
                self._layer(f"decoder_joined_{name}", lambda name: layers.Concatenate(axis=1, name=name))(pair)
                for name, pair in (("x", [embedding(classes, applied=True), x]), ("codes", [noised, codes]))
            )
        else:
            x = embedding(x)
        boxes = self._sigmoid(codes, "decoder_boxes")
        logits = None
        for number in range(1, spec.decoder_depth + 1):
            name = f"decoder_{number}"
            reference = self._stopped(boxes, f"{name}_reference")
            position = self._activation(self._dense(reference, "decoder_position_1"), "relu", f"{name}_position")
            position = self._dense(position, "decoder_position_2")
            placed = self._added(x, position, f"{name}_placed")
            x = self._attention(x, placed, name, spec.decoder_heads, mask)
            x = self._sampled(x, self._added(x, position, f"{name}_looking"), memory, reference, maps, name)
            x = self._feed_forward(x, name, spec.decoder_activation)
            boxes = self._layer(f"{name}_boxes", lambda name: transformer.RefineBoxes(name=name))(
                [self._boxes(x, name), reference]
            )
            head = self._head(f"{name}_class", number < spec.decoder_depth)
            if number < spec.decoder_depth and not denoising:
                x = head(x)
                continue
            logits = head(x, applied=True) if number < spec.decoder_depth else head(x)
            outputs |= {f"logits_{number}": logits, f"boxes_{number}": boxes}
        if denoising:
            return outputs
        logits = self._layer("class_logits", lambda name: layers.Activation("linear", dtype="float32", name=name))(
            logits
        )
        return {"class_logits": logits, "box_codes": boxes}

    def _sampled(self, x: Any, queries: Any, memory: Any, boxes: Any, maps: list[Any], name: str) -> Any:
        spec = self.spec
        sampling = self._layer(
            f"{name}_sampling",
            lambda name: transformer.DeformableSampling(
                spec.decoder_heads, spec.points, spec.sampling, spec.offset_scale, name=name
            ),
        )
        values = self._dense(memory, f"{name}_values")
        offsets, weights = (self._dense(queries, f"{name}_{part}") for part in ("offsets", "weights"))
        found = self._dense(sampling([values, offsets, weights, boxes, *maps]), f"{name}_sampled")
        return self._normed(self._added(x, found, f"{name}_sampled_add"), f"{name}_sampled_norm")

    def _head(self, name: str, auxiliary: bool) -> Any:
        """The class head of a layer of the decoder. All but the last are for training."""
        kind = transformer.AuxiliaryDense if auxiliary else layers.Dense
        return self._layer(name, lambda name: kind(self.spec.classes, name=name, **self._start(name)))

    def _start(self, name: str) -> dict[str, Any]:
        """How a dense layer begins where that matters: boxes where they stand, offsets in a star, no class likely."""
        if name.endswith("_box_3"):
            return {"kernel_initializer": "zeros"}
        if name.endswith("_weights"):
            return {"kernel_initializer": "zeros"}
        if name.endswith("_offsets"):
            return {
                "kernel_initializer": "zeros",
                "bias_initializer": _Star(self.spec.decoder_heads, len(self.spec.levels), self.spec.points),
            }
        if name.endswith("_class"):
            prior = 1 / (self.spec.classes + 1)
            return {"bias_initializer": keras.initializers.Constant(-math.log((1 - prior) / prior))}
        return {}


@keras.saving.register_keras_serializable(package="resfit")
class _Star(keras.initializers.Initializer):
    """Offsets that point away from the box in as many directions as there are heads, one step further each point."""

    def __init__(self, heads: int, levels: int, points: int):
        self.heads, self.levels, self.points = heads, levels, points

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        angles = np.arange(self.heads) * (2 * np.pi / self.heads)
        directions = np.stack([np.cos(angles), np.sin(angles)], -1)
        directions /= np.abs(directions).max(-1, keepdims=True)
        steps = np.arange(1, self.points + 1)[None, None, :, None]
        star = np.tile(directions[:, None, None] * steps, (1, self.levels, 1, 1))
        return keras.ops.convert_to_tensor(star.reshape(shape), dtype or "float32")

    def get_config(self) -> dict[str, Any]:
        return {"heads": self.heads, "levels": self.levels, "points": self.points}
