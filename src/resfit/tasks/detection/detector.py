"""A detector: predict, evaluate, save."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.data import decode, inputs, urls
from resfit.data.box_geometry import Letterbox, placement
from resfit.data.boxes import BoxSet, scan_boxes
from resfit.engines import stored
from resfit.errors import ArgumentError, DataError
from resfit.evaluation import fitted_images
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.networks.detection import kinds
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.kinds import AnyDetectorSpec
from resfit.numerics import logits_of
from resfit.preprocessing import InputSpec
from resfit.tasks.base import Exportable, FitRun, TextTable
from resfit.tasks.detection import orientation, pretrained, saving
from resfit.tasks.detection.detections import Detections, PredictedPictures
from resfit.tasks.detection.evaluation import DetectionEvaluation, evaluated
from resfit.tasks.detection.postprocess import best_classes, suppress
from resfit.tasks.detection.results import DetectorRecipe
from resfit.tasks.detection.tiles import OVERLAP, Tiling, predict_in_tiles, sides_of
from resfit.tasks.stored_network import ENGINES, Head, LazyModel, Origin, StoredPart

if TYPE_CHECKING:
    import keras

    from resfit.explain.results import Explanation

_MANY = 64  # pictures from which an engine of its own may be worth it
_FEATURES = "features"  # name of the network without its head among what is kept
# how closely a converted network must agree with Keras: in pixels, and in logits of scores within these bounds
_BOX_TOLERANCE, _LOGIT_TOLERANCE, _CLIPPED = 0.1, 0.02, (1e-6, 1 - 1e-4)


class Detector(LazyModel):
    """A network that finds objects of one's own classes.

    Made by :func:`resfit.tasks.detection.fit` or :meth:`load`.

    Attributes:
        model: The Keras model: RGB 0..255 in, ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}`` out, xyxy in
            pixels of the input, before non-maximum suppression.
        classes: Names of the classes, in the order of the scores.
        input_spec: How pictures become the model's input: a letterbox, or stretched (RT-DETR).
        spec: The network.
        recipe: How it was made.
        thresholds: For each class the score from which a box is shown: the one with the best F1 on validation images.
        metrics: JSON-ready figures of the fit.
        fingerprint: Digest of the data it was fitted on.
        versions: Versions of the packages that made it.
        run: What the fit did, right after it; ``None`` after :meth:`load`.
    """

    task = "detection"
    kind = saving.DETECTOR

    def __init__(
        self,
        model: keras.Model | None,
        classes: Sequence[str],
        input_spec: InputSpec,
        spec: AnyDetectorSpec,
        recipe: DetectorRecipe,
        *,
        thresholds: Mapping[str, float] | None = None,
        metrics: dict[str, Any] | None = None,
        fingerprint: str = "",
        versions: dict[str, str] | None = None,
        attachments: dict[str, bytes] | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(model, origin, attachments)
        self.classes = tuple(classes)
        self.input_spec = input_spec
        self.spec = spec
        self.recipe = recipe
        self.thresholds = {name: float((thresholds or {}).get(name, spec.score_threshold)) for name in self.classes}
        self.metrics = metrics or {}
        self.fingerprint = fingerprint
        self.versions = versions or {}
        self.run: FitRun | None = None
        self._engines: dict[str, engines.Engine] = {}

    def __repr__(self) -> str:
        """Says what it finds."""
        return f"<Detector {self.recipe.model}, {len(self.classes)} classes: {', '.join(self.classes[:5])}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classes

    def predict(
        self,
        images: Any,
        *,
        threshold: float | Mapping[str, float] | None = None,
        max_detections: int | None = None,
        tiles: int | Sequence[int] | bool | None = None,
        overlap: float | None = None,
        engine: str = "auto",
        batch_size: int | None = None,
        progress: Progress | None = None,
        allow_urls: bool = False,
    ) -> PredictedPictures:
        """Finds objects in pictures.

        Args:
            images: A file; a folder, with all below it; the bytes of a file; an open file; a PIL image; an array
                ``(height, width, 3)`` or ``(n, height, width, 3)``, RGB, values 0..255; or a list of any of these.
            threshold: Boxes of at least this score are returned: a number, or one for each class. ``None`` takes the
                detector's own; 0 returns all boxes down to the lowest score of the network.
            max_detections: Boxes of a picture (of a tile, with tiles); ``None`` is the network's own.
            tiles: Height and width in pixels of overlapping tiles that each picture is cut into, its detections put
                together afterwards; one number for both. ``None`` cuts as in training, ``False`` does not.
            overlap: Share of a tile's side that neighbours have in common; ``None`` is 0.2, or that of the training.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Pictures in one pass; ``None`` chooses by their size.
            progress: Called as pictures get done.
            allow_urls: As :meth:`resfit.Classifier.predict` takes it.

        Returns:
            A list with one result a picture, in order; of a single picture, its boxes are the list's too. One that
            cannot be used has an ``error`` and no boxes. Pictures with EXIF
            rotation are turned first, and boxes are in pixels of the turned picture.

        Example:
            >>> found = detector.predict("a.jpg")  # doctest: +SKIP
            >>> found.boxes, found.labels  # doctest: +SKIP
            (array([[12.1, 30.7, 80.2, 99.0]], dtype=float32), ('red',))
        """
        images = urls.opened(images) if allow_urls else images
        sources = inputs.listed(images, self.input_spec)
        tiling = self._tiling(tiles, overlap)
        if tiling is not None:
            own: dict[str, Any] = {"threshold": threshold, "max_detections": max_detections, "engine": engine}
            own |= {"batch_size": batch_size, "tiles": False}
            return self._in_tiles(sources, tiling, progress, own)
        limits = self._limits(threshold)
        found = PredictedPictures()
        first: list[np.ndarray] = []
        for item, path, boxes, scores, labels, size, error in self._run(
            sources, engine, batch_size, progress, max_detections, first
        ):
            if error:
                found.append(Detections.failed(path, self.classes, error))
                continue
            kept = scores >= limits[labels] if len(labels) else np.zeros(0, bool)
            found.append(Detections(path, boxes[kept], scores[kept], labels[kept], self.classes, size, "", item))
        if first and engine in ENGINES:
            self.keep_for_later(first[0])
        return found

    def _tiling(self, tiles: int | Sequence[int] | bool | None, overlap: float | None) -> Tiling | None:
        """How pictures are cut; ``None`` for not at all."""
        if tiles is False or (tiles is None and not self.recipe.tiles):
            return None
        side = self.recipe.tiles if tiles is None or tiles is True else sides_of(tiles)
        if not side:
            side = self.input_spec.size
        return Tiling((side[0], side[1]), OVERLAP if overlap is None else overlap)

    def _in_tiles(
        self, sources: inputs.Sources, tiling: Tiling, progress: Progress | None, options: dict[str, Any]
    ) -> PredictedPictures:
        """Detections in pictures by their tiles, one picture after the other."""
        found = PredictedPictures()
        for item, path in zip(sources.items, sources.paths, strict=True):
            found.append(predict_in_tiles(self, item, path, tiling, **options))
            if progress is not None:
                progress("network", len(found), len(sources))
        return found

    def _limits(self, threshold: float | Mapping[str, float] | None) -> np.ndarray:
        """For each class the lowest score that is returned."""
        if threshold is None or isinstance(threshold, Mapping):
            unknown = sorted(set(threshold or ()) - set(self.classes))
            if unknown:
                raise ArgumentError(f"threshold must name classes of {list(self.classes)}. Received: {unknown}.")
            given: Any = [(threshold or {}).get(name, self.thresholds[name]) for name in self.classes]
        else:
            given = [threshold] * len(self.classes)
        values = np.array(given, np.float32)
        if not ((values >= 0) & (values <= 1)).all():
            raise ArgumentError(f"threshold must lie in [0, 1]. Received: {threshold!r}.")
        return values

    def evaluate(
        self,
        source: Any,
        *,
        part: str | None = None,
        tiles: int | Sequence[int] | bool | None = None,
        overlap: float | None = None,
        intervals: bool = True,
        seed: int = 0,
        engine: str = "auto",
        batch_size: int | None = None,
        progress: Progress | None = None,
        cache: bool | str | Path = True,
        **scan_options: Any,
    ) -> DetectionEvaluation:
        """Measures the detector on pictures with true boxes.

        Args:
            source: As :func:`resfit.data.boxes.scan_boxes` takes it, or a :class:`resfit.data.boxes.BoxSet`.
            part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
            tiles: As :meth:`predict` takes it.
            overlap: Likewise.
            intervals: Whether figures come with 95 % intervals over resampled pictures (groups, where there are any).
            seed: Of the resamples.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Pictures in one pass; ``None`` chooses by their size.
            progress: Called as pictures get done.
            cache: Where digests of files are remembered, as :func:`resfit.fit` takes it.
            **scan_options: Of :func:`resfit.data.boxes.scan_boxes`.

        Raises:
            DataError: No picture can be used.
        """
        boxes = self.labelled(source, part=part, **scan_options)
        predicted = self.predict(
            list(boxes.paths),
            threshold=0.0,
            tiles=tiles,
            overlap=overlap,
            engine=engine,
            batch_size=batch_size,
            progress=progress,
        )
        if all(one.error for one in predicted):
            raise DataError(
                f"at least one picture must be readable. Received: {len(boxes)}, of which none is; the first: "
                f"{predicted[0].error if predicted else 'none'}."
            )
        found = evaluated(boxes, predicted, self.thresholds, intervals=intervals, seed=seed)
        said = fitted_images.notes(self.attachment(artifact.FITTED_IMAGES), found.paths, cache)
        return dataclasses.replace(found, notes=(*found.notes, *said))

    def labelled(self, source: Any, *, part: str | None = None, **scan_options: Any) -> BoxSet:
        """Finds pictures with true boxes of the detector's classes.

        Args:
            source: As :meth:`evaluate` takes it.
            part: As :meth:`evaluate` takes it.
            **scan_options: Of :func:`resfit.data.boxes.scan_boxes`.

        Raises:
            ArgumentError: A :class:`resfit.data.boxes.BoxSet` is of other classes.
            DataError: There are none, or there is no such part.
        """
        boxes = (
            source if isinstance(source, BoxSet) else scan_boxes(source, **{"classes": self.classes, **scan_options})
        )
        if boxes.classes != self.classes:
            raise ArgumentError(
                f"the classes must be those of the detector, {self.classes}. Received: {boxes.classes}."
            )
        if part is not None:
            chosen = [i for i, own in enumerate(boxes.splits) if own == part]
            if not chosen:
                raise DataError(
                    f"the source must have a part {part!r}. Received: {sorted({str(s) for s in boxes.splits})}."
                )
            boxes = boxes.subset(chosen)
        return boxes

    def _run(
        self,
        sources: inputs.Sources,
        engine: str,
        batch_size: int | None,
        progress: Progress | None,
        max_detections: int | None,
        first: list[np.ndarray] | None = None,
    ) -> Iterator[tuple[Any, Path | None, np.ndarray, np.ndarray, np.ndarray, tuple[int, int], str]]:
        """Yields for each picture what it was, boxes, scores and labels, its size, and what went wrong.

        The first batch is added to ``first``.
        """
        if self.input_spec.resize_mode == "fit":
            yield from orientation.run(self._letterboxed, sources, engine, batch_size, progress, max_detections)
            return
        size = batch_size or max(1, feature_store.default_batch_size(self.input_spec.size) // 2)
        spec = self.spec if max_detections is None else self.spec.replace(max_detections=max_detections)
        sizes: dict[int, tuple[int, int]] = {}
        paths = sources.paths
        done = 0

        def looks(position: int) -> decode.Look:
            def look(header: decode.ImageHeader, image: Any) -> None:
                sizes[position] = decode.full_size(image)

            return look

        decoded = decode.decode_many(sources.items, self.input_spec, batch_size=size, looks=looks)
        for batch, rows in self._computed(decoded, engine, len(sources)):
            results: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
            if first is not None and not first and len(batch.images):
                first.append(batch.images)
            for row, position in zip(rows, batch.indices.tolist(), strict=True):
                fitted = self.letterbox_of(sizes.get(position, self.input_spec.size))
                results[position] = self.placed(row, fitted, spec)[:3]
            failures = dict(batch.failures)
            for position in range(done, done + len(batch.indices) + len(batch.failures)):
                if position in failures:
                    empty = np.zeros(0, np.float32)
                    yield sources.items[position], paths[position], empty, empty, empty, (0, 0), failures[position]
                else:
                    boxes, scores, labels = results[position]
                    own = sizes.pop(position, self.input_spec.size)
                    yield sources.items[position], paths[position], boxes, scores, labels, own, ""
            done += len(batch.indices) + len(batch.failures)
            if progress is not None:
                progress("network", done, len(sources))

    def _computed(
        self, decoded: Iterator[decode.DecodedBatch], engine: str, count: int
    ) -> Iterator[tuple[decode.DecodedBatch, np.ndarray]]:
        """Yields batches with the network's rows of their pictures; while one is used, the engine runs the next."""
        waiting: deque[decode.DecodedBatch] = deque()

        def readable() -> Iterator[tuple[None, np.ndarray]]:
            for batch in decoded:
                waiting.append(batch)
                if len(batch.images):
                    yield None, batch.images

        nothing = np.zeros((0, 0), np.float32)
        batches = readable()
        if (first := next(batches, None)) is not None:
            running = self._engine(engine, count)  # where nothing can be read none is made
            for _, rows in engines.stream(running, itertools.chain([first], batches)):
                while not len(waiting[0].images):
                    yield waiting.popleft(), nothing
                yield waiting.popleft(), rows
        for batch in waiting:
            yield batch, nothing

    @functools.cached_property
    def _letterboxed(self) -> dict[bool, Detector]:
        """The detector for landscapes and the one for portraits, where the contract turns its box."""
        return {
            portrait: Detector(
                self.model,
                self.classes,
                orientation.letterbox_for(self.input_spec, portrait=portrait),
                self.spec,
                self.recipe,
                thresholds=self.thresholds,
            )
            for portrait in (False, True)
        }

    @classmethod
    def pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Detector:
        """Loads a published detector, with its classes and its input contract.

        Args:
            source: A name that ``resfit models --task detection`` lists, a handle, or a file of weights.
            **options: As :func:`resfit.tasks.detection.pretrained.load` takes them, such as ``threshold`` and
                ``weights``.

        Example:
            >>> Detector.pretrained("retinanet_resnet50_v2").predict("street.jpg")[0]  # doctest: +SKIP
        """
        return cls(**pretrained.load(source, **options))

    @classmethod
    def of_model(cls, model: keras.Model, **options: Any) -> Detector:
        """Returns a Keras model of a detector as a detector.

        Args:
            model: What :func:`resfit.load` returned.
            **options: As :func:`resfit.tasks.detection.pretrained.of_model` takes them.
        """
        return cls(**pretrained.of_model(model, **options))

    def letterbox_of(self, size: tuple[int, int]) -> Letterbox:
        """Returns how a picture is fitted into the model's input.

        Args:
            size: Its height and width in pixels, as displayed.
        """
        return placement(size, self.input_spec.size, self.input_spec.resize_mode)

    def placed(
        self, row: np.ndarray, fitted: Letterbox, spec: AnyDetectorSpec | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the detections in what the network gives for one picture.

        Args:
            row: Array ``(n, 4 + classes)``: boxes in pixels of the input, then scores.
            fitted: How the picture was fitted in.
            spec: Whose thresholds hold; ``None`` is the detector's own.

        Returns:
            Boxes in pixels of the picture ``(k, 4)``, scores and labels ``(k,)``, the best first, and their rows.
        """
        own = spec or self.spec
        boxes, scores, labels, places = suppress(
            row[:, :4],
            best_classes(row[:, 4:]) if kinds.takes_best_class(own) else row[:, 4:],
            counts=self._counts,
            score_threshold=own.score_threshold,
            nms_threshold=own.nms_threshold,
            candidates=own.candidates,
            max_detections=own.max_detections,
        )
        return fitted.to_image(boxes, clip=True).astype(np.float32), scores.astype(np.float32), labels, places

    def stage_layers(self) -> dict[str, str]:
        """Returns by stage the layer of the model that gives its map."""
        from resfit.engines import prefix

        return prefix.taps(_Architecture(self.spec.backbone))

    def explain(  # type: ignore[override]  # the options of this task by name
        self,
        images: Any,
        *,
        box: int = 0,
        target: str | None = None,
        stage: str | None = None,
        progress: Progress | None = None,
    ) -> list[Explanation]:
        """Shows which parts of pictures speak for one of their boxes.

        Args:
            images: As :meth:`predict` takes them.
            box: Which box, by falling score.
            target: A class, of whose boxes it is; ``None`` is any.
            stage: One of the taps, such as ``"stage4"``; ``None`` takes all.
            progress: Called as pictures get done.

        Raises:
            ArgumentError: There is no such class or tap.
        """
        from resfit.tasks.detection.explanation import explain

        return explain(self, images, box=box, target=target, stage=stage, progress=progress)

    @functools.cached_property
    def _counts(self) -> tuple[int, ...]:
        """Boxes of each level at the size of the contract."""
        return kinds.boxes_of_levels(self.spec, self.input_spec.size)

    @functools.cached_property
    def joined(self) -> keras.Model:
        """The model at the size of its contract with one output ``(batch, n, 4 + classes)``: boxes, then scores."""
        import keras
        from keras import layers

        from resfit.training import boundary

        fixed = boundary.copy(self.model, size=self.input_spec.size)
        output = layers.Concatenate(axis=-1, dtype="float32", name="joined")(
            [fixed.output["boxes"], fixed.output["scores"]]
        )
        model = keras.Model(fixed.inputs[0], output, name=f"{self.model.name}_joined")
        model.input_spec = self.input_spec
        return model

    def _engine(self, engine: str | engines.Engine, images: int) -> engines.Engine:
        """The engine, made once."""
        if not isinstance(engine, str):
            return engine
        network = self.joined_network()
        few = images < _MANY and not isinstance(network, engines.StoredNetwork)
        name = "keras" if engine == "auto" and few else engine
        if name not in self._engines:
            self._engines[name] = engines.create(network, name, images=images)
        return self._engines[name]

    def joined_network(self) -> keras.Model | engines.StoredNetwork:
        """Returns :attr:`joined` as engines take it: as it is kept in the cache, or the Keras model."""
        if (record := self._record) is None:
            return self.joined
        return engines.StoredNetwork(record, lambda: self.joined)

    def network(self) -> keras.Model | engines.StoredNetwork:
        """Returns :meth:`body` as engines take it: as it is kept in the cache, or the Keras model."""
        origin = self._origin
        record = stored.find(origin.key(_FEATURES)) if origin is not None and self._record is not None else None
        return self.body() if record is None else engines.StoredNetwork(record, self.body)

    def parts(self) -> Iterator[StoredPart]:
        """Returns boxes and scores in one output, and the residual network; nothing where boxes are turned."""
        if self.input_spec.resize_mode != "fit":
            yield StoredPart(self.joined, self._agreed)
            yield StoredPart(self.body(), lambda images, rows: ({}, {}), _FEATURES)

    def _agreed(self, images: np.ndarray, rows: np.ndarray) -> Head | None:
        """Returns an empty head where all boxes and scores are those of Keras, whatever the threshold."""
        expected = np.asarray(self.joined(np.asarray(images, np.float32), training=False))
        boxes = np.abs(rows[..., :4] - expected[..., :4]).max(initial=0)
        one, other = (logits_of(np.clip(array[..., 4:], *_CLIPPED), "sigmoid") for array in (rows, expected))
        return ({}, {}) if boxes <= _BOX_TOLERANCE and np.abs(one - other).max(initial=0) <= _LOGIT_TOLERANCE else None

    def suppressed(self, *, rounds: int | None = None, size: tuple[int, int] | None = None) -> keras.Model:
        """Returns the model with non-maximum suppression: RGB 0..255 of any size to boxes, scores, classes and count.

        Args:
            rounds: As :func:`resfit.networks.detection.build.build` takes it.
            size: Height and width to fix the input to; ``None`` leaves them open.
        """
        import keras

        from resfit.networks.detection.build import best_pairs, suppression
        from resfit.tasks.detection.network import level_layers
        from resfit.training import boundary

        base = boundary.copy(self.model, size=size) if size is not None else self.model
        if isinstance(self.spec, kinds.QueryDetectorSpec):
            found = best_pairs(self.spec)(base.output)
        elif isinstance(self.spec, FasterRCNNSpec):
            found = suppression(self.spec, rounds=rounds)(base.output)
        else:
            maps = [base.get_layer(name).output for name in level_layers(base, self.spec)]
            found = suppression(self.spec, rounds=rounds)({**base.output, "maps": maps})
        model = keras.Model(base.inputs[0], found, name=f"{self.model.name}_suppressed")
        model.architecture, model.input_spec = self.spec, self.input_spec
        return model

    def exportable(self) -> Exportable:
        """Returns what an export needs: the network with suppression."""
        return Exportable(
            network=self.suppressed(),
            outputs=("boxes", "scores", "classes", "count"),
            labels=self.classes,
            activation="sigmoid",
            facts={
                "kind": "detector",
                "recipe": dataclasses.asdict(self.recipe),
                "thresholds": self.thresholds,
                "metrics": self.metrics,
                "data": self.fingerprint,
                "versions": self.versions,
            },
            tests=tuple((Path(name), "") for name in self.metrics.get("test_files", ())),
        )

    def arrays(self, predictions: Sequence[Detections]) -> dict[str, np.ndarray]:
        """Returns detections in rows of one length: ``boxes`` ``(n, most, 4)``, ``scores``, ``classes``, ``count``.

        Args:
            predictions: Of pictures that could be used.
        """
        most, n = self.spec.max_detections, len(predictions)
        found = {
            "boxes": np.zeros((n, most, 4), np.float32),
            "scores": np.zeros((n, most), np.float32),
            "classes": np.full((n, most), -1, np.int32),
            "count": np.array([min(len(one), most) for one in predictions], np.int32),
        }
        for row, one in enumerate(predictions):
            count = int(found["count"][row])
            found["boxes"][row, :count] = one.boxes[:count]
            found["scores"][row, :count] = one.scores[:count]
            found["classes"][row, :count] = one.classes[:count]
        return found

    def prediction_table(self, predictions: Sequence[Detections]) -> TextTable:
        """Returns a row for each box, and one for each picture without any.

        Args:
            predictions: Of pictures that could be used.
        """
        rows: list[tuple[object, ...]] = []
        for one in predictions:
            path = "" if one.path is None else str(one.path)
            rows += [
                (path, label, f"{score:.3f}", *(f"{value:.1f}" for value in box))
                for label, score, box in zip(one.labels, one.scores.tolist(), one.boxes.tolist(), strict=True)
            ] or [(path, "", "", "", "", "", "")]
        return TextTable("", ("image", "class", ">score", ">x1", ">y1", ">x2", ">y2"), rows)

    def card(self) -> list[tuple[str, object]]:
        """Returns what the detector is, as names and values for people."""
        shown = ", ".join(self.classes[:12]) + (f" and {len(self.classes) - 12} more" if len(self.classes) > 12 else "")
        size = "x".join(map(str, reversed(self.input_spec.size)))
        return [
            ("classes", f"{len(self.classes)}: {shown}"),
            ("network", f"{self.recipe.model}, {self.recipe.trained}"),
            ("input", f"{'stretched to' if self.input_spec.resize_mode == 'squash' else 'letterbox of'} {size} pixels"),
            ("thresholds", ", ".join(f"{name} {value:.2f}" for name, value in list(self.thresholds.items())[:12])),
        ]

    def body(self) -> keras.Model:
        """Returns the residual network: RGB 0..255 in, features ``(batch, features)`` of its last stage out."""
        import keras
        from keras import layers

        last = self.stage_layers()[list(self.spec.taps.values())[-1]]
        pooled = layers.GlobalAveragePooling2D(name="avg_pool")(self.model.get_layer(last).output)
        body = keras.Model(self.model.inputs[0], pooled, name=f"{self.model.name}_body")
        body.input_spec = self.input_spec
        return body

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the detector as a folder, whole or not at all.

        Args:
            path: A new or empty folder, or an earlier fitted model, which is replaced.
            force: Whether files that are not a fitted model's may be deleted with the earlier one's folder.

        Raises:
            ArgumentError: Something else stands there.
            OSError: It cannot be written.
        """
        saving.write(Path(path), self, self._attachments, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detector:
        """Reads what :meth:`save` wrote.

        Args:
            path: The folder.

        Raises:
            ArtifactError: It is missing, incomplete, damaged, of another kind or format.
        """
        return cls(**saving.read(Path(path)))


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """What :func:`resfit.engines.prefix.taps` asks of a network."""

    architecture: Any
