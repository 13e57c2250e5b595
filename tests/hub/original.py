"""Runs :mod:`tests.hub.cases` in a process of ``tensorflow_hub`` and Keras 2; their results go to two files.

Usage: ``python -m tests.hub.original FOLDERS.json RESULTS_WITHOUT_SUFFIX``, or ``… tutorial`` and the arguments of
:mod:`tests.hub.tutorial`, or ``… resolve HANDLE…``.
"""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np


def imported():
    """Imports the original, with the one function that it wants of a ``pkg_resources`` that setuptools dropped."""
    if "pkg_resources" not in sys.modules:
        import packaging.version

        stand_in = types.ModuleType("pkg_resources")
        stand_in.parse_version = packaging.version.parse
        sys.modules["pkg_resources"] = stand_in
    import tensorflow_hub
    import tf_keras

    return tensorflow_hub, tf_keras


def run(hub, keras, folders):
    """Returns arrays by ``case/name`` and the classes of exceptions by case."""
    from tests.hub import cases

    cases._trained.keras = keras
    arrays, errors = {}, {}
    for name, function in cases.CASES.items():
        keras.utils.set_random_seed(0)
        for key, value in function(hub, keras, folders).items():
            arrays[f"{name}/{key}"] = np.asarray(value)
    for name, function in cases.ERRORS.items():
        try:
            function(hub, folders)
            errors[name] = []
        except Exception as error:
            errors[name] = [kind.__name__ for kind in type(error).__mro__]
    return arrays, errors


def resolved(path: Path) -> str:
    """What resfit makes of a handle that is a path; for the fuzzing, which hands over a ``Path``."""
    from resfit.hub import resolver

    return resolver.resolve(str(path))


def main() -> None:
    hub, keras = imported()
    if sys.argv[1] == "resolve":
        print(*(hub.resolve(handle) for handle in sys.argv[2:]))
        return
    if sys.argv[1] == "tutorial":
        del sys.argv[1]
        runpy.run_path(str(Path(__file__).with_name("tutorial.py")), run_name="__main__")
        return
    from tests.hub import saved_models

    folders = json.loads(Path(sys.argv[1]).read_text())
    saved_models.keras_2(Path(folders["keras_2"]))
    found, raised = run(hub, keras, folders)
    np.savez(sys.argv[2] + ".npz", **found)
    Path(sys.argv[2] + ".json").write_text(json.dumps(raised))


if __name__ == "__main__":
    main()
