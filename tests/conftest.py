"""Shared fixtures: quiet TensorFlow, fixed seeds, a cache of its own for each run."""

from __future__ import annotations

import csv
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

#: What is known to take long, with its seconds of processor time: tests, modules, folders. ``--record-long`` helps.
LONG = Path(__file__).with_name("long.csv")
#: Seconds from which ``--record-long`` notes a test.
_MOMENT = 1.0
#: Seconds after which ``--fast`` begins no further test.
_BUDGET = 170.0
_BEGUN = time.monotonic()

# what `make test-fast` does without
_OPTIONAL = frozenset(
    {
        *("ai_edge_litert", "axe_playwright_python", "cleanlab", "fastapi", "fsspec", "gcsfs", "h11"),
        *("hatchling", "httpx", "huggingface_hub", "jinja2", "kagglehub", "keras_hub", "multipart", "nibabel", "nncf"),
        *("onnx", "onnxruntime", "onnxscript", "pandas", "playwright", "prometheus_client", "pydicom", "pydicom_data"),
        *("pylibjpeg", "python_multipart", "s3fs", "schemathesis", "starlette", "tensorboard", "tensorflow_hub"),
        *("tensorflow_text", "tf2onnx", "tf_keras", "timm", "torch", "torchvision", "transformers", "tritonclient"),
        *("uvicorn", "mypy", "deptry"),
    }
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip what takes long, and what needs packages beyond [cpu]")
    parser.addoption("--record-long", metavar="FILE", help="write the processor time of each test that takes long")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --fast: skips what is known to take long, and puts one case of each test before the others."""
    if not config.getoption("--fast"):
        return
    with open(LONG, encoding="utf-8", newline="") as file:
        long = {row["test"]: row["seconds"] for row in csv.DictReader(file)}
    cases: dict[str, int] = {}
    sampling_order = {}
    for item in items:
        name = item.nodeid.partition("[")[0]
        sampling_order[item] = cases[name] = cases.get(name, -1) + 1
        parts = name.replace("::", "/").split("/")
        folders = {"/".join(parts[:count]) for count in range(1, len(parts))}
        for place in {name, name.partition("::")[0], *folders} & long.keys():
            item.add_marker(pytest.mark.skip(reason=f"{place} takes {long[place]} s of processor time: make test"))
    items.sort(key=lambda item: sampling_order[item] > 0)  # the fixtures of a module are made twice at most


class _Module(pytest.Module):
    """A module that is skipped where it imports a package that --fast does without."""

    def _getobj(self):
        try:
            return super()._getobj()
        except self.CollectError as error:
            _skip_if_optional(error.__cause__, allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _Module.from_parent(parent, path=module_path) if parent.config.getoption("--fast") else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes the processor time of a test, its fixtures and processes included."""
    target = item.config.getoption("--record-long")
    begin = _processor_seconds()
    result = yield
    seconds = _processor_seconds() - begin
    if target and seconds >= _MOMENT:
        with open(target, "a", encoding="utf-8") as file:
            file.write(f"{item.nodeid.partition('[')[0]},{seconds:.1f}\n")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    if item.config.getoption("--fast") and time.monotonic() - _BEGUN > _BUDGET:
        pytest.skip("the time of --fast is over: make test")
    return (yield from _skipping(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    return (yield from _skipping(item))


def _skipping(item: pytest.Item) -> Iterator[None]:
    """Skips a test that comes upon a package that --fast does without."""
    try:
        return (yield)
    except ImportError as error:
        if item.config.getoption("--fast"):
            _skip_if_optional(error)
        raise


def _skip_if_optional(error: BaseException | None, **options: bool) -> None:
    from resfit.errors import MissingDependencyError

    if isinstance(error, MissingDependencyError):
        pytest.skip(str(error).partition(" Install")[0], **options)
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ImportError) and name in _OPTIONAL:
        pytest.skip(f"needs {name}", **options)


def _processor_seconds() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keeps the tests out of the user's caches, and the network out of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RESFIT_CACHE", str(tmp_path_factory.mktemp("resfit-cache")))
    patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras-home")))
    yield
    patch.undo()


def pytest_collection_finish() -> None:
    """Leaves the million objects of the imported libraries out of each collection of garbage that follows."""
    gc.collect()
    gc.freeze()
