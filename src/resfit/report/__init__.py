"""A report of how good a classifier is: one file that needs nothing else."""

from resfit.report.findings import Findings, measure
from resfit.report.page import render, write

__all__ = ["Findings", "measure", "render", "write"]
