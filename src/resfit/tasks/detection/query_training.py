"""Training of an RT-DETR on one's own boxes: encoder and decoder on maps of a body that is run once."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.tasks.detection.set_loss import (
    BoxTargets,
    DenoisingQueries,
    KnownTargets,
    SetLossSettings,
    denoising_queries,
    layers,
    match,
    set_loss,
)

if TYPE_CHECKING:
    import keras


class QueryTrainer:
    """Trains encoder and decoder of an RT-DETR, as the authors do, on maps of its frozen body.

    Args:
        model: What :func:`resfit.load` returned, with the classes that are to be found (``classes=``). It is changed
            by :meth:`finish`.
        learning_rate: Of AdamW.
        weight_decay: Likewise.
        denoising: Denoising queries at the true boxes, at most; 0 for none.
        seed: Of their noise.
        settings: Weights of the loss; ``None`` is RT-DETR's.

    Raises:
        ArgumentError: The model is no RT-DETR.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        denoising: int = 100,
        seed: int = 0,
        settings: SetLossSettings | None = None,
    ):
        import keras
        from keras import Input

        from resfit.networks.detection.query_plan import tap_width
        from resfit.networks.detection.rtdetr_build import QueryDecoder
        from resfit.weights import canonical

        spec = getattr(model, "architecture", None)
        if not isinstance(spec, RTDETRSpec):
            raise ArgumentError(f"the model must be an RT-DETR of resfit.load. Received: {type(spec).__name__}.")
        self.model, self.spec, self.denoising = model, spec, denoising
        self.settings = settings or SetLossSettings()
        self.optimizer = keras.optimizers.AdamW(learning_rate, weight_decay, global_clipnorm=0.1)
        self._generator = np.random.default_rng(seed)
        taps = [Input((None, None, tap_width(spec, tap)), name=tap) for tap in spec.taps.values()]
        extra = [
            Input((None,), dtype="int32", name="classes"),
            Input((None, 4), name="codes"),
            Input((None,), name="mask"),
        ]
        # the mask has no batch: a matrix for all
        outputs = QueryDecoder(spec)(dict(zip(spec.taps, taps, strict=True)), extra)
        self.network = keras.Model([*taps, *extra], outputs, name=f"{model.name}_training")
        held = canonical.arrays(model)
        for name, variable in canonical.weights(self.network).items():
            variable.assign(held[name])

    def body(self) -> keras.Model:
        """Returns the frozen body: RGB 0..255 to a list of the maps of the taps."""
        import keras

        from resfit.engines import prefix

        places = prefix.taps(types.SimpleNamespace(architecture=self.spec.backbone))
        outputs = [self.model.get_layer(places[tap]).output for tap in self.spec.taps.values()]
        return keras.Model(self.model.inputs[0], outputs)

    def step(self, maps: Sequence[Any], targets: BoxTargets) -> dict[str, float]:
        """Takes one step.

        Args:
            maps: The maps of the body for a batch.
            targets: Its true boxes.

        Returns:
            The parts of the loss: ``"class"``, ``"box"``, ``"overlap"`` and ``"denoising"``.
        """
        noise = denoising_queries(
            targets, self.spec.classes, self.spec.queries, self._generator, count=max(self.denoising, 1)
        )
        if not self.denoising:
            noise = _without(noise, self.spec.queries)
        known = KnownTargets.of(targets, max(noise.groups, 1))
        found = self._function(
            [np.asarray(one, np.float32) for one in maps],
            [noise.classes, noise.codes, noise.mask],
            [targets.classes, targets.boxes],
            [known.targets.classes, known.targets.boxes, known.queries, np.float32(known.groups)],
        )
        return {name: float(value) for name, value in found.items()}

    @functools.cached_property
    def _function(self) -> Callable[..., dict[str, Any]]:
        """One step as a graph, for images and boxes of any number."""
        import tensorflow as tf

        floats, whole = (
            functools.partial(tf.TensorSpec, dtype=tf.float32),
            functools.partial(tf.TensorSpec, dtype=tf.int32),
        )
        boxes = [whole((None, None)), floats((None, None, 4))]
        signature = [
            [floats((None, None, None, one.shape[-1])) for one in self.network.inputs[: len(self.spec.taps)]],
            [whole((None, None)), floats((None, None, 4)), floats((None, None))],
            boxes,
            [*boxes, whole((None, None)), floats(())],
        ]

        def matched(logits: Any, given: Any, classes: Any, true: Any) -> np.ndarray:
            return match(logits, given, BoxTargets(classes, true), self.settings)

        def step(maps: Any, noise: Any, truth: Any, known: Any) -> dict[str, Any]:
            targets, own = BoxTargets(*truth), tf.shape(noise[0])[1]
            with tf.GradientTape() as tape:
                outputs = self.network([*maps, *noise], training=True)
                matches = {}
                for name, pair in layers(outputs, own).items():
                    matches[name] = tf.numpy_function(matched, [*pair, *truth], tf.int32)
                    matches[name].set_shape((None, None))
                more = KnownTargets(BoxTargets(*known[:2]), known[2], known[3]) if self.denoising else None
                parts = set_loss(outputs, targets, matches, denoising=own, known=more, settings=self.settings)
                total = tf.add_n([tf.convert_to_tensor(value, tf.float32) for value in parts.values()])
            gradients = tape.gradient(total, self.network.trainable_variables)
            pairs = [
                pair for pair in zip(gradients, self.network.trainable_variables, strict=True) if pair[0] is not None
            ]
            self.optimizer.apply(*zip(*pairs, strict=True))
            return parts

        self.optimizer.build(self.network.trainable_variables)
        return tf.function(step, input_signature=signature, autograph=False)

    def finish(self) -> keras.Model:
        """Writes what was learned into the model, and returns it."""
        from resfit.weights import canonical

        learned = canonical.arrays(self.network)
        for name, variable in canonical.weights(self.model).items():
            if name in learned:
                variable.assign(learned[name])
        return self.model


