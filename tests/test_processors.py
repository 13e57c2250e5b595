"""How many processors there are for this process."""

from __future__ import annotations

import os
import platform
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


@pytest.mark.parametrize(("own", "then"), [(None, "1"), ("0", "0")])
def test_tensorflow_takes_onednns_kernels_unless_the_user_decided_it(own, then):
    variables = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if own is not None:
        variables["TF_ENABLE_ONEDNN_OPTS"] = own
    code = "import os, resfit, sys; print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'), 'tensorflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    expected = then if own or platform.machine().lower() in ("x86_64", "amd64") else "None"
    assert found.stdout.split() == [expected, "False"], found.stderr
