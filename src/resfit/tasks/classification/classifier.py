"""An image classifier: predict, evaluate, save."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.data import csv_cells, inputs, urls
from resfit.embedding import Embedding, embed_images
from resfit.errors import ArgumentError, DataError
from resfit.evaluation import conformal, fitted_images
from resfit.evaluation import ood as unlike
from resfit.evaluation.calibrated import Calibration
from resfit.evaluation.figures import figures
from resfit.evaluation.inference import judge, measured
from resfit.evaluation.labels import LabelEvaluation
from resfit.evaluation.metrics import Evaluation
from resfit.evaluation.reference_images import References
from resfit.explain import Explanation, neighbours, results
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.numerics import tempered
from resfit.preprocessing import InputSpec
from resfit.storage.atomic import atomic_open
from resfit.tasks.base import Exportable, FitRun, TextTable
from resfit.tasks.classification import reduced_precision, saving
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.heads.linear import LinearHead
from resfit.tasks.classification.results import FitRecipe, Prediction
from resfit.tasks.inference import BodyRunner
from resfit.tasks.preparation import tested
from resfit.tasks.stored_network import ENGINES, LazyModel, Origin, StoredPart

if TYPE_CHECKING:
    import keras


class Classifier(LazyModel):
    """A network with a head for one's own classes.

    Made by :func:`fit` or :meth:`load`.

    Attributes:
        model: The Keras model: RGB 0..255 in, probabilities ``(batch, classes)`` out.
        classes: Names of the classes, in the order of the outputs.
        input_spec: How images become the model's input.
        recipe: How it was made.
        metrics: JSON-ready figures of the fit: counts, cross-validation, and ``"test"``, the measurement on images that
            nothing was chosen on.
        fingerprint: Digest of the data it was fitted on.
        versions: Versions of the packages that made it.
        calibration: What held-out images said about its probabilities.
        run: What the fit did, right after :func:`fit`; ``None`` after :meth:`load`.
    """

    task = "classification"
    kind = artifact.CLASSIFIER

    def __init__(
        self,
        model: keras.Model | None,
        classes: Sequence[str],
        input_spec: InputSpec,
        recipe: FitRecipe,
        metrics: dict[str, Any],
        fingerprint: str,
        versions: dict[str, str],
        attachments: dict[str, bytes] | None = None,
        calibration: Calibration | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(model, origin, attachments)
        self.classes = tuple(classes)
        self.input_spec = input_spec
        self.recipe = recipe
        self.metrics = metrics
        self.fingerprint = fingerprint
        self.versions = versions
        self.calibration = calibration or Calibration()
        self.run: FitRun | None = None
        self._runner = BodyRunner(self)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classes

    def __repr__(self) -> str:
        """Says what it tells apart."""
        return f"<Classifier {self.recipe.model}, {len(self.classes)} classes: {', '.join(self.classes[:5])}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns what a copy in another process is made of: the files of its folder, as :meth:`load` reads them."""
        return saving.unpacked, (type(self), saving.packed(self))

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax or sigmoid.

        ``model`` gives the probabilities without it; :meth:`predict`, :meth:`predict_proba`, :meth:`evaluate` and
        :meth:`head` apply it, and so does every export.
        """
        return self.calibration.temperature

    @functools.cached_property
    def references(self) -> References | None:
        """Some of the training images, with their features; ``None`` where none were kept."""
        data = self._attachments.get(artifact.REFERENCES)
        return None if data is None else References.from_bytes(data)

    @functools.cached_property
    def unlike(self) -> unlike.OODDetector | None:
        """The out-of-distribution detector; ``None`` in a classifier without one."""
        data = self._attachments.get(artifact.UNLIKE)
        return None if data is None else unlike.OODDetector.from_bytes(data, references=self.references is not None)

    def predict(
        self,
        images: Any,
        *,
        top: int | None = None,
        views: int = 1,
        coverage: float | None = None,
        set_method: str = "lac",
        class_conditional: bool = False,
        engine: str = "auto",
        batch_size: int | None = None,
        progress: Progress | None = None,
        allow_urls: bool = False,
        precision: str = "float32",
        say: Callable[[str], None] | None = None,
    ) -> list[Prediction]:
        """Says what is on each image.

        Args:
            images: A file; a folder, with all that is below it; the bytes of a file; a file that is open for reading
                in binary; a PIL image; an array of shape ``(height, width, 3)`` or ``(n, height, width, 3)``, RGB,
                values 0..255; or a list of any of these. Grey arrays, RGBA, channels first, 16 bits and floats 0..1
                are recognised where that is certain (:func:`resfit.data.inputs.listed`).
            top: How many classes each prediction lists, and in any case all labels decided on; ``None`` is all.
            views: Over how many views of each image the probabilities are averaged, 1 to 10 (test-time augmentation):
                2 adds the mirror image, more add crops (:func:`resfit.training.augment.prediction_views`).
            coverage: Share of images, in (0, 1), whose ``prediction_set`` is to hold the true class; ``None`` makes no
                sets. It holds on average over images like the training images.
            set_method: How sets are made, one of :data:`resfit.evaluation.conformal.METHODS`.
            class_conditional: Whether the coverage is to hold within each class and not only over all images
                (Mondrian prediction sets). It takes more calibration images, of every class.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            allow_urls: Whether texts that begin with ``http://`` or ``https://`` are fetched, each within the bounds of
                :mod:`resfit.data.urls`. Do not allow it for addresses that others choose.
            precision: ``"float32"``; one of fewer bits, as :func:`resfit.engines.create` takes it; or ``"auto"``: of
                many images what is expected to end soonest, where the classifier answers the same by it on images that
                it was tested on (:func:`resfit.tasks.classification.reduced_precision.predicting`).
            say: Gets a sentence on what ``"auto"`` has chosen.

        Returns:
            One prediction an image, in order. An image that cannot be used has an ``error`` in place of a label; so
            has a missing file in a list.

        Warns:
            InputWarning: An array was rescaled, or its axes reordered.

        Raises:
            ArgumentError: ``images`` is none of these, an array has values or axes that are no image's or have two
                readings, or the classifier cannot make sets of that coverage.
            DataError: A folder without images, or a single path that does not exist.

        Example:
            >>> clf.predict("a.jpg")[0].label
            'cat'
        """
        images = urls.opened(images) if allow_urls else images
        if top is not None and top < 1:
            raise ArgumentError(f"top must be at least 1. Received: {top}.")
        results: list[Prediction] = []
        sets = self._sets(coverage, set_method, class_conditional)
        if precision != "float32":
            images = inputs.listed(images, self.input_spec)
            asked = reduced_precision.predicting(self, images, precision, engine=engine, views=views, say=say)
            engine = asked or engine  # type: ignore[assignment]  # the runner takes both
        for path, probabilities, unlikeness, error in self._run(images, engine, batch_size, progress, views):
            if probabilities is None:
                results.append(Prediction(path, None, 0.0, {}, error))
                continue
            results.append(
                Prediction.of(
                    path,
                    probabilities,
                    self.classes,
                    top=top,
                    multilabel=self.recipe.multilabel,
                    prediction_set=sets(probabilities),
                    unlikeness=unlikeness,
                    separator=self.recipe.separator or ";",
                )
            )
        return results

    def _sets(
        self, coverage: float | None, method: str, class_conditional: bool
    ) -> Callable[[np.ndarray], tuple[str, ...]]:
        """Returns what makes the prediction set of an image's probabilities."""
        if coverage is None:
            return lambda _: ()
        conformal.check(coverage, method)
        found = self.calibration.conformal
        if found is None:
            raise ArgumentError(
                "prediction sets need a classifier of one label an image that was calibrated on held-out images. "
                f"Received: coverage={coverage} for {self!r}. Fit it again with more images."
            )

        if limit := found.limit(coverage, class_conditional=class_conditional, classes=self.classes):
            warnings.warn(limit, stacklevel=3)

        def names(probabilities: np.ndarray) -> tuple[str, ...]:
            chosen = found.sets(probabilities[None], coverage, method, class_conditional=class_conditional)[0]
            order = np.argsort(-probabilities, kind="stable")
            return tuple(self.classes[i] for i in order if chosen[i])

        return names

    def predict_proba(
        self, images: Any, *, views: int = 1, engine: str = "auto", batch_size: int | None = None
    ) -> np.ndarray:
        """Returns the probabilities, float32 of shape ``(n, classes)``; see :meth:`predict` for the arguments.

        Raises:
            DataError: An image cannot be used.
        """
        rows: list[np.ndarray] = []
        for path, probabilities, _, error in self._run(images, engine, batch_size, None, views):
            if probabilities is None:
                where = f"image {len(rows)}" if path is None else path
                raise DataError(f"every image must be readable. Received: {where}: {str(error).rstrip('.')}.")
            rows.append(probabilities)
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def evaluate(
        self,
        source: Any,
        *,
        part: str | None = None,
        intervals: bool = True,
        seed: int = 0,
        engine: str = "auto",
        cache: bool | str | Path = True,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **scan_options: Any,
    ) -> Evaluation | LabelEvaluation:
        """Measures the classifier on labelled images.

        Args:
            source: A folder of class folders, a CSV file or a pair ``(images, labels)``, as :func:`fit` takes them.
            part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
            intervals: Whether ``figures`` of the result holds every figure with its interval.
            seed: Of the resamples behind the intervals.
            engine: As :func:`resfit.engines.create` takes it.
            cache: Where features are kept, as :func:`fit` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            **scan_options: Further options of :func:`resfit.data.dataset.scan`, such as the columns of a CSV file.

        Raises:
            DataError: No image can be used, or a class is not one of the classifier's.
        """
        found = judge(
            self,
            source,
            part=part,
            engine=engine,
            cache=cache,
            batch_size=batch_size,
            progress=progress,
            **scan_options,
        )
        result = measured(
            found.targets,
            found.probabilities,
            self.classes,
            found.multilabel,
            found.skipped,
            groups=found.groups,
            seed=seed,
        )
        said = fitted_images.notes(self.attachment(artifact.FITTED_IMAGES), found.images.paths, cache)
        result = dataclasses.replace(result, notes=said)
        if not intervals:
            return result
        with_intervals = figures(found.truth, found.probabilities, self.classes, groups=found.groups, seed=seed)
        return dataclasses.replace(result, figures=with_intervals)

    def embed(self, source: Any, **options: Any) -> Embedding:
        """Returns the features that the head of this classifier reads.

        Args:
            source: Images, as :func:`resfit.embedding.embed_images` takes them.
            **options: Its further options.
        """
        found = embed_images(self.network(), source, input_spec=self.input_spec, **options)
        if found.computed and self._can_keep and options.get("engine", "auto") in ENGINES:
            files = [path for path in found.paths if path is not None and path.is_file()][:1]
            for batch in inputs.batches(inputs.listed(files, self.input_spec), self.input_spec, 1) if files else ():
                self.keep_for_later(batch.images)
        return found

    def explain(
        self,
        images: Any,
        *,
        method: str = "grad-cam",
        target: str | int | None = None,
        stage: str | None = None,
        examples: int = 0,
        references: Any = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Explanation]:
        """Shows which parts of images speak for a class, and which training images are alike.

        Args:
            images: As :meth:`predict` takes them.
            method: ``"grad-cam"``, ``"hires-cam"``, ``"grad-cam++"``, ``"eigen-cam"``, ``"integrated-gradients"`` or
                ``"occlusion"``.
            target: The class to explain, by name or index; ``None`` is the most probable one of each image.
            stage: The feature map that a CAM reads: ``"stage1"`` to ``"stage5"`` or the name of a layer; ``None`` is
                the last one with at least 7 cells on a side.
            examples: How many training images that are most alike to find for each image.
            references: Where to find them, as :meth:`embed` takes it; ``None`` takes what the classifier holds.
            batch_size: Images at once; ``None`` chooses by their size.
            progress: Called as images get done.
            **options: Of the method, as :func:`resfit.explain.attribute` takes them.

        Returns:
            One explanation an image, in order. An image that cannot be used has an ``error`` and empty arrays. Where
            Grad-CAM finds nothing that speaks for the class, the map is HiResCAM's; where that finds nothing either,
            ``evidence`` is ``"negative"`` and the map shows what speaks against it. ``note`` says so.

        Raises:
            ArgumentError: An argument breaks its rule, or there are no references.

        Example:
            >>> clf.explain("a.jpg", method="grad-cam++")[0].overlay.shape  # that of the photo
            (1200, 1600, 3)
        """
        sources = inputs.listed(images, self.input_spec)
        size = batch_size or feature_store.default_batch_size(self.input_spec.size)
        alike = None
        if examples:
            known, running = self._references(references), engines.create(self.body(), "keras")
            alike = lambda batch: neighbours.nearest(known, running.run(batch), examples)  # noqa: E731
        return results.explain_batches(
            self.model,
            inputs.batches(sources, self.input_spec, size),
            self.classes,
            paths=sources.paths,
            sources=sources.items,
            contract=self.input_spec,
            method=method,
            target=target,
            stage=stage,
            batch_size=batch_size,
            alike=alike,
            calibrate=lambda shares: tempered(
                shares, self.temperature, "sigmoid" if self.recipe.multilabel else "softmax"
            ),
            total=len(sources),
            progress=progress,
            **options,
        )

    def _references(self, source: Any) -> neighbours.NeighbourSource:
        if source is not None:
            found = self.embed(source)
            return neighbours.NeighbourSource(found.features, found.labels, found.paths)
        kept = self.references
        if kept is None:
            raise ArgumentError(
                f"examples need training images. Received: a classifier without {artifact.REFERENCES}. "
                "Pass references=, a folder of them."
            )
        names = tuple(self.classes[label] if label >= 0 else None for label in kept.labels)
        return neighbours.NeighbourSource(kept.features, names, (None,) * len(names), kept.thumbnails)

    def body(self) -> keras.Model:
        """Returns the network without its head: RGB 0..255 in, features ``(batch, features)`` out."""
        import keras

        body = keras.Model(self.model.inputs, self._features(), name=f"{self.model.name}_body")
        if hasattr(self.model, "architecture"):
            body.architecture = self.model.architecture
        return body

    def head(self) -> base.Head:
        """Returns the head alone, as numbers, its logits divided by the temperature."""
        activation = "sigmoid" if self.recipe.multilabel else "softmax"
        if self.recipe.head == "linear":
            record = self._record
            kept = None if record is None else [record.arrays["0/0"], record.arrays["0/1"]]
            weights = kept or self.model.layers[-1].get_weights()
            kernel, bias = (np.asarray(weight) / np.float32(self.temperature) for weight in weights)
            return LinearHead(kernel, bias, self.recipe.C, folds=self.recipe.folds, activation=activation)
        return base.ModelHead(self.head_model(), activation, self.temperature)

    def head_model(self) -> keras.Model:
        """Returns the head as a Keras model: features in, probabilities out."""
        import keras

        return keras.Model(self._features(), self.model.outputs[0])

    @functools.cached_property
    def _head(self) -> base.Head:
        record = self._record
        return self.head() if record is None or self.recipe.head == "linear" else saving.head_of(self, record)

    def parts(self) -> Iterator[StoredPart]:
        """Returns the network without its head, which is kept as numbers."""
        yield StoredPart(self.body(), lambda images, rows: saving.head_to_keep(self, rows))

    def _features(self) -> Any:
        name = self.recipe.features
        return self.model.get_layer(name).output if name else self.model.layers[-1].input

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the classifier as a folder, whole or not at all.

        Args:
            path: A new or empty folder, or an earlier classifier, which is replaced.
            force: Whether files that are not a classifier's may be deleted with the earlier one's folder.

        Raises:
            ArgumentError: Something else stands there.
            OSError: It cannot be written.
        """
        saving.write(Path(path), self, self._attachments, force=force)

    def exportable(self) -> Exportable:
        """Returns what an export needs."""
        return Exportable(
            network=self.model,
            outputs=("scores",),
            labels=self.classes,
            activation="sigmoid" if self.recipe.multilabel else "softmax",
            features=self.recipe.features,
            temperature=float(self.temperature),
            facts={
                "kind": "classifier",
                "recipe": dataclasses.asdict(self.recipe),
                "metrics": self.metrics,
                "data": self.fingerprint,
                "versions": self.versions,
            },
            tests=tested(self.attachment(artifact.TEST_PREDICTIONS)),
        )

    def arrays(self, predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
        """Returns probabilities in the order of the classes: ``"scores"``, float32 ``(n, classes)``.

        Args:
            predictions: Of images that could be used, with all classes.
        """
        rows = [[prediction.probabilities[name] for name in self.classes] for prediction in predictions]
        return {"scores": np.array(rows, np.float32).reshape(len(predictions), len(self.classes))}

    def texts(self, predictions: Sequence[Prediction]) -> dict[str, list[str]]:
        """Returns the most probable class, or all labels decided on, as ``"label"``.

        Args:
            predictions: Of images that could be used.
        """
        return {"label": [str(prediction.label) for prediction in predictions]}

    def prediction_table(self, predictions: Sequence[Prediction]) -> TextTable:
        """Returns the most probable class of each image, further ones and prediction sets where there are any.

        Args:
            predictions: Of images that could be used.
        """
        rows = [item.cells() for item in predictions]
        more = any(further for *_, further, _ in rows)
        sets = any(item.prediction_set for item in predictions)
        columns = ("image", "class", ">probability", *(["further"] if more else []), *(["one of"] if sets else []))
        return TextTable(
            "",
            columns,
            [(*row[:3], *([row[3]] if more else []), *([row[4]] if sets else [])) for row in rows],
        )

    def write_predictions(self, path: str | os.PathLike[str], predictions: Sequence[Prediction]) -> None:
        """Writes predictions as a CSV file of path, label, probability and error.

        Args:
            path: The file.
            predictions: What :meth:`predict` returned.
        """
        rows = [
            (item.path, item.label or "", f"{item.probability:.6f}" if item.label is not None else "", item.error)
            for item in predictions
        ]
        with atomic_open(path) as file:
            file.write(csv_cells.table(("path", "label", "probability", "error"), rows))

    def card(self) -> list[tuple[str, object]]:
        """Returns what the classifier is, as names and values for people."""
        shown = ", ".join(self.classes[:12]) + (f" and {len(self.classes) - 12} more" if len(self.classes) > 12 else "")
        return [
            ("classes", f"{len(self.classes)}: {shown}"),
            ("network", f"{self.recipe.model}, {self.recipe.strategy}"),
            ("input", f"{self.input_spec.channel_order.upper()} at {'x'.join(map(str, self.input_spec.size))}"),
        ]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """Reads a classifier that :meth:`save` or ``resfit fit`` wrote.

        Args:
            path: The folder.

        Raises:
            ArtifactError: It is missing, incomplete, damaged or of another format.
        """
        return cls(**saving.read(Path(path)))

    def _run(
        self, images: Any, engine: Any, batch_size: int | None, progress: Progress | None, views: int = 1
    ) -> Iterator[tuple[Path | None, np.ndarray | None, float | None, str]]:
        """Yields path, probabilities (or none), unlikeness (or none) and error of each image, in order."""
        seen_first = None
        for batch in self._runner.batches(images, engine, batch_size, progress, views):
            seen_first = batch.first if seen_first is None else seen_first
            found: dict[int, tuple[np.ndarray, float | None]] = {}
            if batch.rows:
                seen = np.mean([self._head.probabilities(some) for some in batch.rows], axis=0)
                pairs = zip(seen, self._unlikeness(batch.rows[0]), strict=True)
                found = dict(zip(batch.usable.tolist(), pairs, strict=True))
            for place, path in enumerate(batch.paths):
                yield path, *found.get(place, (None, None)), batch.errors.get(place, "")
        if seen_first is not None and engine in ENGINES:
            self.keep_for_later(seen_first)

    def _unlikeness(self, rows: np.ndarray) -> list[float | None]:
        limit = None if self.unlike is None else self.unlike.thresholds.get(self.unlike.method)
        if self.unlike is None or not limit:
            return [None] * len(rows)
        scores = self.unlike.scores(rows, None, self.references)[self.unlike.method]
        return (scores / limit).tolist()
