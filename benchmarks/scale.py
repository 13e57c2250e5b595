"""Workers beside one process, in one run: images a second and processor time an image of `resfit scale`.

Pictures of noise are written once. One process embeds them with all processors, then workers with the same processors
in all, through a network of random weights; of each the rate between its first and last shard is taken, so that what it
takes to start has no part in it, and the processor time of all its processes, less that of a run of one image a worker.

    python benchmarks/scale.py [--images 600] [--model resnet50] [--workers 2]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
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
    """Returns the steady rate of a run, and its processor time without that of a run of hardly any images."""
    seconds = processor_time(run, workers, threads) - processor_time(begin, workers, threads)
    plan = scale.load(run)
    ends = sorted(os.stat(Path(run) / "shards" / name).st_mtime for name in plan.folder.names("shards"))
    steady = ends[workers:]  # the first shards wait for the network
    shard = plan.images / plan.shards
    return {
        "rate": shard * (len(steady) - 1) / (steady[-1] - steady[0]),
        "processor": seconds,
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--images", type=int, default=600)
    asked.add_argument("--model", default="resnet50")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--shards", type=int, default=12)
    given = asked.parse_args()
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
        few = write_pictures(Path(place) / "few", given.workers)
        begins = [
            scale.plan(few, Path(place) / f"begin{workers}", model=network, engine="openvino", shard_images=1)
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
