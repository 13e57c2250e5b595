import importlib.util
import sys

import pytest

from resfit import _moved


def test_every_old_module_has_a_new_one():
    missing = [new for new in {*_moved.MODULES.values(), *_moved.NAMES} if importlib.util.find_spec(new) is None]
    assert missing == []
    assert [old for old in _moved.MODULES if importlib.util.find_spec(old).loader is None] == []


@pytest.mark.parametrize("new", _moved.NAMES)
def test_every_old_name_has_a_new_one(new):
    module = importlib.import_module(new)
    assert [name for name in _moved.NAMES[new].values() if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("resfit.classifier", "Classifier", "resfit.tasks.classification"),
        ("resfit.evaluation.judged", "Judged", "resfit.evaluation.inference"),
        ("resfit.transfer.features", "extract", "resfit.features.extract"),
        ("resfit.checkpoints.readers.npz", "read", "resfit.weights.formats.npz"),
    ],
)
def test_an_old_name_warns_and_is_the_new_one(old, name, new):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {new}"):
        module = importlib.import_module(old)
    renamed = _moved.NAMES.get(new, {}).get(name, name)
    assert getattr(module, name) is getattr(importlib.import_module(new), renamed)


def test_a_name_that_never_was_is_an_error():
    module = importlib.import_module("resfit.classifier")
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018
