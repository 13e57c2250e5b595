"""Optional packages: which extra of resfit installs each, and an error that says so before any work is done."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

from resfit.errors import MissingDependencyError

#: Which extra installs a module that the base install lacks.
EXTRAS = {
    "ai_edge_litert": "litert",
    "cleanlab": "checks",
    "fastapi": "serve",
    "flatbuffers": "litert",
    "fsspec": "cloud",
    "gcsfs": "cloud",
    "h11": "serve",
    "huggingface_hub": "hub",
    "jinja2": "report",
    "kagglehub": "hub",
    "mlflow": "mlflow",
    "nibabel": "medical",
    "nncf": "int8",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pillow_heif": "heif",
    "prometheus_client": "serve",
    "pydicom": "medical",
    "pylibjpeg": "medical",
    "python_multipart": "serve",
    "s3fs": "cloud",
    "starlette": "serve",
    "tensorboard": "pretrain",
    "tensorflow": "cpu",
    "tensorflow_datasets": "tfds",
    "tf2onnx": "onnx",
    "timm": "timm",
    "torch": "torch",
    "uvicorn": "serve",
    "wandb": "wandb",
}


def is_installed(*modules: str) -> bool:
    """Returns whether all modules can be imported, without importing them.

    Args:
        modules: Names of top-level modules.
    """
    return not _missing(modules)


def require(what: str, *modules: str) -> None:
    """Raises an error that names the extras to install, unless all modules can be imported.

    Args:
        what: What needs them; the subject of the sentence.
        modules: Names of top-level modules.

    Raises:
        MissingDependencyError: One of them is not installed.
    """
    if missing := _missing(modules):
        raise MissingDependencyError(message(what, *missing))


def require_backend() -> None:
    """Makes sure that Keras can be imported: its backend is TensorFlow unless the user chose another one.

    Raises:
        MissingDependencyError: TensorFlow is not installed.
    """
    if "keras" not in sys.modules and os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        require("resfit", "tensorflow")


def message(what: str, *modules: str) -> str:
    """Returns the text of the error for modules that are not installed.

    Args:
        what: What needs them.
        modules: Names of top-level modules.
    """
    # timm's extra has torch too
    extras = dict.fromkeys("timm" if name == "torch" and "timm" in modules else EXTRAS[name] for name in modules)
    other = ', or "resfit[gpu]" for NVIDIA GPUs' if "tensorflow" in modules else ""
    verb = "is" if len(modules) == 1 else "are"
    return (
        f"{what} needs {_listed(modules)}, which {verb} not installed. "
        f'Install with: pip install "resfit[{",".join(extras)}]"{other}'
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]
