"""Hundreds of networks are built here: each is let go before the next."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True)
def _forget_networks():
    yield
    keras.utils.clear_session()  # collects garbage, too
