"""The reusable SavedModels of TensorFlow Hub: ``feature_vector/`` and ``classification/``.

They take images 0..1, as TensorFlow Hub's own do, keep their batch norms and can be trained further. The
classification gives logits, divided by the temperature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resfit.export.base import ExportJob, Written, image_input, usage
from resfit.export.images import ENCODED, Images
from resfit.export.verification import Check, difference, rows

PRECISIONS = ("float32",)
MODULES = ("tensorflow",)
INT8_MODULES = ()
RUNTIME = "tensorflow"

_FEATURES = "feature_vector"
_CLASSES = "classification"


def write(job: ExportJob, folder: Path) -> Written:
    """Writes both SavedModels."""
    from resfit.export.plain import sized
    from resfit.hub.publish import publish

    contract = job.subject.input_spec
    publish(sized(job.subject.body, contract), folder / _FEATURES, value_range=(0.0, 1.0))
    publish(sized(job.subject.logits, contract), folder / _CLASSES, value_range=(0.0, 1.0))
    width, count = int(job.subject.body.output_shape[-1]), len(job.subject.labels)
    turn = "tf.nn.sigmoid" if job.subject.multilabel else "tf.nn.softmax"
    return Written(
        files=(_CLASSES, _FEATURES),
        input=image_input(job, "inputs", values=[0, 1]),
        outputs=(
            {
                "name": "outputs",
                "of": _CLASSES,
                "dtype": "float32",
                "axes": ["batch", "label"],
                "shape": [None, count],
                "meaning": "logits",
            },
            {
                "name": "outputs",
                "of": _FEATURES,
                "dtype": "float32",
                "axes": ["batch", "feature"],
                "shape": [None, width],
                "meaning": "features",
            },
        ),
        usage=usage(
            job,
            head="import tensorflow as tf\n",
            load=f'network = tf.saved_model.load("{_CLASSES}")  # tensorflow_hub.load does the same\n',
            run=f"{turn}(network(tf.constant(images / 255))).numpy()",
        ),
        notes=("Images have values 0..1 here, and the classification gives logits, as TensorFlow Hub's models do.",),
    )


def checks(job: ExportJob, folder: Path, images: Images) -> tuple[Check, ...]:
    """Compares features and logits with Keras', in :mod:`resfit.hub` and, where it is installed, in tensorflow_hub."""
    from resfit import hub
    from resfit.engines.keras import KerasEngine

    some = images.checking[:ENCODED]
    loaders: dict[str, Any] = {"resfit.hub": hub.KerasLayer}
    theirs = _tensorflow_hub()
    if theirs is not None:
        loaders["tensorflow_hub"] = theirs.load
    found = []
    for what, part, model in (("features", _FEATURES, job.subject.body), ("logits", _CLASSES, job.subject.logits)):
        expected = rows(KerasEngine(model).once, some)
        for name, loader in loaders.items():
            received = np.asarray(loader(str(folder / part))(some.astype(np.float32) / 255))
            found.append(Check(f"{what} in {name}", difference(received, expected)))
    return tuple(found)


def _tensorflow_hub() -> Any:
    try:
        import tensorflow_hub
    except ImportError:  # not there, or without the setuptools that it needs
        return None
    return tensorflow_hub
