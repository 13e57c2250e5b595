"""The methods: which parts of an image speak for a class.

All explain the score of a class before the softmax or sigmoid. One table, one function a method, which registers itself
by :func:`register_explainer`.

Grad-CAM weights a channel by the mean of its slopes. At a feature map that is not the last one, slopes of one channel
differ from place to place, their mean may have the wrong sign, and the whole map comes out negative though the network
is sure of the class. Grad-CAM cuts what is negative, and nothing is left. HiResCAM multiplies each value by its own
slope, which needs no mean; where Grad-CAM finds nothing for the class, it takes its place, and the attribution says so.
If that finds nothing either, the map shows what speaks against the class, and says that.

Source:
    Grad-CAM: Selvaraju et al. 2016, arXiv:1610.02391. HiResCAM: Draelos and Carin 2020, arXiv:2011.08891.
    Grad-CAM++: Chattopadhyay et al. 2017, arXiv:1710.11063. Eigen-CAM: Muhammad and Yeasin 2020, arXiv:2008.00299.
    Integrated gradients: Sundararajan et al. 2017, arXiv:1703.01365. Occlusion: Zeiler and Fergus 2013,
    arXiv:1311.2901.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from resfit import dependencies
from resfit.errors import ArgumentError, closest
from resfit.explain.graph import ExplainableGraph
from resfit.explain.overlays import enlarged
from resfit.registries import Registry

if TYPE_CHECKING:
    import keras

#: What a map shows; see :class:`Attribution`.
Evidence = Literal["positive", "negative", "none"]
#: Share of the difference in score that integrated gradients may miss.
TOLERANCE = 0.01
_FIRST_STEPS = 32
_MOST_STEPS = 2048
_NOTHING = 1e-4  # a difference in score that float32 cannot tell from none
_TRACE = 1e-3  # of the largest value of a map: what is positive no more than that is rounding
_BATCH_PIXELS = 16 * 224 * 224


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """What one method says about one image.

    Attributes:
        map: float32 ``(height, width)`` of the image, 0..1, its highest value 1: what speaks for the class; with
            negative evidence what speaks against it; all 0 without any.
        raw: float32, signed, unscaled: ``(h, w)`` of the feature map for the CAMs, ``(height, width)`` of the image
            for the others. For integrated gradients in units of the score: its sum is the difference in score between
            the image and the baseline.
        target: The class that is explained, as an index.
        scores: float32 ``(classes,)``: the network's scores, before the last activation.
        probabilities: float32 ``(classes,)``: what the network gives.
        stage: The layer whose feature map was read; empty for the methods that read none.
        gap: Integrated gradients: by which share of the difference in score the sum of ``raw`` misses it.
        method: What made the map: the method that was asked for, or the one that took its place.
        empty: Whether the method that was asked for finds nothing that speaks for the class.
        evidence: ``"positive"``: the map shows what speaks for the class; ``"negative"``: nothing does, and it shows
            what speaks against it; ``"none"``: the score does not depend on what the method looks at.
    """

    map: np.ndarray
    raw: np.ndarray
    target: int
    scores: np.ndarray
    probabilities: np.ndarray
    stage: str = ""
    gap: float = 0.0
    method: str = ""
    empty: bool = False
    evidence: Evidence = "positive"


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of :data:`METHODS`.

    Attributes:
        run: Called with the job and a batch of images; gives for each image its raw map and its gap.
        options: Names of its own options.
        reads_maps: Whether it reads a feature map.
        otherwise: The method that takes its place where it finds nothing for the class; empty for none.
    """

    run: Callable[[ExplanationJob, np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, float]]]
    options: tuple[str, ...] = ()
    reads_maps: bool = True
    otherwise: str = ""


#: The methods by name.
METHODS: Registry[Method] = Registry("an explainer")

_Run = TypeVar("_Run", bound=Callable[..., Iterator[tuple[np.ndarray, float]]])


