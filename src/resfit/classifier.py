"""The trained thing: fit it on a folder of images, ask it, measure it, keep it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, checking, engines
from resfit.data import decode, deep, privacy, scans
from resfit.data import image_set as image_sets
from resfit.data import split as splits
from resfit.data.image_set import ImageSet, Skipped
from resfit.embedding import Embedding, embed_images
from resfit.errors import ArgumentError, ArtifactError, DataError, closest
from resfit.evaluation import conformal, unlike
from resfit.evaluation import kept as kept_images
from resfit.evaluation.calibrated import Calibration, calibrate
from resfit.evaluation.figures import figures
from resfit.evaluation.judged import judge, label_names, measured, targets
from resfit.evaluation.labels import LabelEvaluation
from resfit.evaluation.metrics import Evaluation
from resfit.evaluation.references import References
from resfit.explain import Explanation, neighbours, results
from resfit.files import atomic_open
from resfit.preprocessing import InputSpec, Reading
from resfit.transfer import features as feature_store
from resfit.transfer import heads, recipes, strategies
from resfit.transfer.augment import prediction_views
from resfit.transfer.mlp import MlpHead
from resfit.transfer.training import check_choice
from resfit.transfer.tuning import Tuning

if TYPE_CHECKING:
    import keras

    from resfit.architecture.spec import ArchitectureSpec

#: What ``strategy=`` accepts.
STRATEGIES = recipes.STRATEGIES
DEFAULT_MODEL = "resnet10_tiny"
_MANY = 256  # images from which an engine of its own may be worth it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier was made: what is needed to make it again.

    Attributes:
        model: Name or source of the network.
        strategy: What was kept: ``"probe"`` (a head on the frozen network), ``"finetune"`` or ``"full"``.
        seed: Seed of the split, of the folds, and of all that is random in training.
        test_share: Share of the images that was set aside for the final measurement, where the data had no test split.
        C: Inverse regularisation strength of the head.
        folds: Cross-validation folds that chose it; 1 is a hold-out, 0 no choice.
        grouped: Whether images of one group were kept together.
        asked: The strategy that was asked for.
        features: Name of the layer whose output the head reads; empty for the input of the last layer.
        tuning: Settings of the fine-tuning; ``None`` for a probe.
        head: Kind of the head, one of :data:`resfit.transfer.heads.KINDS`.
        separator: What stands between the labels of an image that may have several; empty for one label an image.
    """

    model: str
    strategy: str
    seed: int
    test_share: float
    C: float
    folds: int
    grouped: bool
    asked: str = ""
    features: str = ""
    tuning: dict[str, Any] | None = None
    head: str = "linear"
    separator: str = ""

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.separator)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        path: The file; ``None`` for an array.
        label: The most probable class; ``None`` if the image could not be used.
        probability: Its probability, 0..1.
        probabilities: The most probable classes with their probabilities, best first.
        labels: With several labels an image, those of a probability over one half; otherwise the label alone.
        error: Why the image could not be used; empty if it could.
        prediction_set: With ``coverage=``, the classes of which one is the true one as often as was asked for, the most
            probable first.
        unlike_training: Whether the image is less like the training images than 99 in 100 of their own kind: what
            is said about it is then not to be relied on.
        unlikeness: How unlike they are, 1 at that limit; ``None`` for a classifier that cannot tell.
    """

    path: Path | None
    label: str | None
    probability: float
    probabilities: dict[str, float]
    error: str = ""
    labels: tuple[str, ...] = ()
    prediction_set: tuple[str, ...] = ()
    unlike_training: bool = False
    unlikeness: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class FitRun:
    """What one call of :func:`fit` did, beyond the classifier itself.

    Attributes:
        test: The measurement on images that nothing was chosen on; ``None`` if there were none.
        skipped: Images that could not be used, with the reason.
        warnings: What looked odd about the data but did not stop anything.
        seconds: Time of each step.
        computed: Images that went through the network.
        reused: Images whose features were in the cache.
        engine: What ran the network; ``"cache"`` if nothing had to.
        history: A row for each epoch of fine-tuning, epoch 0 being the frozen network with its head.
        notes: What was decided on the way, one sentence each.
    """

    test: Evaluation | LabelEvaluation | None
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    computed: int
    reused: int
    engine: str
    history: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


class Classifier:
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

    def __init__(
        self,
        model: keras.Model,
        classes: Sequence[str],
        input_spec: InputSpec,
        recipe: Recipe,
        metrics: dict[str, Any],
        fingerprint: str,
        versions: dict[str, str],
        attachments: dict[str, bytes] | None = None,
        calibration: Calibration | None = None,
    ):
        self.model = model
        self.classes = tuple(classes)
        self.input_spec = input_spec
        self.recipe = recipe
        self.metrics = metrics
        self.fingerprint = fingerprint
        self.versions = versions
        self.calibration = calibration or Calibration()
        self.run: FitRun | None = None
        self._attachments = dict(attachments or {})
        self._engines: dict[tuple[str, bool], engines.Engine] = {}

    def __repr__(self) -> str:
        """Says what it tells apart."""
        return f"<Classifier {self.recipe.model}, {len(self.classes)} classes: {', '.join(self.classes[:5])}>"

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
    def unlike(self) -> unlike.Unlike | None:
        """What tells images that are unlike the training images; ``None`` in a classifier without it."""
        data = self._attachments.get(artifact.UNLIKE)
        return None if data is None else unlike.Unlike.from_bytes(data, references=self.references is not None)

    def predict(
        self,
        images: Any,
        *,
        top: int | None = None,
        views: int = 1,
        coverage: float | None = None,
        set_method: str = "lac",
        engine: str = "auto",
        batch_size: int | None = None,
        progress: feature_store.Progress | None = None,
    ) -> list[Prediction]:
        """Says what is on each image.

        Args:
            images: A file; a folder, with all that is below it; a list of files; or an array of shape
                ``(height, width, 3)`` or ``(n, height, width, 3)``, RGB, values 0..255; or a list of such.
            top: How many classes each prediction lists; ``None`` is all.
            views: Over how many views of each image the probabilities are averaged, 1 to 10 (test-time augmentation):
                2 adds the mirror image, more add crops (:func:`resfit.transfer.augment.prediction_views`).
            coverage: Share of images, in (0, 1), whose ``prediction_set`` is to hold the true class; ``None`` makes no
                sets. It holds on average over images like the training images.
            set_method: How sets are made, one of :data:`resfit.evaluation.conformal.METHODS`.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.

        Returns:
            One prediction an image, in order. An image that cannot be used has an ``error`` in place of a label.

        Raises:
            ArgumentError: ``images`` is none of these, or the classifier cannot make sets of that coverage.
            DataError: A folder without images.

        Example:
            >>> clf.predict("a.jpg")[0].label
            'cat'
        """
        if top is not None and top < 1:
            raise ArgumentError(f"top must be at least 1. Received: {top}.")
        results: list[Prediction] = []
        sets = self._sets(coverage, set_method)
        for path, probabilities, unlikeness, error in self._run(images, engine, batch_size, progress, views):
            if probabilities is None:
                results.append(Prediction(path, None, 0.0, {}, error))
                continue
            order = np.argsort(-probabilities, kind="stable")[:top]
            listed = {self.classes[i]: float(probabilities[i]) for i in order}
            best = self.classes[order[0]]
            labels = (best,)
            if self.recipe.several:
                labels = tuple(self.classes[i] for i in order if probabilities[i] > 0.5)
            results.append(
                Prediction(
                    path,
                    best,
                    listed[best],
                    listed,
                    labels=labels,
                    prediction_set=sets(probabilities),
                    unlike_training=unlikeness is not None and unlikeness > 1,
                    unlikeness=unlikeness,
                )
            )
        return results

    def _sets(self, coverage: float | None, method: str) -> Callable[[np.ndarray], tuple[str, ...]]:
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

        def names(probabilities: np.ndarray) -> tuple[str, ...]:
            chosen = found.sets(probabilities[None], coverage, method)[0]
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
                raise DataError(f"every image must be readable. Received: {path}: {error}.")
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
        progress: feature_store.Progress | None = None,
        **scan_options: Any,
    ) -> Evaluation | LabelEvaluation:
        """Measures the classifier on labelled images.

        Args:
            source: A folder of class folders or a CSV file, as :func:`fit` takes them.
            part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
            intervals: Whether ``figures`` of the result holds every figure with its interval.
            seed: Of the resamples behind the intervals.
            engine: As :func:`resfit.engines.create` takes it.
            cache: Where features are kept, as :func:`fit` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            **scan_options: Further options of :func:`resfit.data.image_set.scan`, such as the columns of a CSV file.

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
        result = measured(found.targets, found.probabilities, self.classes, found.several, found.skipped)
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
        return embed_images(self.body(), source, input_spec=self.input_spec, **options)

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
        progress: feature_store.Progress | None = None,
        **options: Any,
    ) -> list[Explanation]:
        """Shows which parts of images speak for a class, and which training images are alike.

        Args:
            images: As :meth:`predict` takes them.
            method: ``"grad-cam"``, ``"grad-cam++"``, ``"eigen-cam"``, ``"integrated-gradients"`` or ``"occlusion"``.
            target: The class to explain, by name or index; ``None`` is the most probable one of each image.
            stage: The feature map that a CAM reads: ``"stage1"`` to ``"stage5"`` or the name of a layer; ``None`` is
                the last one with at least 7 cells on a side.
            examples: How many training images that are most alike to find for each image.
            references: Where to find them, as :meth:`embed` takes it; ``None`` takes what the classifier holds.
            batch_size: Images at once; ``None`` chooses by their size.
            progress: Called as images get done.
            **options: Of the method, as :func:`resfit.explain.attribute` takes them.

        Returns:
            One explanation an image, in order. An image that cannot be used has an ``error`` and empty arrays.

        Raises:
            ArgumentError: An argument breaks its rule, or there are no references.

        Example:
            >>> clf.explain("a.jpg", method="grad-cam++")[0].overlay.shape
            (224, 224, 3)
        """
        paths, arrays = _listed(images, self.input_spec)
        size = batch_size or feature_store.default_batch_size(self.input_spec.size)
        alike = None
        if examples:
            known, running = self._references(references), engines.create(self.body(), "keras")
            alike = lambda batch: neighbours.nearest(known, running.run(batch), examples)  # noqa: E731
        return results.explain_batches(
            self.model,
            _batches(paths, arrays, self.input_spec, size),
            self.classes,
            paths=paths,
            method=method,
            target=target,
            stage=stage,
            batch_size=batch_size,
            alike=alike,
            calibrate=lambda shares: heads.tempered(
                shares, self.temperature, "sigmoid" if self.recipe.several else "softmax"
            ),
            total=len(paths) or len(arrays),
            progress=progress,
            **options,
        )

    def _references(self, source: Any) -> neighbours.References:
        if source is not None:
            found = self.embed(source)
            return neighbours.References(found.features, found.labels, found.paths)
        kept = self.references
        if kept is None:
            raise ArgumentError(
                f"examples need training images. Received: a classifier without {artifact.REFERENCES}. "
                "Pass references=, a folder of them."
            )
        names = tuple(self.classes[label] if label >= 0 else None for label in kept.labels)
        return neighbours.References(kept.features, names, (None,) * len(names), kept.thumbnails)

    def body(self) -> keras.Model:
        """Returns the network without its head: RGB 0..255 in, features ``(batch, features)`` out."""
        import keras

        body = keras.Model(self.model.inputs, self._features(), name=f"{self.model.name}_body")
        if hasattr(self.model, "architecture"):
            body.architecture = self.model.architecture
        return body

    def head(self) -> heads.Head:
        """Returns the head alone, as numbers, its logits divided by the temperature."""
        import keras

        features = self._features()
        last = self.model.layers[-1]
        activation = "sigmoid" if self.recipe.several else "softmax"
        if self.recipe.head == "linear":
            kernel, bias = (np.asarray(weight) / np.float32(self.temperature) for weight in last.get_weights())
            return heads.LinearHead(kernel, bias, self.recipe.C, folds=self.recipe.folds, activation=activation)
        return heads.ModelHead(keras.Model(features, self.model.outputs[0]), activation, self.temperature)

    @functools.cached_property
    def _head(self) -> heads.Head:
        return self.head()

    def _features(self) -> Any:
        name = self.recipe.features
        return self.model.get_layer(name).output if name else self.model.layers[-1].input

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the classifier as a folder, whole or not at all.

        Args:
            path: A new or empty folder, or an earlier classifier, which is replaced.

        Raises:
            ArgumentError: Something else stands there.
            OSError: It cannot be written.
        """
        architecture = getattr(self.model, "architecture", None)
        description = {
            "classes": list(self.classes),
            "input": self.input_spec.to_dict(),
            "architecture": None if architecture is None else architecture.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "temperature": self.temperature,
            "calibration": self.calibration.to_dict(),
            "metrics": self.metrics,
            "data": self.fingerprint,
            "versions": self.versions,
        }
        artifact.write(Path(path), self.model.save, description, self._attachments)

    def export(self, out: str | os.PathLike[str], *, format: str = "tf_saved_model", **options: Any) -> Any:
        """Writes the classifier for another runtime, and compares the result with Keras there.

        Args:
            out: A new or empty folder, or an earlier export, which is replaced.
            format: One of :data:`resfit.export.FORMATS`.
            **options: Further options of :func:`resfit.export.export`, such as ``precision``.

        Returns:
            A :class:`resfit.export.Export`.

        Example:
            >>> clf.export("served/", format="onnx").verification.agreement
            1.0
        """
        # by name: exports stand on a floor above this one
        return importlib.import_module("resfit.export").export(self, out, format=format, **options)

    def attachment(self, name: str) -> bytes:
        """Returns a further file of the classifier's folder, such as ``"test_predictions.csv"``; empty if it has none.

        Args:
            name: Relative to the folder.
        """
        return self._attachments.get(name, b"")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """Reads a classifier that :meth:`save` or ``resfit fit`` wrote.

        Args:
            path: The folder.

        Raises:
            ArtifactError: It is missing, incomplete, damaged or of another format.
        """
        folder = Path(path)
        description, attachments = artifact.read(folder)
        import keras

        from resfit.architecture import layers, network
        from resfit.architecture.spec import ArchitectureSpec
        from resfit.transfer import head_layers

        del layers, head_layers  # imported so that the layers of its own are registered
        try:
            model = keras.saving.load_model(folder / artifact.MODEL, compile=False, safe_mode=True)
            contract = InputSpec.from_dict(description["input"])
            if description["architecture"] is not None:
                network.attach(model, ArchitectureSpec.from_dict(description["architecture"]), contract)
            classes = tuple(str(name) for name in description["classes"])
            if model.output_shape[-1] != len(classes):
                raise ArtifactError(f"the model has {model.output_shape[-1]} outputs for {len(classes)} classes.")
            return cls(
                model=model,
                classes=classes,
                input_spec=contract,
                recipe=Recipe(**description["recipe"]),
                metrics=description["metrics"],
                fingerprint=description["data"],
                versions=description["versions"],
                attachments=attachments,
                # classifiers of before have neither
                calibration=Calibration.from_dict(description.get("temperature", 1.0), description.get("calibration")),
            )
        except Exception as error:
            text = f"missing entry {error}" if isinstance(error, KeyError) else error
            raise ArtifactError(f"the classifier {str(folder)!r} cannot be read: {text}. Fit it again.") from error

    def _run(
        self, images: Any, engine: str, batch_size: int | None, progress: feature_store.Progress | None, views: int = 1
    ) -> Iterator[tuple[Path | None, np.ndarray | None, float | None, str]]:
        """Yields path, probabilities (or none), unlikeness (or none) and error of each image, in order."""
        paths, arrays = _listed(images, self.input_spec)
        count = len(paths) or len(arrays)
        size = batch_size or feature_store.default_batch_size(self.input_spec.size)
        running, head = self._engine(engine, count * views), self._head
        done = 0
        for batch in _batches(paths, arrays, self.input_spec, size):
            errors = dict(batch.failures)
            found: dict[int, tuple[np.ndarray, float | None]] = {}
            if len(batch.indices):
                rows = [running.run(view) for view in prediction_views(batch.images, views)]
                seen = np.mean([head.probabilities(some) for some in rows], axis=0)
                pairs = zip(seen, self._unlikeness(rows[0]), strict=True)
                found = dict(zip(batch.indices.tolist(), pairs, strict=True))
            for index in sorted((*found, *errors)):
                yield paths[index] if paths else None, *found.get(index, (None, None)), errors.get(index, "")
                done += 1
            if progress is not None:
                progress("network", done, count)

    def _unlikeness(self, rows: np.ndarray) -> list[float | None]:
        limit = None if self.unlike is None else self.unlike.thresholds.get(self.unlike.method)
        if self.unlike is None or not limit:
            return [None] * len(rows)
        scores = self.unlike.scores(rows, None, self.references)[self.unlike.method]
        return (scores / limit).tolist()

    def _engine(self, name: str, images: int) -> engines.Engine:
        many = images > _MANY
        if (name, many) not in self._engines:
            self._engines[name, many] = engines.create(self.body(), name, images=images)
        return self._engines[name, many]


def fit(
    source: Any,
    *,
    model: str | keras.Model = DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    strategy: str = "auto",
    head: str = "linear",
    budget: str | float | None = None,
    trainable_from: int | float | str | None = None,
    tuning: Tuning | Mapping[str, Any] | None = None,
    balance: bool = False,
    label_smoothing: float | None = None,
    focal: float = 0.0,
    label_separator: str | None = None,
    teacher: str | os.PathLike[str] | None = None,
    lr_find: bool = False,
    storage: int | None = None,
    tensorboard: bool = True,
    references: bool | None = None,
    seed: int = 0,
    engine: str = "auto",
    cache: bool | str | Path = True,
    max_skipped: float = 0.10,
    test_share: float = 0.2,
    val_share: float = 0.15,
    check: bool = True,
    allow_leakage: bool = False,
    batch_size: int | None = None,
    channels: int | None = None,
    reading: Reading | None = None,
    progress: feature_store.Progress | None = None,
    say: Callable[[str], None] | None = None,
    **scan_options: Any,
) -> Classifier:
    """Fits a classifier to a folder of images.

    A **probe** runs the images through the frozen network once, keeps their features on disk, and fits a linear head,
    whose regularisation is chosen by cross-validation on the training images. **Fine-tuning** starts there: what stays
    frozen is computed once, the rest is trained, and the epoch that is best on validation images is kept; epoch 0 is
    the probe. Both are measured on test images that nothing was chosen on.

    A call that was killed is resumed by the same call: features, outputs of the frozen part and checkpoints of the
    training are on disk, the last ones beside ``out``, or in the cache without it.

    Args:
        source: A folder of class folders, one with ``train``, ``val`` and ``test`` in it, or a CSV file of
            ``path,label[,split,group]``.
        model: A name of the zoo or a source that :func:`resfit.load` takes, or a Keras model that gives one vector an
            image and has an ``input_spec``. It is not changed.
        out: Folder to write the classifier to; ``None`` keeps it in memory.
        strategy: ``"probe"``; ``"finetune"``, the last stages or those from ``trainable_from`` on; ``"full"``, the
            whole network; or ``"auto"``: the probe first, then, given a ``budget``, fine-tuning within it, and the one
            that is better on the validation images.
        head: ``"linear"``, multinomial logistic regression; ``"mlp"``, one hidden layer of 1024; for a few images a
            class ``"nearest_mean"`` or ``"knn"``, with a probe alone.
        budget: Time for everything, such as ``"10m"``, ``"90s"`` or a number of minutes; ``None`` is no limit, and
            ``"auto"`` then stays with the probe.
        trainable_from: First layer that learns, as :func:`resfit.transfer.boundary.resolve` takes it; ``None`` leaves
            it to the recipe.
        tuning: Settings of the fine-tuning; a mapping overrules single ones of the recipe
            (:func:`resfit.transfer.recipes.recipe`), or in a probe those of the mlp head.
        balance: Whether each class counts the same in the loss, however many images it has.
        label_smoothing: Share of the target that is spread over all classes; ``None`` is none for a probe, and the
            recipe's in fine-tuning.
        focal: Exponent of the focal loss, for the mlp head and for fine-tuning.
        label_separator: Where an image may have several labels, what stands between them in the label column or in the
            folder's name, such as ``";"``.
        teacher: A larger network, or the folder of a classifier of the same classes, whose predictions are learned as
            well in fine-tuning (distillation).
        lr_find: Whether a range test chooses the learning rate before the fine-tuning; its curve is kept as a picture.
        storage: Bytes that outputs of the frozen part may take up on disk; ``None`` is 20 GB, and in any case no more
            than half of what is free. Above that they are computed in every epoch.
        tensorboard: Whether the training writes TensorBoard's files, if that is installed.
        references: Whether up to 1,000 training images, as features and thumbnails without names, are kept in the
            classifier: nearest examples come from them, and the better way to tell images that are unlike them.
            ``None`` keeps them unless they are medical.
        seed: Seed of the split, of the cross-validation and of the training.
        engine: As :func:`resfit.engines.create` takes it.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        max_skipped: Largest share of unusable images, in [0, 1], that is put up with.
        test_share: Share of the images set aside for the measurement, in (0, 1), where the data has no test split.
        val_share: Share of the other images set aside to choose the epoch on, in (0, 1), where the data has no such
            split and something is fine-tuned. A probe chooses by cross-validation and learns from them as well.
        check: Whether the images are checked in the same pass (:mod:`resfit.checking`); what is found stands in
            ``metrics["checks"]``. Duplicates are then kept on one side of a split that the data does not state.
        allow_leakage: Whether to go on where test images are, exactly or nearly, there for training too.
        batch_size: Images in one pass of the frozen network; ``None`` chooses by their size.
        channels: 1 for grey images, 3 for colour; ``None`` is what the network was trained on. Grey is repeated for a
            network of three channels.
        reading: How scans (DICOM, NIfTI) become pictures: frame, window, plane, spacing; ``None`` is the usual way.
        progress: Called as images get done.
        say: Called with lines for people, such as where the outputs of the frozen part go.
        **scan_options: Further options of :func:`resfit.data.image_set.scan`, such as the columns of a CSV file.

    Returns:
        The classifier.

    Raises:
        ArgumentError: An argument breaks its rule, or ``out`` holds something else.
        DataError: The images cannot be trained on, or too many are unusable; these are listed in ``skipped.csv``. Or
            the data states test images that are there for training too.

    Example:
        >>> clf = resfit.fit("photos/", model="resnet50", out="photos.resfit", budget="10m")
        >>> clf.metrics["test"]["accuracy"]
        0.93
    """
    clock = _Clock()
    minutes = _check_arguments(strategy, budget, max_skipped, test_share, val_share, out)
    check_choice("head", head, heads.KINDS)
    separator = label_separator or ""
    images = image_sets.scan(source, **_scan_options(reading, scan_options))
    image_sets.check_trainable(images, least=1 if separator else 3)
    clock.lap("scan")
    body, name = _body(model, channels, reading)
    clock.lap("load network")
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        if say is not None:
            say(text)

    if images.medical:
        note(scans.NOTICE)
    probing = strategy in ("probe", "auto")
    tunes = not probing or (strategy == "auto" and minutes is not None)
    if tunes and head not in ("linear", "mlp"):
        raise ArgumentError(f"heads that are trained with the network are 'linear' and 'mlp'. Received: {head!r}.")
    options = {"balance": balance, "focal": focal, "label_smoothing": label_smoothing}
    choice = _Choice(body, strategy, minutes, trainable_from, tuning, seed, head, lr_find, options, teacher is not None)
    running = strategies.Running(
        folder=Path(),
        cache=cache,
        engine=engine,
        storage=storage,
        lr_find=lr_find,
        tensorboard=tensorboard,
        progress=progress,
        say=note,
        records=check,
    )
    settings, folder, prepared = None, None, None
    if probing:
        extracted = feature_store.extract(
            body, images, engine=engine, cache=cache, batch_size=batch_size, progress=progress, records=check
        )
        used = _Used(extracted, extracted.rows)
    else:
        count = len(_split(images, val_share, test_share, seed).train)
        settings, folder = choice.settings(images, count, out, cache, clock, note)
        assert settings is not None
        prepared = strategies.prepare(body, images.paths, settings, running)
        used = _Used(prepared, np.zeros((0, 0), np.float32))
    clock.lap("features" if probing else "frozen part")
    found = len(images) + len(images.skipped)
    skipped = privacy.shown_skipped(images, (*images.skipped, *used.skipped))
    skipped_csv = artifact.csv_bytes(("path", "reason"), ((item.path, item.reason) for item in skipped))
    _check_skipped(skipped, found, max_skipped, skipped_csv, None if out is None else Path(out))

    kept = images.subset(used.indices)
    checker = _Checker(kept, extracted if probing else prepared, used.rows if probing else None) if check else None
    parts = _split(checker.together if checker else kept, val_share if tunes else 0.0, test_share, seed)
    if tunes and not len(parts.val):
        raise DataError("fine-tuning needs validation images, and the data is too small to set some aside.")
    everything, test = np.sort(np.concatenate([parts.train, parts.val])), parts.test
    classes = label_names(kept, separator)
    known = targets(kept, classes, separator)
    _check_classes(known, everything, classes)

    alone = dict(tuning or {}) if strategy == "probe" and not isinstance(tuning, Tuning) else {}

    def head_of(rows: np.ndarray, positions: np.ndarray) -> heads.Head:
        return heads.fit_head(
            head,
            rows[positions],
            known[positions] if separator else known[positions].argmax(axis=1),
            len(classes),
            seed=seed,
            sample_groups=[kept.groups[position] for position in positions],
            balance=balance,
            label_smoothing=label_smoothing or 0.0,
            focal=focal if head == "mlp" else 0.0,
            settings=alone,
        )

    final: heads.Head | None = head_of(used.rows, parts.train if tunes else everything) if probing else None
    clock.lap("head")
    checked = None
    if checker is not None:
        checked = checker.examine(separator, seed, skipped)
        if final is not None and checked.leaks:
            guesses = np.asarray(final.probabilities(used.rows[test])).argmax(axis=1)
            checked = checked.measured_leaks(test, guesses == known[test].argmax(axis=1))
        if not allow_leakage:
            checked.require_no_leaks()
        clock.lap("checks")

    network, tuned, files = body, None, {}
    if tunes and probing:
        settings, folder = choice.settings(kept, len(parts.train), out, cache, clock, note)
        if settings is not None:
            prepared = strategies.prepare(body, kept.paths, settings, running)
            clock.lap("frozen part")
    if settings is not None and prepared is not None:
        taught = _teach(teacher, kept, known, parts.train, separator, engine, cache)
        task = strategies.Task(known, parts.train, parts.val, test, bool(separator), taught)
        start = final if final is not None else (lambda rows: head_of(rows, parts.train))
        if minutes is not None and not choice.sets_time:
            settings = strategies.with_time_left(folder, settings, minutes - clock.total / 60)
        with _run_folder(folder) as place:
            tuned = strategies.tune(task, prepared, start, settings, dataclasses.replace(running, folder=place))
            files = _run_files(place)
        note(_verdict(tuned, strategy))
        clock.lap("fine-tuning")

    keeps = tuned is not None and (tuned.learned.epoch > 0 or not probing)
    if tuned is not None and keeps:
        network, final = tuned.body, tuned.head
        logits, spared = tuned.logits, heads.HeldOut(parts.val, tuned.val_logits)
    else:
        if tunes or final is None:
            final = head_of(used.rows, everything)
        logits = final.logits(used.rows[test])
        spared = _left_out(
            final, lambda rows: head_of(used.rows, everything[rows]), used.rows, known, everything, kept, seed
        )
    source_of = "validation" if keeps else "cross-validation"
    calibration = calibrate(spared.logits, known[spared.positions], final.activation, source_of)
    probabilities = heads.activated(logits / np.float32(calibration.temperature), final.activation)
    result = measured(known[test], probabilities, classes, bool(separator), skipped) if len(test) else None
    clock.lap("measure")
    if keeps and tuned is not None and prepared is not None:
        features: Callable[[np.ndarray], np.ndarray] = functools.partial(strategies.tuned_features, prepared, tuned)
    else:
        features = used.rows.__getitem__
    files |= kept_images.attachments(
        features,
        known,
        kept.paths,
        parts.train if keeps else everything,
        held_out=parts.val if keeps else None,
        logits=spared.logits / np.float32(calibration.temperature),
        several=bool(separator),
        references=(not images.medical) if references is None else references,
        cache=cache,
        seed=seed,
    )
    clock.lap("references")

    classifier = Classifier(
        model=heads.attach(network, final)[0],
        classes=classes,
        input_spec=body.input_spec,
        recipe=Recipe(
            model=name,
            strategy=_kept_strategy(tuned) if keeps else "probe",
            seed=seed,
            test_share=test_share,
            C=getattr(final, "C", 0.0),
            folds=getattr(final, "folds", 0),
            grouped=any(group is not None for group in kept.groups),
            asked=strategy,
            features=network.layers[-1].name,
            tuning=tuned.tuning.to_dict() if keeps and tuned is not None else None,
            head=head,
            separator=separator,
        ),
        metrics={
            "images": {
                "found": found,
                "skipped": len(skipped),
                "train": len(parts.train) if keeps else len(everything),
                **({"val": len(parts.val)} if keeps else {}),
                "test": len(test),
            },
            "cross_validation": [dataclasses.asdict(score) for score in getattr(final, "cv_scores", ())],
            **({} if tuned is None else {"training": _training_json(tuned)}),
            **({} if checked is None else {"checks": checked.to_dict()}),
            "test": None if result is None else result.to_dict(),
            **({"notice": scans.NOTICE} if images.medical else {}),
        },
        fingerprint=kept.fingerprint,
        versions=package_versions(),
        attachments={
            artifact.SKIPPED: skipped_csv,
            artifact.TEST_PREDICTIONS: _test_table(kept, test, probabilities, classes),
            **files,
        },
        calibration=calibration,
    )
    if out is not None:
        classifier.save(out)
    if tuned is not None and folder is not None:  # the run is in the classifier now
        shutil.rmtree(folder, ignore_errors=True)
    clock.lap("save")
    classifier.run = FitRun(
        test=result,
        skipped=skipped,
        warnings=images.warnings,
        seconds=clock.laps,
        computed=used.computed,
        reused=used.reused,
        engine=used.engine,
        history=() if tuned is None else tuned.learned.history,
        notes=tuple(notes),
    )
    return classifier


def plan(
    source: Any,
    *,
    model: str | keras.Model = DEFAULT_MODEL,
    strategy: str = "auto",
    budget: str | float | None = None,
    seed: int = 0,
    test_share: float = 0.2,
    val_share: float = 0.15,
    hardware: recipes.Hardware | None = None,
    reading: Reading | None = None,
    **scan_options: Any,
) -> recipes.Recipe:
    """Says what :func:`fit` would do and how long it would take, without doing it.

    The images are counted, not decoded, and the network is not loaded.

    Args:
        source: As :func:`fit` takes it.
        model: As :func:`fit` takes it.
        strategy: As :func:`fit` takes it.
        budget: As :func:`fit` takes it.
        seed: As :func:`fit` takes it.
        test_share: As :func:`fit` takes it.
        val_share: As :func:`fit` takes it.
        hardware: The machine; ``None`` measures this one.
        reading: As :func:`fit` takes it.
        **scan_options: As :func:`fit` takes them.
    """
    minutes = _check_arguments(strategy, budget, 0.0, test_share, val_share, None)
    images = image_sets.scan(source, **_scan_options(reading, scan_options))
    image_sets.check_trainable(images)
    parts = _split(images, val_share, test_share, seed)
    spec, size = _described(model)
    facts = _facts(images, len(parts.train), spec, size)
    return recipes.recipe(facts, hardware or recipes.measure_hardware(), strategy=strategy, minutes=minutes, seed=seed)


class _Used:
    """The images that could be used, and what became of the others."""

    def __init__(self, found: feature_store.Features | strategies.Prepared, rows: np.ndarray):
        self.rows, self.indices, self.skipped = rows, found.indices, found.skipped
        self.computed, self.reused, self.engine = found.computed, found.reused, found.engine


class _Checker:
    """The data checks of a fit: duplicates first, for the split needs them, and the rest when there is a head."""

    def __init__(
        self,
        images: ImageSet,
        found: feature_store.Features | strategies.Prepared | None,
        rows: np.ndarray | None,
    ):
        assert found is not None
        self._images, self._records = images, found.records
        self._rows = np.zeros((len(images), 0), np.float32) if rows is None else np.asarray(rows)
        self._same = checking.duplicates(found.digests, found.records, rows)
        self.together = checking.together(images, self._same)

    def examine(self, separator: str, seed: int, skipped: Sequence[Skipped]) -> checking.Checks:
        images = self._images
        if separator:  # labels that stand together are no classes to be told apart
            images = dataclasses.replace(images, labels=np.full(len(images), -1))
        return checking.examine(images, self._rows, self._records, self._same, seed=seed, skipped=skipped)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Which settings a fine-tuning run gets."""

    body: keras.Model
    strategy: str
    minutes: float | None
    trainable_from: int | float | str | None
    tuning: Tuning | Mapping[str, Any] | None
    seed: int
    head: str
    lr_find: bool
    options: dict[str, Any]
    taught: bool

    @property
    def sets_time(self) -> bool:
        """Whether the user has set the time of the training itself."""
        given = self.tuning.to_dict() if isinstance(self.tuning, Tuning) else dict(self.tuning or {})
        return given.get("minutes") is not None

    def settings(
        self,
        images: ImageSet,
        count: int,
        out: str | os.PathLike[str] | None,
        cache: bool | str | Path,
        clock: _Clock,
        note: Callable[[str], None],
    ) -> tuple[Tuning | None, Path | None]:
        """Returns the settings, ``None`` where a probe is all that is worth while, and the folder of the run."""
        given = self.tuning.to_dict() if isinstance(self.tuning, Tuning) else dict(self.tuning or {})
        for key, value in self.options.items():
            if value:
                given.setdefault(key, value)
        if self.taught:
            given["distillation"] = given.get("distillation") or 0.5
        if self.trainable_from is not None:
            given["trainable_from"] = self.trainable_from
        strategies.tuning_from(given)  # refuses what is out of range before any work
        described = {
            "data": images.fingerprint,
            "network": engines.fingerprint(self.body),
            "strategy": self.strategy,
            "minutes": self.minutes,
            "tuning": given,
            "seed": self.seed,
            "head": self.head,
            "lr_find": self.lr_find,
        }
        folder = strategies.run_folder(None if out is None else Path(out), described, cache)

        def choose() -> Tuning | None:
            left = None if self.minutes is None else max(1e-3, self.minutes - clock.total / 60)
            contract = self.body.input_spec
            facts = _facts(images, count, getattr(self.body, "architecture", None), contract.size)
            hardware = recipes.measure_hardware()
            found = recipes.recipe(facts, hardware, strategy=self.strategy, minutes=left, seed=self.seed)
            if not isinstance(self.tuning, Tuning):
                for reason in found.reasons:
                    note(reason)
            if found.tuning is None and not given:
                return None
            base = found.tuning or Tuning(seed=self.seed)
            chosen = strategies.tuning_from({**base.to_dict(), **given})
            if left is not None and chosen.minutes is None:
                chosen = dataclasses.replace(chosen, minutes=left)
            return chosen

        if folder is None:
            return choose(), None
        return strategies.open_run(folder, described, choose, note), folder


