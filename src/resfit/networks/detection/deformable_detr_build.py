"""A DeformableDETRSpec as Keras layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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

    def __call__(self, taps: Mapping[int, Any]) -> dict[str, Any]:
        """Applies encoder and decoder.

        Args:
            taps: Maps of the backbone by level.

        Returns:
            ``"class_logits"`` ``(batch, queries, classes)`` and ``"box_codes"`` ``(batch, queries, 4)``: centres and
            sides in shares of the image.
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
        return self._decode(memory, maps)

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
            x = layers.Conv2D(spec.width, kernel, strides=stride, name=f"{name}_conv")(x)
            found.append(layers.GroupNormalization(spec.norm_groups, epsilon=spec.norm_epsilon, name=f"{name}_gn")(x))
        return found

    def _decode(self, memory: Any, maps: list[Any]) -> dict[str, Any]:
        spec: DeformableDETRSpec = self.spec
        if spec.proposes:
            position, x, boxes = self._proposed(memory, maps)
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
            if spec.refines:
                boxes = self._moved(x, boxes, name)
                kind = layers.Dense if last else transformer.AuxiliaryDense
                head = kind(spec.classes, name=f"{name}_class")
                x, logits = (x, head(x)) if last else (head(x), None)
        if not spec.refines:
            boxes, logits = self._moved(x, boxes, "decoder"), self._dense(x, "decoder_class")
        logits = layers.Activation("linear", dtype="float32", name="class_logits")(logits)
        return {"class_logits": logits, "box_codes": boxes}

    def _moved(self, x: Any, boxes: Any, name: str) -> Any:
        return transformer.RefineBoxes(name=f"{name}_boxes")([self._boxes(x, name), boxes])

    def _proposed(self, memory: Any, maps: list[Any]) -> tuple[Any, Any, Any]:
        """Positions, vectors and boxes of the queries that are chosen among the places of the maps."""
        spec: DeformableDETRSpec = self.spec
        used = transformer.UsedPlaces(name="decoder_used")([memory, *maps])
        found = self._normed(self._dense(used, "decoder_proposal"), "decoder_proposal_norm")
        logits = self._dense(found, "decoder_proposal_class")
        codes = transformer.ProposedBoxes(name="decoder_proposed")([self._boxes(found, "decoder_proposal"), *maps])
        best = transformer.BestPlaces(spec.queries, first_class=True, name="decoder_best")([logits, codes])
        boxes = self._sigmoid(self._stopped(best[1], "decoder_start"), "decoder_start_boxes")
        waves = transformer.BoxPositions(spec.width // 2, spec.temperature, name="decoder_waves")(boxes)
        placed = self._normed(self._dense(waves, "decoder_position"), "decoder_position_norm")
        position, x = transformer.Halves(name="decoder_halves")(placed)
        return position, x, boxes

    def _sampled(self, x: Any, queries: Any, memory: Any, boxes: Any, maps: list[Any], name: str, points: int) -> Any:
        sampling = transformer.DeformableSampling(self.spec.heads, points, name=f"{name}_sampling")
        values = self._dense(memory, f"{name}_values")
        offsets, weights = (self._dense(queries, f"{name}_{part}") for part in ("offsets", "weights"))
        found = self._dense(sampling([values, offsets, weights, boxes, *maps]), f"{name}_sampled")
        return self._normed(self._added(x, found, f"{name}_sampled_add"), f"{name}_sampled_norm")

    def _start(self, name: str) -> dict[str, Any]:
        """Boxes begin where they stand, and every place counts alike."""
        return {"kernel_initializer": "zeros"} if name.endswith(("_box_3", "_weights", "_offsets")) else {}
