"""Whole Keras models from untrusted ``.keras`` files: what a file asks for is checked before any of it is made."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.errors import CheckpointError
from resfit.weights.formats import keras_archive

if TYPE_CHECKING:
    import keras

# A network may have so many times the numbers of its file, and so many more: seeds and states that are not saved, and
# parts that several places share.
_MOST_TIMES, _SPARE = 4, 100_000
# Layers whose weights come from elsewhere.
_FROM_ELSEWHERE = "resfit>KerasLayer"


def load(path: Path) -> keras.Model:
    """Opens a ``.keras`` file in Keras' safe mode, in memory that its size bounds. Layers of resfit must be registered.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is damaged, or asks for more than it holds. (Keras raises many other kinds.)
    """
    import keras

    config, numbers = keras_archive.check(path)
    wanted = _numbers_wanted(config)
    if wanted > _MOST_TIMES * numbers + _SPARE:
        raise CheckpointError(f"a network must have its weights in its file. Received: {wanted}, with {numbers} there.")
    return keras.saving.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Lets layers be made whose variables have shapes and no values, and are never given any.

    Keras would otherwise allocate them all where the next scope ends, whoever opens it.
    """
    import keras
    from keras.src.backend.common import global_state

    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(name, before)


def _numbers_wanted(config: Any) -> int:
    """Returns how many weights a configuration asks for, without making any; 0 where Keras cannot build it so."""
    import keras

    try:
        with shapes_alone():
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
            found = {id(variable): math.prod(variable.shape) for variable in model.variables}
            for layer in getattr(model, "_flatten_layers", list)():
                if keras.saving.get_registered_name(type(layer)) == _FROM_ELSEWHERE:
                    found.update({id(variable): 0 for variable in layer.variables})
    except MemoryError:
        raise
    except Exception:  # loading meets the same error, and says what it is
        return 0
    return sum(found.values())
