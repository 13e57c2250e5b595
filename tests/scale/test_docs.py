"""The commands of docs/scale.md, run here."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from resfit import scale
from resfit.cli import main
from tests.pictures import write_folder

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


def run(words, places):
    """Runs a command of the page with its places on this disk; returns the exit code."""
    words = [places.get(word, word) for word in words]
    words = ["1" if before == "--threads" else word for before, word in zip(["", *words], words, strict=False)]
    with pytest.raises(SystemExit) as ended:
        main.run(words[1:])
    return ended.value.code


def test_the_page_from_plan_to_probe(tmp_path, monkeypatch, capsys):
    photos = write_folder(tmp_path / "photos", 6)
    shared = str(tmp_path / "run")
    places = dict.fromkeys(("s3://b/run", "/shared/run"), shared) | {
        "s3://b/images": str(photos),
        "resnet50": "resnet10_tiny",
        "photos.resfit": str(tmp_path / "photos.resfit"),
    }
    first = [shlex.split(line) for line in blocks("")[0].splitlines()]
    assert [words[2] for words in first] == ["plan", "run", "status", "finish"]
    assert run([*first[0], "--shard-images", "5"], places) == 0
    assert scale.load(shared).shards == 4

    script = blocks("bash")[0]
    (array,) = re.findall(r"#SBATCH --array=0-(\d+)", script)
    (command,) = [shlex.split(line) for line in script.splitlines() if line.startswith("resfit")]
    threads = re.search(r"--cpus-per-task=(\d+)", script)[1]
    assert command[command.index("--threads") + 1] == threads
    for name, value in {"ID": "2", "COUNT": str(int(array) + 1), "MIN": "0"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert run(command, places) == 0
    assert scale.status(shared).done == 1

    for name in ("ID", "COUNT", "MIN"):
        monkeypatch.delenv(f"SLURM_ARRAY_TASK_{name}")
    job = yaml.safe_load(blocks("yaml")[0])["spec"]
    (container,) = job["template"]["spec"]["containers"]
    command = container["command"]
    assert command[command.index("--count") + 1] == str(job["completions"])
    assert command[command.index("--threads") + 1] == container["resources"]["limits"]["cpu"]
    for rank in (0, 1, 3):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(rank))
        assert run(command, places) == 0
    capsys.readouterr()
    assert run(first[2], places) == 0
    assert "4 of 4 done" in capsys.readouterr().out
    assert run([*first[3], "--json"], places) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 18

    probe = next(shlex.split(line) for block in blocks("") for line in block.splitlines() if "--features" in line)
    assert run(probe, places) == 0
    assert "accuracy" in capsys.readouterr().out
    assert run([*probe, "--head", "mlp", "--force"], places) == 2
    assert "Received besides: --head" in capsys.readouterr().err


def test_the_unit_of_the_page(tmp_path):
    photos = write_folder(tmp_path / "photos", 2)
    scale.plan(photos, tmp_path / "run", shard_images=4)
    program = next(block for block in blocks("python") if "Unit(" in block)
    program = program.replace("s3://b/run", str(tmp_path / "run")).replace("threads=4", "threads=1")
    exec(compile(program.replace("12, then=13", "0, then=1"), "docs/scale.md", "exec"), {})
    assert scale.status(tmp_path / "run").done == 1
