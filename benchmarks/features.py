"""Features of images by resfit and by Keras, both sides in turn in one run; prints one ratio.

    python benchmarks/features.py imagenet-samples.tar.gz                       # float32, from files to features
    python benchmarks/features.py imagenet-samples.tar.gz --precision int8
    python benchmarks/features.py imagenet-samples.tar.gz --against engine      # files against decoded arrays
    python benchmarks/features.py --store                                       # opening a million rows, and memory

ResNet-50 with random weights and statistics at 224x224. The images are crops of those in the archive, 400 JPEG files
about as large as the originals. Both sides are warm: what is measured is the rate at which features come, not the
start, whose seconds are printed beside. The order is A B B A, as often as --rounds says; the ratio is the median over
the rounds. On a machine that does other work too, processor time is the steadier figure.

--against predict   `keras.predict` on a `tf.data` pipeline from the same files (image_dataset_from_directory)
--against arrays    `keras.predict` on arrays that are decoded already, and resfit on the same arrays
--against engine    resfit's engine on arrays: what reading and decoding cost. At least 0.9 means that it is fed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


def write_images(archive: Path, folder: Path, count: int) -> list[Path]:
    """Writes crops of the archive's images as JPEG files of their own."""
    from PIL import Image

    random = np.random.default_rng(0)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "originals", filter="data")
    originals = sorted(path for path in (folder / "originals").rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = []
    for number in range(count):
        with Image.open(originals[number % len(originals)]) as image:
            width, height = image.size
            left, top = (int(random.integers(0, max(1, side // 20))) for side in (width, height))
            crop = image.convert("RGB").crop((left, top, width - left // 2, height - top // 2))
        path = folder / "images" / f"class{number % 10}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=92)
        paths.append(path)
    return paths


@dataclasses.dataclass
class Side:
    """What was measured of one side: images a second, and milliseconds of processor time an image, round by round."""

    rates: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)

    def time(self, work: Callable[[], int]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        count = work()
        self.rates.append(count / (time.perf_counter() - wall))
        self.cpu.append(1000 * (time.process_time() - cpu) / count)

    def __str__(self) -> str:
        return (
            f"{statistics.median(self.rates):.1f} images/s ({min(self.rates):.1f} to {max(self.rates):.1f}), "
            f"{statistics.median(self.cpu):.1f} ms of processor time an image"
        )


def in_turn(first: Callable[[], int], second: Callable[[], int], rounds: int) -> tuple[Side, Side, float]:
    """Measures both sides A B B A, and returns them with the median of the rounds' ratios."""
    sides, ratios = (Side(), Side()), []
    for _ in range(rounds):
        for side in (0, 1, 1, 0):
            sides[side].time((first, second)[side])
        ratios.append(sum(sides[0].rates[-2:]) / sum(sides[1].rates[-2:]))
    return *sides, statistics.median(ratios)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    import keras
    from tests.numeric import randomize

    import resfit
    from resfit import engines
    from resfit.data.decode import decode_many
    from resfit.features.extract import extract

    paths = write_images(arguments.archive, folder, arguments.images)
    body = randomize(resfit.load("resnet50", weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3)))
    batches = [batch.images for batch in decode_many(paths, body.input_spec, batch_size=32)]
    arrays = np.concatenate(batches)

    begin = time.perf_counter()
    samples = arrays[:: max(1, len(arrays) // 48)]
    fast = engines.create(
        body, "openvino", precision=arguments.precision, samples=samples, threads=arguments.threads, cache=folder
    )
    fast.run(arrays[:8])
    print(f"start of the engine: {time.perf_counter() - begin:.1f} s ({fast.name}, {fast.precision})", file=sys.stderr)

    def from_files() -> int:
        return len(extract(body, paths, engine=fast, cache=False).rows)

    def from_arrays() -> int:
        return sum(len(rows) for _, rows in engines.stream(fast, enumerate(batches)))

    def keras_from_files() -> int:
        dataset = keras.utils.image_dataset_from_directory(
            folder / "images",
            labels=None,
            image_size=(224, 224),
            batch_size=32,
            shuffle=False,
            crop_to_aspect_ratio=True,
            verbose=False,
        )
        return len(body.predict(dataset, verbose=0))

    def keras_from_arrays() -> int:
        return len(body.predict(arrays, verbose=0))

    name, ours, theirs = {
        "predict": ("keras.predict from files", from_files, keras_from_files),
        "arrays": ("keras.predict from arrays", from_arrays, keras_from_arrays),
        "engine": ("the engine alone", from_files, from_arrays),
    }[arguments.against]
    ours(), theirs()
    first, second, ratio = in_turn(ours, theirs, arguments.rounds)
    print(f"resfit: {first}\n{name}: {second}", file=sys.stderr)
    print(f"{ratio:.2f}")


def store() -> None:
    """Prints how long a store of a million rows takes to open, and what 50,000 images cost in memory."""
    from resfit.features.store import _RECORD, FeatureStore, StoreKey, _record_crcs

    count, width = 1_000_000, 2048
    with tempfile.TemporaryDirectory() as folder:
        key = StoreKey("ab" * 32, {})
        place = Path(folder, key.digest[:32])
        place.mkdir()
        records = np.zeros(count, _RECORD)
        records["digest"] = np.frombuffer(np.random.default_rng(0).bytes(32 * count), "V32")
        records["record_crc"] = _record_crcs(records)
        (place / "index.bin").write_bytes(records.tobytes())
        with open(place / "rows.f32", "wb") as file:
            file.truncate(count * width * 4)  # a hole: what counts is the index
        digests = [digest.tobytes() for digest in records["digest"]]
        begin = time.perf_counter()
        opened = FeatureStore(Path(folder), key, width)
        middle = time.perf_counter()
        rows = opened.rows(digests)
        end = time.perf_counter()
        print(f"{len(opened):,} rows of {width} floats: opened in {middle - begin:.2f} s, "
              f"all {len(rows):,} found in {end - middle:.2f} s")  # fmt: skip
    peaks = [_peak(count) for count in (1_000, 50_000)]
    print(f"peak memory: {peaks[0]:.0f} MB with 1,000 images, {peaks[1]:.0f} MB with 50,000: "
          f"{peaks[1] - peaks[0]:+.0f} MB")  # fmt: skip


def _peak(count: int) -> float:
    """Returns the peak memory in MB of a process that extracts features of so many small images."""
    program = """
import resource, sys, tempfile
from pathlib import Path
import numpy as np
from PIL import Image
from resfit.features.extract import extract
from tests.pictures import tiny_body
count = int(sys.argv[1])
class Engine:
    name = precision = "float32"
    def run(self, images):
        return np.repeat(images.mean(axis=(1, 2)), 683, axis=1)[:, :2048].astype("float32")
with tempfile.TemporaryDirectory() as folder:
    random = np.random.default_rng(0)
    paths = [Path(folder, f"{n:06}.png") for n in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path, compress_level=0)
    import keras
    body = tiny_body(size=16)
    wide = keras.Model(body.inputs, keras.layers.Dense(2048)(body.output))
    features = extract(wide, paths, engine=Engine(), input_spec=body.input_spec, cache=Path(folder, "cache"))
    assert features.rows.shape == (count, 2048)
# memory of its own: pages of mapped files belong to the system
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] / 1024)
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    done = subprocess.run([sys.executable, "-c", program, str(count)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, nargs="?", help="tar archive of JPEG files")
    parser.add_argument("--precision", choices=["float32", "int8"], default="float32")
    parser.add_argument("--against", choices=["predict", "arrays", "engine"], default="predict")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    if arguments.store:
        store()
        return
    if arguments.archive is None:
        parser.error("an archive of images is needed")
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


if __name__ == "__main__":
    main()
