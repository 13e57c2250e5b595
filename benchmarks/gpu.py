"""What resfit does with a GPU: limits, speed beside Keras' own, correctness beside the processor, behaviour in need.

Each part runs in a process of its own, so that none fills another's memory, and all of them in ten minutes at most. The
result is one JSON: the machine, a figure or a reason for each part, and whether what is to hold holds.

    python benchmarks/gpu.py -o gpu.json
    python benchmarks/gpu.py --device cpu --quick      # shows that it runs

To hold: extraction at least 0.9 of what decoding and engine allow; the engine at least Keras' ``predict`` in the same
precision; a training step at least 0.9 of Keras' ``fit(jit_compile=True)``; the recipe's prediction of an epoch within
a factor of 2; features that agree with the processor's (cosine 0.9999 in float32) and weights that do after 20 steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

MOST_SECONDS = 600
COSINE, WEIGHTS = 0.9999, 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        device: As ``device=`` takes it.
        model: Name of the network.
        size: Height and width of the images in pixels.
        batches: Images in a batch.
        seconds: Of each measurement.
        images: Files that are decoded and extracted.
    """

    device: str = "auto"
    model: str = "resnet50"
    size: int = 224
    batches: tuple[int, ...] = (32, 128, 256)
    seconds: float = 4.0
    images: int = 2000


QUICK = {"model": "resnet18", "size": 64, "batches": (4,), "seconds": 0.2, "images": 24}


def network(settings: Settings, **options: Any) -> Any:
    """Returns a network with random weights, which cost as much time as any, one vector an image."""
    import keras

    import resfit

    keras.utils.set_random_seed(0)
    return resfit.load(settings.model, weights=None, include_top=False, pooling="avg", preprocess=True, **options)


def pictures(count: int, size: int) -> np.ndarray:
    """Returns random images with edges and areas, uint8."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, -(-size // 16), -(-size // 16), 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :size, :size]


def written(settings: Settings, folder: Path) -> list[Path]:
    """Writes photos' worth of JPEG files, in two class folders."""
    from PIL import Image

    paths = []
    for number, image in enumerate(pictures(settings.images, 2 * settings.size)):
        noise = np.random.default_rng(number).integers(-20, 20, image.shape)
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


def rate(run: Callable[[], int], seconds: float) -> float:
    """Returns what is done in a second, in calls that each do so much; the first is not counted."""
    run()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds or not done:
        done += run()
    return done / (time.perf_counter() - begin)


def decoding(settings: Settings) -> dict[str, Any]:
    """Images a second that the processors decode."""
    from resfit.data import decode

    contract = dataclasses.replace(network(settings).input_spec, size=(settings.size, settings.size))
    with tempfile.TemporaryDirectory() as folder:
        paths = written(settings, Path(folder))

        def run() -> int:
            return sum(len(batch.images) for batch in decode.decode_many(paths, contract, batch_size=64))

        return {"images_per_second": rate(run, settings.seconds), "files": len(paths), "cores": os.cpu_count()}


def transfer(settings: Settings) -> dict[str, Any]:
    """Bytes a second that go to the device as uint8."""
    import tensorflow as tf

    from resfit import devices

    images = pictures(settings.batches[-1], settings.size)
    with devices.using("auto"):

        def run() -> int:
            return int(tf.reduce_sum(tf.cast(tf.constant(images)[:, 0, 0, 0], tf.int32)) * 0) + images.nbytes

        return {"gigabytes_per_second": rate(run, settings.seconds) / 1e9}


def engine_rates(settings: Settings, precision: str) -> dict[str, Any]:
    """Images a second of the engine and of Keras' predict, in the same precision."""
    import keras

    from resfit import devices, engines
    from resfit.engines.keras import KerasEngine
    from resfit.networks import model_graph

    device = devices.current()
    if not engines.has_precision("keras", precision, device):
        return {"left_out": f"{device.label} does not compute in {precision}"}
    body = network(settings)
    policy = None if precision == "float32" else f"mixed_{precision}"
    plain = body if policy is None else model_graph.copy(body, dtype=policy)
    found: dict[str, Any] = {"precision": precision, "keras_with_xla": policy is not None, "batches": {}}
    plain.compile(jit_compile=policy is not None)
    for batch in settings.batches:
        images = pictures(batch, settings.size)
        rates: dict[str, Any] = {}
        for name, compiled in (("engine", False), ("engine_xla", True)):
            if compiled and device.kind == "cpu":
                continue
            engine = KerasEngine(body, precision, compiled=compiled)

            def run(engine: KerasEngine = engine, images: np.ndarray = images) -> int:
                return sum(len(rows) for _, rows in engine.stream((None, images) for _ in range(8)))

            rates[name] = rate(run, settings.seconds)
        floats = np.concatenate([images] * 8).astype(np.float32)

        def predict(floats: np.ndarray = floats, batch: int = batch) -> int:
            return len(plain.predict(floats, batch_size=batch, verbose=0))

        rates["keras"] = rate(predict, settings.seconds)
        rates["ratio"] = max(rates["engine"], rates.get("engine_xla", 0.0)) / rates["keras"]
        found["batches"][str(batch)] = rates
    keras.backend.clear_session()
    return found


