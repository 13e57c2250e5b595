"""A report on scans: pictures, and no name of anyone."""

import pytest

from resfit import report
from tests.tasks.test_medical import NAMES, clinic, fitted  # noqa: F401  fixtures

pytest.importorskip("pydicom")


def test_a_report_on_scans_names_nobody(clinic, fitted):  # noqa: F811
    classifier, _ = fitted
    found = report.measure(classifier, clinic)
    assert found.figures.grouped
    text = report.render(found)
    assert not [name for name in NAMES if name in text]
    assert text.count("data:image/jpeg;base64,") >= 8
    assert "IM00" not in text
    table = report.measure(classifier, clinic, corruptions=True).robustness
    assert table.rows[0].accuracy == 1.0
    assert table.images == len(found.judged.images)
