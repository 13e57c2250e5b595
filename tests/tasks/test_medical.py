"""From a folder of scans to a measured classifier: depth, patients, and nothing of theirs in what is written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit.cli import main
from resfit.data.dataset import scan
from resfit.data.medical import privacy
from resfit.data.pixel_store import open_store
from resfit.data.views import Views
from resfit.errors import ArgumentError, DataError
from resfit.features import pixels
from resfit.features.extract import extract
from resfit.preprocessing import Reading
from resfit.tasks.classification import Classifier, fit
from tests.pictures import CountingEngine, tiny_body
from tests.scans import dicom, write_patient

pydicom = pytest.importorskip("pydicom")
ROOT = Path(__file__).parents[2]
NAMES = ("PLANTED", "Mustermann", "Erika", "geheim4711", "Klinik Musterstadt")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """Forty images of twenty patients; their names are in tags, folders and files, two of which are damaged."""
    folder = tmp_path_factory.mktemp("data") / "clinic"
    for number in range(20):
        paths = write_patient(
            folder,
            ("sick", "well")[number % 2],
            number,
            PatientName=f"Mustermann^Erika^{number}",
            PatientID=f"PLANTED-{number}",
            InstitutionName="Klinik Musterstadt",
            StudyDescription="geheim4711",
        )
        home = paths[0].parent
        home.rename(home.with_name(f"Mustermann_Erika_{number}"))
    first = next(folder.glob("sick/*_0/IM0001"))
    first.write_bytes(first.read_bytes()[:-500])
    second = next(folder.glob("well/*_1/IM0001"))
    second.write_bytes(second.read_bytes().replace(b"US\x02\x00\x28\x00", b"US\x02\x00PL", 1))  # its number of rows
    return folder


@pytest.fixture(scope="module")
def fitted(clinic, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "clinic.resfit"
    return fit(clinic, model=tiny_body(), out=out, seed=1), out


def found_in(folder: Path) -> dict[str, str]:
    """Returns which planted names are in which files below a folder, archives unpacked, names of files included."""
    found = {}
    for path in folder.rglob("*"):
        contents = [os.fsencode(path.relative_to(folder))]
        if path.is_file():
            contents.append(path.read_bytes())
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    contents += [archive.read(name) for name in archive.namelist()]
        for name in NAMES:
            if any(name.encode() in content or name.encode("utf-16-le") in content for content in contents):
                found[str(path)] = name
    return found


def test_a_classifier_of_scans_is_fitted_by_patient_and_measured(clinic, fitted):
    found, out = fitted
    assert found.metrics["images"]["found"] == 40
    assert found.metrics["images"]["skipped"] == 2
    assert found.metrics["test"]["accuracy"] == 1.0
    assert found.recipe.grouped
    assert found.run.notes[0] == found.metrics["notice"] == "research use, not a medical device"
    images = scan(clinic)
    patients = {privacy.pseudonym(path): group for path, group in zip(images.paths, images.groups, strict=True)}
    with open(out / "test_predictions.csv", encoding="utf-8") as file:
        tested = [Path(row["path"]) for row in csv.DictReader(file)]
    whole = [path for path, group in patients.items() if group in {patients[one] for one in tested}]
    assert 4 <= len(tested) <= 12
    skipped = (out / "skipped.csv").read_text()
    assert set(whole) - set(tested) <= {Path(line.split(",")[0]) for line in skipped.splitlines()[1:]}
    assert "truncated: 2060 bytes of pixels, where the header declares 2560" in skipped


def test_it_is_saved_measured_and_asked_again(clinic, fitted):
    _, out = fitted
    loaded = Classifier.load(out)
    assert loaded.metrics["notice"] == "research use, not a medical device"
    measured = loaded.evaluate(clinic)
    assert measured.accuracy == 1.0
    assert [item.path.name[:7] for item in measured.skipped] == ["sha256-"] * 2
    path = next(clinic.glob("well/*_3/IM0000"))
    (prediction,) = loaded.predict(path)
    assert (prediction.label, prediction.path) == ("well", path)
    embedded = loaded.embed(clinic)
    assert all(path.name.startswith("sha256-") for path in embedded.paths)


def test_figures_by_sex_and_site_come_from_the_tags(clinic, fitted):
    from resfit.evaluation.inference import judge
    from resfit.evaluation.subgroups import by_column

    judged = judge(fitted[0], clinic)
    by_sex = by_column(judged, clinic, "sex", resamples=20)
    assert [(part.value, part.count) for part in by_sex] == [("F", 19), ("M", 19)]
    assert all(part.figures is not None and part.figures.units == 10 for part in by_sex)  # patients
    assert [(part.value, part.count) for part in by_column(judged, clinic, "site", resamples=20)] == [("site 1", 38)]
    with pytest.raises(DataError, match="columns are those of a CSV file"):
        by_column(judged, clinic, "scanner")


def test_planted_names_are_in_nothing_that_is_written(clinic, tmp_path):
    """`resfit fit`, `evaluate` and `embed` in a process of their own, with all that they print and log."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    commands = [
        ["fit", str(clinic), "-o", str(out), "--json"],
        ["evaluate", str(out), str(clinic), "--json"],
        ["evaluate", str(out), str(clinic), "--report", str(tmp_path / "report.html"), "--by", "sex", "--by", "site"],
        ["embed", str(clinic), "-o", str(tmp_path / "table.parquet")],
        ["explain", str(out), str(next(clinic.glob("well/*_3"))), "-o", str(tmp_path / "why")],
    ]
    code = """
        import json, logging, sys
        from resfit.cli.main import run
        logging.basicConfig(level=logging.DEBUG)  # as strict a log as a user may keep
        for command in json.loads(sys.argv[1]):
            try:
                run(command)
            except SystemExit as stopped:
                assert not stopped.code, (command, stopped.code)
    """
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "RESFIT_CACHE": str(cache)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout + done.stderr
    assert said.count("research use, not a medical device") >= 3
    assert "Skipped 2 unusable images (sha256-" in said
    assert not [name for name in NAMES if name in said]
    assert next(cache.glob("digests/*/rows.u8")).stat().st_size > 0
    assert len(list((tmp_path / "why").glob("sha256-*.png"))) == 2
    report = (tmp_path / "report.html").read_text("utf-8")
    assert "site 1" in report
    assert "not a medical device" in report
    assert found_in(clinic)  # the search finds what is there
    assert found_in(tmp_path) == {}


