"""Workers beside one process, in one run: images a second and processor time an image of `resfit scale`.

Pictures of noise are written once. One process embeds them with all processors, then workers with the same processors
in all, through a network of random weights; of each the rate between its first and last shard is taken, so that what it
takes to start has no part in it, and the processor time of all its processes, less that of the run of a third of the
images.

A process that knows the state of 100,000 shards is weighed, and it is timed how long a run of 1,000 shards takes to see
that there is nothing to do; both lists of images are made up.

    python benchmarks/scale.py [--images 600] [--model resnet50] [--workers 2] [--part all|workers|driver]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import resfit
from resfit import processors, scale


def write_pictures(folder: Path, count: int) -> Path:
    """Writes JPEGs of 400 x 300 pixels."""
    from PIL import Image

    for number in range(count):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        target = folder / f"{number % 2}" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC).save(target, quality=90)
    return folder


def processor_time(run: str, workers: int, threads: int) -> float:
    """Does a run in a process of its own; returns the processor time of all its processes."""
    program = "import sys; from resfit.cli import main; main.run(sys.argv[1:])"
    options = ["--workers", str(workers), "--threads", str(threads), "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", program, "scale", "run", run, *options], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))


def measured(run: str, workers: int, threads: int, begin: str) -> dict[str, float]:
    """Returns the steady rate of a run, and its processor time for the images that a shorter one has not."""
    seconds = processor_time(run, workers, threads) - processor_time(begin, workers, threads)
    plan = scale.load(run)
    ends = sorted(os.stat(Path(run) / "shards" / name).st_mtime for name in plan.folder.names("shards"))
    steady = ends[workers:]  # the first shards wait for the network
    shard = plan.images / plan.shards
    return {
        "rate": shard * (len(steady) - 1) / (steady[-1] - steady[0]),
        "processor": seconds,
    }


_PLANNED = """
import resource, sys
from resfit import scale
from resfit.scale import planning
from resfit.scale.folder import RunFolder
from resfit.scale.listing import Item
place, count, done = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begun = planning.Plan(place, "s3://b", "embed", "m", "f" * 64, "0", {}, 0, 0, 0)
shards = ([Item(f"s3://b/{n}.jpg", f"s3://b/{n}.jpg", 100_000, "v")] for n in range(count))
planning._write(RunFolder(place), begun, shards)
plan = scale.load(place)
for number in range(done):
    plan.folder.write("shards/" + plan.output(number), b"")
assert int(plan.done().sum()) == scale.status(plan).done == done
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def driver(place: Path) -> dict[str, float]:
    """Returns the memory of a process that plans 100,000 shards, and the time to find 1,000 done ones done."""

    def planned(name: str, *counts: int) -> float:
        command = [sys.executable, "-c", _PLANNED, str(place / name), *map(str, counts)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    size = planned("many", 100_000, 1000)
    planned("done", 1000, 1000)
    program = "import sys; from resfit.cli import main; main.run(sys.argv[1:])"
    times = {}
    for name, words in (
        ("start", ["scale", "run", "--help"]),
        ("run", ["scale", "run", str(place / "done"), "--json"]),
    ):
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", program, *words], check=True, stdout=subprocess.DEVNULL)
        times[name] = time.monotonic() - begin
    return {
        "megabytes_of_a_driver_of_100000_shards": round(size),
        "seconds_to_find_1000_shards_done": round(times["run"], 2),
        "seconds_of_that_to_start": round(times["start"], 2),
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--images", type=int, default=600)
    asked.add_argument("--model", default="resnet50")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--shards", type=int, default=12)
    asked.add_argument("--part", choices=("all", "workers", "driver"), default="all")
    given = asked.parse_args()
    if given.part != "workers":
        with tempfile.TemporaryDirectory(prefix="resfit-scale-") as place:
            print(json.dumps(driver(Path(place)), indent=2), flush=True)
    if given.part == "driver":
        return
    there = processors.available()
    with tempfile.TemporaryDirectory(prefix="resfit-scale-") as place:
        photos = write_pictures(Path(place) / "photos", given.images)
        size = -(-given.images // given.shards)
        network = Path(place) / "network.keras"
        resfit.load(given.model, weights=None, include_top=False, pooling="avg").save(network)
        one, several = (
            scale.plan(photos, Path(place) / name, model=network, engine="openvino", shard_images=size)
            for name in ("one", "several")
        )
        few = write_pictures(Path(place) / "few", given.images // 3)
        begins = [
            scale.plan(few, Path(place) / f"begin{workers}", model=network, engine="openvino", shard_images=size)
            for workers in (1, given.workers)
        ]
        alone = measured(one.url, 1, there, begins[0].url)
        together = measured(several.url, given.workers, there // given.workers, begins[1].url)
        same = all(
            one.folder.read(f"shards/{name}") == several.folder.read(f"shards/{name}")
            for name in one.folder.names("shards")
        )
    print(
        json.dumps(
            {
                "images": given.images,
                "images_a_second_of_one_process": round(alone["rate"], 2),
                "images_a_second_of_workers": round(together["rate"], 2),
                "rate_of_workers_to_one_process": round(together["rate"] / alone["rate"], 3),
                "processor_time_of_workers_to_one_process": round(together["processor"] / alone["processor"], 3),
                "same_bytes": same,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
