"""The trained thing: fit it on a folder of images, ask it, measure it, keep it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.data import decode
from resfit.data import image_set as image_sets
from resfit.data import split as splits
from resfit.data.image_set import ImageSet, Skipped
from resfit.embedding import Embedding, embed_images
from resfit.errors import ArgumentError, ArtifactError, DataError, closest
from resfit.evaluation.metrics import Evaluation, evaluate
from resfit.files import atomic_open
from resfit.preprocessing import InputSpec
from resfit.transfer import features as feature_store
from resfit.transfer import heads

if TYPE_CHECKING:
    import keras

#: What ``strategy=`` accepts.
STRATEGIES = ("auto", "probe")
DEFAULT_MODEL = "resnet10_tiny"
_MANY = 256  # images from which an engine of its own may be worth it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier was made: what is needed to make it again.

    Attributes:
        model: Name or source of the network.
        strategy: ``"probe"``: a linear head on the frozen network.
        seed: Seed of the split and of the folds.
        test_share: Share of the images that was set aside for the final measurement, where the data had no test split.
        C: Inverse regularisation strength of the head.
        folds: Cross-validation folds that chose it; 1 is a hold-out, 0 no choice.
        grouped: Whether images of one group were kept together.
    """

    model: str
    strategy: str
    seed: int
    test_share: float
    C: float
    folds: int
    grouped: bool


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        path: The file; ``None`` for an array.
        label: The most probable class; ``None`` if the image could not be used.
        probability: Its probability, 0..1.
        probabilities: The most probable classes with their probabilities, best first.
        error: Why the image could not be used; empty if it could.
    """

    path: Path | None
    label: str | None
    probability: float
    probabilities: dict[str, float]
    error: str = ""


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
    """

    test: Evaluation | None
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    computed: int
    reused: int
    engine: str


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
    ):
        self.model = model
        self.classes = tuple(classes)
        self.input_spec = input_spec
        self.recipe = recipe
        self.metrics = metrics
        self.fingerprint = fingerprint
        self.versions = versions
        self.run: FitRun | None = None
        self._attachments = dict(attachments or {})
        self._engines: dict[tuple[str, bool], engines.Engine] = {}

    def __repr__(self) -> str:
        """Says what it tells apart."""
        return f"<Classifier {self.recipe.model}, {len(self.classes)} classes: {', '.join(self.classes[:5])}>"

    def predict(
        self,
        images: Any,
        *,
        top: int | None = None,
        engine: str = "auto",
        batch_size: int | None = None,
        progress: feature_store.Progress | None = None,
    ) -> list[Prediction]:
        """Says what is on each image.

        Args:
            images: A file; a folder, with all that is below it; a list of files; or an array of shape
                ``(height, width, 3)`` or ``(n, height, width, 3)``, RGB, values 0..255; or a list of such.
            top: How many classes each prediction lists; ``None`` is all.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.

        Returns:
            One prediction an image, in order. An image that cannot be used has an ``error`` in place of a label.

        Raises:
            ArgumentError: ``images`` is none of these.
            DataError: A folder without images.

        Example:
            >>> clf.predict("a.jpg")[0].label
            'cat'
        """
        if top is not None and top < 1:
            raise ArgumentError(f"top must be at least 1. Received: {top}.")
        results: list[Prediction] = []
        for path, probabilities, error in self._run(images, engine, batch_size, progress):
            if probabilities is None:
                results.append(Prediction(path, None, 0.0, {}, error))
                continue
            order = np.argsort(-probabilities, kind="stable")[:top]
            listed = {self.classes[i]: float(probabilities[i]) for i in order}
            best = self.classes[order[0]]
            results.append(Prediction(path, best, listed[best], listed))
        return results

    def predict_proba(self, images: Any, *, engine: str = "auto", batch_size: int | None = None) -> np.ndarray:
        """Returns the probabilities, float32 of shape ``(n, classes)``; see :meth:`predict` for the arguments.

        Raises:
            DataError: An image cannot be used.
        """
        rows: list[np.ndarray] = []
        for path, probabilities, error in self._run(images, engine, batch_size, None):
            if probabilities is None:
                raise DataError(f"every image must be readable. Received: {path}: {error}.")
            rows.append(probabilities)
        return np.stack(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def evaluate(
        self,
        source: Any,
        *,
        engine: str = "auto",
        cache: bool | str | Path = True,
        batch_size: int | None = None,
        progress: feature_store.Progress | None = None,
    ) -> Evaluation:
        """Measures the classifier on labelled images.

        Args:
            source: A folder of class folders or a CSV file, as :func:`fit` takes them; all splits in it are used.
            engine: As :func:`resfit.engines.create` takes it.
            cache: Where features are kept, as :func:`fit` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.

        Raises:
            DataError: No image can be used, or a class is not one of the classifier's.
        """
        images = image_sets.scan(source)
        unknown = [name for name in images.classes if name not in self.classes]
        if unknown:
            raise DataError(
                f"the classes must be among the classifier's: {', '.join(self.classes)}. "
                f"Received: {unknown[0]!r}.{closest(unknown[0], self.classes)}"
            )
        known = np.asarray([self.classes.index(name) for name in images.classes], np.int64)
        extracted = feature_store.extract(
            self.body(),
            images,
            input_spec=self.input_spec,
            engine=engine,
            cache=cache,
            batch_size=batch_size,
            progress=progress,
        )
        labels = np.asarray(images.labels)[extracted.indices]
        labelled = labels >= 0
        skipped = (*images.skipped, *extracted.skipped)
        if not labelled.any():
            raise DataError(f"at least one labelled image must be usable. Received: {len(skipped)} unusable ones.")
        rows = np.asarray(extracted.rows)[labelled]
        return evaluate(known[labels[labelled]], self.head().probabilities(rows), self.classes, skipped=skipped)

    def embed(self, source: Any, **options: Any) -> Embedding:
        """Returns the features that the head of this classifier reads.

        Args:
            source: Images, as :func:`resfit.embedding.embed_images` takes them.
            **options: Its further options.
        """
        return embed_images(self.body(), source, input_spec=self.input_spec, **options)

    def body(self) -> keras.Model:
        """Returns the network without its head: RGB 0..255 in, features ``(batch, features)`` out."""
        import keras

        body = keras.Model(self.model.inputs, self.model.layers[-1].input, name=f"{self.model.name}_body")
        if hasattr(self.model, "architecture"):
            body.architecture = self.model.architecture
        return body

    def head(self) -> heads.LinearHead:
        """Returns the head alone, as numbers."""
        kernel, bias = (np.asarray(weight) for weight in self.model.layers[-1].get_weights())
        return heads.LinearHead(kernel, bias, self.recipe.C, folds=self.recipe.folds)

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
            "metrics": self.metrics,
            "data": self.fingerprint,
            "versions": self.versions,
        }
        artifact.write(Path(path), self.model.save, description, self._attachments)

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

        del layers  # imported so that the layers of its own are registered
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
            )
        except Exception as error:
            text = f"missing entry {error}" if isinstance(error, KeyError) else error
            raise ArtifactError(f"the classifier {str(folder)!r} cannot be read: {text}. Fit it again.") from error

    def _run(
        self, images: Any, engine: str, batch_size: int | None, progress: feature_store.Progress | None
    ) -> Iterator[tuple[Path | None, np.ndarray | None, str]]:
        """Yields path, probabilities (or none) and error of each image, in order."""
        paths, arrays = _listed(images, self.input_spec.channels)
        count = len(paths) or len(arrays)
        size = batch_size or feature_store.default_batch_size(self.input_spec.size)
        running = self._engine(engine, count)
        done = 0
        for batch in _batches(paths, arrays, self.input_spec, size):
            errors = dict(batch.failures)
            rows = (
                dict(zip(batch.indices.tolist(), running.run(batch.images), strict=True)) if len(batch.indices) else {}
            )
            for index in sorted((*rows, *errors)):
                yield paths[index] if paths else None, rows.get(index), errors.get(index, "")
                done += 1
            if progress is not None:
                progress("network", done, count)

    def _engine(self, name: str, images: int) -> engines.Engine:
        many = images > _MANY
        if (name, many) not in self._engines:
            self._engines[name, many] = engines.create(self.model, name, images=images)
        return self._engines[name, many]


