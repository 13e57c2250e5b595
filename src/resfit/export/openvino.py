"""OpenVINO, in float32, with weights of float16, or in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resfit.engines import int8
from resfit.export.base import FOLDED, Job, Written, image_input, int8_note, scores_output, usage
from resfit.export.verification import Run

PRECISIONS = ("float32", "float16", "int8")
MODULES = ("openvino",)
INT8_MODULES = ("nncf",)
RUNTIME = "openvino"

_FILE = "model.xml"
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_NO_OPERATIONS = ("Constant", "Parameter", "Result")


def write(job: Job, folder: Path) -> Written:
    """Writes ``model.xml`` and ``model.bin``, labels and temperature in their ``rt_info``."""
    import openvino

    from resfit.engines import openvino as engine

    subject = job.subject
    network, way = engine.converted(subject.scores)
    notes = [FOLDED, "Any number of images in a batch."]
    if job.precision == "int8":
        kinds = [(operation.get_friendly_name(), operation.get_type_name()) for operation in network.get_ordered_ops()]
        operations = [(name, kind in _CONVOLUTIONS) for name, kind in kinds if kind not in _NO_OPERATIONS]
        floats, kept = int8.sensitive(operations, job.share)
        network = int8.quantized(network, job.calibrating, floats=floats, full_range=kept > 0)
        notes.append(int8_note(job, kept))
    if job.precision == "float16":
        notes.append("Weights are stored in float16.")
    network.inputs[0].get_tensor().set_names({"images"})
    network.outputs[0].get_tensor().set_names({"scores"})
    about = {
        "model_type": "Classification",
        "labels": " ".join(label.replace(" ", "_") for label in subject.labels),
        "temperature": str(subject.temperature),
        "multilabel": str(subject.several),
        "output_raw_scores": "True",
    }
    for key, value in about.items():
        network.set_rt_info(value, ["model_info", key])
    openvino.save_model(network, folder / _FILE, compress_to_fp16=job.precision == "float16")
    return Written(
        files=(_FILE, "model.bin"),
        input=image_input(job),
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="import openvino\n",
            load=f'network = openvino.Core().compile_model("{_FILE}", "CPU")',
            run='network({"images": images})["scores"][0]',
        ),
        notes=tuple(notes),
        facts={"conversion": way},
    )


def load(job: Job, folder: Path) -> Run:
    """Loads it with OpenVINO; float32 is computed with in float32, on processors too that know shorter formats."""
    import openvino

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(folder / _FILE, "CPU", config)
    return lambda images: np.array(network({"images": images})["scores"])
