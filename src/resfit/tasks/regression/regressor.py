"""An image regressor: predict numbers with intervals, evaluate, save."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from resfit import artifact
from resfit.artifact import ArtifactKind
from resfit.data import dataset as image_sets
from resfit.data import urls
from resfit.data.inputs import takes_numbers
from resfit.data.medical import privacy
from resfit.errors import ArtifactError, DataError
from resfit.evaluation import fitted_images
from resfit.evaluation.inference import part_of
from resfit.evaluation.regression import FIGURES, NumberScore, regression_figures
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.tasks import stored_network
from resfit.tasks.base import Exportable, FitRun, TextTable
from resfit.tasks.inference import BodyRunner
from resfit.tasks.preparation import tested
from resfit.tasks.regression.results import NumberPrediction, RegressionEvaluation, ResidualIntervals
from resfit.tasks.regression.ridge import RidgeHead
from resfit.tasks.stored_network import ENGINES, Head, LazyModel, Origin, StoredPart
from resfit.weights import keras_models

if TYPE_CHECKING:
    import keras

KIND = ArtifactKind("regressor")
#: Coverage of the intervals that predictions have.
COVERAGE = 0.9


@dataclasses.dataclass(frozen=True)
class RegressionRecipe:
    """How a regressor was made: what is needed to make it again.

    Attributes:
        model: Name or source of the network.
        strategy: What was kept: ``"probe"`` (ridge regression on the frozen network), ``"finetune"`` or ``"full"``.
        asked: The strategy that was asked for.
        seed: Seed of the split, of the folds, and of all that is random in training.
        test_share: Share of the images that was set aside for the final measurement, where the data had no test split.
        penalty: Of the ridge regression, for each image and standardised features.
        folds: Cross-validation folds that chose it; 0 for no choice.
        grouped: Whether images of one group were kept together.
        features: Name of the layer whose output the head reads.
        loss: Of the fine-tuning: ``"huber"`` or ``"mse"``.
        tuning: Settings of the fine-tuning; ``None`` for a probe.
    """

    model: str
    strategy: str
    asked: str
    seed: int
    test_share: float
    penalty: float
    folds: int
    grouped: bool
    features: str
    loss: str = "huber"
    tuning: dict[str, Any] | None = None


class Regressor(LazyModel):
    """A network with a head for one's own numbers.

    Made by :func:`resfit.fit` with ``task="regression"`` or by :meth:`load`.

    Attributes:
        model: The Keras model: RGB 0..255 in, numbers ``(batch, numbers)`` out.
        columns: Names of the numbers, in the order of the outputs.
        input_spec: How images become the model's input.
        recipe: How it was made.
        residuals: Errors on images that were not learned from, for intervals.
        metrics: JSON-ready figures of the fit.
        fingerprint: Digest of the data it was fitted on.
        versions: Versions of the packages that made it.
        run: What the fit did, right after it; ``None`` after :meth:`load`.
    """

    task = "regression"
    kind = KIND

    def __init__(
        self,
        model: keras.Model | None,
        columns: Sequence[str],
        input_spec: InputSpec,
        recipe: RegressionRecipe,
        residuals: ResidualIntervals,
        metrics: dict[str, Any],
        fingerprint: str,
        versions: dict[str, str],
        attachments: dict[str, bytes] | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(model, origin, attachments)
        self.columns, self.input_spec = tuple(columns), input_spec
        self.recipe, self.residuals, self.metrics = recipe, residuals, metrics
        self.fingerprint, self.versions = fingerprint, versions
        self.run: FitRun | None = None
        self._runner = BodyRunner(self)

    def __repr__(self) -> str:
        """Says what it predicts."""
        return f"<Regressor {self.recipe.model}: {', '.join(self.columns[:5])}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the numbers."""
        return self.columns

    def head(self) -> RidgeHead:
        """Returns the head alone."""
        record = self._record
        kept = None if record is None else (record.arrays["kernel"], record.arrays["bias"])
        kernel, bias = kept or (np.asarray(weight) for weight in self.model.layers[-1].get_weights())
        return RidgeHead(kernel, bias, self.recipe.penalty, self.recipe.folds)

    def parts(self) -> Iterator[StoredPart]:
        """Returns the network without its head, which is kept as numbers."""
        yield StoredPart(self.body(), lambda images, rows: self._head_to_keep())

    def _head_to_keep(self) -> Head | None:
        """Returns kernel and bias of the last layer, where it is what :meth:`head` takes it for."""
        layer = self.model.layers[-1]
        config, weights = layer.get_config(), layer.get_weights()
        if type(layer).__name__ != "Dense" or config["activation"] != "linear" or len(weights) != 2:
            return None
        return {}, {"kernel": np.asarray(weights[0], np.float32), "bias": np.asarray(weights[1], np.float32)}

    def predict(
        self,
        images: Any,
        *,
        coverage: float | None = COVERAGE,
        views: int = 1,
        engine: Any = "auto",
        batch_size: int | None = None,
        progress: Progress | None = None,
        allow_urls: bool = False,
    ) -> list[NumberPrediction]:
        """Predicts the numbers of each image.

        Args:
            images: As :meth:`resfit.Classifier.predict` takes them.
            coverage: Share of images, in (0, 1), whose intervals are to hold the true number; ``None`` makes none. It
                holds on average over images like the training images.
            views: Over how many views of each image the numbers are averaged, 1 to 10 (test-time augmentation). From
                3 on some are crops, which change sizes.
            engine: As :func:`resfit.engines.create` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            allow_urls: Whether texts that begin with ``http://`` or ``https://`` are fetched, each within the bounds of
                :mod:`resfit.data.urls`. Do not allow it for addresses that others choose.

        Returns:
            One prediction an image, in order. An image that cannot be used has an ``error`` in place of numbers.

        Raises:
            ArgumentError: ``images`` is none of these, or intervals of this coverage need more held-out images.
            DataError: A folder without images, or a single path that does not exist.
        """
        images = urls.opened(images) if allow_urls else images
        halves = self.half_widths(coverage)
        head = self.head()
        results: list[NumberPrediction] = []
        seen_first = None
        for batch in self._runner.batches(images, engine, batch_size, progress, views):
            seen_first = batch.first if seen_first is None else seen_first
            found: dict[int, np.ndarray] = {}
            if batch.rows:
                values = np.mean([head(rows) for rows in batch.rows], axis=0)
                found = dict(zip(batch.usable.tolist(), values.astype(float).tolist(), strict=True))
            for place, path in enumerate(batch.paths):
                if place not in found:
                    results.append(NumberPrediction(path, {}, error=batch.errors.get(place, "cannot be used")))
                    continue
                own = dict(zip(self.columns, found[place], strict=True))
                ends = {
                    name: (value - half, value + half) for (name, value), half in zip(own.items(), halves, strict=False)
                }
                results.append(NumberPrediction(path, own, ends, coverage if halves else None))
        if seen_first is not None and engine in ENGINES:
            self.keep_for_later(seen_first)
        return results

    def half_widths(self, coverage: float | None) -> tuple[float, ...]:
        """Returns half the width of each number's interval; nothing where there are none.

        Args:
            coverage: As :meth:`predict` takes it.
        """
        if coverage is None:
            return ()
        if coverage == COVERAGE and not self.can_state_intervals:  # not asked for by name
            return ()
        return self.residuals.half_widths(coverage)

    @property
    def can_state_intervals(self) -> bool:
        """Whether enough images were held out for intervals of the default coverage."""
        return self.residuals.count >= 9

    @takes_numbers
    def evaluate(
        self,
        source: Any,
        *,
        part: str | None = None,
        coverage: float | None = COVERAGE,
        seed: int = 0,
        engine: str = "auto",
        cache: bool | str | Path = True,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **scan_options: Any,
    ) -> RegressionEvaluation:
        """Measures the regressor on images whose numbers are known.

        Args:
            source: A table, a folder or a pair ``(images, numbers)``, as :func:`resfit.fit` takes them.
            part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
            coverage: Of the intervals whose true coverage is counted; ``None`` for none.
            seed: Of the resamples behind the intervals of the figures.
            engine: As :func:`resfit.engines.create` takes it.
            cache: Where features are kept, as :func:`resfit.fit` takes it.
            batch_size: Images in one pass; ``None`` chooses by their size.
            progress: Called as images get done.
            **scan_options: Further options of :func:`resfit.data.dataset.scan`, such as the columns of a table.

        Raises:
            DataError: No image can be used, or a column is missing.
        """
        images = self.labelled(source, part=part, **scan_options)
        extracted = feature_store.extract(
            self.network(),
            images,
            input_spec=self.input_spec,
            engine=engine,
            cache=cache,
            batch_size=batch_size,
            progress=progress,
        )
        usable = images.subset(extracted.indices)
        known = np.flatnonzero(usable.labelled)
        skipped = privacy.shown_skipped(images, (*images.skipped, *extracted.skipped))
        if not len(known):
            raise DataError(f"at least one image with numbers must be usable. Received: {len(skipped)} unusable ones.")
        kept = usable.subset(known)
        assert kept.values is not None
        predicted = self.head()(np.asarray(extracted.rows)[known])
        return measured(
            kept.values,
            predicted,
            self.columns,
            halves=self.half_widths(coverage),
            coverage=coverage,
            groups=kept.groups,
            paths=kept.paths,
            skipped=skipped,
            notes=(*images.notes, *fitted_images.notes(self.attachment(artifact.FITTED_IMAGES), kept.paths, cache)),
            seed=seed,
        )

    def labelled(self, source: Any, *, part: str | None = None, **scan_options: Any) -> image_sets.ImageSet:
        """Finds images with the numbers that the regressor predicts. Nothing is decoded.

        Args:
            source: As :meth:`evaluate` takes it, or a set of such images.
            part: As :meth:`evaluate` takes it.
            **scan_options: As :meth:`evaluate` takes them.

        Raises:
            DataError: There are none, or a column is missing.
        """
        if (
            scan_options.get("label_column") is None
            and isinstance(source, str | os.PathLike)
            and self._in_table(source)
        ):
            scan_options["label_column"] = ",".join(self.columns)
        images = image_sets.scan(source, numbers=True, **{"reading": self.input_spec.reading, **scan_options})
        if part is not None:
            images = part_of(images, part)
        if images.values is None or images.values.shape[1] != len(self.columns):
            raise DataError(
                f"the images must have the numbers {', '.join(self.columns)}. Received: "
                f"{', '.join(images.value_names)}. Name the columns: label_column (--label-column)."
            )
        return images

    def _in_table(self, source: str | os.PathLike[str]) -> bool:
        return Path(source).is_file()

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the regressor as a folder, whole or not at all; see :meth:`resfit.Classifier.save`."""
        architecture = getattr(self.model, "architecture", None)
        description = {
            "columns": list(self.columns),
            "input": self.input_spec.to_dict(),
            "architecture": None if architecture is None else architecture.to_dict(),
            "recipe": dataclasses.asdict(self.recipe),
            "residuals": self.residuals.to_dict(),
            "metrics": self.metrics,
            "data": self.fingerprint,
            "versions": self.versions,
        }
        artifact.write(Path(path), self.model.save, description, self._attachments, kind=KIND, force=force)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Regressor:
        """Reads a regressor that :meth:`save` or ``resfit fit`` wrote.

        Args:
            path: The folder.

        Raises:
            ArtifactError: It is missing, incomplete, damaged, of another kind or format.
        """
        folder = Path(path)
        description, attachments, sums = artifact.read_with_sums(folder, KIND)
        found = _described(folder, description)
        contract = _contract(folder, found)
        place = stored_network.origin(folder, KIND, sums, lambda: _model(folder, found, contract))
        kept = place is not None and place.record is not None
        return cls(
            None if kept else _model(folder, found, contract),
            found.columns,
            contract,
            found.recipe,
            found.residuals,
            description["metrics"],
            found.data,
            found.versions,
            attachments,
            place,
        )

    def exportable(self) -> Exportable:
        """Returns what an export needs."""
        return Exportable(
            network=self.model,
            outputs=("values",),
            labels=self.columns,
            features=self.recipe.features,
            facts={
                "kind": "regressor",
                "recipe": dataclasses.asdict(self.recipe),
                "metrics": self.metrics,
                "data": self.fingerprint,
                "versions": self.versions,
            },
            tests=tested(self.attachment(artifact.TEST_PREDICTIONS)),
        )

    def arrays(self, predictions: Sequence[NumberPrediction]) -> dict[str, np.ndarray]:
        """Returns predictions as ``"values"``, float32 ``(n, numbers)``."""
        rows = [[prediction.values[name] for name in self.columns] for prediction in predictions]
        return {"values": np.array(rows, np.float32).reshape(len(predictions), len(self.columns))}

    def prediction_table(self, predictions: Sequence[NumberPrediction]) -> TextTable:
        """Returns the numbers of each image, with their intervals where there are any."""
        coverage = next((item.coverage for item in predictions if item.coverage), None)
        columns: list[str] = ["image"]
        rows: list[list[object]] = [[item.path] for item in predictions]
        for name in self.columns:
            columns += [f">{name}", *([f">{coverage:.0%} interval"] if coverage else [])]
            for row, item in zip(rows, predictions, strict=True):
                row.append(f"{item.values[name]:.6g}")
                if coverage:
                    row.append("{:.6g} to {:.6g}".format(*item.intervals[name]))
        return TextTable("", tuple(columns), [tuple(row) for row in rows])

    def card(self) -> list[tuple[str, object]]:
        """Returns what the regressor is, as names and values for people."""
        quality: list[tuple[str, object]] = []
        test = self.metrics.get("test") or {"numbers": []}
        for score in test["numbers"]:
            figures = ", ".join(f"{name.upper()} {_number(score[name]['value'])}" for name in FIGURES)
            quality.append((f"{score['name']}", f"{figures} on {test['n']} test images"))
        intervals = f"from {self.residuals.count} images that were not learned from ({self.residuals.source})"
        return [
            ("predicts", ", ".join(self.columns)),
            ("network", f"{self.recipe.model}, {self.recipe.strategy}"),
            ("input", f"{self.input_spec.channel_order.upper()} at {'x'.join(map(str, self.input_spec.size))}"),
            *quality,
            ("intervals", intervals if self.can_state_intervals else "none: too few images were held out"),
        ]


def measured(
    truth: np.ndarray,
    predicted: np.ndarray,
    columns: Sequence[str],
    *,
    halves: Sequence[float],
    coverage: float | None,
    groups: Sequence[str | None],
    paths: Sequence[Path],
    skipped: Sequence[Any] = (),
    notes: Sequence[str] = (),
    seed: int = 0,
) -> RegressionEvaluation:
    """Compares predicted with true numbers.

    Args:
        truth: Array ``(n, numbers)``.
        predicted: Array of the same shape.
        columns: Names of the numbers.
        halves: Half the width of each number's interval; empty without intervals.
        coverage: What these are to cover.
        groups: For each image its group or ``None``.
        paths: The images.
        skipped: Passed on.
        notes: Passed on.
        seed: Of the resamples.
    """
    grouped = any(group is not None for group in groups)
    figures = regression_figures(truth, predicted, groups=groups if grouped else None, seed=seed)
    scores = []
    for column, (name, found) in enumerate(zip(columns, figures, strict=True)):
        inside = width = None
        if halves:
            inside = float(np.mean(np.abs(predicted[:, column] - truth[:, column]) <= halves[column]))
            width = 2 * halves[column]
        scores.append(NumberScore(name, found["mae"], found["rmse"], found["r2"], inside, width))
    return RegressionEvaluation(
        scores=tuple(scores),
        n=len(truth),
        truth=np.asarray(truth, np.float64),
        predicted=np.asarray(predicted, np.float64),
        paths=tuple(paths),
        coverage=coverage if halves else None,
        grouped=grouped,
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


class _Description(msgspec.Struct):
    columns: list[str]
    input: dict[str, Any]
    architecture: dict[str, Any] | None
    recipe: RegressionRecipe
    residuals: ResidualIntervals
    metrics: dict[str, Any]
    data: str
    versions: dict[str, str]


def _described(folder: Path, description: dict[str, Any]) -> _Description:
    """Returns what a description says, its types and ranges checked."""
    try:
        found = msgspec.convert(description, _Description)
        residuals = found.residuals
        lengths = {len(errors) for errors in residuals.errors} | {len(residuals.ranks)}
        ordered = [list(errors) for errors in (residuals.ranks, *residuals.errors)]
        if not found.columns or len(set(found.columns)) != len(found.columns) or not all(found.columns):
            raise ArtifactError("'columns' must be different names, at least one.")
        if (
            len(residuals.errors) != len(found.columns)
            or len(lengths) != 1
            or any(row != sorted(row) for row in ordered)
        ):
            raise ArtifactError("'residuals' must have ascending errors for each column, one for each rank.")
        if residuals.count < 0 or (
            residuals.ranks and not 1 <= residuals.ranks[0] <= residuals.ranks[-1] == residuals.count
        ):
            raise ArtifactError("'residuals' must have ranks from 1 to 'count'.")
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise ArtifactError(f"{folder / KIND.description} cannot be read: {error} Fit the regressor again.") from error
    return found


def _contract(folder: Path, found: _Description) -> InputSpec:
    """Returns how images become the input, its fields checked."""
    try:
        return InputSpec.from_dict(found.input)
    except Exception as error:
        raise ArtifactError(f"the regressor {str(folder)!r} cannot be read: {error} Fit it again.") from error


def _model(folder: Path, found: _Description, contract: InputSpec) -> keras.Model:
    """Reads the model of a folder whose description has been read."""
    stored_network.prepare_keras()
    from resfit.networks import build, layers

    del layers  # imported so that the layers of its own are registered
    try:
        model = keras_models.load(folder / artifact.MODEL)
        if found.architecture is not None:
            build.attach(model, ArchitectureSpec.from_dict(found.architecture), contract)
        if tuple(model.output_shape)[1:] != (len(found.columns),):
            raise ArtifactError(f"the model must have {len(found.columns)} outputs. Received: {model.output_shape}.")
        if found.recipe.features not in {layer.name for layer in model.layers}:
            raise ArtifactError(f"the model must have a layer {found.recipe.features!r:.100}. Received: none.")
    except Exception as error:
        raise ArtifactError(f"the regressor {str(folder)!r} cannot be read: {error} Fit it again.") from error
    return model


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