def frozen_float32(settings: Settings) -> dict[str, Any]:
    """Frozen images a second in float32."""
    return engine_rates(settings, "float32")


def frozen_half(settings: Settings) -> dict[str, Any]:
    """Frozen images a second in the format of fewer bits that the card has units for."""
    from resfit import devices

    device = devices.current()
    return engine_rates(settings, "float16" if device.computes("float16") else "bfloat16")


def extraction(settings: Settings) -> dict[str, Any]:
    """Images a second from files to rows on disk."""
    from resfit.features.extract import extract

    body = network(settings)
    contract = dataclasses.replace(body.input_spec, size=(settings.size, settings.size))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        paths = written(settings, Path(folder))
        extract(body, paths[:8], input_spec=contract, engine="keras", cache=False)
        begin = time.perf_counter()
        found = extract(body, paths, input_spec=contract, engine="keras", cache=cache)
        seconds = time.perf_counter() - begin
    return {"images_per_second": found.computed / seconds, "device": dict(found.device), "precision": found.precision}


def trainer_of(settings: Settings, batch: int, *, precision: str = "float32", images: np.ndarray | None = None) -> Any:
    """Returns a trainer of the whole network over images in memory."""
    import keras

    from resfit.networks import model_graph
    from resfit.tasks.classification.objective import ClassObjective
    from resfit.training.feeds import PixelFeed
    from resfit.training.settings import Tuning
    from resfit.training.trainer import Trainer

    images = pictures(2 * batch, settings.size) if images is None else images
    tuning = Tuning(
        epochs=1000, batch_size=batch, optimizer="sgd", learning_rate=1e-3, schedule="constant", precision=precision,
        batch_norm="frozen", trainable_from=0.0,
    )  # fmt: skip
    twin = model_graph.copy(network(settings), dtype=tuning.policy)
    head = keras.layers.Dense(10, dtype="float32", name="predictions")
    model = keras.Model(twin.inputs[0], head(twin.outputs[0]))
    random = np.random.default_rng(1)
    head.set_weights([random.normal(0, 0.01, weight.shape) for weight in head.get_weights()])
    targets = np.eye(10, dtype=np.float32)[np.arange(len(images)) % 10]
    rows = np.arange(len(images))
    objective = ClassObjective(targets, rows, tuning, multilabel=False, teacher=False)
    return Trainer(model, [head], tuning, PixelFeed(images, tuning), objective, targets, rows, rows[:0])


def steps(settings: Settings) -> dict[str, Any]:
    """Training steps a second beside Keras' fit, whole network, norms fixed in both."""
    import keras
    import tensorflow as tf

    from resfit import devices
    from resfit.networks import model_graph
    from resfit.training import speed

    device = devices.current()
    precision = speed.training_precision(device) if device.kind == "gpu" else "float32"
    found: dict[str, Any] = {"precision": precision, "batches": {}}
    for batch in settings.batches[:2]:
        trainer = trainer_of(settings, batch, precision=precision)
        images, targets = trainer.feed.plain(trainer.train[:batch]), trainer.targets[trainer.train[:batch]]

        def run(trainer: Any = trainer, images: Any = images, targets: Any = targets) -> int:
            for _ in range(10):
                last = trainer.take(images, targets)
            last.numpy()
            return 10

        ours = rate(run, settings.seconds)
        model = model_graph.copy(trainer.model)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=device.kind == "gpu")
        data = tf.data.Dataset.from_tensors((images, targets)).repeat(10)

        def fit(model: Any = model, data: Any = data) -> int:
            model.fit(data, verbose=0)
            return 10

        theirs = rate(fit, settings.seconds)
        found["batches"][str(batch)] = {"resfit": ours, "keras": theirs, "ratio": ours / theirs}
    return found


