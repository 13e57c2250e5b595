import csv
import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from resfit import load
from resfit.cli import console, main
from resfit.tasks import classification
from tests.pictures import tiny_body, write_folder, write_picture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("cli data") / "my images", each=10)


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "colours.resfit"
    classification.fit(folder, model=tiny_body(), out=path)
    return path


@pytest.fixture
def resfit(capsys):
    """Runs a command; returns exit code, stdout and stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    return run


def test_rare_classes_are_left_out_and_the_fit_is_recorded(resfit, tmp_path):
    data = write_folder(tmp_path / "data", each=6)
    write_picture(data / "emu" / "1.png", "red", 99)
    out = tmp_path / "out"
    code, text, errors = resfit("fit", data, "-o", out, "--log", "tensorboard", "--json")
    assert code == 0
    assert "1 class of fewer than 3 images is left out: emu (1)." in errors
    result = json.loads(text)
    assert result["classes"] == ["blue", "green", "red"]
    assert (result["images"]["found"], result["images"]["ignored"]) == (19, 1)
    assert "its class has fewer than 3 images" in (out / "skipped.csv").read_text("utf-8")
    assert list((tmp_path / "out.tensorboard").iterdir())
    code, text, errors = resfit("evaluate", out, data, "--json")
    assert (code, json.loads(text)["n"]) == (0, 18)
    assert "1 image of classes that were left out in training: emu" in errors
    code, _, errors = resfit("fit", data, "-o", out, "--rare", "error")
    assert code == 1
    assert "emu (1)" in errors
    code, _, errors = resfit("fit", data, "-o", out, "--log", "mlfow")
    assert code == 2


def test_fit_with_the_embedded_network(resfit, folder, tmp_path):
    code, text, errors = resfit("fit", folder, "-o", tmp_path / "out", "--json")
    assert (code, errors) == (0, "")
    result = json.loads(text)
    assert result["classes"] == ["blue", "green", "red"]
    assert result["images"] == {"found": 30, "skipped": 0, "train": 24, "test": 6, "ignored": 0}
    assert result["test"]["accuracy"] == 1.0
    assert result["recipe"]["model"] == "resnet10_tiny"
    assert (tmp_path / "out" / "model.keras").exists()
    code, text, errors = resfit("fit", folder, "-o", tmp_path / "out")
    assert code == 0
    assert f"{tmp_path / 'out'} holds an earlier classifier, which is replaced" in errors
    (tmp_path / "out" / "notes.txt").write_text("mine")
    code, _, errors = resfit("fit", folder, "-o", tmp_path / "out")
    assert code == 2
    assert "notes.txt" in errors
    assert "--force" in errors
    for part in (
        "30 found = 30 images used + 0 skipped + 0 ignored",
        "30 in 3 classes",
        "24 train, 6 test",
        "0 computed (cache), 30 from the cache",
        "100.0% (95 % interval",
    ):
        assert part in text


def test_a_dry_run_prints_the_recipe_and_does_nothing(resfit, folder, tmp_path):
    code, text, errors = resfit("fit", folder, "--dry-run", "--strategy", "finetune", "--model", "resnet18")
    assert (code, errors) == (0, "")
    for part in ("strategy", "because", "seconds altogether", "learning_rate"):
        assert part in text
    code, text, _ = resfit("fit", folder, "--dry-run", "--strategy", "full", "--json")
    found = json.loads(text)
    assert found["strategy"] == "full"
    assert found["tuning"]["trainable_from"] == 0.0
    assert set(found["seconds"]) >= {"features", "training"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"folds": 5}, "C = 0.1 (chosen by 5-fold cross-validation)"),
        ({"folds": 1}, "C = 0.1 (chosen on a hold-out)"),
        ({"folds": 0}, "C = 0.1 (the default: too few images to choose)"),
        # a training within minutes begins with a head of a fixed C, and trains it on: nothing was to be chosen
        ({"folds": 0, "strategy": "finetune"}, ""),
        ({"folds": 0, "strategy": "full"}, ""),
        ({"folds": 3, "strategy": "finetune"},
         "C = 0.1 of the head that the training began with (chosen by 3-fold cross-validation)"),
        ({"folds": 0, "head": "mlp"}, ""),
        ({"folds": 0, "C": 0.0}, ""),
    ],
)  # fmt: skip
def test_the_regularisation_is_stated_where_it_was_chosen(fields, words):
    from resfit.tasks.classification.results import FitRecipe

    fields = {"strategy": "probe", "C": 0.1, **fields}
    assert FitRecipe(model="resnet18", seed=0, test_share=0.2, grouped=False, **fields).regularisation == words


def test_fit_finetunes(resfit, folder, tmp_path):
    code, text, errors = resfit(
        "fit", folder, "-o", tmp_path / "out", "--strategy", "finetune", "--trainable-from", "stage5",
        "--set", "epochs=2", "--set", "views=1", "--set", "schedule=constant", "--budget", "5m",
    )  # fmt: skip
    assert code == 0, errors
    assert "outputs take" in errors
    for part in ("training (* the epoch that is kept)", "to choose the epoch on", "kept: epoch", "fine-tuning"):
        assert part in text
    code, text, _ = resfit("evaluate", tmp_path / "out", folder, "--json")
    assert json.loads(text)["accuracy"] > 0.9
    written = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert written["recipe"]["tuning"]["schedule"] == "constant"
    assert (tmp_path / "out" / "training.csv").exists()


def test_fit_with_labels_that_stand_together(resfit, tmp_path):
    folder = write_folder(tmp_path / "d", each=8)
    (folder / "red").rename(folder / "red+warm")
    code, text, errors = resfit("fit", folder, "-o", tmp_path / "out", "--label-separator", "+", "--json")
    assert code == 0, errors
    assert json.loads(text)["classes"] == ["blue", "green", "red", "warm"]
    code, text, _ = resfit("evaluate", tmp_path / "out", folder)
    assert "mean average precision" in text


def test_fit_counts_and_lists_unusable_images(resfit, tmp_path):
    folder = write_folder(tmp_path / "d", each=10)
    (folder / "red" / "\x1b[31mbad.png").write_bytes(b"")
    code, text, errors = resfit("fit", folder, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(text)["skipped"][0]["reason"] == "empty file"
    assert "Skipped 1 unusable images" in errors
    assert "empty file" in errors
    assert "skipped.csv" in errors
    assert "\x1b" not in errors
    code, text, errors = resfit("fit", folder, "-o", tmp_path / "out2", "--max-skipped", "0.01")
    assert (code, text) == (1, "")
    assert "at most 1%" in errors
    assert (tmp_path / "out2" / "skipped.csv").exists()


def test_predict_as_table_json_and_csv(resfit, out, folder, tmp_path):
    red, blue = folder / "red" / "001.png", folder / "blue" / "001.png"
    code, text, errors = resfit("predict", out, red, blue, "--top", "2")
    assert (code, errors) == (0, "")
    first, second = (line.split() for line in text.splitlines() if ".png" in line)
    # path (with a blank), class, probability, further class, its probability
    assert " ".join(first[:-4]) == str(red)
    assert (first[-4], second[-4]) == ("red", "blue")
    assert first[-3].endswith("%")
    code, text, _ = resfit("predict", out, red, blue, "--json", "--top", "2", "--csv", tmp_path / "p.csv")
    found = json.loads(text)
    assert [item["label"] for item in found] == ["red", "blue"]
    assert [len(item["probabilities"]) for item in found] == [2, 2]
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["error"]) for row in rows] == [
        (str(red), "red", ""),
        (str(blue), "blue", ""),
    ]
    assert float(rows[0]["probability"]) == pytest.approx(found[0]["probability"], abs=1e-6)


def test_predict_from_a_pipe_and_by_patterns(resfit, out, folder, tmp_path, monkeypatch):
    image = folder / "red" / "001.png"

    def piped(data, *more):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code, text, errors = resfit("predict", out, "-", *more, "--json")
        return code, [(item["path"], item["label"]) for item in json.loads(text or "[]")], errors

    assert piped(image.read_bytes())[:2] == (0, [("-", "red")])
    both = [(str(image), "red"), (str(folder / "blue" / "001.png"), "blue")]
    for between in ("\n", "\r\n", "\0"):
        assert piped(between.join(path for path, _ in both).encode())[:2] == (0, both)
    code, found, errors = piped(f"{image}\nnone.png\n".encode())
    assert (code, found) == (1, [(str(image), "red"), ("none.png", None)])
    assert "none.png: no such file" in errors
    assert piped(b"\x89PNG damaged")[:2] == (1, [("-", None)])
    assert "Received: nothing" in piped(b"")[2]
    code, text, _ = resfit("predict", out, folder / "*" / "00[12].png", "--json")
    assert (code, [item["label"] for item in json.loads(text)]) == (0, ["blue"] * 2 + ["green"] * 2 + ["red"] * 2)
    assert resfit("predict", out, tmp_path / "*.png")[0] == 1


def test_cells_that_begin_like_formulas_are_escaped(resfit, out, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("=1+1.png").write_bytes((folder / "red" / "001.png").read_bytes())
    assert resfit("predict", out, "=1+1.png", "--csv", "p.csv")[0] == 0
    (row,) = csv.DictReader(io.StringIO(Path("p.csv").read_text()))
    assert (row["path"], row["label"]) == ("'=1+1.png", "red")
    assert 0 < float(row["probability"]) <= 1


def test_predict_with_a_published_network(resfit, folder):
    code, text, errors = resfit("predict", "resnet10_tiny", folder / "red" / "001.png", "--top", "3", "--json")
    assert (code, errors) == (0, "")
    (found,) = json.loads(text)
    assert found["label"] in load("resnet10_tiny").class_names
    assert len(found["probabilities"]) == 3
    code, _, errors = resfit("predict", "resnet10_tine", folder / "red" / "001.png")
    assert code == 1
    assert "Did you mean 'resnet10_tiny'" in errors


def test_predict_goes_on_after_an_unusable_image(resfit, out, folder, tmp_path):
    bad = tmp_path / "some" / "bad.png"
    write_picture(tmp_path / "some" / "good.png", "green", 3)
    bad.write_bytes(b"")
    code, text, errors = resfit("predict", out, tmp_path / "some", "--json")
    assert code == 0  # a folder may hold such
    assert [item["label"] for item in json.loads(text)] == [None, "green"]
    assert "empty file" in errors
    code, text, errors = resfit("predict", out, bad, folder / "red" / "000.png")
    assert code == 1  # this one was asked for by name
    assert "red" in text
    assert "bad.png: empty file" in errors


def test_evaluate(resfit, out, folder):
    code, text, errors = resfit("evaluate", out, folder, "--json")
    result = json.loads(text)
    kept = result["among_training_images"]
    assert code == 0
    assert errors.startswith(f"{kept} of 30 images were used to fit the model")
    assert len(errors.splitlines()) == 1
    assert 15 < kept < 30
    assert result["machine"]["device"] == "cpu"
    assert result["accuracy"] == 1.0
    assert result["confusion"] == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    code, text, _ = resfit("evaluate", out, folder)
    assert "accuracy 100.0% (95 % interval 88.6% to 100.0%) on 30 images" in text
    assert "Brier score, sum over classes (0 to 2)" in text


def test_addresses_are_fetched_where_that_is_allowed(resfit, out, folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = sorted(folder.rglob("*.png"))[0].relative_to(folder).as_posix()
        address = f"http://127.0.0.1:{server.server_port}/{name}"
        refused = resfit("predict", out, address)
        code, text, _ = resfit("predict", out, address, "--allow-urls", "--json")
        server.shutdown()
    assert (refused[0], "--allow-urls" in refused[2]) == (2, True)
    (found,) = json.loads(text)
    (expected,) = json.loads(resfit("predict", out, folder / name, "--json")[1])
    assert code == 0
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embed(resfit, out, folder, tmp_path, ending):
    target = tmp_path / f"f.{ending}"
    code, text, errors = resfit("embed", folder, "-o", target, "--model", out)
    assert (code, errors) == (0, "")
    assert text == f"30 images, 16 features each: {target}\n"
    if ending == "npz":
        with np.load(target) as arrays:
            assert arrays["features"].shape == (30, 16)
    else:
        import pandas as pd

        assert pd.read_parquet(target)["label"].value_counts().to_dict() == {"blue": 10, "green": 10, "red": 10}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fit",), 2, "required unless --features is given"),
        (("fit", "FOLDER"), 2, "needed unless --dry-run"),
        (("fit", "FOLDER", "-o", "NEW", "--set", "epoch=3"), 2, "Did you mean 'epochs'"),
        (("fit", "FOLDER", "-o", "NEW", "--strategy", "full", "--set", "epochs=-3"), 2, "epochs must be at least"),
        (("fit", "FOLDER", "-o", "NEW", "--budget", "soon"), 2, "budget must be"),
        (("fit", "FOLDER", "-o", "NEW", "--model", "resnet10_tin"), 2, "Did you mean 'resnet10_tiny'"),
        (("fit", "FOLDER", "-o", "NEW", "--engine", "fast"), 2, "engine must be one of"),
        (("fit", "FOLDER", "-o", "NEW", "--strategy", "finetun"), 2, "strategy must be one of"),
        (("fit", "FOLDER", "-o", "FOLDER"), 2, "holds something else"),
        (("fit", "none", "-o", "NEW"), 1, "does not exist"),
        (("predict", "OUT"), 2, "Missing argument"),
        (("predict", "OUT", "none.jpg"), 1, "does not exist"),
        (("predict", "FOLDER", "none.jpg"), 1, "which has none"),
        (("predict", "OUT", "none.jpg", "--top", "0"), 2, "--top"),
        (("evaluate", "OUT", "none"), 1, "does not exist"),
        (("embed", "FOLDER", "-o", "NEW.xlsx"), 2, ".parquet or .npz"),
        (("unknown",), 2, "No such command"),
    ],
)
def test_errors(resfit, out, folder, tmp_path, arguments, code, message):
    places = {"FOLDER": folder, "OUT": out, "NEW": tmp_path / "new", "NEW.xlsx": tmp_path / "new.xlsx"}
    found, text, errors = resfit(*(places.get(argument, argument) for argument in arguments))
    assert (found, text) == (code, "")
    assert message in " ".join(errors.split())
    assert "Traceback" not in errors
    assert not (tmp_path / "new").exists()


def test_debug_shows_the_traceback(out):
    from resfit.errors import ArtifactError

    with pytest.raises(ArtifactError):
        main.run(["predict", "none", "a.jpg", "--debug"])
    with pytest.raises(ArtifactError):
        main.run(["--debug", "predict", "none", "a.jpg"])


@pytest.mark.parametrize("command", ["fit", "predict", "evaluate", "embed"])
def test_help_has_an_example(resfit, command):
    code, text, _ = resfit(command, "--help")
    assert code == 0
    assert f"Example: resfit {command} " in text


def test_light_commands_load_nothing_heavy():
    program = (
        "import sys\nfrom resfit.cli import main\n"
        "try: main.run(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'pandas', 'pyarrow', 'openvino', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for arguments in (["--help"], ["fit", "--help"], ["models", "resnet10*"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True)
        assert done.returncode == 0, (arguments, done.stderr.decode())


def test_interrupt_ends_without_a_traceback(resfit, out, folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(classification.Classifier, "load", interrupted)
    code, _, errors = resfit("evaluate", out, folder)
    assert code == 130
    assert "Traceback" not in errors


def test_progress_only_on_a_terminal(capsys):
    with console.progress() as report:
        assert report is None


def test_progress_on_a_terminal_waits(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's own way to say that stderr is a terminal
    with console.progress() as report:
        report("network", 1, 10)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    with console.progress() as report:
        report("network", 7, 10)
        report("network", 10, 10)
    text, bar = capsys.readouterr()
    assert text == ""
    assert "Running the network" in bar
    assert "10/10" in bar


def test_names_cannot_harm_a_terminal():
    assert console.printable("a\x1b[2J\nb\udcffé") == "a\\x1b[2J\\nb\\udcffé"
