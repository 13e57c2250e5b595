"""Pre-trained residual networks for TensorFlow and Keras 3, and transfer learning with them.

The public names are imported on first use: ``import resfit`` loads neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resfit import _moved, devices, processors, telemetry
from resfit.storage import locks

__version__ = "0.1.0"

telemetry.switch_off()
devices.let_memory_grow()
telemetry.keep_fonts_in(locks.cache_root())
processors.use_onednn()

_EXPORTS = {
    "load": "resfit.zoo",
    "list_models": "resfit.zoo",
    "describe": "resfit.zoo",
    "suggest": "resfit.suggestions",
    "summary": "resfit.network_summary",
    "fit": "resfit.tasks.dispatch",
    "check": "resfit.tasks.dispatch",
    "embed": "resfit.tasks.classification.embedding",
    "Classifier": "resfit.tasks.classification",
    "Detector": "resfit.tasks.detection",
    "Regressor": "resfit.tasks.regression.regressor",
    "InputSpec": "resfit.preprocessing",
    "Reading": "resfit.preprocessing",
    "ArchitectureSpec": "resfit.networks.spec",
    "ResfitError": "resfit.errors",
    "pretrain": "resfit.training.pretrain",
}
_MODULES = ("applications", "export", "hub", "scale", "serving")
#: Names that need Keras and so TensorFlow, which the user chooses: resfit[cpu] or resfit[gpu].
_NEED_KERAS = frozenset(
    {"load", "summary", "fit", "check", "embed", "Classifier", "Detector", "Regressor", "pretrain", "applications"}
    | {"export", "hub"}
)

_moved.install()

__all__ = ["__version__", *_EXPORTS, *_MODULES]

if TYPE_CHECKING:
    from resfit import applications as applications
    from resfit import export as export
    from resfit import hub as hub
    from resfit import scale as scale
    from resfit import serving as serving
    from resfit.errors import ResfitError as ResfitError
    from resfit.network_summary import summary as summary
    from resfit.networks.spec import ArchitectureSpec as ArchitectureSpec
    from resfit.preprocessing import InputSpec as InputSpec
    from resfit.preprocessing import Reading as Reading
    from resfit.suggestions import suggest as suggest
    from resfit.tasks.classification import Classifier as Classifier
    from resfit.tasks.classification.embedding import embed as embed
    from resfit.tasks.dispatch import check as check
    from resfit.tasks.dispatch import fit as fit
    from resfit.tasks.regression.regressor import Regressor as Regressor
    from resfit.training.pretrain import pretrain as pretrain
    from resfit.zoo import describe as describe
    from resfit.zoo import list_models as list_models
    from resfit.zoo import load as load


def __getattr__(name: str) -> Any:
    if name in _NEED_KERAS:
        from resfit.dependencies import require_backend

        require_backend()
    if name in _MODULES:
        return importlib.import_module(f"resfit.{name}")
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'resfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
