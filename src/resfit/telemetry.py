"""Usage reports of the libraries that resfit runs on: off, unless the user has set their switches.

resfit itself reports nothing to anybody. OpenVINO's tools, NNCF, ONNX Runtime and huggingface_hub would, and leave
files in the user's home: each is switched off here when resfit is imported, before any of them is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: The libraries' own environment variables, and the value that switches their reports off.
SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub
    "NNCF_CI": "1",  # NNCF
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
}

#: What OpenVINO and NNCF report through where it can be imported; they do without it.
PACKAGE = "openvino_telemetry"


def switch_off() -> None:
    """Sets every switch that the user has not set, and keeps :data:`PACKAGE` from being imported by this process.

    OpenVINO creates an identifier of the user when it is imported, and has no environment variable against it.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]


def keep_fonts_in(cache: Path) -> None:
    """Moves matplotlib's list of fonts to a cache, unless the user has a folder of settings for matplotlib.

    Args:
        cache: The folder of the cache.
    """
    home = Path.home()
    own = (home / ".matplotlib", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib")
    if "matplotlib" not in sys.modules and not any(folder.exists() for folder in own):
        os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
