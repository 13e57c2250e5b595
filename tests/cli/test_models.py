"""``resfit models`` and ``resfit info``: tables, JSON, errors, and nothing heavy loaded."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from resfit.cli.models import register
from resfit.networks import catalog


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_models_table(run):
    result = run("models", "resnet*v2")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if "resnet50v2" in line]
    assert lines == ["resnet50v2 v2 (keras) 25.61 3.48 224x224 76.0 93.0 resnet50v2 * apache-2.0"]
    assert "3 networks, 3 with weights" in result.stderr
    assert "networks" not in result.stdout


def test_models_json_has_every_row(run):
    rows = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(catalog.rows())
    (row,) = json.loads(run("models", "resnet50", "--json").stdout)
    assert (row["parameters"], row["top1"], row["loadable"]) == (25_636_712, 74.9, True)


def test_no_match_fails(run):
    result = run("models", "vgg*")
    assert result.exit_code == 1
    assert "No network matches 'vgg*'" in result.stderr
    assert json.loads(run("models", "vgg*", "--json").stdout) == []


def test_info(run):
    result = run("info", "resnet50")
    assert result.exit_code == 0
    text = result.stdout
    for part in ("25,636,712", "receptive field  483 px", "14x14x1024", "BGR at 224x224", "arXiv:1512.03385"):
        assert part in text
    (line,) = [line for line in text.splitlines() if line.startswith("resnet50 *")]
    assert " ".join(line.split()) == "resnet50 * keras.applications 74.9 92.1 224 1000 ImageNet-1k apache-2.0"


def test_info_json(run):
    found = json.loads(run("info", "resnet18.tv_in1k", "--json").stdout)
    assert found["name"] == "resnet18"
    assert found["input_spec"]["interpolation"] == "bilinear"
    assert sum(stage["parameters"] for stage in found["stages"]) == found["parameters"]
    assert "resnet18.tv_in1k" in [row["name"] for row in found["checkpoint_rows"]]


def test_info_without_published_weights(run):
    assert "none published" in run("info", "preact_resnet56").stdout


def test_info_of_a_checkpoint_says_where_it_lies(run):
    text = run("info", "resnet50.moco_v2_800ep").stdout
    assert "weights resnet50.moco_v2_800ep: self-supervised, cc-by-nc-4.0" in text
    assert "moco_v2_800ep_pretrain.pth.tar" in text
    assert "digest: md5 a04e12f8" in text
    (line,) = [line for line in text.splitlines() if line.startswith("resnet50.moco_v2_800ep *")]
    assert "linear probe" in line
    assert "cannot be loaded: it lies in a Google Drive folder" in run("info", "resnet50.radimagenet").stdout


def test_weights_table(run):
    result = run("models", "resnet50v1.5", "--weights", "--source", "torchvision", "--sort", "top1")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()[2:]]
    assert lines == [
        "resnet50.v2_torchvision * resnet50v1.5 torchvision 25.61 4.09 224 80.9 1000 ImageNet-1k bsd-3-clause",
        "resnet50.v1_torchvision * resnet50v1.5 torchvision 25.61 4.09 224 76.1 1000 ImageNet-1k bsd-3-clause",
    ]
    assert "2 checkpoints, 2 that `resfit.load` brings" in result.stderr


def test_weights_filters_imply_the_list_of_weights(run):
    rows = json.loads(run("models", "--licence", "permissive", "--trained-on", "ImageNet-21k", "--json").stdout)
    assert {row["licence"] for row in rows} == {"apache-2.0"}
    assert all("ImageNet-21k" in row["training_data"] for row in rows)
    assert len(rows) > 60
    beside = run("models", "*uc_merced*", "--source", "tensorflow-hub")
    assert (beside.exit_code, beside.stdout) == (1, "")
    assert "resfit.hub.KerasLayer alone runs: remote_sensing_uc_merced_resnet50.tfhub_features." in beside.stderr
    assert "KerasLayer" not in run("models", "resnet50", "--weights").stderr
    (byol,) = json.loads(run("models", "resnet50.byol", "--weights", "--json").stdout)
    assert (byol["loadable"], byol["parameters"], byol["gmacs"]) == (True, 25_610_152, 4.0892)


@pytest.mark.parametrize(("key", "field"), [("params", "parameters"), ("gmacs", "gmacs"), ("name", "name")])
def test_weights_sorted(run, key, field):
    rows = json.loads(run("models", "resnet1*", "--sort", key, "--json").stdout)
    values = [row[field] for row in rows if row[field] is not None]
    assert values == sorted(values)
    assert len(values) > 10


def test_weights_are_sorted_by_accuracy_one_benchmark_after_the_other(run):
    rows = [row for row in json.loads(run("models", "--sort", "top1", "--json").stdout) if row["top1"] is not None]
    benchmarks = [row["evaluated_on"] for row in rows]
    assert benchmarks[0] == "ImageNet-1k"
    assert sum(one != other for one, other in itertools.pairwise(benchmarks)) == len(set(benchmarks)) - 1
    assert all(
        one["top1"] >= other["top1"]
        for one, other in itertools.pairwise(rows)
        if one["evaluated_on"] == other["evaluated_on"]
    )


def test_weights_wrong_usage(run):
    result = run("models", "--sort", "accuracy")
    assert "must be one of top1, params, gmacs, name" in str(result.exception)
    result = run("models", "vgg*", "--weights")
    assert result.exit_code == 1
    assert "No weights match" in result.stderr


def test_unknown_name_is_wrong_usage(run):
    result = run("info", "resnt50")
    assert result.exit_code == 2
    assert "Did you mean 'resnet50'" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["models"], ["models", "--weights"], ["info", "resnet50", "--json"]])
def test_no_tensorflow_is_loaded(arguments):
    code = (
        "import sys, typer\n"
        "from resfit.cli.models import register\n"
        "app = typer.Typer(); register(app)\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "heavy = ('tensorflow', 'keras', 'h5py', 'pandas', 'sklearn', 'matplotlib', 'openvino')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1] == "[]"
    assert found.stdout


def test_info_of_files_builds_nothing(tmp_path):
    """In a process of its own, to see that TensorFlow stays away."""
    import numpy as np

    from resfit.weights.formats import safetensors

    arrays = {
        "backbone.body.conv1.weight": np.ones((8, 3, 7, 7), np.float32),
        "rpn.head.weight": np.ones(3, np.float32),
    }
    safetensors.write_arrays(tmp_path / "half.safetensors", arrays, {})
    script = (
        "import sys; from resfit.cli import main\n"
        "try: main.run(['info', sys.argv[1], '--json'])\n"
        "except SystemExit as stopped: code = stopped.code\n"
        "assert not {'tensorflow', 'keras', 'torch'} & set(sys.modules), 'heavy'\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "half.safetensors")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert (told["format"], told["arrays"], told["numbers"]) == ("safetensors", 2, 8 * 3 * 49 + 3)
    assert told["problem"]
    assert told["architecture"] is None


def test_info_of_a_whole_keras_file(run, tmp_path):
    keras = pytest.importorskip("keras")
    from tests.weights.keras_networks import small

    layers = keras.layers
    head = lambda x: layers.Dense(3, "sigmoid", name="tags")(layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))  # noqa: E731
    small(keras, head=head, before=layers.Rescaling(0.01)).save(tmp_path / "net.keras")
    result = run("info", str(tmp_path / "net.keras"))
    assert result.exit_code == 0, result.output
    for part in ("depths [1, 1], widths [8, 12]", "'tags' (Dense)", "RGB at 16x16, (x * 0.01"):
        assert part in result.stdout


def test_info_of_a_classifier_is_its_card(run, tmp_path):
    from resfit import artifact

    description = {
        "classes": ["cat", "dog"],
        "input": {"size": [64, 64], "channel_order": "rgb"},
        "recipe": {},
        "metrics": {"accuracy": 0.5},
        "versions": {"resfit": "1"},
    }
    artifact.write(tmp_path / "pets.resfit", lambda path: path.write_bytes(b"model"), description, {})
    text = run("info", str(tmp_path / "pets.resfit")).stdout
    assert "2: cat, dog" in text
    assert "accuracy    0.5" in text
    assert json.loads(run("info", str(tmp_path / "pets.resfit"), "--json").stdout)["kind"] == "resfit classifier"
