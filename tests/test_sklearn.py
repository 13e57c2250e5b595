"""scikit-learn's manners: its own checks as far as images allow, pipelines, and model selection."""

import inspect

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from resfit.errors import ArgumentError
from resfit.sklearn import ImageClassifier, ImageRegressor
from tests.pictures import COLOURS, picture, write_folder

NAMES = sorted(COLOURS)
X = np.stack([picture(name, seed) for name in NAMES for seed in range(6)])
Y = np.repeat(NAMES, 6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


#: Checks of scikit-learn that need no data of theirs, which are tables of numbers and never images.
WITHOUT_DATA = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_valid_tag_types",
    "check_estimator_tags_renamed",
)


@pytest.mark.parametrize("kind", [ImageClassifier, ImageRegressor])
@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_scikit_learns_own_checks_without_data(kind, name):
    check = getattr(estimator_checks, name)
    check(kind.__name__, kind())


def test_every_parameter_is_kept_as_it_was_given_and_cloned():
    options = {"head": "knn"}
    first = ImageClassifier("resnet50", strategy="full", random_state=3, cache=False, options=options)
    assert first.get_params()["options"] is options
    assert clone(first).get_params() == first.get_params()
    names = set(inspect.signature(ImageClassifier.__init__).parameters) - {"self"}
    assert set(first.get_params()) == names


def test_it_learns_and_says_what_it_learned(cache):
    found = ImageClassifier(cache=cache)
    with pytest.raises(NotFittedError):
        found.predict(X)
    before = X.copy()
    assert found.fit(X, Y) is found
    np.testing.assert_array_equal(X, before)
    assert found.classes_.tolist() == NAMES
    assert found.predict(X).tolist() == Y.tolist()
    probabilities = found.predict_proba(X)
    assert probabilities.shape == (18, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert found.score(X, Y) == 1.0
    assert found.model_.metrics["images"]["train"] == 18  # all of them: scikit-learn measures elsewhere
    again = clone(found).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(X), probabilities)
    np.testing.assert_allclose(found.predict_proba(X[::-1])[::-1], probabilities, atol=1e-5)
    np.testing.assert_allclose(found.predict_proba(X[:1]), probabilities[:1], atol=1e-5)


def test_classes_keep_their_type_and_order(cache):
    numbers = np.array([10, 9, 2])[np.repeat([0, 1, 2], 6)]
    found = ImageClassifier(cache=cache).fit(list(X), numbers)
    assert found.classes_.tolist() == [2, 9, 10]
    assert found.predict(list(X)).tolist() == numbers.tolist()
    assert found.predict(X).dtype == numbers.dtype


def test_two_classes_of_few_images_are_learned(cache):
    chosen = [0, 1, 2, 6, 7, 8]
    found = ImageClassifier(cache=cache).fit(X[chosen], Y[chosen] == NAMES[0])
    assert found.classes_.tolist() == [False, True]
    assert found.score(X[chosen], Y[chosen] == NAMES[0]) == 1.0


def test_paths_columns_and_pipelines(cache, tmp_path):
    write_folder(tmp_path, 6)
    paths = [str(path) for path in sorted(tmp_path.rglob("*.png"))]
    expected = ImageClassifier(cache=cache).fit(paths, Y).predict_proba(paths)
    for images in (np.array(paths), pd.DataFrame({"photo": paths}), pd.Series(paths), np.array(paths)[:, None]):
        found = ImageClassifier(cache=cache).fit(images, Y)
        np.testing.assert_array_equal(found.predict_proba(images), expected)
    mirrored = make_pipeline(FunctionTransformer(lambda images: images[:, :, ::-1]), ImageClassifier(cache=cache))
    assert mirrored.fit(X, Y).score(X, Y) == 1.0


def test_model_selection(cache):
    folds = StratifiedKFold(3)
    assert cross_val_score(ImageClassifier(cache=cache), X, Y, cv=folds).tolist() == [1.0, 1.0, 1.0]
    grid = {"options": [{"head": "linear"}, {"head": "nearest_mean"}]}
    search = GridSearchCV(ImageClassifier(cache=cache), grid, cv=folds).fit(X, Y)
    assert search.best_score_ == 1.0


def test_numbers(cache):
    brightness = X.mean(axis=(1, 2, 3))
    found = ImageRegressor(cache=cache).fit(X, brightness)
    assert found.predict(X).shape == (18,)
    assert found.score(X, brightness) > 0.9
    two = ImageRegressor(cache=cache).fit(X, np.stack([brightness, -brightness], axis=1))
    assert two.predict(X).shape == (18, 2)


def test_what_is_no_image_or_does_not_go_together_is_refused(cache):
    for images, labels, text in (
        (np.zeros((6, 4)), Y[:6], "Received: shape"),
        (X, Y[:3], "inconsistent"),
        (X[:6], Y[:6], "at least two classes"),
        (X[:0], Y[:0], "Received"),
        (np.full((18, 24, 24, 3), np.nan), Y, "finite"),
    ):
        with pytest.raises(ValueError, match=text):
            ImageClassifier(cache=cache).fit(images, labels)
    with pytest.raises(ArgumentError, match="one column"):
        ImageClassifier(cache=cache).fit(pd.DataFrame({"a": ["x"], "b": ["y"]}), ["c"])