def test_low_bits_reach_the_network_through_every_cache(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (16, 16), np.uint16)
    other = values.copy()
    other[5, 7] += 1
    for number, one in enumerate((values, other)):
        (tmp_path / f"{number}.dcm").write_bytes(dicom(one, WindowCenter=32768, WindowWidth=65536))
        Image.fromarray(one).save(tmp_path / f"{number}.png")
    body = tiny_body()

    class Recording(CountingEngine):
        def run(self, images):
            seen.append(np.array(images))
            return super().run(images)

    for kind in ("dcm", "png"):
        files = [tmp_path / f"{number}.{kind}" for number in range(2)]
        seen: list[np.ndarray] = []
        views = Views(count=1, area=(1.0, 1.0), aspect=(1.0, 1.0), flip=False, colour=0.1)
        rows = extract(body, files, engine=Recording(body), cache=tmp_path / "cache", views=views).rows
        images = np.concatenate(seen)[::2]
        assert images.dtype == np.float32
        difference = np.abs(images[0] - images[1])
        np.testing.assert_allclose(difference.max(), 1 / 257, rtol=0.05)
        assert (difference.max(axis=-1) > 0).sum() == 1
        assert np.any(rows[0] != rows[1])
        again = extract(body, files, engine=Recording(body), cache=tmp_path / "cache").rows
        np.testing.assert_array_equal(again, rows)
        # decoded pixels that fine-tuning keeps, and their second reading
        for _ in range(2):
            kept, failed = pixels.pixels(files, ["a" * 64, "b" * 64], body.input_spec, tmp_path / "pixels" / kind)
            assert not failed
            np.testing.assert_array_equal(kept, images)


