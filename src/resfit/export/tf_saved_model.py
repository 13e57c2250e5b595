"""A SavedModel in the layout of TensorFlow Serving: ``NAME/VERSION/``.

Signatures: ``serving_default`` (float images to ``scores`` and ``classes``), ``serving_bytes`` (encoded JPEG or PNG to
the same), ``features`` (float images to what the head reads) and ``decode`` (encoded files to the images that the
network gets). Batch norms are folded into the convolutions, since TensorFlow does not do that on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resfit.export.base import FOLDED, ExportJob, Written, image_input, scores_output, usage
from resfit.export.images import ENCODED, Images, png
from resfit.export.verification import Check, difference, rows

PRECISIONS = ("float32",)
MODULES = ("tensorflow",)
INT8_MODULES = ()
RUNTIME = "tensorflow"


def write(job: ExportJob, folder: Path) -> Written:
    """Writes ``NAME/VERSION/``."""
    import keras
    import tensorflow as tf

    from resfit.export import decoding
    from resfit.export.plain import plain, sized

    subject = job.subject
    both = keras.Model(
        subject.scores.inputs[0], [subject.scores.outputs[0], subject.scores.get_layer(subject.features).output]
    )
    network = sized(plain(both, fold=True), subject.input_spec)
    labels = tf.constant([label.encode("utf-8", "replace") for label in subject.labels])
    images = tf.TensorSpec((None, *network.inputs[0].shape[1:]), tf.float32, name="images")
    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")

    def run(batch: Any) -> Any:
        # a signature's shape is not checked when it is called, and the network would take any
        batch = tf.ensure_shape(batch, images.shape)
        count = tf.shape(batch)[0]
        # TensorFlow's convolutions give wrong shapes of no images where oneDNN computes them: one stands in for none
        some = tf.cond(count > 0, lambda: batch, lambda: tf.zeros(tf.concat([[1], tf.shape(batch)[1:]], 0)))
        return [output[:count] for output in network(tf.ensure_shape(some, images.shape), training=False)]

    def answer(batch: Any) -> dict[str, Any]:
        scores = tf.cast(run(batch)[0], tf.float32)
        return {subject.output: scores, "classes": tf.tile(labels[None], (tf.shape(scores)[0], 1))}

    signatures: dict[str, tuple[Callable[..., Any], tf.TensorSpec]] = {
        "serving_default": (lambda images: answer(images), images),
        "features": (lambda images: {"features": run(images)[1]}, images),
    }
    by_files = decoding.supports(subject.input_spec)
    if by_files:

        def decoded(image_bytes: Any) -> Any:
            return decoding.decode_batch(image_bytes, subject.input_spec)

        signatures["serving_bytes"] = (
            lambda image_bytes: answer(tf.cast(decoded(image_bytes), tf.float32)),
            encoded,
        )
        signatures["decode"] = (lambda image_bytes: {"images": decoded(image_bytes)}, encoded)

    module = tf.train.Checkpoint()
    module.variables = [weight.value for weight in network.weights]
    functions = {
        name: tf.function(function, autograph=False, input_signature=[spec])
        for name, (function, spec) in signatures.items()
    }
    tf.saved_model.save(module, str(_place(job, folder)), signatures=functions)
    return Written(
        files=(f"{subject.name}/{job.version}",),
        input=image_input(job),
        outputs=(
            scores_output(job),
            {"name": "classes", "dtype": "string", "meaning": f"labels of the {subject.output}"},
        ),
        usage=_usage(job, by_files),
        facts={"signatures": _signatures(job, by_files)},
        notes=(
            f"{FOLDED} The weights are not meant to be trained further.",
            f"TensorFlow Serving: mount `{subject.name}/` as the model's base path; "
            f"its REST API then answers at `/v1/models/{subject.name}:predict`.",
        ),
    )


def checks(job: ExportJob, folder: Path, images: Images) -> tuple[Check, ...]:
    """Compares features with Keras', and decoding and scores of encoded files with resfit's own."""
    import tensorflow as tf

    from resfit.data import decode
    from resfit.engines.keras import KerasEngine
    from resfit.export import decoding

    some = images.checking[:ENCODED]
    features = np.asarray(_signature(job, folder, "features")(images=_tensor(some))["features"])
    found = [Check("features", difference(features, rows(KerasEngine(job.subject.body).once, some)))]
    if not decoding.supports(job.subject.input_spec):
        return tuple(found)
    files = list(images.encoded.values()) or [png(image) for image in some[:4]]
    pixels = np.stack([decode.decode_image(data, job.subject.input_spec) for data in files])
    batch = tf.constant(files)
    inside = np.asarray(_signature(job, folder, "decode")(image_bytes=batch)["images"])
    levels = np.abs(inside.astype(np.int64) - pixels).max()
    found.append(Check("decoded images", float(levels), decoding.TOLERANCE, "of 255"))
    served = np.asarray(_signature(job, folder, "serving_bytes")(image_bytes=batch)[job.subject.output])
    again = rows(KerasEngine(job.subject.scores).once, inside)
    found.append(Check(f"{job.subject.output} of encoded images", difference(served, again)))
    return tuple(found)


def _place(job: ExportJob, folder: Path) -> Path:
    return folder / job.subject.name / str(job.version)


def _signature(job: ExportJob, folder: Path, name: str) -> Any:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(_place(job, folder)))
    signature = loaded.signatures[name]
    return lambda **given: (loaded, signature(**given))[1]  # the variables live as long as what was loaded


def _tensor(images: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.constant(images, tf.float32)


def _signatures(job: ExportJob, by_files: bool) -> dict[str, Any]:
    from resfit.export import decoding

    found: dict[str, Any] = {
        "serving_default": {"inputs": ["images"], "outputs": [job.subject.output, "classes"]},
        "features": {
            "inputs": ["images"],
            "outputs": ["features"],
            "shape": [None, int(job.subject.body.output_shape[-1])],
        },
    }
    if by_files:
        decoded = {
            "inputs": ["image_bytes"],
            "takes": "JPEG or PNG as encoded bytes, any size",
            "pixel_tolerance": decoding.TOLERANCE,
        }
        found["serving_bytes"] = {**decoded, "outputs": [job.subject.output, "classes"]}
        found["decode"] = {**decoded, "outputs": ["images"]}
    return found


def _usage(job: ExportJob, by_files: bool) -> str:
    more = """
# the photo as it is, decoded and resized in the network
answer = network.signatures["serving_bytes"](image_bytes=tf.io.read_file("photo.jpg")[None])
best = int(tf.argmax(answer["scores"][0]))
print(answer["classes"][0, best].numpy().decode(), float(answer["scores"][0, best]))
"""
    if job.subject.output != "scores":
        start = more.index("best =")
        more = f'{more[:start]}print(answer["{job.subject.output}"][0].numpy())\n'
    return usage(
        job,
        head="import tensorflow as tf\n",
        load=f'network = tf.saved_model.load("{job.subject.name}/{job.version}")\n',
        run=f'network.signatures["serving_default"](images=tf.constant(images))["{job.subject.output}"].numpy()',
        more=more if by_files else "",
    )