def fit_boxes(
    model: keras.Model,
    images: np.ndarray,
    classes: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    *,
    steps: int,
    batch_size: int = 4,
    seed: int = 0,
    say: Callable[[int, dict[str, float]], None] | None = None,
    **options: Any,
) -> keras.Model:
    """Fits encoder and decoder of an RT-DETR to boxes in images of one size. The body runs once over each image.

    Args:
        model: As :class:`QueryTrainer` takes it.
        images: RGB ``(n, height, width, 3)``, values 0..255.
        classes: For each image, the numbers of the classes of its boxes.
        boxes: For each image, ``(k, 4)``, xyxy in pixels.
        steps: How many steps to take.
        batch_size: Images of a step.
        seed: Of the order and the denoising queries.
        say: Called with the number of each step and the parts of its loss.
        **options: Of :class:`QueryTrainer`.

    Returns:
        The model, with what was learned.
    """
    trainer = QueryTrainer(model, seed=seed, **options)
    body = trainer.body()
    each = [_maps(body, images[row : row + 1]) for row in range(len(images))]
    stored = [np.concatenate(parts) for parts in zip(*each, strict=True)]
    order = np.random.default_rng(seed)
    size = (int(images.shape[1]), int(images.shape[2]))
    for number in range(steps):
        rows = order.choice(len(images), min(batch_size, len(images)), replace=False)
        targets = BoxTargets.of([classes[row] for row in rows], [boxes[row] for row in rows], size)
        parts = trainer.step([maps[rows] for maps in stored], targets)
        if say is not None:
            say(number, parts)
    return trainer.finish()


def _maps(body: keras.Model, images: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(one) for one in body(images, training=False)]


def _without(noise: DenoisingQueries, queries: int) -> DenoisingQueries:
    """No denoising queries at all."""
    batch = len(noise.classes)
    mask = np.zeros((queries, queries), np.float32)
    return DenoisingQueries(np.zeros((batch, 0), np.int32), np.zeros((batch, 0, 4), np.float32), mask, 0)