def embed(source: Any, *, model: str | keras.Model = DEFAULT_MODEL, **options: Any) -> Embedding:
    """Returns the features of images under a network.

    Args:
        source: Images, as :func:`resfit.embedding.embed_images` takes them.
        model: As :func:`fit` takes it, or the folder of a classifier.
        **options: Further options of :func:`resfit.embedding.embed_images`.

    Raises:
        DataError: No image can be used.

    Example:
        >>> embed("photos/").save("photos.parquet")
    """
    if isinstance(model, str | os.PathLike) and artifact.is_artifact(Path(model)):
        return Classifier.load(model).embed(source, **options)
    body, _ = _body(model)
    return embed_images(body, source, **options)


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._first = self._last = time.perf_counter()

    @property
    def total(self) -> float:
        return time.perf_counter() - self._first

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _body(
    model: str | os.PathLike[str] | keras.Model, channels: int | None = None, reading: Reading | None = None
) -> tuple[keras.Model, str]:
    """Returns a network that gives one vector an image, and its name."""
    if channels not in (None, 1, 3):
        raise ArgumentError(f"channels must be 1 or 3. Received: {channels!r}.")
    if isinstance(model, str | os.PathLike):
        from resfit import zoo

        body = zoo.load(model, include_top=False, pooling="avg", preprocess=True, in_channels=channels)
        name = str(model)
    else:
        body, name = model, model.name
        if channels not in (None, body.inputs[0].shape[-1]):
            raise ArgumentError(
                f"the network has {body.inputs[0].shape[-1]} input channels. Received: channels={channels}."
            )
    if reading is not None:
        body = _with_reading(body, reading)
    return body, name


