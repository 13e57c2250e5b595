"""The commands of the guide, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys

import httpx
import pytest
from PIL import Image

from tests.serving.conftest import ROOT, wait_until

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def script_of(guide: str, port: int) -> str:
    """Returns the guide's blocks as one shell script."""
    lines = ["set -eu", "set -m"]
    for kind, block in BLOCK.findall(guide):
        lines += [block] if kind == "sh" else [f"python - <<'END_OF_BLOCK'\n{block}END_OF_BLOCK"]
        lines.append("echo; echo END_OF_BLOCK")
    return "\n".join(lines).replace("8080", str(port))


def commands(folder, environment: dict[str, str]) -> dict[str, str]:
    """Puts `resfit` and `python` of this environment first on the path."""
    folder.mkdir()
    for name, more in (("python", ""), ("resfit", " -c 'from resfit.cli.main import run; run()'")):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}"{more} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    source = os.pathsep.join(filter(None, (str(ROOT / "src"), environment.get("PYTHONPATH", ""))))
    return {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}", "PYTHONPATH": source}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_from_folder_to_service(tmp_path):
    pytest.importorskip("tritonclient.http")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = script_of((ROOT / "docs" / "serving.md").read_text("utf-8"), port)
    environment = commands(tmp_path / "bin", dict(os.environ))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("END_OF_BLOCK\n")
    assert len(parts) == len(BLOCK.findall((ROOT / "docs" / "serving.md").read_text("utf-8"))) + 1
    assert '"predictions":[{"file":"000.png","label":' in parts[2]
    (label,) = re.findall(r'"label":"([^"]+)"', parts[2])
    assert f"'{label}'" in parts[3]
    assert f"b'{label}'" in parts[4]
    assert Image.open(tmp_path / "why.png").size == (64, 64)


@pytest.mark.slow
def test_demo_serves_what_it_fitted(tmp_path):
    environment = commands(tmp_path / "bin", dict(os.environ))
    errors = tmp_path / "stderr"
    with open(errors, "wb") as log:
        process = subprocess.Popen(
            [tmp_path / "bin" / "resfit", "demo", "-o", str(tmp_path / "demo"), "--serve", "--port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        )
    try:
        wait_until(lambda: "Serving" in errors.read_text() or process.poll() is not None, 600)
        url = re.findall(r"at (http://\S+)", errors.read_text())[0]
        wait_until(lambda: httpx.get(f"{url}/v2/health/ready").status_code == 200, 120)
        image = next((tmp_path / "demo" / "images").glob("test/Bag/*.png"))
        answer = httpx.post(f"{url}/predict", content=image.read_bytes(), timeout=60).json()
        assert answer["model"] == "fashion"
        assert len(answer["predictions"][0]["probabilities"]) == 10
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
