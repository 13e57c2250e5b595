"""How fast the engines are on this machine: each in a process of its own, so that none warms or fills another's."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import devices, engines
from resfit.devices import Device
from resfit.engines import prefix
from resfit.engines.base import RUNTIMES
from resfit.errors import ArgumentError, ResfitError

if TYPE_CHECKING:
    import keras

_FEWEST_RUNS = 5
_PEAK_SIDE = 1536
_PEAK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One engine with one batch size.

    Attributes:
        model: Name or source of the network, which ends in its pooled features.
        engine: The engine.
        precision: Number format of its arithmetic.
        batch: Images in a batch.
        size: Height and width of the images in pixels.
        throughput: Images a second while batches follow one another without a gap.
        p50: Median time of one batch alone, from array to array, in milliseconds.
        p99: The time that 99 of 100 batches keep to, in milliseconds.
        memory: Resident memory that the engine took beside the Keras network, in MB; ``None`` where the platform does
            not say.
        gflops: Arithmetic done, in 10^9 operations a second: two for each multiply-accumulate of the network.
        peak_share: The same as a share of the machine's peak, see :func:`peak_gflops`, 0..1; ``None`` where that peak
            is not known, as a card's is not. It is measured in float32: other formats have one of their own, several
            times as high on some processors. Where float32 itself passes it, other programs disturbed its measurement.
        start: Seconds from the Keras network to the first result, the conversion included.
        device: What computed, as ``device=`` calls it.
        problem: Why there are no figures; empty if there are.
    """

    model: str
    engine: str
    precision: str
    batch: int
    size: tuple[int, int] = (0, 0)
    throughput: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    memory: float | None = None
    gflops: float | None = None
    peak_share: float | None = None
    start: float = 0.0
    device: str = "cpu"
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "size": list(self.size)}


def available() -> tuple[str, ...]:
    """Returns the engines whose packages are installed."""
    return tuple(name for name in ("keras", *RUNTIMES) if name == "keras" or engines.is_installed(name))


def measure(
    models: Sequence[str],
    *,
    names: Sequence[str] = (),
    precisions: Sequence[str] = (),
    batches: Sequence[int] = (1, 8, 32),
    size: int | None = None,
    seconds: float = 3.0,
    threads: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Iterator[Measurement]:
    """Measures networks on engines, in float32 and int8, at several batch sizes.

    A network of the catalog has random weights, since they do not change the speed; nothing is downloaded. Images are
    random, decoded, and in memory: what is measured is the network alone.

    Args:
        models: Names, or sources that :func:`resfit.load` takes.
        names: Engines; none for all that are installed.
        precisions: Some of :data:`resfit.engines.PRECISIONS`; none for all, int8 where NNCF is installed. Engines are
            left out where they do not have one.
        batches: Images in a batch.
        size: Height and width of the images in pixels; ``None`` takes the network's own.
        seconds: Time of each measurement.
        threads: As :func:`resfit.engines.create` takes it.
        seed: Seed of weights and images.
        device: What Keras runs on, as :func:`resfit.devices.find` takes it; the other engines have the processor alone.

    Returns:
        An iterator of measurements, which come one after the other as they are made. A case that cannot be measured
        has a ``problem``.

    Raises:
        ArgumentError: An argument is outside its choices.
    """
    found = devices.find(device)
    names = tuple(names) or available()
    for name in names:
        engines.check_name(name)
    for precision in precisions:
        engines.check_precision(precision)
    for what, numbers in (("batch", batches), ("seconds", [seconds]), ("size", [size or 1])):
        if not numbers or min(numbers) <= 0:
            raise ArgumentError(f"{what} must be positive. Received: {list(numbers)}.")
    if not precisions:
        without = () if importlib.util.find_spec("nncf") is not None else ("int8",)
        if engines.resolve("auto", "bfloat16", found).precision != "bfloat16":  # Keras has it, slowly
            without = (*without, "bfloat16")
        precisions = tuple(precision for precision in engines.PRECISIONS if precision not in without)
    return _measurements(models, names, precisions, sorted(set(batches)), size, seconds, threads, seed, device)


def cases(names: Sequence[str], precisions: Sequence[str], device: Device | None = None) -> list[tuple[str, str]]:
    """Returns the pairs of engine and precision that exist.

    Args:
        names: Engines.
        precisions: Some of :data:`resfit.engines.PRECISIONS`.
        device: What Keras runs on; ``None`` is :func:`resfit.devices.current`.
    """
    return [(name, form) for name in names for form in precisions if engines.has_precision(name, form, device)]


def peak_gflops(threads: int | None = None) -> float:
    """Measures what the processor can do at most in float32, in 10^9 operations a second.

    It is the best rate, over a second, at which numpy's BLAS multiplies two matrices of 1536 x 1536, counting two
    operations for each multiply-accumulate. Such a product fits into the caches and does nothing else, which is why no
    network gets there.

    Args:
        threads: Number of threads; ``None`` is one a core.
    """
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(0)
    a, b = (random.normal(size=(_PEAK_SIDE, _PEAK_SIDE)).astype(np.float32) for _ in range(2))
    out = np.empty_like(a)
    best = float("inf")
    with threadpool_limits(threads):
        end = time.perf_counter() + _PEAK_SECONDS
        while time.perf_counter() < end:
            begin = time.perf_counter()
            np.matmul(a, b, out=out)
            best = min(best, time.perf_counter() - begin)
    return 2 * _PEAK_SIDE**3 / best / 1e9


def _measurements(
    models: Sequence[str],
    names: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int],
    size: int | None,
    seconds: float,
    threads: int | None,
    seed: int,
    device: str,
) -> Iterator[Measurement]:
    peak = 0.0
    for model in models:
        for name, precision in cases(names, precisions, devices.find(device)):
            peak = max(peak, peak_gflops(threads))  # again, since other programs may have disturbed the first
            asked = {
                "model": str(model),
                "engine": name,
                "precision": precision,
                "batches": list(batches),
                "size": size,
                "seconds": seconds,
                "threads": threads,
                "seed": seed,
                "device": device,
            }
            found = _in_a_process(asked)
            peak = max(peak, peak_gflops(threads))
            for fields in found:
                share = peak_share(fields.get("gflops"), precision, peak) if fields["device"] == "cpu" else None
                yield Measurement(**{**fields, "size": tuple(fields["size"]), "peak_share": share})