def _with_reading(body: keras.Model, reading: Reading) -> keras.Model:
    """Returns a network of the same layers whose contract says how scans are read."""
    import keras

    other = keras.Model(body.inputs, body.outputs, name=body.name)
    for attribute in ("architecture", "class_names"):
        if hasattr(body, attribute):
            setattr(other, attribute, getattr(body, attribute))
    other.input_spec = dataclasses.replace(body.input_spec, reading=reading)
    return other


def _scan_options(reading: Reading | None, options: dict[str, Any]) -> dict[str, Any]:
    return options if reading is None else {**options, "reading": reading}


def _described(model: str | os.PathLike[str] | keras.Model) -> tuple[ArchitectureSpec | None, tuple[int, int]]:
    """Returns architecture and input size of a network, without loading one that has a name."""
    from resfit import zoo
    from resfit.errors import UnknownNameError

    if isinstance(model, str | os.PathLike):
        try:
            described = zoo.describe(str(model))
            return described.spec, described.input_spec.size
        except UnknownNameError:
            model, _ = _body(model)
    return getattr(model, "architecture", None), model.input_spec.size


def _facts(images: ImageSet, count: int, spec: ArchitectureSpec | None, size: tuple[int, int]) -> recipes.Facts:
    counts = np.bincount(images.labels[images.labels >= 0], minlength=len(images.classes))
    imbalance = float(counts.max() / max(1, counts.min()))
    return recipes.facts_of(spec, count, len(images.classes), size, max(1.0, imbalance))


