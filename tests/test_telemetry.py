import os
import subprocess
import sys
from pathlib import Path

import pytest

from resfit import telemetry

ROOT = Path(__file__).parents[1]

#: What uses each library that would report itself: the probe of a fit and an export in eight bits, both other runtimes,
#: OpenVINO's own conversion (of a layer that resfit does not translate), and matplotlib.
_RUN = """
import sys
from pathlib import Path
import resfit
from resfit import engines, drawing
from resfit.engines import openvino as engine
from tests.numeric import images
from tests.pictures import tiny_body, write_folder

root = Path(sys.argv[1])
folder = write_folder(root / "photos", each=6)
fitted = resfit.fit(folder, model=tiny_body(size=16), precision="int8", engine="openvino", out=root / "out")
fitted.predict(folder, engine="onnxruntime")
engines.create(tiny_body(size=16), "onnxruntime", precision="int8", samples=images(8, 16, 16, 3))
engine.traced(tiny_body(size=16))
drawing.new_figure((2, 2)).savefig(root / "figure.png")
import kagglehub
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_TELEMETRY
"""


def test_a_home_stays_empty_but_for_caches(tmp_path):
    for module in ("nncf", "onnxruntime", "onnx", "huggingface_hub", "kagglehub"):
        pytest.importorskip(module)
    home = tmp_path / "home"
    home.mkdir()
    hidden = ("RESFIT_", "KERAS_", "XDG_", "CI", "MPLCONFIGDIR", *telemetry.SWITCHES)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, tmp_path],
        env={**variables, "HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    others = {name for name in found if not name.startswith(".cache/resfit/")}
    assert others <= {".keras/keras.json"}, others
    kinds = {name.split("/")[2] for name in found - others}
    assert {"engines", "features", "matplotlib"} <= kinds  # the libraries did run


def test_switches_are_set_unless_the_user_has_set_them(monkeypatch):
    for name in telemetry.SWITCHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("NNCF_CI", "")  # undone after the test
    monkeypatch.delenv("NNCF_CI")
    telemetry.switch_off()
    assert {name: os.environ[name] for name in telemetry.SWITCHES} == {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NNCF_CI": "1",
        "ORT_DISABLE_TELEMETRY": "0",
    }


def test_fonts_stay_with_a_user_who_has_settings_for_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    del sys.modules["matplotlib"]
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / ".config" / "matplotlib").mkdir(parents=True)
    telemetry.keep_fonts_in(tmp_path / "cache")
    assert "MPLCONFIGDIR" not in os.environ
    (tmp_path / ".config" / "matplotlib").rmdir()
    telemetry.keep_fonts_in(tmp_path / "cache")
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "cache" / "matplotlib")