def register_explainer(name: str, **options: Any) -> Callable[[_Run], _Run]:
    """Registers the decorated function as a method of explanation.

    Args:
        name: What ``method=`` calls it.
        **options: Other fields of :class:`Method`.

    Example:
        >>> @register_explainer("brightness", reads_maps=False)  # doctest: +SKIP
        ... def brightness(job, images, targets):
        ...     yield from ((image.mean(axis=-1), 0.0) for image in images)
    """

    def register(run: _Run) -> _Run:
        METHODS.add(name, Method(run, **options))
        return run

    return register


@dataclasses.dataclass(frozen=True, eq=False)
class ExplanationJob:
    """What a method works with: a network that can be explained, and the options of the method.

    Attributes:
        graph: The network.
        layer: The layer whose feature map is read; empty for methods that read none.
        batch_size: Images at a time.
        options: The method's own options that were given.
    """

    graph: ExplainableGraph
    layer: str
    batch_size: int
    options: dict[str, Any]

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Returns scores ``(n, classes)``, in batches."""
        return np.concatenate([np.asarray(self._score(_tensor(some))) for some in self._batches(images)])

    def slopes(self, images: np.ndarray, target: int) -> np.ndarray:
        """Returns the slopes of a score in the pixels of images, summed up over the images, float64."""
        import tensorflow as tf

        parts = [self._slope(_tensor(some), tf.constant(target, tf.int32)) for some in self._batches(images)]
        return np.sum([np.asarray(part, np.float64).sum(axis=0) for part in parts], axis=0)

    def _batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        yield from (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))

    @functools.cached_property
    def _score(self) -> Callable[[Any], Any]:
        def score(images: Any) -> Any:
            return self.graph.scores(images)[0]

        return score if self.layer else _compiled(score)  # without a map the network runs many times

    @functools.cached_property
    def _slope(self) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        def slope(images: Any, target: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                score = tf.gather(self.graph.scores(images)[0], target, axis=1)
            return tape.gradient(score, images)

        return _compiled(slope)


def attribute(
    model: keras.Model | ExplainableGraph,
    images: Any,
    *,
    method: str = "grad-cam",
    target: int | Sequence[int] | None = None,
    stage: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> list[Attribution]:
    """Says which parts of images speak for a class.

    Memory is that of one batch with its gradients, whatever the number of images.

    Args:
        model: A network with probabilities or logits ``(batch, classes)``, as
            :class:`resfit.explain.graph.ExplainableGraph`
            takes it.
        images: Array ``(n, height, width, channels)``, RGB, values 0..255. Not changed.
        method: One of :data:`METHODS`.
        target: The class to explain, or one an image; ``None`` is the most probable class of each.
        stage: For the CAMs the feature map: ``"stage1"`` to ``"stage5"`` or the name of a layer. ``None`` is the last
            one with at least 7 cells on a side.
        batch_size: Images that go through the network at once; ``None`` chooses by their size.
        **options: Of the method. ``"integrated-gradients"``: ``baseline``, a value 0..255, ``"mean"`` (mean colour),
            ``"blur"`` or an array ``(height, width, channels)``, by default ``"blur"``; ``tolerance``, by default 0.01;
            ``steps``, the most points on the path, by default 2048. ``"occlusion"``: ``patch``, the side of the square
            in pixels, by default an eighth of the shorter side; ``stride``, by default half of it; ``fill``, as
            ``baseline``, by default ``"mean"``.

    Returns:
        One attribution an image.

    Raises:
        ArgumentError: An argument breaks its rule.

    Example:
        >>> found = attribute(resfit.load("resnet50"), images, method="grad-cam++", stage="stage4")
        >>> found[0].map.shape
        (224, 224)
    """
    chosen = check_method(method, options)
    dependencies.require_tensorflow_backend("explaining")
    graph = model if isinstance(model, ExplainableGraph) else ExplainableGraph(model)
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype.kind not in "uif":
        raise ArgumentError(
            "images must have shape (n, height, width, channels) and numbers 0..255. "
            f"Received: shape {pixels.shape}, dtype {pixels.dtype}."
        )
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1. Received: {batch_size}.")
    if stage is not None and not chosen.reads_maps:
        raise ArgumentError(f"stage is for the methods that read a feature map. Received: method={method!r}.")
    if not len(pixels):
        return []
    size = pixels.shape[1:3]
    batch_size = batch_size or int(np.clip(_BATCH_PIXELS // (size[0] * size[1]), 1, 128))
    layer = graph.layer_of(stage, size, pixels.shape[3]) if chosen.reads_maps else ""
    job = ExplanationJob(graph, layer, batch_size, options)
    found: list[Attribution] = []
    for start in range(0, len(pixels), batch_size):
        batch = np.asarray(pixels[start : start + batch_size], np.float32)
        scores = job.scores(batch)
        targets = _targets(target, scores, start, len(pixels))
        probabilities = graph.probabilities(scores)
        made = [(raw, gap, method) for raw, gap in chosen.run(job, batch, targets)]
        empty = np.array([not _speaks_for(raw, size) for raw, _, _ in made])
        if chosen.otherwise and empty.any():
            rows = np.flatnonzero(empty)
            others = METHODS[chosen.otherwise].run(job, batch[rows], targets[rows])
            for row, (raw, gap) in zip(rows.tolist(), others, strict=True):
                if _speaks_for(raw, size):
                    made[row] = (raw, gap, chosen.otherwise)
        for row, (raw, gap, used) in enumerate(made):
            heat, evidence = _shown(raw, size)
            found.append(
                Attribution(
                    map=heat,
                    raw=raw.astype(np.float32),
                    target=int(targets[row]),
                    scores=scores[row],
                    probabilities=probabilities[row],
                    stage=layer,
                    gap=gap,
                    method=used,
                    empty=bool(empty[row]),
                    evidence=evidence,
                )
            )
    return found


def check_method(method: str, options: dict[str, Any]) -> Method:
    """Returns a row of :data:`METHODS`.

    Args:
        method: Its name.
        options: Options that it must know.

    Raises:
        ArgumentError: It is unknown, or does not know an option.
    """
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {tuple(METHODS)}. Received: {method!r}.{closest(method, METHODS)}")
    known = METHODS[method].options
    for name in options:
        if name not in known:
            taken = f"takes {', '.join(known)}" if known else "takes no options of its own"
            raise ArgumentError(f"method {method!r} {taken}. Received: {name!r}.{closest(name, known)}")
    return METHODS[method]


@register_explainer("grad-cam", otherwise="hires-cam")
def _grad_cam(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    maps, slopes = _gradients(job, images, targets)
    weights = slopes.mean(axis=(1, 2))
    yield from ((cam, 0.0) for cam in np.einsum("nhwc,nc->nhw", maps, weights))


@register_explainer("hires-cam")
def _hires_cam(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    maps, slopes = _gradients(job, images, targets)
    yield from ((cam, 0.0) for cam in (maps * slopes).sum(axis=-1))


@register_explainer("grad-cam++")
def _grad_cam_pp(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """With the exponential of the score as the target, whose derivatives are powers of the score's own."""
    maps, slopes = _gradients(job, images, targets)
    square, cube = slopes**2, slopes**3
    below = 2 * square + maps.sum(axis=(1, 2), keepdims=True) * cube
    alphas = np.divide(square, below, out=np.zeros_like(square), where=np.abs(below) > 1e-30)
    weights = (alphas * np.maximum(slopes, 0)).sum(axis=(1, 2))
    yield from ((cam, 0.0) for cam in np.einsum("nhwc,nc->nhw", maps, weights))