def _split(images: ImageSet, val: float, test: float, seed: int) -> splits.Split:
    """Splits a set; ``val`` is a share of what is not for testing."""
    labelled = np.flatnonzero(images.labels >= 0)
    stated = sum(images.splits[position] == "test" for position in labelled) / max(1, len(labelled))
    return splits.split(images, val=val * (1 - (stated or test)), test=test, seed=seed)


def _check_arguments(
    strategy: str,
    budget: str | float | None,
    max_skipped: float,
    test_share: float,
    val_share: float,
    out: str | os.PathLike[str] | None,
) -> float | None:
    """Checks what can be checked before any work, and returns the budget in minutes."""
    if strategy not in STRATEGIES:
        raise ArgumentError(
            f"strategy must be one of {STRATEGIES}. Received: {strategy!r}.{closest(strategy, STRATEGIES)}"
        )
    if not 0 <= max_skipped <= 1:
        raise ArgumentError(f"max_skipped must lie in [0, 1]. Received: {max_skipped}.")
    for name, share in (("test_share", test_share), ("val_share", val_share)):
        if not 0 < share < 1:
            raise ArgumentError(f"{name} must lie in (0, 1). Received: {share}.")
    if out is not None:
        artifact.check_target(Path(out))
    return recipes.parse_minutes(budget)


