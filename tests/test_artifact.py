"""Classifier folders that were changed by hand, damaged or made by an attacker: refused, quickly, in little memory."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resfit import artifact
from resfit.data import class_names
from resfit.data.decode import decode_image
from resfit.errors import ArgumentError, ArtifactError, ArtifactWarning, CheckpointError, DataError, ResfitWarning
from resfit.preprocessing import InputSpec
from resfit.storage import bounded_json
from resfit.tasks.classification import Classifier, fit, schema
from resfit.weights.formats import keras_archive

from . import fuzzing
from .pictures import picture, tiny_body, write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    fit(write_folder(folder / "images", each=8), model=tiny_body(), out=folder / "colours.resfit", cache=False)
    return folder / "colours.resfit"


@pytest.fixture(scope="module")
def description(out):
    return json.loads((out / artifact.DESCRIPTION).read_text())


@pytest.fixture
def mine(out, tmp_path):
    return Path(shutil.copytree(out, tmp_path / "mine.resfit"))


def sign(folder):
    """Writes new checksums, as whoever changes a file on purpose would."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
        if name != artifact.CHECKSUMS
    ]
    (folder / artifact.CHECKSUMS).write_text("".join(lines))


def rewrite(folder, change):
    path = folder / artifact.DESCRIPTION
    found = json.loads(path.read_text())
    path.write_text(json.dumps(change(found) or found, indent=2))


BY_HAND = {
    "temperature": lambda found: found.update(temperature=found["temperature"] * 1.5),
    "classes reversed": lambda found: found.update(classes=found["classes"][::-1]),
    "classes equal": lambda found: found.update(classes=["red"] * 3),
    "a figure": lambda found: found["metrics"]["test"].update(accuracy=1.0, n=1000),
    "the contract": lambda found: found["input"].update(channel_order="bgr"),
    "a seed": lambda found: found["recipe"].update(seed=2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_changes_by_hand_are_seen(mine, name):
    rewrite(mine, BY_HAND[name])
    with pytest.raises(ArtifactError, match=r"classifier\.json is damaged or was changed"):
        artifact.read(mine)


def test_every_file_is_covered_and_sha256sum_agrees(mine):
    names = sorted(path.name for path in mine.iterdir() if path.name != artifact.CHECKSUMS)
    assert [line.split("  ")[1] for line in (mine / artifact.CHECKSUMS).read_text().splitlines()] == names
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--status", "-c", artifact.CHECKSUMS], cwd=mine, check=True)
    for name in names:
        content = (mine / name).read_bytes()
        (mine / name).write_bytes(content + b" ")
        with pytest.raises(ArtifactError):
            artifact.read(mine)
        (mine / name).write_bytes(content)
    (mine / artifact.TRAINING).write_text("epoch\n1\n")
    with pytest.raises(ArtifactError, match=r"'training\.csv', which has none"):
        artifact.read(mine)
    (mine / artifact.TRAINING).unlink()
    (mine / "report.html").write_text("a page beside it is no part of it")
    artifact.read(mine)


def test_classifiers_of_format_1_load_with_a_word(mine, out):
    model = hashlib.sha256((mine / artifact.MODEL).read_bytes()).hexdigest()
    rewrite(mine, lambda found: {**found, "format": 1, "files": {artifact.MODEL: model}})
    with pytest.raises(ArtifactError, match="belongs to newer"):
        artifact.read(mine)
    (mine / artifact.CHECKSUMS).unlink()
    text = (mine / artifact.DESCRIPTION).read_text()
    (mine / artifact.DESCRIPTION).write_text(text.replace('"per_class"', '"undefined": NaN,\n "per_class"', 1))
    with pytest.warns(ArtifactWarning, match="covers model.keras only"):
        old = Classifier.load(mine)
    image = picture("red", 99)
    np.testing.assert_array_equal(old.predict_proba(image), Classifier.load(out).predict_proba(image))
    assert old.metrics["test"]["undefined"] is None
    old.save(mine)
    artifact.read(mine)  # without a warning
    for files in (7, {}, {artifact.MODEL: 7}, {"../../etc/passwd": "0"}, None):
        rewrite(mine, lambda found, files=files: {**found, "format": 1, "files": files})
        (mine / artifact.CHECKSUMS).unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ArtifactWarning)
            with pytest.raises(ArtifactError):
                artifact.read(mine)


HOSTILE_JSON = {
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "400 digits": b'{"kind": "resfit classifier", "format": ' + b"9" * 400 + b"}",
    "400 digits after the point": b'{"kind": "resfit classifier", "format": 1.' + b"9" * 400 + b"}",
    "NaN": b'{"kind": "resfit classifier", "format": 2, "temperature": NaN}',
    "Infinity": b'{"kind": "resfit classifier", "format": 2, "temperature": -Infinity}',
    "1e999": b'{"kind": "resfit classifier", "format": 2, "temperature": 1e999}',
    "no UTF-8": b'{"kind": "\xff"}',
    "many lists": b"[" + b"[]," * 1_100_000 + b"[]]",
    "many values": b"[" + b"0," * 8_100_000 + b"0]",
    "a list": b"[]",
    "nothing": b"",
    "format as text": b'{"kind": "resfit classifier", "format": "2"}',
    "format true": b'{"kind": "resfit classifier", "format": true}',
    "versions 7": b'{"kind": "resfit classifier", "format": 99, "versions": 7}',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused(mine, name):
    (mine / artifact.DESCRIPTION).write_bytes(HOSTILE_JSON[name])
    sign(mine)
    with pytest.raises(ArtifactError):
        artifact.read(mine)


def places(value, way=()):
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*way, key))


