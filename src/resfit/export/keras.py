"""A ``.keras`` file of Keras' own layers, which loads without resfit and keeps its batch norms for further training."""

from __future__ import annotations

from pathlib import Path

from resfit.errors import ExportError
from resfit.export.base import Job, Written, image_input, scores_output, usage
from resfit.export.verification import Run

PRECISIONS = ("float32",)
MODULES = ("keras",)
INT8_MODULES = ()
RUNTIME = "keras"

_FILE = "model.keras"


def write(job: Job, folder: Path) -> Written:
    """Writes ``model.keras``."""
    from resfit.export.plain import own_layers, plain

    network = plain(job.subject.scores, fold=False)
    left = own_layers(network)
    if left:
        raise ExportError(
            f"a .keras export must load without resfit. Received: a layer that only resfit has, {left[0]!r}. "
            "Take format='tf_saved_model'."
        )
    network.save(folder / _FILE)
    notes = ["Batch norms are kept, so that the network can be trained further."]
    if own_layers(job.subject.scores):
        notes.append("Layers of resfit's own are written as Keras': weight standardisation is part of the kernels.")
    return Written(
        files=(_FILE,),
        input=image_input(job),
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="import keras\n",
            load=f'network = keras.saving.load_model("{_FILE}", compile=False)',
            run="network.predict(images, verbose=0)[0]",
        ),
        notes=tuple(notes),
    )


def load(job: Job, folder: Path) -> Run:
    """Loads it with ``keras.saving.load_model``."""
    import keras

    from resfit.engines.keras import KerasEngine

    return KerasEngine(keras.saving.load_model(folder / _FILE, compile=False)).run