def fit(
    source: Any,
    *,
    model: str | keras.Model = DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    strategy: str = "auto",
    seed: int = 0,
    engine: str = "auto",
    cache: bool | str | Path = True,
    max_skipped: float = 0.10,
    test_share: float = 0.2,
    batch_size: int | None = None,
    progress: feature_store.Progress | None = None,
    **scan_options: Any,
) -> Classifier:
    """Fits a classifier to a folder of images.

    The images go through the frozen network once; their features are kept on disk. A linear head is fitted on them, its
    regularisation chosen by cross-validation on the training images, and measured on test images that nothing was
    chosen on.

    Args:
        source: A folder of class folders, one with ``train``, ``val`` and ``test`` in it, or a CSV file of
            ``path,label[,split,group]``.
        model: A name of the zoo or a source that :func:`resfit.load` takes, or a Keras model that gives one vector an
            image and has an ``input_spec``.
        out: Folder to write the classifier to; ``None`` keeps it in memory.
        strategy: ``"probe"``, or ``"auto"``, which is the same for now.
        seed: Seed of the split and of the cross-validation.
        engine: As :func:`resfit.engines.create` takes it.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        max_skipped: Largest share of unusable images, in [0, 1], that is put up with.
        test_share: Share of the images set aside for the measurement, in (0, 1), where the data has no test split.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.
        **scan_options: Further options of :func:`resfit.data.image_set.scan`, such as the columns of a CSV file.

    Returns:
        The classifier.

    Raises:
        ArgumentError: An argument breaks its rule, or ``out`` holds something else.
        DataError: The images cannot be trained on, or too many are unusable; these are listed in ``skipped.csv``.

    Example:
        >>> clf = resfit.fit("photos/", model="resnet50", out="photos.resfit")
        >>> clf.metrics["test"]["accuracy"]
        0.93
    """
    if strategy not in STRATEGIES:
        raise ArgumentError(
            f"strategy must be one of {STRATEGIES}. Received: {strategy!r}.{closest(strategy, STRATEGIES)}"
        )
    if not 0 <= max_skipped <= 1:
        raise ArgumentError(f"max_skipped must lie in [0, 1]. Received: {max_skipped}.")
    if not 0 < test_share < 1:
        raise ArgumentError(f"test_share must lie in (0, 1). Received: {test_share}.")
    if out is not None:
        artifact.check_target(Path(out))

    clock = _Clock()
    images = image_sets.scan(source, **scan_options)
    image_sets.check_trainable(images)
    clock.lap("scan")
    body, name = _body(model)
    clock.lap("load network")
    extracted = feature_store.extract(
        body, images, engine=engine, cache=cache, batch_size=batch_size, progress=progress
    )
    clock.lap("features")
    found = len(images) + len(images.skipped)
    skipped = (*images.skipped, *extracted.skipped)
    skipped_csv = artifact.csv_bytes(("path", "reason"), ((item.path, item.reason) for item in skipped))
    _check_skipped(skipped, found, max_skipped, skipped_csv, None if out is None else Path(out))

    kept = images.subset(extracted.indices)
    parts = splits.split(kept, val=0.0, test=test_share, seed=seed)
    train, test = np.sort(np.concatenate([parts.train, parts.val])), parts.test
    _check_classes(kept, train)
    head = heads.fit_linear(
        extracted.rows[train],
        kept.labels[train],
        classes=len(kept.classes),
        seed=seed,
        sample_groups=[kept.groups[position] for position in train],
    )
    probabilities = head.probabilities(extracted.rows[test])
    measured = evaluate(kept.labels[test], probabilities, kept.classes, skipped=skipped) if len(test) else None
    clock.lap("head")

    classifier = Classifier(
        model=_with_head(body, head),
        classes=kept.classes,
        input_spec=body.input_spec,
        recipe=Recipe(
            model=name,
            strategy="probe",
            seed=seed,
            test_share=test_share,
            C=head.C,
            folds=head.folds,
            grouped=any(group is not None for group in kept.groups),
        ),
        metrics={
            "images": {"found": found, "skipped": len(skipped), "train": len(train), "test": len(test)},
            "cross_validation": [dataclasses.asdict(score) for score in head.cv_scores],
            "test": None if measured is None else measured.to_dict(),
        },
        fingerprint=kept.fingerprint,
        versions=_versions(),
        attachments={
            artifact.SKIPPED: skipped_csv,
            artifact.TEST_PREDICTIONS: _test_table(kept, test, probabilities),
        },
    )
    if out is not None:
        classifier.save(out)
    clock.lap("save")
    classifier.run = FitRun(
        test=measured,
        skipped=skipped,
        warnings=images.warnings,
        seconds=clock.laps,
        computed=extracted.computed,
        reused=extracted.reused,
        engine=extracted.engine,
    )
    return classifier


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
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def _body(model: str | os.PathLike[str] | keras.Model) -> tuple[keras.Model, str]:
    """Returns a network that gives one vector an image, and its name."""
    if not isinstance(model, str | os.PathLike):
        return model, model.name
    from resfit import zoo

    return zoo.load(model, include_top=False, pooling="avg", preprocess=True), str(model)