def correctness(settings: Settings) -> dict[str, Any]:
    """Features and weights beside those of the processor; an overflow; a run that is stopped and goes on."""
    from resfit import devices, engines
    from resfit.engines.keras import KerasEngine

    body, batch = network(settings), min(16, settings.batches[0])
    images = pictures(batch, settings.size)
    expected = KerasEngine(body, device=devices.cpu()).run(images)
    cosines = {}
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        if engines.has_precision("keras", precision):
            cosines[precision] = engines.agreement(KerasEngine(body, precision).run(images), expected)

    def trained(device: str, stop: int | None = None) -> list[np.ndarray]:
        with devices.using(device), tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(settings, batch)
            for number in range(20):
                if number == stop:
                    trainer.save(Path(folder))
                    trainer = trainer_of(settings, batch)
                    trainer.restore(Path(folder))
                rows = trainer.train[:batch] if number % 2 else trainer.train[batch : 2 * batch]
                trainer.learn(trainer.feed.plain(rows), trainer.targets[rows])
            return [variable.numpy() for variable in trainer.learned]

    begun = [variable.numpy() for variable in trainer_of(settings, batch).learned]
    here, processor, stopped = trained("auto"), trained("cpu"), trained("auto", stop=10)
    moved = max(float(np.abs(a - b).max()) for a, b in zip(begun, processor, strict=True))
    scaled = trainer_of(settings, batch, precision="mixed_float16")
    inputs, targets = scaled.feed.plain(scaled.train[:batch]), scaled.targets[scaled.train[:batch]]
    before = [variable.numpy() for variable in scaled.learned]
    skipped = float(scaled.take(np.asarray(inputs) * 1e30, targets).numpy()[2])
    kept = all((a == v.numpy()).all() for a, v in zip(before, scaled.learned, strict=True))
    return {
        "cosine_with_the_processor": cosines,
        "weights_after_20_steps": {"largest_difference": _largest(here, processor), "moved_by": moved},
        "overflow": {"skipped": skipped == 0.0, "weights_kept": kept, "scale": float(scaled.scale[0].numpy())},
        "stopped_and_gone_on": {"largest_difference": _largest(here, stopped)},
    }


def _largest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Returns the largest difference, in the units of the largest weight of each variable."""
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in zip(one, other, strict=True))


def prediction(settings: Settings) -> dict[str, Any]:
    """Seconds of an epoch as a recipe predicts them, and as it takes."""
    from resfit.networks import catalog
    from resfit.training import recipes, speed

    batch = recipes.BATCH if settings.images >= 320 else settings.batches[0]
    body = network(settings, input_shape=(settings.size, settings.size, 3))
    machine = speed.hardware(body, cache=False)
    known = recipes.facts_of(catalog.get(settings.model).spec, 10 * batch, 10, (settings.size, settings.size))
    predicted = recipes._epoch_seconds(known, machine, "stage1", 0)
    trainer = trainer_of(settings, batch, precision=machine.policy, images=pictures(10 * batch, settings.size))
    for _ in trainer.epoch_steps():
        pass
    trainer.close_epoch()
    begin = time.perf_counter()
    for _ in trainer.epoch_steps():
        pass
    trainer.read()
    taken = time.perf_counter() - begin
    return {"predicted": predicted, "taken": taken, "ratio": predicted / taken, "measured": bool(machine.training)}


def memory(settings: Settings) -> dict[str, Any]:
    """What becomes of batches that a card of little memory does not hold."""
    import warnings

    import tensorflow as tf

    from resfit import devices
    from resfit.engines.keras import KerasEngine

    if devices.find(settings.device).kind == "cpu":
        return {"left_out": "a processor has no memory of its own"}
    card = tf.config.list_physical_devices("GPU")[devices.current().index]
    tf.config.experimental.set_memory_growth(card, False)
    tf.config.set_logical_device_configuration(card, [tf.config.LogicalDeviceConfiguration(memory_limit=1500)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        engine = KerasEngine(network(settings))
        rows = engine.run(pictures(1024, settings.size))
        trainer = trainer_of(settings, 256)
        loss, _ = trainer.learn(trainer.feed.plain(trainer.train[:256]), trainer.targets[trainer.train[:256]])
    return {
        "rows": len(rows),
        "images_at_once": engine.most,
        "parts_of_a_step": trainer.parts,
        "loss": loss,
        "told": [str(one.message) for one in told],
    }


def fit_alone(settings: Settings) -> dict[str, Any]:
    """A training that fills the card for some seconds; see :func:`beside`."""
    trainer = trainer_of(settings, settings.batches[0])
    images, targets = trainer.feed.plain(trainer.train), trainer.targets
    taken = rate(lambda: bool(trainer.learn(images, targets)), 2 * settings.seconds)
    return {"steps_per_second": taken}


def beside(settings: Settings) -> dict[str, Any]:
    """A server's engine beside a fit on the same card: both live."""
    from resfit import devices, engines

    engine = engines.for_server(network(settings), "keras")
    images = pictures(8, settings.size)
    for count in engines.batch_sizes(engine, 8):
        engine.run(images[:count])
    fit = start("fit_alone", settings)
    times = []
    while fit.poll() is None:
        begin = time.perf_counter()
        engine.run(images)
        times.append(1000 * (time.perf_counter() - begin))
    answer = result_of(fit)
    return {
        "answers": len(times),
        "p50_ms": float(np.percentile(times, 50)),
        "p99_ms": float(np.percentile(times, 99)),
        "fit": answer,
        "device": devices.current().label,
    }


PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    part.__name__: part
    for part in (
        decoding, transfer, frozen_float32, frozen_half, extraction, steps, correctness, prediction, memory, beside,
        fit_alone,
    )
}  # fmt: skip


def start(part: str, settings: Settings) -> subprocess.Popen[str]:
    """Starts a part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--settings", json.dumps(dataclasses.asdict(settings))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str], seconds: float | None = None) -> dict[str, Any]:
    """Returns what a part found, or why it found nothing."""
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"failed": f"not done within {seconds:.0f} s"}
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"failed": (errors.strip().splitlines() or [f"ended with {process.returncode}"])[-1]}


def held(found: dict[str, dict[str, Any]]) -> dict[str, bool | None]:
    """Returns whether what is to hold does; ``None`` where it was not measured."""

    def figure(*path: str) -> float | None:
        value: Any = found
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def ratios(part: str) -> list[float]:
        return [rates["ratio"] for rates in found.get(part, {}).get("batches", {}).values()]

    engine = [rates["engine"] for rates in found.get("frozen_float32", {}).get("batches", {}).values()]
    decoded, extracted = figure("decoding", "images_per_second"), figure("extraction", "images_per_second")
    epoch, difference = figure("prediction", "ratio"), figure("correctness", "weights_after_20_steps",
                                                              "largest_difference")  # fmt: skip
    cosine = figure("correctness", "cosine_with_the_processor", "float32")
    same = [*ratios("frozen_float32"), *ratios("frozen_half")]
    return {
        "extraction at least 0.9 of decoding and engine": (
            None if not engine or decoded is None or extracted is None else extracted >= 0.9 * min(decoded, *engine)
        ),
        "engine at least Keras' predict": min(same) >= 1.0 if same else None,
        "step at least 0.9 of Keras' fit": min(ratios("steps")) >= 0.9 if ratios("steps") else None,
        "epoch within a factor of 2": None if epoch is None else 0.5 <= epoch <= 2.0,
        "float32 agrees with the processor": None if cosine is None else cosine >= COSINE,
        "weights after 20 steps agree": None if difference is None else difference <= WEIGHTS,
    }


def main() -> None:
    """Runs all parts, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default=Settings.model)
    parser.add_argument("--quick", action="store_true", help="show that it runs; its figures mean nothing")
    parser.add_argument("--parts", nargs="*", default=[name for name in PARTS if name != "fit_alone"])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    from resfit import devices

    if asked.part:
        fields = json.loads(asked.settings)
        settings = Settings(**{**fields, "batches": tuple(fields["batches"])})
        devices.choose(settings.device)
        try:
            answer = PARTS[asked.part](settings)
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer))
        return
    settings = Settings(device=asked.device, model=asked.model)
    if asked.quick:
        settings = Settings(device=asked.device, **QUICK)  # type: ignore[arg-type]
    devices.choose(asked.device)
    begin, found = time.monotonic(), {}
    for name in asked.parts:
        left = MOST_SECONDS - (time.monotonic() - begin)
        found[name] = {"failed": "no time was left"} if left < 5 else result_of(start(name, settings), left)
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    result = {
        "machine": devices.current().to_dict(),
        "settings": dataclasses.asdict(settings),
        "quick": asked.quick,
        "parts": found,
        "held": held(found),
        "seconds": time.monotonic() - begin,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
