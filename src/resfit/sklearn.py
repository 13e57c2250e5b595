"""Classifiers and regressors of images with scikit-learn's manners, for its pipelines and its model selection.

``X`` is an array of images ``(n, height, width, 3)``, a list of paths, bytes or PIL images, or a column of paths of a
table. Constructors do no work, ``fit`` learns on all images that it is given (scikit-learn measures elsewhere), and
what is learned ends in an underscore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from resfit.data import arrays, inputs
from resfit.errors import ArgumentError
from resfit.preprocessing import InputSpec

__all__ = ["ImageClassifier", "ImageRegressor"]


class _ImageEstimator(BaseEstimator):
    """What both have in common.

    Args:
        model: As :func:`resfit.fit` takes it.
        strategy: As :func:`resfit.fit` takes it.
        random_state: Seed of all that is random; ``None`` is 0.
        cache: Where features are kept, as :func:`resfit.fit` takes it: a cross-validation computes them once.
        options: Further arguments of :func:`resfit.fit`.
    """

    def __init__(
        self,
        model: str = "resnet10_tiny",
        *,
        strategy: str = "probe",
        random_state: int | None = None,
        cache: bool | str = True,
        options: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.strategy = strategy
        self.random_state = random_state
        self.cache = cache
        self.options = options

    def __sklearn_tags__(self) -> Any:
        """Says what it takes: images, numbers of no two axes, and texts."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True
        tags.non_deterministic = False
        return tags

    def _fit(self, images: Any, labels: Any, task: str) -> None:
        from resfit.tasks import dispatch

        usual = {"check": False, "references": False, "max_skipped": 0.0, "test_share": 0.0}
        given = {**usual, **(self.options or {})}
        if task == "regression":
            given.pop("references")
        self.model_: Any = dispatch.fit(
            (images, labels),
            task=task,
            model=self.model,
            strategy=self.strategy,
            seed=self.random_state or 0,
            cache=self.cache,
            **given,
        )
        self.n_features_in_ = _features_of(images)
        if hasattr(images, "columns"):
            self.feature_names_in_ = np.asarray([str(name) for name in images.columns], object)

    def embed(self, X: Any) -> np.ndarray:
        """Returns the features of images under the network, float32 ``(n, features)``.

        Args:
            X: As :meth:`fit` takes it.
        """
        check_is_fitted(self, "model_")
        return np.asarray(self.model_.embed(_images(X), cache=self.cache).features)


class ImageClassifier(ClassifierMixin, _ImageEstimator):
    """Classifies images: :func:`resfit.fit` as an estimator of scikit-learn.

    Args:
        model: As :func:`resfit.fit` takes it.
        strategy: As :func:`resfit.fit` takes it.
        random_state: Seed of all that is random; ``None`` is 0.
        cache: Where features are kept, as :func:`resfit.fit` takes it: a cross-validation computes them once.
        options: Further arguments of :func:`resfit.fit`, such as ``{"head": "knn"}``.

    Attributes:
        classes_: The classes, in the order of :meth:`predict_proba`.
        model_: The :class:`resfit.Classifier`.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> cross_val_score(ImageClassifier(), paths, labels)  # doctest: +SKIP
        array([0.95, 0.97, 0.96, 0.94, 0.96])
    """

    def fit(self, X: Any, y: Any) -> ImageClassifier:
        """Learns classes.

        Args:
            X: Images, ``(n, height, width, 3)`` or a list of ``n`` (see the module).
            y: Their classes, ``(n,)``: texts or whole numbers.

        Raises:
            ArgumentError: They differ in number, or are no images or classes.
        """
        images = _images(X)
        names = column_or_1d(np.asarray(y))
        check_consistent_length(images, names)
        self.classes_, codes = np.unique(names, return_inverse=True)
        if len(self.classes_) < 2:
            raise ArgumentError(f"at least two classes are needed. Received: {len(self.classes_)} class.")
        width = len(str(len(self.classes_)))  # so that the order of the texts is that of the classes
        self._fit(images, [f"{code:0{width}}" for code in codes], "classification")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns probabilities, float32 ``(n, classes)``, in the order of ``classes_``.

        Args:
            X: As :meth:`fit` takes it.

        Raises:
            DataError: An image cannot be used.
        """
        check_is_fitted(self, "model_")
        return np.asarray(self.model_.predict_proba(_images(X)))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most likely class of each image, ``(n,)``.

        Args:
            X: As :meth:`fit` takes it.

        Raises:
            DataError: An image cannot be used.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]


class ImageRegressor(RegressorMixin, _ImageEstimator):
    """Predicts a number or several of images: :func:`resfit.fit` with ``task="regression"`` as an estimator.

    Args:
        model: As :func:`resfit.fit` takes it.
        strategy: As :func:`resfit.fit` takes it.
        random_state: Seed of all that is random; ``None`` is 0.
        cache: Where features are kept, as :func:`resfit.fit` takes it.
        options: Further arguments of :func:`resfit.fit`.

    Attributes:
        model_: The :class:`resfit.Regressor`.
    """

    def fit(self, X: Any, y: Any) -> ImageRegressor:
        """Learns numbers.

        Args:
            X: As :meth:`ImageClassifier.fit` takes it.
            y: Numbers, ``(n,)`` or ``(n, numbers)``.

        Raises:
            ArgumentError: They differ in number, or are no images or numbers.
        """
        images = _images(X)
        numbers = np.asarray(y, np.float64)
        check_consistent_length(images, numbers)
        self._is_flat = numbers.ndim == 1
        self._fit(images, numbers, "regression")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the number of each image, ``(n,)`` or ``(n, numbers)`` as in :meth:`fit`.

        Args:
            X: As :meth:`fit` takes it.

        Raises:
            DataError: An image cannot be used.
        """
        check_is_fitted(self, "model_")
        found = self.model_.predict(_images(X), coverage=None)
        broken = next((item for item in found if item.error), None)
        if broken is not None:
            raise ArgumentError(f"every image must be readable. Received: {broken.path}: {broken.error}.")
        values = np.array([list(item.values.values()) for item in found])
        return values[:, 0] if self._is_flat else values


def _images(X: Any) -> Any:
    """Returns images as resfit takes them: an array of numbers, or a list."""
    if hasattr(X, "columns"):
        if len(X.columns) != 1:
            raise ArgumentError(f"X must be one column of images. Received: {len(X.columns)} columns.")
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X[X.columns[0]]
    if hasattr(X, "tocsr"):
        raise ArgumentError("X must be images. Received: a sparse matrix, which is none.")
    if not isinstance(X, list | tuple):
        array = arrays.as_array(X)
        if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "OUS":  # a column, as pipelines hand it over
            array = array[:, 0]
        X = array.tolist() if array.ndim == 1 and array.dtype.kind in "OUS" else array
    if not isinstance(X, list | tuple):
        if X.ndim not in (3, 4) or not len(X):
            raise ArgumentError(
                "X must be images, an array (n, height, width, channels) or a list of paths, bytes or PIL images. "
                f"Received: shape {X.shape}."
            )
        channels = X.shape[3] if X.ndim == 4 else 1
        known = InputSpec(channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        return list(inputs.listed(X, known).items)
    if not X:
        raise ArgumentError("X must be at least one image. Received: none.")
    return list(X)


def _features_of(images: Any) -> int:
    """Returns the number of values of an image where all have one size, as scikit-learn counts them; otherwise 1."""
    values = getattr(images[0], "values", None)
    return int(values.size) if values is not None else 1
