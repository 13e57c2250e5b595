"""Cards that there are none of: what TensorFlow is said to find, while the processor computes in their place."""

from __future__ import annotations

import functools

import pytest

from resfit import devices
from resfit.devices import Device

AMPERE = Device("gpu", 0, "Ampere", "550.54.15, CUDA 12.5.1, cuDNN 9", (8, 0), 16 << 30, "/CPU:0")
VOLTA = Device("gpu", 1, "Volta", "550.54.15, CUDA 12.5.1, cuDNN 9", (7, 0), 16 << 30, "/CPU:0")
_FIRST_USE = devices.first_use.__wrapped__


def cards(patch: pytest.MonkeyPatch, *found: Device) -> tuple[Device, ...]:
    """Has resfit find these cards for the rest of a test."""
    patch.setattr(devices, "_cards", lambda: found)
    patch.setattr(devices, "_cannot_have_cards", lambda: False)
    patch.setattr(devices, "first_use", functools.cache(_FIRST_USE))
    return found