def test_low_bits_reach_training_from_scratch(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (16, 16), np.uint16)
    for number in range(3):
        (tmp_path / "data" / "a").mkdir(parents=True, exist_ok=True)
        eight = Image.fromarray((values // 256).astype(np.uint8))
        (eight if number == 0 else Image.fromarray(values + number)).save(tmp_path / "data" / "a" / f"{number}.png")
    store = open_store(tmp_path / "data", 16, folder=tmp_path / "stores")
    assert store.images.dtype == np.float32
    np.testing.assert_array_equal(store.images[0, ..., 0], values // 256)
    for number in (1, 2):
        np.testing.assert_allclose(store.images[number, ..., 0], (values + number) / 257, rtol=1e-6)


def test_arrays_of_many_bits_are_resized_as_they_are(fitted):
    found, _ = fitted
    values = np.random.default_rng(0).uniform(0, 255, (40, 40, 3)).astype(np.float32)
    low = values.copy()
    low[20, 20] += 0.2
    assert np.any(found.predict_proba(values) != found.predict_proba(low))


def test_fine_tuning_on_scans_keeps_their_depth(clinic, tmp_path):
    tuning = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3}
    found = fit(clinic, model=tiny_body(), strategy="full", tuning=tuning, cache=tmp_path / "cache")
    assert found.metrics["images"]["train"] + found.metrics["images"]["val"] + found.metrics["images"]["test"] == 38
    (store,) = (tmp_path / "cache" / "pixels").glob("*/about.json")
    assert json.loads(store.read_text())["dtype"] == "float32"
    assert found_in(tmp_path) == {}


def test_the_reading_is_part_of_the_classifier(tmp_path):
    values = np.random.default_rng(0).integers(0, 400, (3, 24, 24), np.uint16)
    for label, extra in (("bright", 600), ("dark", 0)):
        for number in range(6):
            path = tmp_path / "data" / label / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom(values + extra + number, PatientID=f"{label}{number}", PixelSpacing=[1, 1]))
    reading = Reading(frame="each", window=(500.0, 1000.0), spacing=2.0)
    found = fit(tmp_path / "data", model=tiny_body(), reading=reading, out=tmp_path / "out")
    assert found.metrics["images"]["found"] == 36
    loaded = Classifier.load(tmp_path / "out")
    assert loaded.input_spec.reading == reading
    assert loaded.evaluate(tmp_path / "data").n == 36
    path = tmp_path / "data" / "dark" / "0.dcm"
    assert [item.path.name for item in loaded.predict(path)] == [f"0.dcm#frame={number}" for number in range(3)]
    assert {item.label for item in loaded.predict(path)} == {"dark"}


def test_the_command_takes_the_readings_options(tmp_path, capsys):
    values = np.random.default_rng(0).integers(0, 400, (3, 24, 24), np.uint16)
    for label, extra in (("bright", 600), ("dark", 0)):
        for number in range(4):
            path = tmp_path / "data" / label / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dicom(values + extra + number, PatientID=f"{label}{number}", PixelSpacing=[1, 1]))
    options = ["--frame", "1", "--window", "500,1000", "--spacing", "0.75", "--channels", "1", "--json"]
    with pytest.raises(SystemExit) as stopped:
        main.run(["fit", str(tmp_path / "data"), "-o", str(tmp_path / "out"), *options])
    assert not stopped.value.code
    assert "research use, not a medical device" in capsys.readouterr().err
    loaded = Classifier.load(tmp_path / "out")
    assert loaded.model.input_shape[-1] == 1
    predictions = loaded.predict(tmp_path / "data")
    assert [item.label for item in predictions] == ["bright"] * 4 + ["dark"] * 4
    contract = json.loads((tmp_path / "out" / "classifier.json").read_text())["input"]
    assert contract["reading"] == {"frame": 1, "window": [500.0, 1000.0], "spacing": 0.75}
    assert contract["channels"] == 1
    with pytest.raises(SystemExit) as stopped:
        main.run(["fit", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--window", "wide"])
    assert stopped.value.code == 2
    assert "--window must be a number, or centre,width. Received: 'wide'." in capsys.readouterr().err


def test_channels_must_be_those_of_the_network(clinic):
    with pytest.raises(ArgumentError, match=r"the network has 3 input channels. Received: channels=1"):
        fit(clinic, model=tiny_body(), channels=1)
    with pytest.raises(ArgumentError, match="channels must be 1 or 3"):
        fit(clinic, channels=2)


def test_too_many_broken_scans_stop_without_a_name(tmp_path):
    for number in range(4):
        for path in write_patient(tmp_path / "data", ("sick", "well")[number % 2], number, PatientName="Mustermann"):
            path = path.rename(path.with_name(f"Mustermann {path.name}.dcm"))
            path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"such as sha256-[0-9a-f]{16}: truncated") as found:
        fit(tmp_path / "data", model=tiny_body(), out=tmp_path / "out")
    assert "Mustermann" not in str(found.value)
    assert found_in(tmp_path / "out") == {}


@pytest.mark.slow
def test_radimagenet_is_loaded_by_name_once_it_is_there(tmp_path, monkeypatch):
    """A file in the published layout, with weights of our own, where Keras keeps weights."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    import resfit
    from resfit.errors import CheckpointError

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"RadImageNet-ResNet50_notop.h5 by hand and put it into ~/.keras/models"):
        resfit.load("resnet50.radimagenet", include_top=False)
    keras.utils.set_random_seed(0)
    published = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    (tmp_path / "models").mkdir()
    with h5py.File(tmp_path / "models" / "RadImageNet-ResNet50_notop.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, published)
    body = resfit.load("resnet50.radimagenet", include_top=False, pooling="avg")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    # BGR, 0..1, the means of the publisher's code
    wanted = images[..., ::-1] / 255 - np.array([0.407604, 0.457957, 0.485020], np.float32)
    np.testing.assert_allclose(
        np.asarray(body(images)), np.asarray(published(wanted, training=False)), rtol=1e-3, atol=1e-5
    )