def _with_head(body: keras.Model, head: heads.LinearHead) -> keras.Model:
    """Returns body and head as one plain functional model."""
    import keras

    taken = {layer.name for layer in body.layers}
    name = "predictions" if "predictions" not in taken else f"predictions_{len(taken)}"
    dense = keras.layers.Dense(len(head.bias), activation="softmax", dtype="float32", name=name)
    model = keras.Model(body.inputs, dense(body.outputs[0]), name=body.name)
    dense.set_weights([head.kernel, head.bias])
    for attribute in ("architecture", "input_spec"):
        if hasattr(body, attribute):
            setattr(model, attribute, getattr(body, attribute))
    return model


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


def _check_classes(kept: ImageSet, train: np.ndarray) -> None:
    counts = np.bincount(kept.labels[train], minlength=len(kept.classes))
    empty = [name for name, count in zip(kept.classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(f"each class needs a usable training image. Received none for: {', '.join(empty[:8])}.")


def _test_table(kept: ImageSet, test: np.ndarray, probabilities: np.ndarray) -> bytes:
    rows = []
    for position, row in zip(test, probabilities, strict=True):
        best = int(row.argmax())
        label = kept.classes[kept.labels[position]]
        rows.append((kept.paths[position], label, kept.classes[best], f"{row[best]:.6f}"))
    return artifact.csv_bytes(("path", "label", "predicted", "probability"), rows)


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata
    import platform

    import keras

    import resfit

    found = {"resfit": resfit.__version__, "python": platform.python_version(), "keras": keras.__version__}
    for package in ("tensorflow", "tensorflow-cpu", "numpy", "scikit-learn", "openvino", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _listed(images: Any, channels: int) -> tuple[list[Path], list[np.ndarray]]:
    """Returns the images as files or as arrays ``(height, width, channels)``; one of the two lists is empty."""
    if isinstance(images, str | os.PathLike):
        images = [images]
    if hasattr(images, "__array__") and not isinstance(images, list | tuple):
        array = np.asarray(images)
        images = [array] if array.ndim == 3 else list(array) if array.ndim == 4 else [array]
    items = list(images)
    if all(isinstance(item, str | os.PathLike) for item in items):
        paths: list[Path] = []
        for item in items:
            path = Path(item)
            if path.is_dir() or not os.path.lexists(path):
                found = image_sets.scan_images([path])
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
        some = [_fitted(array, contract) for array in arrays[start : start + size]]
        yield decode.DecodedBatch(np.arange(start, start + len(some)), np.stack(some), [])


def _fitted(array: np.ndarray, contract: InputSpec) -> np.ndarray:
    """Resizes and crops an array as a file would be; one of the right size passes as it is, whatever its dtype."""
    if array.shape[:2] == tuple(contract.size) or contract.resize_mode == "none":
        return array
    from PIL import Image

    eight_bits = array if array.dtype == np.uint8 else np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    image = Image.fromarray(eight_bits if contract.channels == 3 else eight_bits[:, :, 0])
    return np.asarray(decode.resize(image, contract)).reshape(*contract.size, contract.channels)
