"""A detector in each format. What a classifier's export of the same format does beside is in that format's module."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resfit.engines import int8
from resfit.export import litert
from resfit.export.base import ExportJob, Written, image_input, int8_note
from resfit.export.detection.export_detector import ExportDetector
from resfit.export.detection.usage import usage
from resfit.export.openvino import BFLOAT16, CONFIG, keep_float32
from resfit.export.openvino import operations as openvino_operations


def write_onnx(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.onnx``; labels, thresholds and the letterbox are in its metadata."""
    import onnx
    import onnxruntime

    subject = _subject(job)
    path = folder / "model.onnx"
    if "onnx" not in job.kept:  # converted once for all shares of int8
        subject.scores.export(path, format="onnx", verbose=False)
        job.kept["onnx"] = path.read_bytes()
    network = onnx.load_model_from_string(job.kept["onnx"])
    taken = network.graph.input[0].name
    notes = ["Any number of images in a batch."]
    if job.precision == "int8":
        operations = [(node.name, node.op_type == "Conv") for node in network.graph.node]
        floats, kept = int8.sensitive(operations, job.share)
        network = int8.quantized(
            network, job.calibrating, feed=lambda batch: {taken: batch}, floats=floats, full_range=kept > 0
        )
        notes.append(int8_note(job, kept))
    about = {"labels": subject.labels, "input_contract": subject.input_spec.to_dict(), **subject.about()}
    onnx.helper.set_model_props(network, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(network, path)
    del onnxruntime  # imported so that its absence is told before the code of the card is run
    return Written(
        files=(path.name,),
        input=image_input(job, taken),
        outputs=subject.described_outputs(),
        usage=usage(
            job,
            head="import onnxruntime\n",
            load=f'session = onnxruntime.InferenceSession("{path.name}", providers=["CPUExecutionProvider"])\n'
            "names = [output.name for output in session.get_outputs()]",
            run=f'dict(zip(names, session.run(names, {{"{taken}": images}})))',
        ),
        notes=tuple(notes),
    )


def write_openvino(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.xml`` and ``model.bin``; labels are in their ``rt_info``."""
    import openvino

    from resfit.engines import openvino as engine

    subject = _subject(job)
    network = engine.traced(subject.scores)
    notes = ["Any number of images in a batch."]
    if job.precision == "int8":
        floats, kept = int8.sensitive(openvino_operations(network), job.share)
        network = int8.quantized(network, job.calibrating, floats=floats, full_range=kept > 0)
        notes.append(int8_note(job, kept))
    if job.precision == "float16":
        notes.append("Weights are stored in float16.")
    network.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(network.outputs, subject.outputs, strict=True):
        output.get_tensor().set_names({name})
    about = {"model_type": "Detection", "labels": " ".join(label.replace(" ", "_") for label in subject.labels)}
    for key, value in about.items():
        network.set_rt_info(value, ["model_info", key])
    path = folder / "model.xml"
    openvino.save_model(network, path, compress_to_fp16=job.precision == "float16")
    keep_float32(path)
    notes.append(BFLOAT16)
    return Written(
        files=(path.name, "model.bin"),
        input=image_input(job),
        outputs=subject.described_outputs(),
        usage=usage(
            job,
            head="import openvino\n",
            load=f'network = openvino.Core().compile_model("{path.name}", "CPU", {json.dumps(CONFIG)})\n'
            f"names = {list(subject.outputs)}",
            run='{name: np.array(value) for value, name in zip(network({"images": images}).to_tuple(), names)}',
        ),
        notes=tuple(notes),
    )


def write_litert(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.tflite`` with a signature, labels and metadata in the file."""
    from resfit.export import litert_metadata
    from resfit.export.plain import plain

    subject = _subject(job)
    network = plain(subject.scores, fold=False)
    data, notes = litert.converted(job, network)
    path = folder / "model.tflite"
    meanings = {output["name"]: output["meaning"] for output in subject.described_outputs()}
    path.write_bytes(litert_metadata.added(data, subject, meanings))
    return Written(
        files=(path.name,),
        input=image_input(job),
        outputs=subject.described_outputs(),
        usage=usage(
            job,
            head="from ai_edge_litert.interpreter import Interpreter\n",
            load=f"""\
interpreter = Interpreter("{path.name}")
network = interpreter.get_signature_runner("serving_default")
""",
            run="network(images=images)",
        ),
        notes=tuple(notes),
        facts={"signatures": {litert_metadata.SIGNATURE: {"inputs": ["images"], "outputs": list(subject.outputs)}}},
    )


def write_saved_model(job: ExportJob, folder: Path) -> Written:
    """Writes ``NAME/VERSION/`` with the signature ``serving_default``."""
    import tensorflow as tf

    from resfit.export.plain import plain

    subject = _subject(job)
    network = plain(subject.scores, fold=False)
    spec = tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32, name="images")

    def detect(images: Any) -> dict[str, Any]:
        return dict(network(tf.ensure_shape(images, spec.shape), training=False))

    module = tf.train.Checkpoint()
    module.variables = [weight.value for weight in network.weights]
    function = tf.function(detect, autograph=False, input_signature=[spec])
    place = f"{subject.name}/{job.version}"
    tf.saved_model.save(module, str(folder / place), signatures={"serving_default": function})
    return Written(
        files=(place,),
        input=image_input(job),
        outputs=subject.described_outputs(),
        usage=usage(
            job,
            head="import tensorflow as tf\n",
            load=f'network = tf.saved_model.load("{place}")',
            run='{name: value.numpy() for name, value in network.signatures["serving_default"]'
            "(images=tf.constant(images)).items()}",
        ),
        notes=(
            "The weights are not meant to be trained further.",
            f"TensorFlow Serving: mount `{subject.name}/` as the model's base path; its REST API then answers at "
            f"`/v1/models/{subject.name}:predict`.",
        ),
        facts={"signatures": {"serving_default": {"inputs": ["images"], "outputs": list(subject.outputs)}}},
    )


def write_keras(job: ExportJob, folder: Path) -> Written:
    """Writes ``model.keras`` of Keras' own layers and operations."""
    from resfit.export.detection.plain_layers import without_resfit

    subject = _subject(job)
    network, notes = without_resfit(subject)
    path = folder / "model.keras"
    network.save(path)
    taken = image_input(job)
    return Written(
        files=(path.name,),
        input=taken,
        outputs=subject.described_outputs(),
        usage=usage(
            job,
            head="import keras\nimport tensorflow as tf\n",
            load=f"""\
network = keras.saving.load_model("{path.name}", compile=False)
run = tf.function(network, input_signature=[tf.TensorSpec({tuple(taken["shape"])}, tf.float32)])
""",
            run="{name: value.numpy() for name, value in run(images).items()}",
        ),
        notes=("Batch norms are kept, so that the network can be trained further.", *notes),
    )


#: By format, what writes a detector.
WRITERS: dict[str, Callable[[ExportJob, Path], Written]] = {
    "tf_saved_model": write_saved_model,
    "onnx": write_onnx,
    "openvino": write_openvino,
    "litert": write_litert,
    "keras": write_keras,
}


def _subject(job: ExportJob) -> ExportDetector:
    assert isinstance(job.subject, ExportDetector)
    return job.subject
