"""Pages about classifiers and their data: one file each that needs nothing else."""

from resfit.report.findings import Findings, measure
from resfit.report.page import render, write

__all__ = ["Findings", "measure", "render", "write"]
