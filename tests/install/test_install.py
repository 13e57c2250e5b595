"""resfit as a user installs it: a wheel, an extra, and nothing else. What is missing is said, before any work."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from resfit.data import drawn_boxes
from tests.install import environments
from tests.pictures import write_folder

_ENGINES = ("predict out.resfit photos --engine {0}", "embed photos -o {0}.npz --engine {0}")

#: What needs an extra beside [cpu], and which; nothing else may end for want of a package.
NEEDS = {
    "check photos --report checks.html": "report",
    "check photos --cleanlab": "checks",
    "fit photos -o int8.resfit --precision int8": "int8",
    "fit scans -o scans.resfit --max-skipped 0.5": "medical",
    "fit phone -o phone.resfit --max-skipped 0.5": "heif",
    "fit photos -o mlflow.resfit --log mlflow": "mlflow",
    "fit photos -o wandb.resfit --log wandb": "wandb",
    "fit photos -o tensorboard.resfit --log tensorboard": "pretrain",
    "check hf://datasets/owner/photos": "hub",
    "scale run shards --on ray --workers 1 --threads 1": "ray",
    "scale run shards --on spark --workers 1 --threads 1": "spark",
    "check tfds://mnist": "tfds",
    **{way.format("onnxruntime"): "onnx" for way in _ENGINES},
    **{way.format("litert"): "litert" for way in _ENGINES},
    "evaluate out.resfit photos --report report.html": "report",
    "convert resnet10_tiny network.pth": "torch",
    "convert hf://timm/resnet50.a1_in1k fetched.safetensors": "hub",
    "export out.resfit --format onnx -o as-onnx": "onnx",
    "export boxes.resfit --format onnx -o boxes-as-onnx": "onnx",
    "export out.resfit --format litert -o as-litert": "litert",
    "export resnet18 --format torch -o as-torch": "timm",
    "export out.resfit --format onnx --precision int8 -o as-onnx-int8": "onnx,int8",
    "export out.resfit --format openvino --precision int8 -o as-openvino-int8": "int8",
    "export out.resfit --format litert --precision int8 -o as-litert-int8": "litert",
    "serve out.resfit --port 0": "serve",
    "demo -o with-report --report": "report",
    "applications.ResNet18()": "hub",
}
OF_FILES = ("fit phone -o phone.resfit --max-skipped 0.5",)

#: What asks for the network, which the tests forbid.
OFFLINE = re.compile(r"resnet50|export resnet18|applications\.|hub\.|published|://")
#: timm and its like have no stem like this network's; the right answer, and an error.
REFUSED = (
    "convert resnet10_tiny network.safetensors",
    "convert resnet10_tiny timms",
    "convert resnet10_tiny network.pth",
)

EXTRAS = ["checks", "cloud", "heif", "hub", "int8", "litert", "medical", "mlflow", "onnx", "onnxruntime", "plot"]
EXTRAS += ["pretrain", "ray", "report", "serve", "spark", "tfds", "timm", "torch", "wandb"]
_SAME = {"onnxruntime": "onnx"}

#: What the others stand on.
FIRST = (
    "fit photos -o out.resfit",
    "fit boxes -o boxes.resfit --size 96 --budget 10s",
    "scale plan photos -o shards --shard-images 10",
)
#: What an extra brings beside what nothing else does without it: up to the first step that needs the network.
OF_EXTRA = {
    "cloud": ["check s3://bucket/photos", "convert gs://bucket/net.h5 fetched.safetensors"],
    "hub": ["convert kaggle://a/b/keras/c fetched.safetensors"],
    "plot": ["suggest --max-params 30M --plot suggested.png", "demo -o demo"],
    "pretrain": ["pretrain photos -o run --epochs 1 --batch-size 8 --size 32"],
    "timm": ["convert resnet10_tiny network.pth"],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return environments.wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "home").mkdir()
    write_folder(tmp_path / "photos", each=10)
    random = np.random.default_rng(0)
    for name, level in (("dark", 500), ("light", 3000)):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(10):
            _write_scan(tmp_path / "scans" / name / f"{number}.dcm", level + random.integers(0, 400, (32, 32)))
    drawn_boxes.write_set(tmp_path / "boxes", {"train": 16, "val": 6, "test": 6}, size=(96, 96))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "photos").rglob("*.png"))
    rows = [f"{name},{number / 7:.3f}" for number, name in enumerate(names)]
    (tmp_path / "numbers.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    for name, colour in (("day", "white"), ("night", "navy")):
        (tmp_path / "phone" / name).mkdir(parents=True)
        for number in range(10):
            _write_heic(tmp_path / "phone" / name / f"{number}.heic", colour, number)
    return tmp_path


def _write_heic(path: Path, colour: str, number: int):
    import pillow_heif
    from PIL import Image

    image = Image.new("RGB", (64, 64), colour)
    image.putpixel((number, number), (255, 0, 0))
    pillow_heif.from_pillow(image).save(path)


def _write_scan(path: Path, values):
    from tests.scans import dicom

    path.write_bytes(dicom(values.astype(np.uint16)))


def toured(wheel, kept, folder, *arguments):
    done = environments.toured(wheel, kept, folder, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found, extras):
    """Asserts that every way ends well, or in the error that the extras explain, before anything was written."""
    had = {name for extra in extras for name in (extra, _SAME.get(extra, extra))}
    had |= {"torch", "hub"} if "timm" in had else set()  # timm requires both
    for way, outcome in found["ways"].items():
        lacking = set(NEEDS.get(way, "").split(",")) - had - {""}
        if lacking:
            # files that need an extra are skipped and listed, so that a few of them do not end a fit
            kind = "DataError: " if way in OF_FILES else "MissingDependencyError: "
            assert outcome.startswith(kind), f"{way}: {outcome}"
            named = re.search(r'pip install "resfit\[([a-z0-9,]+)\]"', outcome)
            assert named, f"{way}: {outcome}"
            assert set(named[1].split(",")) == lacking, f"{way}: {outcome}"
        elif outcome.startswith("DownloadError"):
            assert OFFLINE.search(way), f"{way}: {outcome}"
        elif way in REFUSED:
            assert "must be able to express the network" in outcome, f"{way}: {outcome}"
        else:
            assert outcome == "ok", f"{way}: {outcome}"
    for way, files in found["left"].items():
        assert way in OF_FILES, way
        assert [Path(file).name for file in files[1:]] == ["skipped.csv"], files


def test_the_bare_install_does_what_it_promises(wheel, folder):
    pytest.importorskip("pydicom", reason="writes the scans that the install is given")
    pytest.importorskip("pillow_heif", reason="writes the pictures that the install is given")
    kept = environments.environment(wheel, ["cpu"])
    found = toured(wheel, kept, folder, "brief", "names")
    assert len(found["ways"]) > 80
    check(found, ["cpu"])
    assert (folder / "demo" / "demo.png").stat().st_size > 50_000  # a user's first command ends with its picture
    files = {path.relative_to(folder / "home").as_posix() for path in (folder / "home").rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(".cache/resfit/")} <= {".keras/keras.json"}


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_does_what_it_promises(wheel, folder, extra):
    base = environments.environment(wheel, ["cpu"])
    kept = environments.environment(wheel, [extra], base)
    ways = [*FIRST, *(way for way, needs in NEEDS.items() if _SAME.get(extra, extra) in needs.split(","))]
    ways += OF_EXTRA.get(extra, [])
    found = toured(wheel, kept, folder, "names", f"only={json.dumps(ways)}")
    assert set(ways) - set(found["ways"]) <= {"applications.ResNet18()"}
    check(found, ["cpu", extra])


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_an_extra_without_tensorflow_says_that_it_is_missing(wheel, folder, extra):
    base = environments.environment(wheel, [])
    kept = environments.environment(wheel, [extra], base) if extra else base
    found = toured(wheel, kept, folder, "brief", "names")
    if extra not in ("timm", "torch", "int8", "checks"):
        assert found["ways"]["resfit.load"].startswith("MissingDependencyError: resfit needs tensorflow")
        assert 'pip install "resfit[cpu]"' in found["ways"]["fit photos -o out.resfit"]
    for way, outcome in found["ways"].items():
        assert not outcome.startswith(("ModuleNotFoundError", "ImportError", "AttributeError")), f"{way}: {outcome}"
    for way, files in found["left"].items():
        assert way in OF_FILES, way
        assert [Path(file).name for file in files[1:]] == ["skipped.csv"], files
