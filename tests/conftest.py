"""Shared fixtures: quiet TensorFlow, fixed seeds, a cache of its own for each run."""

from __future__ import annotations

import csv
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ.get("RESFIT_TEST_GPU") != "1":  # with it the tests see the card
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

#: The modules of ``--fast``, with their seconds of processor time in an environment of [cpu] and pytest. This list
#: alone chooses them, so that every machine runs the same tests; ``--record-times`` measures.
FAST = Path(__file__).with_name("fast.csv")
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
    parser.addoption(
        "--fast", action="store_true", help="one case of each test of tests/fast.csv, with no packages beyond [cpu]"
    )
    parser.addoption("--record-times", metavar="FILE", help="write the processor time of each test")


class _Module(pytest.Module):
    """A module that is skipped where it imports a package that --fast does without."""

    def _getobj(self):
        try:
            return super()._getobj()
        except self.CollectError as error:
            _skip_if_optional(error.__cause__, allow_module_level=True)
            raise


class _LeftOut(pytest.Module):
    """A module that is not in the list of --fast. It is not imported."""

    def _getobj(self):
        pytest.skip("not among the fast tests (tests/fast.csv): make test", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """With --fast: chooses modules by the list."""
    if not parent.config.getoption("--fast"):
        return None
    name = module_path.relative_to(parent.config.rootpath).as_posix()
    return (_Module if name in _fast_modules() else _LeftOut).from_parent(parent, path=module_path)


@functools.cache
def _fast_modules() -> frozenset[str]:
    with open(FAST, encoding="utf-8", newline="") as file:
        return frozenset(row["module"] for row in csv.DictReader(file))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the installation come first; with --fast: one case of each test."""
    # minutes in one process, which would go on alone at the end
    items.sort(key=lambda item: not item.nodeid.startswith("tests/install/"))
    seen: set[str] = set()
    for item in items if config.getoption("--fast") else ():
        name = item.nodeid.partition("[")[0]
        if name in seen:
            item.add_marker(pytest.mark.skip(reason="--fast runs one case of each test: make test"))
        seen.add(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Notes the processor time of a test, its fixtures and processes included."""
    target = item.config.getoption("--record-times")
    begin = _processor_seconds()
    result = yield
    seconds = _processor_seconds() - begin
    if target:
        with open(target, "a", encoding="utf-8") as file:
            file.write(f"{item.nodeid.partition('[')[0]},{seconds:.1f}\n")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
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
    """Leaves the million objects of the imported libraries out of each collection of garbage that follows.

    Tracing a network makes many more that are no garbage. With 700 objects from one collection to the next, which is
    Python's own setting, a test of the trainer collected for 1.6 of 13 s of processor time, with these for 0.8 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
