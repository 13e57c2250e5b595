"""A DETRSpec as Keras layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import layers

from resfit.networks.detection import transformer
from resfit.networks.detection.detr_plan import QUERIES, plan
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.query_layers import PlannedLayers


class Transformer(PlannedLayers):
    """Encoder and decoder of a DETR. Its layers are made once; every call uses the same.

    Args:
        spec: The detector.
    """

    def __init__(self, spec: DETRSpec):
        super().__init__(spec, plan(spec))

    def __call__(self, taps: Mapping[int, Any], *, training: bool = False) -> dict[str, Any]:
        """Applies encoder and decoder.

        Args:
            taps: The map of the backbone by level.
            training: Whether what only the loss takes is returned.

        Returns:
            ``"class_logits"`` ``(batch, queries, classes)``, the last for no object, and ``"box_codes"``
            ``(batch, queries, 4)``: centres and sides in shares of the image. For training in their place
            ``"logits_1"`` and ``"boxes_1"`` on, for each layer of the decoder.
        """
        spec: DETRSpec = self.spec
        x = taps[next(iter(spec.taps))]
        model = self._layer("encoder_input_conv", lambda name: layers.Conv2D(spec.width, 1, name=name))(x)
        memory = self._layer("encoder_places", lambda name: layers.Reshape((-1, spec.width), name=name))(model)
        for number in range(1, spec.encoder_depth + 1):
            name = f"encoder_{number}"
            memory = self._attention(memory, self._placed(memory, model, f"{name}_placed"), name, spec.heads)
            memory = self._feed_forward(memory, name, spec.activation)
        seen = (self._placed(memory, model, "decoder_memory_placed"), memory)
        position, x = self._layer(
            QUERIES, lambda name: transformer.LearnedQueries(spec.queries, spec.width, name=name)
        )(memory)
        outputs: dict[str, Any] = {}
        for number in range(1, spec.decoder_depth + 1):
            name = f"decoder_{number}"
            x = self._attention(x, self._added(x, position, f"{name}_placed"), name, spec.heads)
            looking = self._added(x, position, f"{name}_looking")
            x = self._attention(x, looking, f"{name}_seen", spec.heads, seen=seen)
            x = self._feed_forward(x, name, spec.activation)
            if training:
                logits, boxes = self._said(x)
                outputs |= {f"logits_{number}": logits, f"boxes_{number}": boxes}
        if training:
            return outputs
        logits, boxes = self._said(x)
        return {"class_logits": logits, "box_codes": boxes}

    def _said(self, x: Any) -> tuple[Any, Any]:
        """Logits and boxes of what a layer of the decoder gives: the same heads for all of them."""
        x = self._normed(x, "decoder_norm")
        logits = self._dense(x, "decoder_class")
        logits = self._layer("class_logits", lambda name: layers.Activation("linear", dtype="float32", name=name))(
            logits
        )
        return logits, self._sigmoid(self._boxes(x, "decoder"), "box_codes")

    def _placed(self, x: Any, model: Any, name: str) -> Any:
        spec: DETRSpec = self.spec
        return self._layer(name, lambda name: transformer.AddScaledPositions(temperature=spec.temperature, name=name))(
            [x, model]
        )
