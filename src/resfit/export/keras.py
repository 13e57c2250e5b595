"""A ``.keras`` file of Keras' own layers, which loads without resfit and keeps its batch norms for further training."""

from __future__ import annotations

from pathlib import Path

from resfit.errors import ExportError
from resfit.export.base import ExportJob, Written, image_input, scores_output, usage

PRECISIONS = ("float32",)
MODULES = ("tensorflow",)
INT8_MODULES = ()
RUNTIME = "keras"

_FILE = "model.keras"


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.keras``."""
    from resfit.export.plain import own_layers, plain, sized

    network = sized(plain(job.subject.scores, fold=False), job.subject.input_spec)
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
    taken = image_input(job)
    return Written(
        files=(_FILE,),
        input=taken,
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="import keras\nimport tensorflow as tf\n",
            load=f"""\
network = keras.saving.load_model("{_FILE}", compile=False)
run = tf.function(network, input_signature=[tf.TensorSpec({tuple(taken["shape"])}, tf.float32)])
""",
            run="run(images).numpy()",
        ),
        notes=tuple(notes),
    )