@register_explainer("eigen-cam")
def _eigen_cam(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """The first principal component of a feature map; it knows nothing of the class.

    The mean of the map is taken off first, so that what most of the image has in common does not count. A component has
    no sign of its own: the few cells that differ most from the others are made positive.
    """
    maps = np.asarray(job.graph.scores(_tensor(images), watch=job.layer)[1], np.float64)
    for one in maps:
        rows = one.reshape(-1, one.shape[-1])
        cam = _principal(rows - rows.mean(axis=0)).reshape(one.shape[:2])
        yield (cam if (cam**3).sum() >= 0 else -cam), 0.0


def _principal(rows: np.ndarray) -> np.ndarray:
    """Returns the component of centred rows along their first principal direction."""
    from scipy.linalg import eigh
    from threadpoolctl import threadpool_limits

    wide = len(rows) < rows.shape[1]
    with threadpool_limits(1, user_api="blas"):  # threads of small products wait for each other
        product = rows @ rows.T if wide else rows.T @ rows
        last = len(product) - 1
        values, vectors = eigh(product, subset_by_index=[last, last])
        return vectors[:, 0] * np.sqrt(max(values[0], 0.0)) if wide else rows @ vectors[:, 0]


@register_explainer("integrated-gradients", options=("baseline", "tolerance", "steps"), reads_maps=False)
def _integrated_gradients(
    job: ExplanationJob, images: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[np.ndarray, float]]:
    """The trapezoidal rule on ever finer points, until the attributions sum up to the difference in score."""
    tolerance = float(job.options.get("tolerance", TOLERANCE))
    most = int(job.options.get("steps", _MOST_STEPS))
    if tolerance <= 0 or most < 1:
        raise ArgumentError(
            f"tolerance must be positive and steps at least 1. Received: tolerance={tolerance}, steps={most}."
        )
    for image, target in zip(images, targets, strict=True):
        start = _replacement(image, job.options.get("baseline", "blur"))
        way = image - start
        low, high = job.scores(np.stack([start, image]))[:, target].astype(np.float64)
        steps = min(_FIRST_STEPS, most)
        ends = _slopes_on_path(job, start, way, target, np.array([0.0, 1.0])) / 2
        inner = _slopes_on_path(job, start, way, target, np.arange(1, steps) / steps)
        total = (ends + inner) / steps
        while True:
            missed = abs(float((total * way).sum()) - (high - low))
            if missed <= max(tolerance * abs(high - low), _NOTHING) or 2 * steps > most:
                break
            between = _slopes_on_path(job, start, way, target, (np.arange(steps) + 0.5) / steps)
            total = (total + between / steps) / 2
            steps *= 2
        yield (total * way).sum(axis=-1), missed / max(abs(high - low), _NOTHING)


@register_explainer("occlusion", options=("patch", "stride", "fill"), reads_maps=False)
def _occlusion(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    height, width = images.shape[1:3]
    patch = int(job.options.get("patch") or max(1, round(min(height, width) / 8)))
    stride = int(job.options.get("stride") or max(1, patch // 2))
    if not 1 <= patch <= min(height, width) or stride < 1:
        raise ArgumentError(
            f"patch must lie in 1..{min(height, width)} and stride be at least 1. "
            f"Received: patch={patch}, stride={stride}."
        )
    places = list(itertools.product(_starts(height, patch, stride), _starts(width, patch, stride)))
    for image, target in zip(images, targets, strict=True):
        whole = float(job.scores(image[None])[0, target])
        fill = _replacement(image, job.options.get("fill", "mean"))
        drops, covered = np.zeros((height, width)), np.zeros((height, width))
        for begin in range(0, len(places), job.batch_size):
            some = places[begin : begin + job.batch_size]
            hidden = np.repeat(image[None], len(some), axis=0)
            for row, (top, left) in enumerate(some):
                area = np.s_[top : top + patch, left : left + patch]
                hidden[row][area] = fill[area]
            for (top, left), score in zip(some, job.scores(hidden)[:, target], strict=True):
                drops[top : top + patch, left : left + patch] += whole - float(score)
                covered[top : top + patch, left : left + patch] += 1
        yield drops / np.maximum(covered, 1), 0.0


def _gradients(job: ExplanationJob, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the feature map and the slopes of the targets' scores in it, float64 ``(n, h, w, channels)``."""
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        scores, maps = job.graph.scores(_tensor(images), watch=job.layer, tape=tape)
        chosen = tf.gather(scores, targets, axis=1, batch_dims=1)
    slopes = tape.gradient(chosen, maps)
    return np.asarray(maps, np.float64), np.asarray(slopes, np.float64)


def _slopes_on_path(
    job: ExplanationJob, start: np.ndarray, way: np.ndarray, target: int, points: np.ndarray
) -> np.ndarray:
    """Returns the sum of the score's slopes in the pixels at points (0..1) of a way from an image, float64."""
    total = np.zeros(start.shape, np.float64)
    for begin in range(0, len(points), job.batch_size):
        shares = points[begin : begin + job.batch_size, None, None, None].astype(np.float32)
        total += job.slopes(start + shares * way, target)
    return total


def _replacement(image: np.ndarray, kind: Any) -> np.ndarray:
    """Returns what stands for nothing, of the shape of an image: a value, ``"mean"``, ``"blur"``, or an array."""
    if isinstance(kind, str):
        if kind not in _REPLACEMENTS:
            raise ArgumentError(
                f"baseline and fill must be a value 0..255, an array, or one of {tuple(_REPLACEMENTS)}. "
                f"Received: {kind!r}.{closest(kind, _REPLACEMENTS)}"
            )
        return _REPLACEMENTS[kind](image).astype(np.float32)
    try:
        return np.broadcast_to(np.asarray(kind, np.float32), image.shape).copy()
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"baseline and fill must fit an image of shape {image.shape}. Received: {kind!r}."
        ) from error


def _blurred(image: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    sigma = max(image.shape[:2]) / 16
    return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


_REPLACEMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda image: np.broadcast_to(image.mean(axis=(0, 1)), image.shape),
    "blur": _blurred,
}


def _starts(length: int, patch: int, stride: int) -> list[int]:
    """Returns where patches begin so that all of a side is covered."""
    return sorted({*range(0, length - patch + 1, stride), length - patch})


def _targets(target: int | Sequence[int] | None, scores: np.ndarray, start: int, count: int) -> np.ndarray:
    if target is None:
        return scores.argmax(axis=1)
    wanted = np.asarray(target)
    if wanted.ndim == 0:
        wanted = np.full(count, wanted)
    classes = scores.shape[1]
    if wanted.shape != (count,) or wanted.dtype.kind not in "ui" or wanted.min() < 0 or wanted.max() >= classes:
        raise ArgumentError(
            f"target must be a class 0..{classes - 1}, or one for each of the {count} images. Received: {target!r}."
        )
    return wanted[start : start + len(scores)].astype(np.int64)


def _speaks_for(raw: np.ndarray, size: tuple[int, int]) -> bool:
    """Says whether anything of a map speaks for the class."""
    return float(_enlarged(raw, size).max()) > _TRACE * float(np.abs(raw).max())


def _shown(raw: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, Evidence]:
    """Returns what is to be seen of a map, at the size of the image, its highest value 1; and what that is."""
    if _speaks_for(raw, size):
        positive = _enlarged(raw, size)
        return positive / positive.max(), "positive"
    against = _enlarged(-raw, size)
    highest = float(against.max())
    return (against / highest, "negative") if highest > 0 else (np.zeros(size, np.float32), "none")


def _enlarged(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the positive part of a map at the size of the image."""
    positive = np.maximum(raw, 0).astype(np.float32)
    return positive if positive.shape == tuple(size) else np.maximum(enlarged(positive, size), 0)


def _tensor(images: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.convert_to_tensor(images, tf.float32)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    return tf.function(function, reduce_retracing=True)
