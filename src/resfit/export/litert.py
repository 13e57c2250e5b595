"""LiteRT (TensorFlow Lite), in float32, with weights of float16, or in int8; metadata and labels in the file."""

from __future__ import annotations

from pathlib import Path

from resfit.engines import int8
from resfit.errors import ExportError
from resfit.export.base import FOLDED, Job, Written, image_input, int8_note, scores_output, usage
from resfit.export.verification import Run

PRECISIONS = ("float32", "float16", "int8")
MODULES = ("tensorflow", "ai_edge_litert", "flatbuffers")
INT8_MODULES = ()
RUNTIME = "ai-edge-litert"

_FILE = "model.tflite"


def write(job: Job, folder: Path) -> Written:
    """Writes ``model.tflite`` for images of the contract's size."""
    from resfit.engines import litert as engine
    from resfit.export import litert_metadata
    from resfit.export.plain import fixed, plain

    notes = ["One image by default; `resize_tensor_input` takes more.", FOLDED]
    network = fixed(plain(job.subject.scores, fold=True), job.subject.input_spec.size)
    if job.precision == "int8":
        if "quantize" not in job.kept:  # calibrated once for all shares
            job.kept["quantize"] = engine.quantizer(network, job.calibrating)
            job.kept["operations"] = litert_metadata.operations(job.kept["quantize"](()))
        floats, kept = int8.sensitive(job.kept["operations"], job.share)
        data = job.kept["quantize"](floats)
        notes.append(int8_note(job, kept))
    else:
        data = engine.converted(network, half=job.precision == "float16")
    if job.precision == "float16":
        notes.append("Weights are stored in float16; the CPU computes in float32.")
    foreign = litert_metadata.foreign_operations(data)
    if foreign:
        raise ExportError(
            f"a LiteRT export must run on LiteRT's own operations. Received: {', '.join(foreign)}. Take another format."
        )
    (folder / _FILE).write_bytes(litert_metadata.added(data, job.subject))
    return Written(
        files=(_FILE,),
        input=image_input(job),
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="from ai_edge_litert.interpreter import Interpreter\n",
            load=f"""\
interpreter = Interpreter("{_FILE}")
interpreter.allocate_tensors()


def classify(images):
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

""",
            run="classify(images)[0]",
        ),
        notes=tuple(notes),
    )


def load(job: Job, folder: Path) -> Run:
    """Loads it with LiteRT's interpreter, as the engine does."""
    from resfit.engines.litert import LiteRtEngine

    return LiteRtEngine(folder, file=_FILE).run
