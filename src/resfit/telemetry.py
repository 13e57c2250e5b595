"""Usage reports of the libraries that resfit runs on: off, unless the user has set their switches.

resfit itself reports nothing to anybody. OpenVINO's tools, NNCF, ONNX Runtime and huggingface_hub would: each has a
switch, which is set here when resfit is imported, before any of them is.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

#: The libraries' own environment variables, and the value that switches their reports off.
SWITCHES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub
    "NNCF_CI": "1",  # NNCF
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
}

_lock = threading.Lock()


def switch_off() -> None:
    """Sets every switch that the user has not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def openvino_tools() -> Iterator[None]:
    """Keeps OpenVINO's conversion from reporting itself inside a ``with`` block.

    Its only switches are a file in the user's home and the variable ``CI``, which is set for the length of the block.
    """
    with _lock:
        before = os.environ.get("CI")
        os.environ["CI"] = "true"
        try:
            yield
        finally:
            if before is None:
                del os.environ["CI"]
            else:
                os.environ["CI"] = before
