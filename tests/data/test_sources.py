"""Images that lie in other files: every source gives the images, classes and parts that the folder gives."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resfit import embedding
from resfit.data import containers, decode, members
from resfit.data.dataset import scan, scan_images
from resfit.errors import DataError, ImageError
from resfit.features.extract import extract
from tests.pictures import COLOURS, tiny_body, write_folder

NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for part, each in (("train", 4), ("test", 2)):
        write_folder(root / part, each)
    for part in ("train", "test"):  # no two alike
        for number, path in enumerate(sorted((root / part).rglob("*.png"))):
            path.write_bytes(path.read_bytes() + part.encode() + bytes([number]))
    return root


@pytest.fixture(scope="module")
def samples(folder):
    """Part, class and bytes of each image, in order."""
    return [
        (path.parts[-3], path.parts[-2], path.read_bytes())
        for path in sorted((folder / "train").rglob("*.png")) + sorted((folder / "test").rglob("*.png"))
    ]


def known(images):
    """What is known of each image, by its bytes."""
    return {
        decode.read_file(path): (images.splits[row], images.label_text(row)) for row, path in enumerate(images.paths)
    }


@pytest.fixture(scope="module")
def expected(folder):
    return known(scan(folder))


# ---- writers, each as another program writes such files


def as_parquet(target, samples, *, names=NAMES, struct_=True, label="label", **options):
    """Parquet as ``datasets`` writes it: struct<bytes, path> and ClassLabel names in the metadata."""
    columns = {
        "image": pa.array(
            [
                {"bytes": data, "path": f"{number}.png"} if struct_ else data
                for number, (_, _, data) in enumerate(samples)
            ],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct_ else pa.binary(),
        ),
        label: pa.array([names.index(name) for _, name, _ in samples], pa.int64()),
    }
    features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target, **options)
    return table


def write_parquet(root, samples):
    for part, name in (
        ("train", "train-00000-of-00002"),
        ("train", "train-00001-of-00002"),
        ("test", "test-00000-of-00001"),
    ):
        some = [item for item in samples if item[0] == part]
        some = some[::2] if name.endswith("00000-of-00002") else some[1::2] if part == "train" else some
        as_parquet(root / "data" / f"{name}.parquet", some, row_group_size=3)


def write_arrow(root, samples):
    for part in ("train", "test"):
        table = as_parquet(root / "unused.parquet", [item for item in samples if item[0] == part])
        (root / part).mkdir()
        with (
            pa.OSFile(str(root / part / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            for batch in table.to_batches(max_chunksize=5):
                stream.write_batch(batch)
        (root / part / "state.json").write_text("{}")
    (root / "unused.parquet").unlink()
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def add(tar, name, data, **fields):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    tar.addfile(entry, io.BytesIO(data))


def write_webdataset(root, samples, fields="json"):
    for part in ("train", "test"):
        with tarfile.open(root / f"{part}-000000.tar", "w") as tar:
            for number, (_, name, data) in enumerate(item for item in samples if item[0] == part):
                add(tar, f"{number:06}.png", data)
                add(
                    tar,
                    f"{number:06}.{fields}",
                    json.dumps({"label": name, "id": number}).encode() if fields == "json" else name.encode(),
                )


def write_tar(root, samples, packed=""):
    with tarfile.open(root / f"photos.tar{packed}", f"w:{packed[1:]}") as tar:
        for number, (part, name, data) in enumerate(samples):
            add(tar, f"photos/{part}/{name}/{number}.png", data)


def write_zip(root, samples, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(root / "photos.zip", "w", method) as archive:
        for number, (part, name, data) in enumerate(samples):
            archive.writestr(f"{part}/{name}/{number}.png", data)
        archive.writestr("__MACOSX/train/._0.png", b"x")


def masked(data):
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(**features):
    entries = b""
    for name, value in features.items():
        listed = field(1, field(1, value)) if isinstance(value, bytes) else field(3, field(1, varint(value)))
        entries += field(1, field(1, name.encode()) + field(2, listed))
    return field(1, entries)


def record(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def write_tfds(root, samples):
    for part in ("train", "test"):
        some = [item for item in samples if item[0] == part]
        data = b"".join(record(example(image=data, label=NAMES.index(name))) for _, name, data in some)
        (root / f"colours-{part}.tfrecord-00000-of-00001").write_bytes(data)
    (root / "label.labels.txt").write_text("\n".join(NAMES) + "\n")


def write_tf(root, samples):
    """As TensorFlow's build_image_data.py: no ending, words beside numbers."""
    for part, name in (("train", "train"), ("test", "validation")):
        some = [item for item in samples if item[0] == part]
        data = [
            record(
                example(
                    **{
                        "image/class/label": 9,
                        "image/class/text": word.encode(),
                        "image/encoded": data,
                        "image/format": b"PNG",
                    }
                )
            )
            for _, word, data in some
        ]
        (root / f"{name}-00000-of-00001").write_bytes(b"".join(data))


WRITERS = {
    "parquet": write_parquet,
    "arrow": write_arrow,
    "webdataset": write_webdataset,
    "tar": write_tar,
    "tar.gz": lambda root, samples: write_tar(root, samples, ".gz"),
    "tar.xz": lambda root, samples: write_tar(root, samples, ".xz"),
    "zip": write_zip,
    "stored zip": lambda root, samples: write_zip(root, samples, zipfile.ZIP_STORED),
    "tfds": write_tfds,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_images_classes_and_parts_are_those_of_the_folder(kind, samples, expected, tmp_path):
    WRITERS[kind](tmp_path, samples)
    images = scan(tmp_path)
    assert known(images) == expected
    assert images.classes == ("blue", "green", "red")
    assert not images.skipped


def test_tensorflows_own_names_take_words_and_know_validation(samples, tmp_path):
    write_tf(tmp_path, samples)
    images = scan(tmp_path)
    assert {(split, images.label_text(row)) for row, split in enumerate(images.splits)} == {
        (part, name) for part in ("train", "val") for name in NAMES
    }
    assert len(images) == 18


@pytest.mark.parametrize("kind", ["parquet", "arrow", "webdataset", "tar.gz", "zip", "tfds"])
def test_features_are_those_of_the_folder_and_kept_by_content(kind, samples, folder, tmp_path):
    WRITERS[kind](tmp_path, samples)
    body = tiny_body()
    plain = extract(body, scan(folder), cache=tmp_path / "cache")
    there = extract(body, scan(tmp_path), cache=tmp_path / "cache")
    assert there.computed == 0
    fresh = extract(body, scan(tmp_path), cache=False)
    for found in (there, fresh):
        rows = dict(zip(found.digests, found.rows, strict=True))
        assert rows.keys() == set(plain.digests)
        np.testing.assert_allclose(np.stack([rows[digest] for digest in plain.digests]), plain.rows, atol=1e-6)
