"""Runs the code of an export's card as a user would: as it is printed, in a process of its own, without resfit.

What the card states is measured here and nowhere else, so that what is compared with Keras is what is shipped. The
process finds the packages that this one finds, but for resfit, which it cannot import. It runs the code in the folder
of the export beside a ``photo.jpg``, and then calls the code's ``classify`` (of detectors ``detect``) on the images to
be compared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from resfit.errors import ExportError, MissingDependencyError

#: What the code reads.
PHOTO = "photo.jpg"

_BATCH, _SIDE = 16, 512  # images of a batch, and the side in pixels above which they are fewer
_ALONE = 3
_SECONDS = 900
_FEWEST_RUNS = 5

_PROGRAM = """
import json, sys, time
sys.modules["openvino_telemetry"] = None  # as in resfit itself: nothing is reported from here
task = json.load(open(sys.argv[1], encoding="utf-8"))
sys.path[:] = [task["folder"], *task["path"]]


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "resfit":
            raise ImportError("the code of an export must not need resfit")


sys.meta_path.insert(0, Blocked())
import numpy

images = numpy.load(task["images"])
names = {"__name__": "__main__"}
exec(compile(task["code"], "README.md", "exec"), names)
print("", flush=True)
ask = names[task["function"]]


def floats(some):
    return numpy.ascontiguousarray(some, dtype="float32")


def named(value):  # outputs by name
    return {k: numpy.array(v) for k, v in (value if isinstance(value, dict) else {"scores": value}).items()}


def joined(parts):
    return {name: numpy.concatenate([part[name] for part in parts]) for name in parts[0]}


def taken(shape):
    try:
        return list(next(iter(named(ask(floats(numpy.zeros(shape)))).values())).shape)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]


batch = task["batch"]
every = [named(ask(floats(images[at : at + batch]))) for at in range(0, len(images), batch)]
alone = [named(ask(floats(images[at : at + 1]))) for at in range(min(task["alone"], len(images)))]
one, times = floats(images[:1]), []
end = time.perf_counter() + task["seconds"]
while len(times) < task["runs"] or time.perf_counter() < end:
    begin = time.perf_counter()
    ask(one)
    times.append(time.perf_counter() - begin)
height, width, channels = images.shape[1:]
told = {
    "latency": 1000 * float(numpy.median(times)),
    "empty": taken((0, height, width, channels)) if task["empty"] else "not asked for",
    "larger": taken((1, height + 32, width + 64, channels)),
}
numpy.savez(
    task["answer"],
    **{f"every/{name}": value for name, value in joined(every).items()},
    **{f"alone/{name}": value for name, value in joined(alone).items()},
    **{f"photo/{name}": value for name, value in named(names[task["photo"]]).items()},
    pixels=numpy.asarray(names["images"]),
    told=json.dumps(told),
)
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Received:
    """What the code of a card gave.

    Attributes:
        outputs: Of all images, batch by batch, by name; of a classifier ``"scores"`` ``(n, classes)``.
        outputs_alone: Of the first few, one by one.
        outputs_of_photo: Of the photo, without the axis of the batch.
        pixels: What it made of the photo, ``(1, height, width, channels)``.
        latency: Median milliseconds for one image, from array to scores.
        empty: Shape of the scores of no images; a string says how it failed.
        larger: The same of an image of another size.
    """

    outputs: dict[str, np.ndarray]
    outputs_alone: dict[str, np.ndarray]
    outputs_of_photo: dict[str, np.ndarray]
    pixels: np.ndarray
    latency: float
    empty: tuple[int, ...] | str
    larger: tuple[int, ...] | str

    @property
    def scores(self) -> np.ndarray:
        """Of a classifier: the scores of all images."""
        return self.outputs["scores"]

    @property
    def alone(self) -> np.ndarray:
        """Of a classifier: the scores of the first few, one by one."""
        return self.outputs_alone["scores"]

    @property
    def photo(self) -> np.ndarray:
        """Of a classifier: the scores of the photo, ``(classes,)``."""
        return self.outputs_of_photo["scores"]


def run(
    code: str,
    folder: Path,
    images: np.ndarray,
    photo: bytes,
    *,
    seconds: float = 0.3,
    function: str = "classify",
    of_photo: str = "scores",
    empty: bool = True,
) -> Received:
    """Runs the code of a card.

    Args:
        code: Python that leaves behind ``function``, and of ``photo.jpg`` its ``images`` and ``of_photo``.
        folder: The export; nothing is left in it.
        images: ``(n, height, width, channels)``, 0..255, at least one.
        photo: An encoded image.
        seconds: Time in which the latency is measured.
        function: Name of what gives scores, or outputs by name, of images.
        of_photo: Name of the photo's scores or outputs.
        empty: Whether a batch of no images is tried.

    Raises:
        ExportError: It fails, or takes over a quarter of an hour.
        MissingDependencyError: It imports a package that is not installed or cannot be imported.
    """
    if not sys.executable:
        raise ExportError(
            "the code of an export is run in a process of its own. Received: a Python without an executable "
            "(sys.executable is empty). Export from an ordinary Python."
        )
    with tempfile.TemporaryDirectory(prefix="resfit-") as temporary:
        place = Path(temporary)
        task = {
            "code": code,
            "folder": str(folder),
            "path": [os.path.abspath(entry) for entry in sys.path if entry],
            "images": str(place / "images.npy"),
            "answer": str(place / "answer.npz"),
            "function": function,
            "photo": of_photo,
            "empty": empty,
            "batch": max(1, min(_BATCH, _BATCH * _SIDE**2 // (images.shape[1] * images.shape[2]))),
            "alone": _ALONE,
            "runs": _FEWEST_RUNS,
            "seconds": seconds,
        }
        np.save(place / "images.npy", images, allow_pickle=False)
        (place / "task.json").write_text(json.dumps(task), "utf-8")
        (folder / PHOTO).write_bytes(photo)
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", "-c", _PROGRAM, str(place / "task.json")],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"the code of the export's card timed out after {_SECONDS} s.") from error
        finally:
            (folder / PHOTO).unlink(missing_ok=True)
        if done.returncode:
            _raise(done.stderr.decode("utf-8", "replace"), done.returncode)
        if not done.stdout.strip():
            raise ExportError("the code of the export's card prints nothing.")
        with np.load(place / "answer.npz", allow_pickle=False) as found:
            told = json.loads(str(found["told"]))
            arrays = {name: np.asarray(found[name], np.float32) for name in found.files if name != "told"}
    every, alone, of_one = (
        {name.removeprefix(f"{part}/"): array for name, array in arrays.items() if name.startswith(f"{part}/")}
        for part in ("every", "alone", "photo")
    )
    return Received(
        outputs=every,
        outputs_alone=alone,
        outputs_of_photo=of_one,
        pixels=arrays["pixels"],
        latency=float(told["latency"]),
        empty=_shape(told["empty"]),
        larger=_shape(told["larger"]),
    )


def _shape(told: list[int] | str) -> tuple[int, ...] | str:
    return told if isinstance(told, str) else tuple(told)


def _raise(stderr: str, code: int) -> None:
    """Raises what the process said last."""
    lines = [line for line in stderr.splitlines() if line.strip()] or [f"exit status {code}"]
    if lines[-1].startswith(("ModuleNotFoundError", "ImportError")):
        raise MissingDependencyError(f"the code of the export's card cannot import what it needs ({lines[-1]}).")
    raise ExportError(f"the code of the export's card fails: {lines[-1]}")