def test_wrong_types_anywhere_are_refused_or_harmless(description):
    """Every entry is replaced by every kind of value: what comes back is of the right types, or an ArtifactError."""
    refused = 0
    junk = (None, True, 7, -1, 10**9, 1.5, "x", "\ud800", [], {}, [[]], {"a": {}}, 10**30, float("inf"))
    ways = [way for way in places(description) if way and len(way) < 5 and way[0] not in ("kind", "format")]
    for way in ways:
        for value in junk:
            changed = copy.deepcopy(description)
            spot = changed
            for key in way[:-1]:
                spot = spot[key]
            spot[way[-1]] = value
            try:
                found = schema.read(changed)
            except ArtifactError:
                refused += 1
                continue
            assert all(isinstance(name, str) and name.isprintable() for name in found.classes)
            assert 0 < found.calibration.temperature < 1e7
            assert isinstance(found.metrics, dict)
            assert max(found.input_spec.size) <= 16384
            if found.architecture is not None:
                assert sum(found.architecture.depths) <= 10_000
    assert refused > len(ways) * 5


@pytest.mark.parametrize("key", ["classes", "input", "architecture", "recipe", "metrics", "data", "versions"])
def test_missing_entries_are_named(description, key):
    changed = copy.deepcopy(description)
    del changed[key]
    with pytest.raises(ArtifactError, match=f"missing entry '{key}'"):
        schema.read(changed)


@pytest.mark.parametrize(
    ("way", "value", "message"),
    [
        (("classes",), ["red", "red", "blue"], "classes must differ"),
        (("classes",), ["red", "g\x1b[31m", "blue"], r"g\\x1b\[31m"),
        (("temperature",), 0, "temperature"),
        (("temperature",), "1.5", "temperature"),
        (("architecture", "depths"), [10**9, 1], "10000 blocks"),
        (("architecture", "widths"), [10**9, 1], "channels"),
        (("architecture", "block"), "x" * 1000, "architecture"),
        (("architecture", "more"), 1, "unknown fields: more"),
        (("input", "size"), [10**9, 10**9], "16384"),
        (("input", "std"), [0, 0, 0], "positive"),
        (("recipe", "folds"), 1.5, "recipe"),
        (("recipe", "more"), 1.5, "recipe"),
        (("recipe", "head"), "other", "head"),
        (("metrics", "test", "accuracy"), 1.5, "accuracy"),
        (("metrics", "images", "train"), -3, "images"),
        (("calibration", "conformal", "scores", "lac"), [0.5], "ascending"),
    ],
)
def test_values_out_of_their_range_are_named(description, way, value, message):
    changed = copy.deepcopy(description)
    spot = changed
    for key in way[:-1]:
        spot = spot[key]
    spot[way[-1]] = value
    with pytest.raises(ArtifactError, match=message):
        schema.read(changed)


def test_a_description_that_fits_no_model_is_refused(mine):
    rewrite(mine, lambda found: found.update(classes=["a", "b"]))
    sign(mine)
    with pytest.raises(ArtifactError, match="an output for each of 2 classes"):
        Classifier.load(mine)
    rewrite(mine, lambda found: found.update(classes=["a", "b", "c"]) or found["recipe"].update(features="nowhere"))
    sign(mine)
    with pytest.raises(ArtifactError, match="'nowhere'"):
        Classifier.load(mine)


# model.keras


