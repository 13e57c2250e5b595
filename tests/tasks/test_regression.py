"""Regression: numbers that are known, drawn as discs, are found again, with intervals that cover."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.data.dataset import scan
from resfit.errors import ArgumentError, ArtifactError, DataError
from resfit.evaluation.regression import regression_figures
from resfit.tasks import dispatch
from resfit.tasks.regression.results import ResidualIntervals
from resfit.tasks.regression.ridge import fit_ridge
from tests.tasks.apart import said_apart, spoil


def disc(radius, x, y, side=64):
    """A bright disc of known radius and place on a dark ground."""
    rows, columns = np.mgrid[:side, :side]
    inside = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    return (30 + 200 * inside[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """120 discs, their radius and area in a table, its column with a name that no guess would choose."""
    folder = tmp_path_factory.mktemp("discs")
    generator = np.random.default_rng(3)
    rows = []
    for number in range(120):
        radius = generator.uniform(5, 22)
        x, y = generator.uniform(24, 40, 2)
        Image.fromarray(disc(radius, x, y)).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"{radius:.3f}", f"{np.pi * radius**2:.2f}"))
    with open(folder / "discs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "radius in px", "area"), *rows])
    return folder


@pytest.fixture(scope="module")
def fitted(discs, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "discs.resfit"
    return resfit.fit(discs / "discs.csv", task="regression", label_column="radius in px", out=out, check=False)


def test_the_radius_of_discs_is_found(fitted, discs):
    test = fitted.metrics["test"]
    (score,) = test["numbers"]
    assert (score["name"], test["n"]) == ("radius in px", 25)
    assert score["r2"]["value"] > 0.9
    assert score["mae"]["low"] < score["mae"]["value"] < score["mae"]["high"] < 2
    predictions = fitted.predict([disc(r, 32, 32) for r in (8, 12, 16, 20)])
    assert [item.value for item in predictions] == pytest.approx([8, 12, 16, 20], abs=3)
    again = resfit.fit(discs / "discs.csv", task="regression", label_column="radius in px", check=False)
    np.testing.assert_array_equal(again.head().kernel, fitted.head().kernel)


def test_intervals_cover_as_often_as_they_say(fitted):
    generator = np.random.default_rng(0)
    radii = generator.uniform(5, 22, 80)
    images = [disc(radius, *generator.uniform(24, 40, 2)) for radius in radii]
    widths = {}
    for coverage in (0.5, 0.9):
        found = fitted.predict(images, coverage=coverage)
        inside = [low <= radius <= high for radius, item in zip(radii, found, strict=True)
                  for low, high in item.intervals.values()]  # fmt: skip
        assert np.mean(inside) == pytest.approx(coverage, abs=0.16)
        widths[coverage] = np.mean([high - low for item in found for low, high in item.intervals.values()])
    assert widths[0.5] < widths[0.9]
    assert fitted.predict(images[0], coverage=None)[0].intervals == {}
    with pytest.raises(ArgumentError, match=r"need at least 999 images .*Received: 95"):
        fitted.predict(images[0], coverage=0.999)


def test_a_saved_regressor_predicts_and_serves_without_keras(fitted, discs, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    out, paths = tmp_path / "discs.resfit", [discs / f"{number}.png" for number in range(4)]
    fitted.save(out)
    loaded = dispatch.load(out)
    assert "model" in vars(loaded)
    expected = loaded.arrays(loaded.predict(paths, engine="keras"))["values"]
    loaded.predict(paths[0])  # which keeps the network
    said = said_apart(out, paths)
    assert said["imported"] == []
    assert np.ptp(expected) > 2
    np.testing.assert_allclose(said["predicted"]["values"], expected, rtol=1e-4)
    np.testing.assert_allclose(said["served"]["values"], expected, rtol=1e-4)
    again = dispatch.load(out)
    kept = again.predict(paths)
    assert [item.intervals for item in kept] == [
        {name: pytest.approx(ends, rel=1e-4) for name, ends in item.intervals.items()} for item in loaded.predict(paths)
    ]
    measured = again.evaluate(discs / "discs.csv", cache=False)
    assert "model" not in vars(again)
    assert measured.predicted[:4] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(again.model.predict(np.asarray(Image.open(paths[0]))[None]), expected[:1], rtol=1e-4)
    spoil(tmp_path / "cache", dispatch.load(out)._origin.record)
    again = dispatch.load(out)
    assert "model" in vars(again)
    assert again.arrays(again.predict(paths))["values"] == pytest.approx(expected, rel=1e-4)


def test_it_is_saved_and_read_with_its_checksums(fitted, discs, tmp_path):
    out = tmp_path / "saved.resfit"
    fitted.save(out)
    loaded = dispatch.load(out)
    assert repr(loaded) == "<Regressor resnet10_tiny: radius in px>"
    expected = [item.value for item in fitted.predict(discs)]
    assert [item.value for item in loaded.predict(discs)] == pytest.approx(expected, rel=1e-6)
    measured = loaded.evaluate(discs / "discs.csv")
    assert measured.r2 > 0.9  # its own column is known
    seen = 120 - fitted.metrics["images"]["test"]
    assert any(note.startswith(f"{seen} of 120 images were used to fit") for note in measured.notes)
    assert dict(loaded.card())["predicts"] == "radius in px"
    with pytest.raises(ArtifactError, match=r"must hold a classifier\. Received: a regressor"):
        resfit.Classifier.load(out)
    path = out / "model.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "columns": ["age"]}))
    with pytest.raises(ArtifactError, match="damaged or was changed"):
        dispatch.load(out)


def test_several_numbers_from_one_table(discs):
    found = resfit.fit(discs / "discs.csv", task="regression", label_column="radius in px,area", check=False)
    scores = {score.name: score for score in found.run.test.scores}
    assert list(scores) == ["radius in px", "area"]
    assert min(score.r2.value for score in scores.values()) > 0.9
    assert scores["area"].mae.value > 20 * scores["radius in px"].mae.value  # each in its own unit
    assert found.arrays(found.predict(discs / "0.png"))["values"].shape == (1, 2)


def test_a_column_of_quantities_asks_for_the_task_by_name(discs):
    with pytest.raises(DataError, match=r"'area'.*120 different numbers.*task='regression' \(--task regression\)"):
        resfit.fit(discs / "discs.csv", label_column="area")
    with pytest.raises(DataError, match=r"column with the numbers to predict.*'radius in px', 'area'.*--label-column"):
        resfit.fit(discs / "discs.csv", task="regression")


def test_numbers_from_arrays_and_names_of_files(discs, tmp_path):
    images = np.stack([disc(radius, 32, 32) for radius in np.linspace(5, 20, 30)])
    found = resfit.fit((images, np.linspace(5, 20, 30)), task="regression", check=False)
    assert found.columns == ("value",)
    assert found.evaluate((images, np.linspace(5, 20, 30))).mae < 1
    for number, radius in enumerate((5.5, 6.25, -7.0)):
        Image.fromarray(disc(abs(radius), 32, 32)).save(tmp_path / f"{radius}_{number}.png")
    named = scan(tmp_path, label_from="{label}_{number}.*", numbers=True)
    assert sorted(named.values[:, 0].tolist()) == [-7.0, 5.5, 6.25]
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        resfit.fit((images, np.full(30, np.nan)), task="regression")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a.png", "1.5"), ("a.png", "two")], r"'two' in line 3"),
        ([("a.png", "1.5"), ("a.png", "nan")], r"'nan' in line 3"),
        ([("a.png", "3")], "at least 10 images with numbers"),
    ],
)
def test_tables_that_cannot_be_learned_from(rows, message, tmp_path):
    Image.fromarray(disc(5, 32, 32)).save(tmp_path / "a.png")
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "size"), *rows])
    with pytest.raises(DataError, match=message):
        resfit.fit(tmp_path / "t.csv", task="regression", label_column="size")


def test_fine_tuning_beats_or_keeps_the_probe_and_says_so(discs):
    options = {"task": "regression", "label_column": "area", "strategy": "finetune", "check": False}
    settings = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3}
    found = resfit.fit(discs / "discs.csv", trainable_from="stage4", tuning=settings, **options)
    training = found.metrics["training"]
    assert (found.recipe.strategy, found.recipe.tuning["crop_scale"]) == ("finetune", 1.0)
    assert training["val_r2"] >= training["val_r2_before"] > 0.8
    assert found.run.test.r2 > 0.9
    assert found.run.test.mae < 90  # in square pixels, of areas up to 1,500
    assert {"val_r2", "val_loss", "train_r2"} <= found.run.history[1].keys()
    assert found.residuals.source == "validation"


def test_figures_equal_scikit_learns():
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    generator = np.random.default_rng(1)
    truth = generator.normal(1e4, 2, (50, 2))
    predicted = truth + generator.normal(0, 1, (50, 2))
    found = regression_figures(truth, predicted)
    for column, figures in enumerate(found):
        pair = truth[:, column], predicted[:, column]
        assert figures["mae"].value == pytest.approx(mean_absolute_error(*pair), rel=1e-5)
        assert figures["rmse"].value == pytest.approx(root_mean_squared_error(*pair), rel=1e-5)
        assert figures["r2"].value == pytest.approx(r2_score(*pair), rel=1e-4)
        assert all(figure.low < figure.value < figure.high for figure in figures.values())
    same = regression_figures(np.ones((5, 1)), np.ones((5, 1)))[0]
    assert same["mae"].value == 0
    assert np.isnan(same["r2"].value)


def test_ridge_keeps_groups_together_and_equals_scikit_learns():
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(0)
    rows = generator.normal(2, 3, (60, 100))
    values = rows[:, :1] * 2 + generator.normal(0, 0.5, (60, 1)) + 7
    found = fit_ridge(rows, values, seed=0)
    standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    theirs = Ridge(alpha=found.penalty * 60).fit(standard, values)
    np.testing.assert_allclose(found(rows), theirs.predict(standard).reshape(-1, 1), rtol=1e-3)
    # twins of one group: noise that only a twin tells is no knowledge
    twins, noise = np.repeat(generator.normal(size=(30, 100)), 2, axis=0), np.repeat(generator.normal(size=30), 2)
    groups = [str(number) for number in np.repeat(np.arange(30), 2)]
    together = fit_ridge(twins, noise[:, None], groups=groups).held_out[:, 0]
    apart = fit_ridge(twins, noise[:, None]).held_out[:, 0]
    assert np.corrcoef(together, noise)[0, 1] < 0.5 < np.corrcoef(apart, noise)[0, 1]


def test_half_widths_are_the_errors_of_their_rank():
    found = ResidualIntervals.of(np.zeros((9, 1)), np.arange(1, 10)[:, None], "validation")
    assert found.half_widths(0.9) == (9.0,)
    assert found.half_widths(0.5) == (5.0,)
    many = ResidualIntervals.of(np.zeros((50_000, 1)), np.linspace(0, 1, 50_000)[:, None], "validation")
    assert len(many.ranks) == 1000
    assert many.half_widths(0.9)[0] == pytest.approx(0.9, abs=2e-3)
    assert many.half_widths(0.9)[0] >= 0.9


@pytest.mark.parametrize(
    "format",
    [
        "onnx",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("tf_saved_model", "openvino", "litert", "keras")),
    ],
)
def test_an_export_gives_the_same_numbers(fitted, tmp_path, format):
    found = fitted.export(tmp_path / format, format=format)
    assert (found.verification.agreement, found.verification.problems) == (1.0, ())
    assert found.verification.difference < 1e-4
    contract = json.loads((tmp_path / format / "contract.json").read_text())
    assert contract["outputs"][0]["name"] == "values"
    assert contract["labels"] == ["radius in px"]
    card = (tmp_path / format / "README.md").read_text()
    assert "def predict(images)" in card
    assert "radius in px was learned between" in card


def run(*arguments, capsys):
    """Runs a command, and returns what it prints."""
    from resfit.cli.main import build

    with pytest.raises(SystemExit) as ended:
        build(arguments)([str(argument) for argument in arguments])
    out, errors = capsys.readouterr()
    assert ended.value.code == 0, errors
    return out


def test_the_commands_speak_of_numbers(discs, fitted, tmp_path, capsys):
    out = tmp_path / "d.resfit"
    (tmp_path / "fit.yaml").write_text("task: regression\ndata: {label_column: area, test_share: 0.5}\n")
    said = run("fit", discs / "discs.csv", "--config", tmp_path / "fit.yaml", "--set", "data.label_column=radius in px",
               "--test-share", "0.25", "-o", out, "--no-check", capsys=capsys)  # fmt: skip
    assert "radius in px" in said
    assert "95 % intervals (2000 resamples of images)" in said
    loaded = dispatch.load(out)
    assert (loaded.columns, loaded.recipe.test_share) == (("radius in px",), 0.25)
    assert loaded.metrics["plan"]["strategy"] == "auto"
    table = run("predict", out, discs / "0.png", capsys=capsys)
    assert "radius in px" in table
    assert "90% interval" in table
    (one,) = json.loads(run("predict", out, discs / "0.png", "--coverage", "0.5", "--json", capsys=capsys))
    low, high = one["intervals"]["radius in px"]
    assert low < one["values"]["radius in px"] < high
    run("predict", out, discs / "0.png", "--csv", tmp_path / "p.csv", capsys=capsys)
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "path,radius in px,90% interval,error"
    page = tmp_path / "r.html"
    found = json.loads(run("evaluate", out, discs / "discs.csv", "--report", page, "--json", capsys=capsys))
    assert found["numbers"][0]["r2"]["value"] > 0.9
    assert "largest errors" in page.read_text()
    assert "predicts" in run("info", out, capsys=capsys)


def test_numbers_that_other_images_speak_against_are_worth_a_look(discs, tmp_path, capsys):
    with open(discs / "discs.csv", newline="") as file:
        rows = list(csv.reader(file))
    rows[8][1] = "60"  # a typing error
    with open(discs / "wrong.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = json.loads(run("check", discs / "wrong.csv", "--task", "regression", "--label-column", "radius in px",
                           "--json", capsys=capsys))  # fmt: skip
    assert found["numbers"][0]["path"] == "7.png"
    assert found["numbers"][0]["value"] == 60
    assert len(found["numbers"]) < 6
