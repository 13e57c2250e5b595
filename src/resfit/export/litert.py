"""LiteRT (TensorFlow Lite), in float32, with weights of float16, or in int8; metadata and labels in the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resfit.engines import int8
from resfit.errors import ExportError
from resfit.export.base import FOLDED, ExportJob, Written, image_input, int8_note, scores_output, usage

if TYPE_CHECKING:
    import keras

PRECISIONS = ("float32", "float16", "int8")
MODULES = ("tensorflow", "ai_edge_litert", "flatbuffers")
INT8_MODULES = ()
RUNTIME = "ai-edge-litert"

_FILE = "model.tflite"


def converted(job: ExportJob, network: keras.Model) -> tuple[bytes, list[str]]:
    """Returns a network in LiteRT's format, and what is to be said of it.

    Args:
        job: The export, which says the precision.
        network: A network of plain layers.

    Raises:
        ExportError: It needs operations that LiteRT's own runtime lacks.
    """
    from resfit.engines import litert as engine
    from resfit.export import litert_metadata

    notes = ["The signature `serving_default` takes any number of images; `resize_tensor_input` does too."]
    if job.precision == "int8":
        if "quantize" not in job.kept:  # calibrated once for all shares
            job.kept["quantize"] = engine.quantizer(network, job.calibrating, one_size=True)
            job.kept["operations"] = litert_metadata.operations(job.kept["quantize"](()))
        floats, kept = int8.sensitive(job.kept["operations"], job.share)
        data = job.kept["quantize"](floats)
        notes.append(int8_note(job, kept))
    else:
        data = engine.converted(network, half=job.precision == "float16", one_size=True)
    if job.precision == "float16":
        notes.append("Weights are stored in float16; the CPU computes in float32.")
    foreign = litert_metadata.foreign_operations(data)
    if foreign:
        raise ExportError(
            f"a LiteRT export must run on LiteRT's own operations. Received: {', '.join(foreign)}. Take another format."
        )
    return data, notes


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.tflite`` for images of the contract's size."""
    from resfit.export import litert_metadata
    from resfit.export.plain import fixed, plain

    contract = job.subject.input_spec
    network = fixed(plain(job.subject.scores, fold=True), contract.size)
    data, notes = converted(job, network)
    (folder / _FILE).write_bytes(litert_metadata.added(data, job.subject, _described(job)))
    return Written(
        files=(_FILE,),
        input=image_input(job, shape=[None, *contract.size, contract.channels]),
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="from ai_edge_litert.interpreter import Interpreter\n",
            load=f"""\
interpreter = Interpreter("{_FILE}")
network = interpreter.get_signature_runner("serving_default")
""",
            run=f'network(images=images)["{job.subject.output}"]',
        ),
        notes=(FOLDED, *notes),
        facts={"signatures": {litert_metadata.SIGNATURE: {"inputs": ["images"], "outputs": [job.subject.output]}}},
    )


def _described(job: ExportJob) -> dict[str, str] | None:
    """What the output is, where it is no score."""
    return None if job.subject.output == "scores" else {job.subject.output: job.subject.meaning}
