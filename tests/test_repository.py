"""The repository itself: names of modules, declarations, what a user's type checker sees."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from resfit import dependencies
from tests.install import environments

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# distribution -> module, where they differ
_MODULES = {
    "ai-edge-litert": "ai_edge_litert",
    "huggingface-hub": "huggingface_hub",
    "mlflow-skinny": "mlflow",
    "pillow-heif": "pillow_heif",
    "tensorflow-datasets": "tensorflow_datasets",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
    "tensorflow-cpu": "tensorflow",
}


def brought(extra):
    """The modules that an extra installs by its own declarations."""
    names = [re.split(r"[\[<>=;]", text)[0].strip() for text in PROJECT["optional-dependencies"][extra]]
    return {_MODULES.get(name, name) for name in names}


def test_no_module_bears_the_name_of_a_standard_library_module():
    modules = [path for name in ("tests", "benchmarks", "tools") for path in (ROOT / name).rglob("*.py")]
    assert len(modules) > 100
    assert [str(path) for path in modules if path.stem in sys.stdlib_module_names] == []


def test_an_error_names_the_extra_that_brings_the_module():
    for module, extra in dependencies.EXTRAS.items():
        assert module in brought(extra), f"resfit[{extra}] does not bring {module}"


def test_every_extra_of_the_readme_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"resfit\[([a-z0-9,]+)\]", text))
    sentence = re.search(r"Further extras: (.*?)Whatever", text, re.DOTALL)
    named |= set(re.findall(r"`([a-z0-9]+)`", sentence[1]))
    assert named <= set(PROJECT["optional-dependencies"])
    assert set(PROJECT["optional-dependencies"]) - named <= {"plot", "test", "fast", "docs"}


def test_imports_are_declared():
    pytest.importorskip("deptry", reason="deptry compares imports with pyproject.toml")
    done = subprocess.run([sys.executable, "-m", "deptry", "src"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_format_that_is_offered_can_be_exported(capsys):
    from resfit import export
    from resfit.cli import main

    with pytest.raises(SystemExit):
        main.run(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    offered = re.search(r"--format <list\[str\]> (.*?); repeatable", text)[1]
    assert tuple(re.split(r", | or ", offered)) == export.FORMATS


_USER = """
import resfit
from resfit import Classifier

reveal_type(resfit.load)
reveal_type(resfit.list_models())
reveal_type(Classifier.load("a").classes)
resfit.load("resnet50", classes="ten")
"""


def test_annotations_reach_users(tmp_path):
    """mypy, run elsewhere on resfit as it is installed, sees its annotations and reports a wrong call."""
    pytest.importorskip("mypy", reason="mypy reads the annotations")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(environments.wheel(tmp_path)) as archive:
        archive.extractall(packages)
    (tmp_path / "user.py").write_text(_USER)
    python = tmp_path / "venv" / "bin" / "python"
    options = ["--ignore-missing-imports", "--follow-imports=silent", "--python-executable", python]
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    found = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert len(found) == 4, done.stdout
    assert found[0].startswith('note: Revealed type is "def (source: str | os.PathLike[str], ')
    assert found[1] == 'note: Revealed type is "list[resfit.zoo.ModelInfo]"'
    assert found[2] == 'note: Revealed type is "tuple[str, ...]"'
    assert found[3].startswith('error: Argument "classes" to "load" has incompatible type "str"')


def test_the_fast_tests_exist_and_are_fast():
    rows = [row.split(",") for row in (ROOT / "tests" / "fast.csv").read_text("utf-8").splitlines()[1:]]
    assert rows == sorted(rows)
    assert all((ROOT / module).is_file() for module, _ in rows)
    assert sum(float(seconds) for _, seconds in rows) < 300  # of processor time: under 4 minutes on two cores
