"""How many processors there are for this process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from resfit import processors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from resfit import processors as p; "
    found = subprocess.run([sys.executable, "-c", code + "print(p.available())"], capture_output=True, text=True)
    assert found.stdout.strip() == "1", found.stderr
    assert 1 <= processors.available() <= len(os.sched_getaffinity(0))
