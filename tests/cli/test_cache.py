"""``resfit cache``: what is printed and which exit codes; what it does is tested in ``tests/storage/test_cache.py``."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from resfit.cli.cache import register
from resfit.features.store import FeatureStore, StoreKey


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, ["cache", *arguments])


@pytest.fixture
def folder(tmp_path):
    store = FeatureStore(tmp_path / "cache" / "features", StoreKey("ab" * 32, {"name": "net\x1b[31m"}), 250)
    store.append([bytes(32)], np.ones((1, 250), "f4"))
    return store.folder


def test_list(run, folder):
    result = run("list", "--kind", "features")
    assert result.exit_code == 0
    (line,) = result.stdout.strip().splitlines()[2:]
    assert line.split()[:2] == ["features", "net\\x1b[31m"]
    assert "1.1 kB" in line or "1.2 kB" in line
    assert "1 thing, 1." in result.stderr
    (row,) = json.loads(run("list", "--kind", "features", "--json").stdout)
    assert (row["kind"], row["path"], row["state"]) == ("features", str(folder), "")
    assert run("list", "--kind", "latency").stdout == ""


def test_verify_names_what_is_damaged_and_exits_with_one(run, folder):
    assert run("verify", "--kind", "features").exit_code == 0
    (folder / "rows.f32").write_bytes(bytes(1000))
    result = run("verify", "--kind", "features")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "features net\\x1b[31m float32: 1 of 1 rows have another checksum"
    assert str(folder) in result.stdout
    assert "1 of 1 damaged" in result.stderr
    told = json.loads(run("verify", "--kind", "features", "--json").stdout)
    assert (told["verified"], told["damaged"][0]["faults"]) == (1, ["1 of 1 rows have another checksum"])
    assert run("prune", "--damaged").exit_code == 0
    assert run("verify", "--kind", "features").exit_code == 0


def test_prune(run, folder):
    assert run("prune").exit_code == 2
    assert run("prune", "--older-than", "soon").exit_code == 2
    assert run("prune", "--max-size", "-1GB").exit_code == 2
    for limits in (("--older-than", "1d"), ("--older-than", "36h"), ("--max-size", "1MB"), ("--max-size", "2kB")):
        assert "0 things" in run("prune", *limits).stderr
    for limits in (("--max-size", "500B"), ("--max-size", "1kB"), ("--all",), ("--kind", "features")):
        result = run("prune", *limits, "--dry-run")
        assert "would be deleted" in result.stderr
        assert folder.is_dir()
    told = json.loads(run("prune", "--all", "--json").stdout)
    assert [row["path"] for row in told["deleted"]] == [str(folder)]
    assert (told["kept"], told["dry_run"]) == ([], False)
    assert not folder.exists()


def test_what_is_in_use_is_told(run, tmp_path):
    store = FeatureStore(tmp_path / "cache" / "features", StoreKey("ab" * 32, {"name": "net"}), 1)
    result = run("prune", "--all")
    assert result.exit_code == 0
    assert "Kept features net float32: in use." in result.stderr
    assert store.folder.is_dir()


def test_a_wrong_kind_is_wrong_usage(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", "from resfit.cli.main import run; run(['cache', 'list', '--kind', 'feature'])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Did you mean 'features'" in result.stderr
    assert "Traceback" not in result.stderr


def test_listing_loads_neither_tensorflow_nor_keras():
    program = "import resfit.cli.cache, resfit.cache_kinds, sys; print({'tensorflow', 'keras'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
