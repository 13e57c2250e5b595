"""Everything that decides the result of a fine-tuning run, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

from resfit.errors import ArgumentError
from resfit.training import loop

BATCH_NORMS = ("auto", "batch", "frozen")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
#: Images a batch under which ``batch_norm="auto"`` keeps the statistics of the checkpoint.
SMALL_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Everything that decides the result of a fine-tuning run.

    Attributes:
        trainable_from: First layer that learns, as :func:`resfit.training.boundary.resolve` takes it.
        epochs: Passes over the training images.
        minutes: Longest time of training and validation by the clock; the schedule then ends when either is up.
            ``None`` is no limit.
        batch_size: Images a step.
        optimizer: ``"sgd"`` (Nesterov), ``"adam"`` or ``"adamw"``.
        learning_rate: Peak of the schedule, for the head and the last block.
        layer_decay: The learning rate's factor from one residual block to the one before it, in (0, 1].
        weight_decay: On kernels, not on norms and biases; decoupled, in proportion to the rate.
        warmup: Share of the run in which the rate rises from zero.
        schedule: ``"constant"``, ``"cosine"`` or ``"one_cycle"``.
        momentum: Of ``"sgd"``.
        clip: Largest norm of all gradients together; ``None`` does not clip.
        accumulate: Batches whose gradients are averaged to one step.
        ema_decay: Of the moving average of the weights, which is then what is validated and kept; 0 keeps none.
        patience: Epochs without a better validation after which the run ends; ``None`` goes to the end.
        label_smoothing: Share of the target spread over all classes.
        focal: gamma of the focal loss (Lin et al. 2017, arXiv:1708.02002); 0 is cross-entropy.
        balance: Whether each class weighs the same in the loss, however many images it has.
        crop_scale: Least share of the area that a random crop keeps; 1 crops nothing.
        flip: Whether half of the images are mirrored left to right.
        colour: Largest change of brightness, contrast and saturation; 0 is none.
        rand_augment: Number of changes and their magnitude (0..10); ``None`` is none.
        erasing: Share of the images with a rectangle of noise.
        mixup: Parameter of mixup; 0 is none. On pixels, or on stored feature maps.
        cutmix: Parameter of CutMix; 0 is none. With both, batches take turns.
        views: How the frozen part sees the images: 1 stores its outputs for the plain images, more stores those of so
            many changed views of each image (of which each epoch takes another), 0 stores none and runs the frozen part
            on freshly changed images in every epoch.
        sizes: Pairs ``(progress, pixels)``: from which share of the run the images have which height and width
            (progressive resizing). Nothing is stored then.
        unfreeze: Pairs ``(progress, trainable_from)``: from which share of the run the layers from there on learn
            (gradual unfreezing). Before the first pair the head alone learns.
        distillation: Share of the loss that a teacher's predictions make up, in [0, 1].
        temperature: Of the distillation (Hinton et al. 2015, arXiv:1503.02531).
        batch_norm: Statistics of the norms that learn: ``"batch"``, ``"frozen"`` (those of the checkpoint, which then
            do not move), or ``"auto"``: frozen under 32 images a batch. Norms before the boundary always keep theirs.
        precision: Dtype policy of the layers that learn; weights, norms' statistics and loss stay float32.
        seed: Of order and changes.
    """

    trainable_from: int | float | str = 0.0
    epochs: int = 10
    minutes: float | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "cosine"
    momentum: float = 0.9
    clip: float | None = None
    accumulate: int = 1
    ema_decay: float = 0.0
    patience: int | None = None
    label_smoothing: float = 0.0
    focal: float = 0.0
    balance: bool = False
    crop_scale: float = 1.0
    flip: bool = False
    colour: float = 0.0
    rand_augment: tuple[int, float] | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int = 1
    sizes: tuple[tuple[float, int], ...] = ()
    unfreeze: tuple[tuple[float, int | float | str], ...] = ()
    distillation: float = 0.0
    temperature: float = 2.0
    batch_norm: str = "auto"
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ArgumentError: A setting is outside its range.
        """
        loop.check_choice("optimizer", self.optimizer, loop.OPTIMIZERS)
        loop.check_choice("schedule", self.schedule, loop.SCHEDULES)
        loop.check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        loop.check_choice("precision", self.precision, PRECISIONS)
        for name, low in (("epochs", 0), ("batch_size", 1), ("accumulate", 1), ("views", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise ArgumentError(f"{name} must be at least {low}. Received: {getattr(self, name)!r}.")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive. Received: {getattr(self, name)!r}.")
        for name in ("minutes", "clip", "patience"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be positive, or None. Received: {getattr(self, name)!r}.")
        for name in ("weight_decay", "focal", "colour", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ArgumentError(f"{name} must not be negative. Received: {getattr(self, name)!r}.")
        for name in ("warmup", "momentum", "ema_decay", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"{name} must lie in [0, 1). Received: {getattr(self, name)!r}.")
        for name in ("erasing", "distillation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(f"{name} must lie in [0, 1]. Received: {getattr(self, name)!r}.")
        for name in ("layer_decay", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise ArgumentError(f"{name} must lie in (0, 1]. Received: {getattr(self, name)!r}.")
        for name in ("sizes", "unfreeze"):
            if any(not 0 <= pair[0] <= 1 for pair in getattr(self, name)):
                raise ArgumentError(
                    f"{name} must be pairs that start with a share of the run in [0, 1]. "
                    f"Received: {getattr(self, name)!r}."
                )
        if any(pixels < 1 for _, pixels in self.sizes):
            raise ArgumentError(f"sizes must be at least 1 pixel. Received: {self.sizes!r}.")

    @property
    def policy(self) -> str | None:
        """Dtype policy of the training's layers; ``None`` for float32."""
        return None if self.precision == "float32" else self.precision

    @property
    def changes_images(self) -> bool:
        """Whether images are changed at random before the network sees them."""
        return self.crop_scale < 1 or self.flip or self.colour > 0 or self.rand_augment is not None or self.erasing > 0

    @property
    def fixed_statistics(self) -> bool:
        """Whether the norms that learn keep the statistics of the checkpoint."""
        return self.batch_norm == "frozen" or (self.batch_norm == "auto" and self.batch_size < SMALL_BATCH)

    def image_size(self, progress: float) -> int | None:
        """Returns height and width of the images at a share of the run; ``None`` is the network's own."""
        size = None
        for start, pixels in sorted(self.sizes):
            if progress >= start:
                size = pixels
        return size

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)