def repack(folder, change, **options):
    """Writes the model again, its members changed: name -> content, or None to leave one out."""
    path = folder / artifact.MODEL
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members = change(members) or members
    with zipfile.ZipFile(path, "w", options.pop("compression", zipfile.ZIP_STORED), **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    sign(folder)


def set_units(members):
    config = json.loads(members["config.json"])
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["units"] = 10**9
    members["config.json"] = json.dumps(config).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_units, "its weights in its file"),
        (lambda members: members.update({"config.json": b"[" * 10**6}), "levels deep"),
        (lambda members: members.update({"config.json": b'{"a": ' + b"9" * 400 + b"}"}), "400 characters"),
        (lambda members: members.pop("config.json") and None, "must hold config.json"),
        (lambda members: members.update({"config.json": b"{}"}), "cannot be read"),
        (lambda members: members.update({"model.weights.h5": b"no HDF5"}), "HDF5"),
        (lambda members: members.update({"metadata.json": b" " * 2_000_000}), "metadata.json must unpack"),
        (lambda members: members.update({"../x": b""}), "leads outside"),
    ],
)
def test_hostile_models_are_refused(mine, change, message):
    repack(mine, change)
    with pytest.raises(ArtifactError, match=message):
        Classifier.load(mine)


def test_a_model_that_unpacks_without_end_takes_little_memory(mine):
    path = mine / artifact.MODEL
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("metadata.json", "{}")
        with archive.open("config.json", "w") as file:
            for _ in range(1 << 8):
                file.write(b" " * (1 << 20))
        archive.writestr("model.weights.h5", weights)
    program = (
        "import resource, sys; from resfit.weights.formats import keras_archive\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: keras_archive.check(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, text=True)
    said, grown = done.stdout.splitlines()
    assert said.startswith("CheckpointError")
    assert "must unpack to at most" in said
    assert int(grown) < 50_000  # kilobytes


def test_weights_that_declare_more_than_they_hold_are_refused(mine, tmp_path):
    import h5py

    path = tmp_path / "model.weights.h5"
    for make in (
        lambda file: file.create_dataset("layers/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000)),
        lambda file: file.create_dataset("layers/vars/0", (10**5, 10**5), "f4"),
        lambda file: file.__setitem__("layers", h5py.ExternalLink("/etc/passwd", "/")),
        lambda file: file.create_group("a").__setitem__("b", file["/"]),
    ):
        with h5py.File(path, "w") as file:
            make(file)
        repack(mine, lambda members: members.update({"model.weights.h5": path.read_bytes()}))
        with pytest.raises(CheckpointError):
            keras_archive.check(mine / artifact.MODEL)


def test_compressed_and_plain_models_are_counted_alike(mine):
    config, numbers = keras_archive.check(mine / artifact.MODEL)
    assert config["class_name"] == "Functional"
    assert numbers == Classifier.load(mine).model.count_params()
    repack(mine, lambda members: None, compression=zipfile.ZIP_DEFLATED)
    assert keras_archive.check(mine / artifact.MODEL) == (config, numbers)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("name", [artifact.MODEL, artifact.DESCRIPTION, artifact.CHECKSUMS, artifact.SKIPPED])
def test_nothing_but_regular_files_is_opened(mine, name):
    (mine / name).unlink()
    os.mkfifo(mine / name)
    begin = time.monotonic()
    with pytest.raises(ArtifactError):
        artifact.read(mine)
    assert time.monotonic() - begin < 60  # a pipe that is opened would block for ever


def test_a_file_of_any_size_is_not_read_into_memory(mine):
    with open(mine / artifact.DESCRIPTION, "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ArtifactError, match="more than the"):
        artifact.read(mine)
    with pytest.raises(OSError, match="more than the"):
        bounded_json.read_file(mine / artifact.DESCRIPTION)


# damage at random, in a process of its own


def read_description(path):
    """What a load does with ``classifier.json``, whatever its checksum."""
    description = artifact._described(alone(path, artifact.DESCRIPTION))
    schema.read(description, strict=description["format"] != 1)


def read_sums(path):
    artifact._sums(alone(path, artifact.CHECKSUMS))


def alone(path, name):
    """Returns a folder that holds a copy of a file under the name that it has in a classifier."""
    folder = path.parent / f"alone-{name}" if path.name != name else path.parent
    if folder != path.parent:
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / name)
    return folder


def read_npy(path):
    decode_image(path, InputSpec(size=(16, 16)))


FUZZED = {
    "read_description": artifact.DESCRIPTION,
    "read_sums": artifact.CHECKSUMS,
    "check": artifact.MODEL,
    "read_npy": "a.npy",
}


def survived(name, out, folder, count, seed=0):
    np.save(folder / "a.npy", np.random.default_rng(0).uniform(0, 255, (9, 9, 3)))
    source = folder / FUZZED[name] if name == "read_npy" else out / FUZZED[name]
    module = "resfit.weights.formats.keras_archive" if name == "check" else "tests.test_artifact"
    (folder / "copies").mkdir()
    return fuzzing.survive(f"{module}:{name}", [source], folder / "copies", count, seed)


@pytest.mark.parametrize("name", ["read_description", "check"])
def test_damaged_files_are_refused_or_read(name, out, tmp_path):
    found = survived(name, out, tmp_path, 150)
    assert found["refused"] > 15
    assert found["read"] > 0  # some damage is to what nothing depends on, such as a figure


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_many_damaged_files(name, out, tmp_path):
    print(name, survived(name, out, tmp_path, 50_000, seed=1))


# names of classes


BAD_NAMES = {
    "control": ["a\x07b", "other"],
    "escape": ["a\x1b[31m", "other"],
    "line break": ["a\nb", "other"],
    "next line": ["a\x85b", "other"],
    "line separator": ["a\u2028b", "other"],
    "zero": ["a\0b", "other"],
    "lone surrogate": ["a\ud800", "other"],
    "bytes that are no UTF-8": [os.fsdecode(b"a\xff"), "other"],
    "turned round": ["cat\u202egod", "other"],
    "blank": ["  ", "other"],
    "equal": ["cat", "cat"],
    "case": ["Cat", "cat"],
    "spaces": ["a  cat", "a cat"],
    "composed and not": ["caf\u00e9", "cafe\u0301"],
    "full width": ["ＣＡＴ", "cat"],
    "sharp s": ["Straße", "STRASSE"],
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_files_cannot_hold_or_tell_apart_are_refused(name):
    with pytest.raises(DataError) as caught:
        class_names.check(BAD_NAMES[name])
    text = str(caught.value)
    assert text.isprintable()
    text.encode()
    if name not in ("equal", "case", "spaces", "composed and not", "full width", "sharp s"):
        assert ascii(BAD_NAMES[name][0]) in text


def test_ordinary_names_of_every_script_pass():
    class_names.check(["cat", "Katze – groß", "猫", "قطة", "बिल्ली", "👩‍🔬", "می‌خواهم", "=1+1", "-cat", "a/b", "c d"])


def test_a_fit_refuses_such_names_and_shows_them_escaped(tmp_path):
    folder = write_folder(tmp_path / "images", each=3)
    (folder / "red").rename(folder / "re\x1b[2Jd")
    with pytest.raises(DataError, match=r"re\\x1b\[2Jd"):
        fit(folder, model=tiny_body(), cache=False)
    table = tmp_path / "labels.csv"
    rows = [f'"images/{name}/{number:03}.png","{name}; a\tb"' for name in ("blue", "green") for number in range(3)]
    table.write_text("path,label\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"a\\tb"):
        fit(table, model=tiny_body(), cache=False, label_separator=";")


def test_a_classifier_with_such_names_is_not_written(out, tmp_path):
    found = Classifier.load(out)
    for names in (("a", "a", "b"), ("a", "b", "c\n")):
        found.classes = names
        with pytest.raises(ArgumentError):
            found.save(tmp_path / "new.resfit")
    assert not (tmp_path / "new.resfit").exists()


# replacing


def test_an_earlier_classifier_is_replaced_with_a_word_and_nothing_else_is(mine, out, tmp_path):
    images = out.parent / "images"
    said = []
    fit(images, model=tiny_body(), out=mine, seed=3, cache=False, check=False, say=said.append)
    assert f"{mine} holds an earlier classifier, which is replaced when the new one is written" in said
    with pytest.warns(ResfitWarning, match="which is replaced"):
        again = fit(images, model=tiny_body(), out=mine, seed=4, cache=False, check=False)
    assert any("which is replaced" in note for note in again.run.notes)
    before = (mine / artifact.CHECKSUMS).read_bytes()
    (mine / "notes.txt").write_text("mine")
    (mine / "raw").mkdir()
    for save in (again.save, lambda path: fit(images, model=tiny_body(), out=path, cache=False)):
        with pytest.raises(ArgumentError, match=r"notes\.txt, raw/.*force"):
            save(mine)
    assert (mine / "notes.txt").read_text() == "mine"
    assert (mine / artifact.CHECKSUMS).read_bytes() == before
    again.save(mine, force=True)
    assert not (mine / "notes.txt").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    for path in (tmp_path / "photos", tmp_path / "photos" / "a.jpg"):
        with pytest.raises(ArgumentError, match="something else"):
            again.save(path, force=True)  # never what is no classifier
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"