def peak_share(gflops: float | None, precision: str, peak: float) -> float | None:
    """Returns arithmetic as a share of the peak in float32; ``None`` where that says nothing.

    Args:
        gflops: Arithmetic done, in 10^9 operations a second; ``None`` if it is not known.
        precision: Its number format.
        peak: As :func:`peak_gflops` measured it.
    """
    if gflops is None or precision != "float32" or not 0 < gflops <= peak:
        return None
    return gflops / peak


def _in_a_process(asked: dict[str, Any]) -> list[dict[str, Any]]:
    program = [sys.executable, "-m", "resfit.engines.benchmark"]
    done = subprocess.run(program, input=json.dumps(asked), capture_output=True, text=True)
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(done.stdout.splitlines()[-1])
        if isinstance(answer, list):
            return answer
    lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
    return [_unmeasured(asked, batch, lines[-1]) for batch in asked["batches"]]


def _unmeasured(asked: dict[str, Any], batch: int, problem: str) -> dict[str, Any]:
    return Measurement(asked["model"], asked["engine"], asked["precision"], batch, problem=problem).to_dict()


def _measure_here(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures one engine at every batch size, in this process."""
    import keras

    devices.choose(asked["device"])
    keras.utils.set_random_seed(asked["seed"])
    body = _body(asked["model"])
    side = asked["size"]
    size = (side, side) if side else tuple(body.input_spec.size)
    images = _images(max(*asked["batches"], 48), size, body.input_spec.channels, asked["seed"])
    before = _resident()
    begin = time.perf_counter()
    engine = engines.create(
        body,
        asked["engine"],
        precision=asked["precision"],
        samples=images[:48] if asked["precision"] == "int8" else None,
        threads=asked["threads"],
    )
    engine.run(images[:1])
    start = time.perf_counter() - begin
    if (engine.name, engine.precision) != (asked["engine"], asked["precision"]) and asked["engine"] != "auto":
        problem = f"fell back to {engine.name} in {engine.precision}"
        return [_unmeasured(asked, batch, problem) for batch in asked["batches"]]
    macs = engines.macs_per_image(body, size)
    found = []
    for batch in asked["batches"]:
        times = _latencies(functools.partial(engine.run, images[:batch]), asked["seconds"] / 2)
        throughput = _throughput(engine, images[:batch], asked["seconds"] / 2)
        after = _resident()
        found.append(
            Measurement(
                model=asked["model"],
                engine=engine.name,
                precision=engine.precision,
                batch=batch,
                size=size,
                throughput=throughput,
                p50=1000 * float(np.percentile(times, 50)),
                p99=1000 * float(np.percentile(times, 99)),
                memory=None if after is None or before is None else (after - before) / 2**20,
                gflops=None if macs is None else 2 * macs * throughput / 1e9,
                start=start,
                device=getattr(engine, "device", devices.cpu()).label,
            ).to_dict()
        )
    return found


def _body(model: str) -> keras.Model:
    from resfit import zoo
    from resfit.networks import catalog

    if model in catalog.rows():
        return zoo.load(model, weights=None, include_top=False, pooling="avg", preprocess=True)
    return engines.cut(zoo.load(model), prefix.POOLED)


def _images(count: int, size: tuple[int, int], channels: int, seed: int) -> np.ndarray:
    """Returns random images with edges and areas, as uint8: pure noise would be no fair calibration."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, -(-size[0] // 16), -(-size[1] // 16), channels), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)[:, : size[0], : size[1]]


def _latencies(run: Callable[[], Any], seconds: float) -> list[float]:
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _FEWEST_RUNS or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def _throughput(engine: engines.Engine, images: np.ndarray, seconds: float) -> float:
    begin = time.perf_counter()

    def batches() -> Iterator[tuple[int, np.ndarray]]:
        number = 0
        while number < _FEWEST_RUNS or time.perf_counter() - begin < seconds:
            yield number, images
            number += 1

    count = sum(len(rows) for _, rows in engines.stream(engine, batches()))
    return count / (time.perf_counter() - begin)


def _resident() -> int | None:
    """Returns the resident memory of this process in bytes."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _main() -> None:
    asked = json.load(sys.stdin)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        answer = _measure_here(asked)
    except (ResfitError, OSError) as error:
        answer = [_unmeasured(asked, batch, " ".join(str(error).split())) for batch in asked["batches"]]
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
