"""OpenVINO, in float32, with weights of float16, or in int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from resfit.engines import int8
from resfit.export.base import FOLDED, ExportJob, Written, image_input, int8_note, scores_output, usage
from resfit.export.images import ENCODED, Images
from resfit.export.verification import Check, difference, rows

PRECISIONS = ("float32", "float16", "int8")
MODULES = ("openvino",)
INT8_MODULES = ("nncf",)
RUNTIME = "openvino"

_FILE = "model.xml"
#: How the network is compiled, so that it computes in float32.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32"}
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_UNMARKED = ("Const", "Parameter", "Result", "Convert", "FakeQuantize", "FakeConvert")
_KEPT = "dynamic:bf16,f16"
#: For the model card.
BFLOAT16 = (
    "`INFERENCE_PRECISION_HINT` is needed: without it OpenVINO computes in bfloat16 on processors that have it (8 bits "
    "of a number instead of 24), and scores have differed by up to 0.07 of the largest there. The operations in the "
    "file are marked to stay in float32 too, but not every release of OpenVINO heeds the mark in every operation."
)
_NO_OPERATIONS = ("Constant", "Parameter", "Result")


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.xml`` and ``model.bin``, labels and temperature in their ``rt_info``."""
    import openvino

    from resfit.engines import openvino as engine
    from resfit.export.plain import sized

    subject = job.subject
    network, way = engine.converted(sized(subject.scores, subject.input_spec))
    notes = [FOLDED, "Any number of images in a batch."]
    if job.precision == "int8":
        floats, kept = int8.sensitive(operations(network), job.share)
        network = int8.quantized(network, job.calibrating, floats=floats, full_range=kept > 0)
        notes.append(int8_note(job, kept))
    if job.precision == "float16":
        notes.append("Weights are stored in float16.")
    network.get_parameters()[0].set_layout(openvino.Layout("NHWC"))
    network.get_results()[0].set_layout(openvino.Layout("NC"))
    network.inputs[0].get_tensor().set_names({"images"})
    network.outputs[0].get_tensor().set_names({subject.output})
    about = {
        "model_type": "Classification" if subject.output == "scores" else "Regression",
        "labels": " ".join(label.replace(" ", "_") for label in subject.labels),
        "temperature": str(subject.temperature),
        "multilabel": str(subject.multilabel),
        "output_raw_scores": "True",
    }
    for key, value in about.items():
        network.set_rt_info(value, ["model_info", key])
    openvino.save_model(network, folder / _FILE, compress_to_fp16=job.precision == "float16")
    keep_float32(folder / _FILE)
    notes.append(BFLOAT16)
    return Written(
        files=(_FILE, "model.bin"),
        input=image_input(job),
        outputs=(scores_output(job),),
        usage=usage(
            job,
            head="import openvino\n",
            load=f'network = openvino.Core().compile_model("{_FILE}", "CPU", {json.dumps(CONFIG)})\n',
            run=f'np.array(network({{"images": images}})["{subject.output}"])',
        ),
        notes=tuple(notes),
        facts={"conversion": way},
    )


def checks(job: ExportJob, folder: Path, images: Images) -> tuple[Check, ...]:
    """Measures what leaving out the precision costs, where the processor knows bfloat16."""
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return ()
    away = without_hint(folder / _FILE, images.checking[:ENCODED])
    return (Check("the scores without INFERENCE_PRECISION_HINT, on the machine that exported it", away, None),)


def without_hint(path: Path, images: np.ndarray) -> float:
    """Returns how far scores are from those of float32 where OpenVINO chooses the precision itself.

    Args:
        path: The model.
        images: ``(n, height, width, channels)``, 0..255.
    """
    import openvino

    core = openvino.Core()

    def scores(config: dict[str, str]) -> np.ndarray:
        network = core.compile_model(path, "CPU", config)

        def run(batch: np.ndarray) -> np.ndarray:
            return np.array(network({"images": batch})[0])

        return rows(run, images)

    return difference(scores({}), scores(CONFIG))


def operations(network: Any) -> list[tuple[str, bool]]:
    """Returns the name of each operation, in the order of their computation, and whether it is a convolution.

    Args:
        network: An ``openvino.Model``.
    """
    kinds = [(operation.get_friendly_name(), operation.get_type_name()) for operation in network.get_ordered_ops()]
    return [(name, kind in _CONVOLUTIONS) for name, kind in kinds if kind not in _NO_OPERATIONS]


def keep_float32(path: Path) -> None:
    """Marks every operation as one whose float32 must not become bfloat16 or float16.

    Both names of the mark are written: today's, and that of releases before 2026. A runtime that knows neither
    ignores them.

    Args:
        path: The model.
    """
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("./layers/layer"):
        if layer.get("type") in _UNMARKED:
            continue
        about = layer.find("rt_info")
        if about is None:
            about = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, about)
        ElementTree.SubElement(about, "attribute", name="precise", version="0")
        ElementTree.SubElement(about, "attribute", name="DisablePrecisionConversion", version="0", value=_KEPT)
    tree.write(path, encoding="utf-8", xml_declaration=True)
