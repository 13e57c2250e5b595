"""Networks and a classifier that several tests export."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from tests.export import networks
from tests.pictures import write_folder
from tests.training.networks import small_body


@pytest.fixture(scope="session")
def network() -> Any:
    """Returns what makes the tiny network of a family, each once."""
    return functools.cache(networks.network)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_folder(tmp_path_factory.mktemp("photos") / "colours", each=16)


@pytest.fixture(scope="session")
def classifier(photos: Any) -> Any:
    """A classifier of three colours, fitted on a network with random weights; it is sure of itself."""
    from resfit.tasks.classification import fit

    return fit(photos, model=small_body(), strategy="probe", cache=False, seed=0)
