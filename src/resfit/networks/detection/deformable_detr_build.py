"""A DeformableDETRSpec as Keras layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from resfit.networks.detection import transformer
from resfit.networks.detection.deformable_detr_plan import LEVELS, QUERIES, plan
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.query_layers import PlannedLayers


class DeformableTransformer(PlannedLayers):
    """Encoder and decoder of a Deformable DETR. Its layers are made once; every call uses the same.

    Args:
        spec: The detector.
    """

    def __init__(self, spec: DeformableDETRSpec):
        super().__init__(spec, plan(spec))

    def __call__(self, taps: Mapping[int, Any], *, training: bool = False) -> dict[str, Any]:
        """Applies encoder and decoder.

        Args:
            taps: Maps of the backbone by level.
            training: Whether what only the loss takes is returned.

        Returns:
            ``"class_logits"`` ``(batch, queries, classes)`` and ``"box_codes"`` ``(batch, queries, 4)``: centres and
            sides in shares of the image. For training in their place ``"logits_1"`` and ``"boxes_1"`` on for each layer
            of the decoder and, where queries are chosen among places, ``"proposal_logits"`` and ``"proposal_boxes"`` of
            all places.
        """
        spec: DeformableDETRSpec = self.spec
        maps = self._maps([taps[level] for level in spec.levels])
        places = [
            self._layer(f"encoder_places_{number}", lambda name: layers.Reshape((-1, spec.width), name=name))(x)
            for number, x in enumerate(maps, start=1)
        ]
        memory = places[0]
        if len(places) > 1:
            memory = self._layer("encoder_joined", lambda name: layers.Concatenate(axis=1, name=name))(places)
        positions, centres = self._layer(
            LEVELS, lambda name: transformer.LevelPositions(len(maps), spec.width, spec.temperature, name=name)
        )([memory, *maps])
        for number in range(1, spec.encoder_depth + 1):
            name = f"encoder_{number}"
            looking = self._added(memory, positions, f"{name}_placed")
            memory = self._sampled(memory, looking, memory, centres, maps, name, spec.encoder_points)
            memory = self._feed_forward(memory, name, spec.activation)
        return self._decode(memory, maps, training)

    def _maps(self, taps: list[Any]) -> list[Any]:
        """All maps with as many channels."""
        spec: DeformableDETRSpec = self.spec
        found: list[Any] = []
        for place in range(len(spec.all_levels)):
            name, extra = f"encoder_input_{place + 1}", place >= len(taps)
            x = found[-1] if place > len(taps) else taps[min(place, len(taps) - 1)]
            if extra:
                x = self._layer(f"{name}_pad", lambda name: layers.ZeroPadding2D(1, name=name))(x)
            kernel, stride = (3, 2) if extra else (1, 1)
            convolution = layers.Conv2D(spec.width, kernel, strides=stride, name=f"{name}_conv")
            norm = layers.GroupNormalization(spec.norm_groups, epsilon=spec.norm_epsilon, name=f"{name}_gn")
            x = self._own(convolution)(x)
            found.append(self._own(norm)(x))
        return found

    def _own(self, layer: Any) -> Any:
        """A layer, or the one of its name that was made before."""
        return self.layers.setdefault(layer.name, layer)

    def _decode(self, memory: Any, maps: list[Any], training: bool) -> dict[str, Any]:
        spec: DeformableDETRSpec = self.spec
        outputs: dict[str, Any] = {}
        if spec.proposes:
            position, x, boxes = self._proposed(memory, maps, outputs)
        else:
            table, _ = self._layer(
                QUERIES, lambda name: transformer.LearnedQueries(spec.queries, 2 * spec.width, name=name)
            )(memory)
            position, x = self._layer("decoder_halves", lambda name: transformer.Halves(name=name))(table)
            boxes = self._sigmoid(self._dense(position, "decoder_reference"), "decoder_start_boxes")
        logits = None
        for number in range(1, spec.decoder_depth + 1):
            name, last = f"decoder_{number}", number == spec.decoder_depth
            x = self._attention(x, self._added(x, position, f"{name}_placed"), name, spec.heads)
            looking = self._added(x, position, f"{name}_looking")
            x = self._sampled(x, looking, memory, boxes, maps, name, spec.points)
            x = self._feed_forward(x, name, spec.activation)
            moved, head = boxes, self._head(number)
            if spec.refines:
                moved = self._moved(x, boxes, name)
                # in training a layer learns how boxes move, not where those before it leave them
                boxes = self._stopped(moved, f"{name}_reference") if training else moved
            elif training or last:
                moved = self._moved(x, boxes, "decoder")
            if training:
                logits = head(x, applied=True) if isinstance(head, transformer.AuxiliaryDense) else head(x)
                outputs |= {f"logits_{number}": logits, f"boxes_{number}": moved}
            elif last:
                logits, boxes = head(x), moved
            elif spec.refines:
                x = head(x)
        if training:
            return outputs
        activation = self._layer("class_logits", lambda name: layers.Activation("linear", dtype="float32", name=name))
        return {"class_logits": activation(logits), "box_codes": boxes}

    def _head(self, number: int) -> Any:
        """What gives the classes of a layer of the decoder: that of all layers, or where boxes are refined its own."""
        spec: DeformableDETRSpec = self.spec
        last = number == spec.decoder_depth or not spec.refines
        name = f"decoder_{number}_class" if spec.refines else "decoder_class"
        kind = layers.Dense if last else transformer.AuxiliaryDense
        return self._layer(name, lambda name: kind(spec.classes, name=name, **self._start(name)))

    def _moved(self, x: Any, boxes: Any, name: str) -> Any:
        return self._own(transformer.RefineBoxes(name=f"{name}_boxes"))([self._boxes(x, name), boxes])

    def _proposed(self, memory: Any, maps: list[Any], outputs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Positions, vectors and boxes of the queries that are chosen among the places of the maps; what a loss takes
        of all places is added to the outputs."""
        spec: DeformableDETRSpec = self.spec
        used = self._own(transformer.UsedPlaces(name="decoder_used"))([memory, *maps])
        found = self._normed(self._dense(used, "decoder_proposal"), "decoder_proposal_norm")
        logits = self._dense(found, "decoder_proposal_class")
        proposed = self._own(transformer.ProposedBoxes(name="decoder_proposed"))
        codes = proposed([self._boxes(found, "decoder_proposal"), *maps])
        outputs |= {"proposal_logits": logits, "proposal_boxes": self._sigmoid(codes, "decoder_proposal_boxes")}
        choose = self._own(transformer.BestPlaces(spec.queries, first_class=True, name="decoder_best"))
        best = choose([logits, codes])
        boxes = self._sigmoid(self._stopped(best[1], "decoder_start"), "decoder_start_boxes")
        waves = self._own(transformer.BoxPositions(spec.width // 2, spec.temperature, name="decoder_waves"))(boxes)
        placed = self._normed(self._dense(waves, "decoder_position"), "decoder_position_norm")
        position, x = self._own(transformer.Halves(name="decoder_halves"))(placed)
        return position, x, boxes

    def _sampled(self, x: Any, queries: Any, memory: Any, boxes: Any, maps: list[Any], name: str, points: int) -> Any:
        sampling = self._own(transformer.DeformableSampling(self.spec.heads, points, name=f"{name}_sampling"))
        values = self._dense(memory, f"{name}_values")
        offsets, weights = (self._dense(queries, f"{name}_{part}") for part in ("offsets", "weights"))
        found = self._dense(sampling([values, offsets, weights, boxes, *maps]), f"{name}_sampled")
        return self._normed(self._added(x, found, f"{name}_sampled_add"), f"{name}_sampled_norm")

    def _start(self, name: str) -> dict[str, Any]:
        """Boxes begin where they stand, every place counts alike, and no class is likely."""
        if name.endswith("_class"):
            return {"bias_initializer": keras.initializers.Constant(-math.log((1 - _PRIOR) / _PRIOR))}
        return {"kernel_initializer": "zeros"} if name.endswith(("_box_3", "_weights", "_offsets")) else {}


# What each class is given before anything was learned.
_PRIOR = 0.01
