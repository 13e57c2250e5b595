"""ONNX, for ONNX Runtime and what reads its format (browsers included), in float32 or int8."""

from __future__ import annotations

import json
from pathlib import Path

from resfit.engines import int8
from resfit.export.base import FOLDED, ExportJob, Written, image_input, int8_note, scores_output, usage

PRECISIONS = ("float32", "int8")
MODULES = ("onnx", "onnxruntime", "tf2onnx")
INT8_MODULES = ("nncf",)
RUNTIME = "onnxruntime"

_FILE = "model.onnx"


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.onnx``, labels and temperature in its metadata."""
    import onnx

    from resfit.engines import onnxruntime as engine
    from resfit.export.plain import sized

    network, way = engine.converted(sized(job.subject.scores, job.subject.input_spec), job.subject.output)
    taken, given = network.graph.input[0].name, network.graph.output[0].name
    notes = [FOLDED, "Any number of images in a batch."]
    if job.precision == "int8":
        operations = [(node.name, node.op_type == "Conv") for node in network.graph.node]
        floats, kept = int8.sensitive(operations, job.share)
        network = int8.quantized(
            network, job.calibrating, feed=lambda batch: {taken: batch}, floats=floats, full_range=kept > 0
        )
        notes.append(int8_note(job, kept))
    onnx.helper.set_model_props(
        network,
        {
            "name": job.subject.name,
            "labels": json.dumps(job.subject.labels),
            "temperature": json.dumps({"value": job.subject.temperature, "applied": True}),
            "input_contract": json.dumps(job.subject.input_spec.to_dict()),
        },
    )
    onnx.checker.check_model(network)
    onnx.save(network, folder / _FILE)
    return Written(
        files=(_FILE,),
        input=image_input(job, taken),
        outputs=(scores_output(job, given),),
        usage=usage(
            job,
            head="import onnxruntime\n",
            load=f'session = onnxruntime.InferenceSession("{_FILE}", providers=["CPUExecutionProvider"])\n',
            run=f'session.run(["{given}"], {{"{taken}": images}})[0]',
        ),
        notes=tuple(notes),
        facts={"conversion": way},
    )
