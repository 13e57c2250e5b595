"""What a classifier is asked about: the shared reading of images stands in :mod:`resfit.data.inputs`."""

from __future__ import annotations

from resfit.data.inputs import NetworkInput, Sources, batches, fit_array, listed

__all__ = ["NetworkInput", "Sources", "batches", "fit_array", "listed"]