@contextlib.contextmanager
def _run_folder(folder: Path | None) -> Iterator[Path]:
    """Yields the folder of a run; one that goes away where there is none."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="resfit-run-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _run_files(folder: Path) -> dict[str, bytes]:
    """Returns what a run leaves in the classifier: its log, its curves and TensorBoard's files."""
    paths = [folder / name for name in (strategies.LOG, strategies.CURVES, strategies.RATES)]
    paths += [*sorted(folder.glob(f"{artifact.TENSORBOARD}/*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def _verdict(tuned: strategies.Tuned, strategy: str) -> str:
    first = tuned.learned.history[0].get("val_accuracy", 0.0)
    text = f"validation accuracy {first:.1%} before, {tuned.learned.accuracy or 0.0:.1%} after"
    if tuned.learned.ending == "diverged":
        text += "; the loss was no number any more, a lower learning rate may help"
    if tuned.learned.epoch == 0:
        return f"{text}: {'the probe is kept' if strategy == 'auto' else 'no epoch was better than the probe'}"
    return f"{text}: epoch {tuned.learned.epoch} of {tuned.learned.history[-1]['epoch']} is kept"


def _kept_strategy(tuned: strategies.Tuned | None) -> str:
    return "probe" if tuned is None else "finetune" if tuned.boundary.frozen else "full"


def _training_json(tuned: strategies.Tuned) -> dict[str, Any]:
    learned = tuned.learned
    return {
        "epoch": learned.epoch,
        "epochs": learned.history[-1]["epoch"],
        "steps": learned.steps,
        "ending": learned.ending,
        "val_accuracy": learned.accuracy,
        "val_loss": learned.loss,
        "val_accuracy_before": learned.history[0].get("val_accuracy"),
    }


def _check_skipped(skipped: Sequence[Skipped], found: int, most: float, table: bytes, out: Path | None) -> None:
    """Stops where too many images are unusable, and leaves the list of them behind."""
    if len(skipped) <= most * found:
        return
    where = f"such as {skipped[0].path}: {skipped[0].reason}"
    if out is not None:
        # an earlier classifier stays as it is
        target = (
            out.with_name(f"{out.name}.{artifact.SKIPPED}") if artifact.is_artifact(out) else out / artifact.SKIPPED
        )
        with atomic_open(target) as file:
            file.write(table)
        where += f"; all are listed in {target}"
    raise DataError(
        f"at most {most:.0%} of the images may be unusable. Received: {len(skipped)} of {found} "
        f"({len(skipped) / max(found, 1):.1%}), {where}. Repair or remove them, or raise max_skipped."
    )


def _check_classes(targets: np.ndarray, train: np.ndarray, classes: Sequence[str]) -> None:
    counts = targets[train].sum(axis=0)
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(f"each class needs a usable training image. Received none for: {', '.join(empty[:8])}.")


def _left_out(
    final: heads.Head,
    refit: Callable[[np.ndarray], heads.Head],
    rows: np.ndarray,
    known: np.ndarray,
    train: np.ndarray,
    kept: ImageSet,
    seed: int,
) -> heads.HeldOut:
    """Returns what was predicted for training images by heads that had not learned from them."""
    if isinstance(final, heads.LinearHead):
        found = final.held_out
    else:
        several = final.activation == "sigmoid"
        found = heads.leave_out(
            refit,
            rows[train],
            known[train] if several else known[train].argmax(axis=1),
            sample_groups=[kept.groups[position] for position in train],
            rounds=1 if isinstance(final, MlpHead) else None,  # its training takes long
            seed=seed,
        )
    if found is None:
        return heads.HeldOut(np.zeros(0, np.int64), np.zeros((0, known.shape[1]), np.float32))
    return heads.HeldOut(train[found.positions], found.logits)


def _teach(
    teacher: str | os.PathLike[str] | None,
    kept: ImageSet,
    targets: np.ndarray,
    train: np.ndarray,
    separator: str,
    engine: str,
    cache: bool | str | Path,
) -> np.ndarray | None:
    """Returns the logits of a teacher: a classifier of the same classes, or a probe on a larger network."""
    if teacher is None:
        return None
    if artifact.is_artifact(Path(teacher)):
        found = Classifier.load(teacher)
        if found.classes != label_names(kept, separator):
            raise ArgumentError(
                f"a teacher must have the classes of the data. Received: {', '.join(found.classes[:8])}."
            )
        body, head = found.body(), found.head()
        rows = feature_store.extract(body, kept, input_spec=found.input_spec, engine=engine, cache=cache).rows
        return head.logits(np.asarray(rows))
    body, _ = _body(teacher)
    rows = np.asarray(feature_store.extract(body, kept, engine=engine, cache=cache).rows)
    labels = targets if separator else targets.argmax(axis=1)
    return heads.fit_linear(rows[train], labels[train], classes=targets.shape[1]).logits(rows)


def _test_table(kept: ImageSet, test: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> bytes:
    rows = []
    for position, row in zip(test, probabilities, strict=True):
        best = int(row.argmax())
        label = kept.classes[kept.labels[position]]
        rows.append((privacy.shown(kept, kept.paths[position]), label, classes[best], f"{row[best]:.6f}"))
    return artifact.csv_bytes(("path", "label", "predicted", "probability"), rows)


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that have a part in a classifier."""
    import importlib.metadata as metadata
    import platform

    import keras

    import resfit

    found = {"resfit": resfit.__version__, "python": platform.python_version(), "keras": keras.__version__}
    for package in (
        "tensorflow",
        "tensorflow-cpu",
        "numpy",
        "scikit-learn",
        "openvino",
        "pillow",
        "pydicom",
        "nibabel",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _listed(images: Any, contract: InputSpec) -> tuple[list[Path], list[np.ndarray]]:
    """Returns the images as files or as arrays ``(height, width, channels)``; one of the two lists is empty."""
    if isinstance(images, str | os.PathLike):
        images = [images]
    if hasattr(images, "__array__") and not isinstance(images, list | tuple):
        array = np.asarray(images)
        images = [array] if array.ndim == 3 else list(array) if array.ndim == 4 else [array]
    items = list(images)
    channels = contract.channels
    if all(isinstance(item, str | os.PathLike) for item in items):
        paths: list[Path] = []
        for item in items:
            path = Path(item)
            if path.is_dir() or not os.path.lexists(path) or image_sets.is_several(path, contract.reading):
                found = image_sets.scan_images([path], reading=contract.reading)
                paths.extend(sorted((*found.paths, *(item.path for item in found.skipped))))
            else:
                paths.append(path)
        return paths, []
    arrays = [np.asarray(item) for item in items]
    for array in arrays:
        if array.ndim != 3 or array.shape[-1] != channels or array.dtype.kind not in "uif" or 0 in array.shape:
            raise ArgumentError(
                f"images must be files, folders, or arrays of shape (height, width, {channels}) with numbers 0..255. "
                f"Received: shape {array.shape}, dtype {array.dtype}."
            )
    return [], arrays


def _batches(
    paths: list[Path], arrays: list[np.ndarray], contract: InputSpec, size: int
) -> Iterator[decode.DecodedBatch]:
    if paths:
        yield from decode.decode_many(paths, contract, batch_size=size)
    for start in range(0, len(arrays), size):
        some = [fit_array(array, contract) for array in arrays[start : start + size]]
        yield decode.DecodedBatch(np.arange(start, start + len(some)), np.stack(some), [])


def fit_array(array: np.ndarray, contract: InputSpec) -> np.ndarray:
    """Resizes and crops an array as a file would be; one of the right size passes as it is, whatever its dtype.

    Args:
        array: Array of shape ``(height, width, channels)``, RGB, values 0..255.
        contract: The network's input contract.
    """
    if array.shape[:2] == tuple(contract.size) or contract.resize_mode == "none":
        return array
    from PIL import Image

    if array.dtype != np.uint8 and ((array == np.rint(array)) & (array >= 0) & (array <= 255)).all():
        array = array.astype(np.uint8)  # a copy of eight bits gives the same answer as they do
    if array.dtype != np.uint8:  # nothing is rounded
        values = np.clip(array, 0, 255).astype(np.float32)
        picture = deep.Picture(tuple(values[..., channel] for channel in range(contract.channels)))
        (result,) = deep.rendered(picture, contract, [lambda plane: decode.resize(plane, contract)])
        return result
    image = Image.fromarray(array if contract.channels == 3 else array[:, :, 0])
    return np.asarray(decode.resize(image, contract)).reshape(*contract.size, contract.channels)
