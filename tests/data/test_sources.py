"""Images that lie in other files: every source gives the images, classes and parts that the folder gives."""

import io
import json
import os
import pickle
import re
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
from resfit.data import containers, decode, members, parquet_rows
from resfit.data.dataset import scan, scan_images
from resfit.errors import DataError, ImageError
from resfit.features.extract import extract
from resfit.preprocessing import InputSpec
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


# ---- tables beside images


def write_tree(root, samples):
    """As Hugging Face's imagefolder: loose images in the folder of each part."""
    for number, (part, _, data) in enumerate(samples):
        (root / part).mkdir(exist_ok=True)
        (root / part / f"{number}.png").write_bytes(data)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["beside the images", "at the root"])
def test_imagefolder_metadata(ending, place, samples, expected, tmp_path):
    write_tree(tmp_path, samples)
    rows = [
        (
            part,
            {
                "file_name": f"{part}/{number}.png" if place == "at the root" else f"{number}.png",
                "label": name,
                "caption": f"a {name} one",
            },
        )
        for number, (part, name, _) in enumerate(samples)
    ]
    for part in ("train", "test") if place == "beside the images" else ("",):
        some = [row for own, row in rows if not part or own == part]
        target = tmp_path / part / f"metadata.{ending}"
        if ending == "csv":
            lines = [",".join(some[0]), *(",".join(row.values()) for row in some)]
            target.write_text("\n".join(lines))
        elif ending == "jsonl":
            target.write_text("\n".join(map(json.dumps, some)))
        else:
            pq.write_table(pa.Table.from_pylist(some), target)
    assert known(scan(tmp_path, label_column="label")) == expected


def test_json_lines_alone_and_a_line_that_is_none(samples, folder, tmp_path):
    target = tmp_path / "list.jsonl"
    paths = sorted((folder / "train").rglob("*.png"))
    target.write_text("\n".join(json.dumps({"image": str(path), "category": path.parent.name}) for path in paths))
    assert scan(target).counts() == {"blue": 4, "green": 4, "red": 4}
    target.write_text(target.read_text() + '\n{"image": 1,')
    with pytest.raises(DataError, match="line 13"):
        scan(target)


# ---- what damaged ones get


def test_a_broken_member_is_listed_with_its_archive_and_name(samples, tmp_path):
    broken = [*samples[:-1], (*samples[-1][:2], samples[-1][2][:90])]
    for kind in WRITERS:
        root = tmp_path / kind
        root.mkdir()
        WRITERS[kind](root, broken)
        found = extract(tiny_body(), scan(root), cache=False)
        assert len(found.rows) == len(samples) - 1
        (skipped,) = found.skipped
        assert "damaged or truncated" in skipped.reason
        assert "#" in str(skipped.path)
        assert members.container(skipped.path).is_file()


def test_a_checksum_of_a_zip_member_is_compared(samples, tmp_path):
    write_zip(tmp_path, samples, zipfile.ZIP_STORED)
    data = bytearray((tmp_path / "photos.zip").read_bytes())
    at = data.find(samples[4][2]) + len(samples[4][2]) - 1  # behind the picture: the decoder would not see it
    data[at] ^= 1
    (tmp_path / "photos.zip").write_bytes(data)
    (skipped,) = extract(tiny_body(), scan(tmp_path), cache=False).skipped
    assert skipped.reason == "damaged in photos.zip (its size or checksum is another)"
    assert skipped.path.name == "4.png"


def test_links_and_names_that_lead_outside_are_listed_and_never_read(samples, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(samples[0][2])
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number, (_, name, data) in enumerate(samples):
            add(tar, f"{name}/{number}.png", data)
        add(tar, f"{samples[0][1]}/0.png", b"again")
        add(tar, "../red/out.png", samples[1][2])
        add(tar, "/red/out.png", samples[1][2])
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            add(tar, f"red/link{kind!r}.png", b"", type=kind, linkname=str(secret))
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number, (_, name, data) in enumerate(samples):
            archive.writestr(f"{name}/{number}.png", data)
        link = zipfile.ZipInfo("red/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
        archive.writestr("../red/out.png", samples[1][2])
    before = sorted(tmp_path.rglob("*"))
    for name, reasons in (
        ("photos.tar", {"twice": 1, "outside": 2, "link": 2}),
        ("photos.zip", {"outside": 1, "link": 1}),
    ):
        images = scan(tmp_path / name)
        assert len(images) == 18
        assert {word: sum(word in item.reason for item in images.skipped) for word in reasons} == reasons
    assert sorted(tmp_path.rglob("*")) == before


def test_a_key_that_comes_back_is_an_error(samples, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in ("a", "b", "a"):
            add(tar, f"{key}.png", samples[0][2])
            add(tar, f"{key}.cls", b"1")
    with pytest.raises(DataError, match=r"'a' comes back in a\.tar"):
        scan(tmp_path)


@pytest.mark.parametrize("fields", ["cls", "txt", "json"])
def test_what_a_webdataset_says_of_an_image(fields, samples, tmp_path):
    write_webdataset(tmp_path, samples, fields)
    images = scan(tmp_path)
    assert images.counts() == {"blue": 6, "green": 6, "red": 6}
    assert set(images.splits) == {"train", "test"}


def test_members_that_say_nothing_are_listed(samples, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, (_, name, data) in enumerate(samples):
            add(tar, f"{number:03}.png", data)
            if number:
                add(tar, f"{number:03}.cls", name.encode())
        add(tar, "x.cls", b"red")
    images = scan(tmp_path)
    assert len(images) == 17
    assert sorted(item.reason for item in images.skipped) == ["a key without an image", "no label (cls) under its key"]


def test_damaged_records_are_listed_and_the_others_read(samples, tmp_path):
    records = [record(example(image=data, label=NAMES.index(name))) for _, name, data in samples]
    records[2] = records[2][:40] + bytes([records[2][40] ^ 1]) + records[2][41:]
    whole = b"".join(records)
    target = tmp_path / "a.tfrecord"
    target.write_bytes(whole[:-10])
    images = scan(target)
    assert len(images) == 16
    assert sorted(item.reason for item in images.skipped) == [
        "a.tfrecord ends within this record",
        "damaged in a.tfrecord (its checksum is another)",
    ]
    at = len(b"".join(records[:9]))
    target.write_bytes(whole[:at] + b"\xff" * 20 + whole[at + 20 :])  # a length that is none
    assert len(scan(target)) == 8
    target.write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="does not begin like that"):
        scan(target)


def test_rows_without_bytes_or_label_are_listed(samples, tmp_path):
    names = ["blue", "green", "red"]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    cells = [{"bytes": data, "path": f"{number}.png"} for number, (*_, data) in enumerate(samples)]
    labels = [names.index(name) for _, name, _ in samples]
    cells[3], labels[5] = {"bytes": None, "path": None}, -1
    table = pa.table({"image": pa.array(cells, image), "label": labels}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = extract(tiny_body(), scan(tmp_path / "a.parquet"), cache=False)
    assert [item.reason for item in found.skipped] == ["no bytes in this row"]
    assert [item.reason for item in scan(tmp_path / "a.parquet").skipped] == ["no label in column 'label'"]
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert {item.reason for item in scan(tmp_path / "a.arrow").skipped} == {
        "no bytes in this row",
        "no label in column 'label'",
    }


def test_files_that_are_not_whole_say_which(samples, tmp_path):
    for kind in ("parquet", "arrow", "zip", "tar.gz"):
        root = tmp_path / kind
        root.mkdir()
        WRITERS[kind](root, samples)
        file = next(path for path in sorted(root.rglob("*")) if path.suffix in (".parquet", ".arrow", ".zip", ".gz"))
        file.write_bytes(file.read_bytes()[:-60])
        with pytest.raises(DataError, match=re.escape(f"{file.name} must ")):
            scan(root)


def test_a_damaged_part_of_a_parquet_file_costs_its_rows(samples, tmp_path):
    target = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    as_parquet(target, samples, row_group_size=6, write_page_checksum=True, **plain)
    data = bytearray(target.read_bytes())
    data[data.find(samples[8][2]) + 30] ^= 255
    target.write_bytes(data)
    found = extract(tiny_body(), scan(target), cache=False)
    assert len(found.rows) == 12
    assert len(found.skipped) == 6
    assert all("its part of a.parquet cannot be read" in item.reason for item in found.skipped)


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path):
    import gzip

    with gzip.open(tmp_path / "a.tar.gz", "wb", 9) as file:
        for _ in range(130):
            file.write(b"\0" * (1 << 20))
    with pytest.raises(DataError, match="must unpack to at most"):
        scan(tmp_path)


# ---- memory, order, processes


def test_rows_are_read_in_any_order_and_kept_in_bounded_memory(tmp_path, monkeypatch):
    """One row group, as pandas writes it, of which only some rows are ever in memory."""
    monkeypatch.setattr(parquet_rows, "_MOST_KEPT", 20_000_000)
    random = np.random.default_rng(0)
    values = [random.bytes(200_000) for _ in range(400)]
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), tmp_path / "a.parquet", compression="none")
    paths = [members.address(tmp_path / "a.parquet", "row", (0, row, 0), "x") for row in range(400)]
    tracemalloc.start()
    for row in [*range(400), 399, 3, 200]:
        assert decode.read_file(paths[row]) == values[row]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000  # of 80 million bytes
    assert pickle.loads(pickle.dumps(paths[7])) == paths[7]
    with pytest.raises(ImageError, match="no such row"):
        decode.read_file(members.address(tmp_path / "a.parquet", "row", (0, 400, 0), "x"))


def test_what_the_addresses_say_is_all_that_reading_takes(samples, tmp_path):
    write_tar(tmp_path, samples, ".gz")
    images = scan(tmp_path)
    assert [path.name for path in images.paths[:2]] == ["12.png", "13.png"]
    target = images.paths[0]
    data = decode.read_file(target)
    members._unpacked.cache_clear()
    members._copies.cache_clear()
    assert decode.read_file(Path(os.fspath(target))) == data
    shutil.move(tmp_path / "photos.tar.gz", tmp_path / "gone")
    with pytest.raises(ImageError, match=r"photos.tar.gz is not there"):
        decode.read_file(target)


def test_addresses_that_nobody_wrote_are_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 100)
    for place, reason in (
        ("bytes=90+20", "ends before it"),
        ("bytes=1+2+3", "not the address"),
        ("bytes=0+9999999999", "more than"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode.read_file(Path(f"{tmp_path}/a.bin#{place}/x.png"))
    with pytest.raises(ImageError, match=r"is not there"):
        decode.read_file(tmp_path / "b.bin#bytes=0+1" / "x.png")


# ---- commands


def test_predict_and_embed_take_archives(samples, tmp_path):
    write_zip(tmp_path, samples)
    found = scan_images([tmp_path / "photos.zip"])
    assert sorted(decode.read_file(path) for path in found.paths) == sorted(data for *_, data in samples)
    images = embedding.scan_any(tmp_path / "photos.zip")
    assert {images.label_text(row) for row in range(len(images))} == set(NAMES)
    assert len(containers.shards(tmp_path / "photos.zip")) == 1


def test_parts_may_be_named(samples, tmp_path):
    for part in ("train", "test"):
        as_parquet(tmp_path / f"{part}s.parquet", [item for item in samples if item[0] == part])
    images = scan(tmp_path / "trains.parquet", test=tmp_path / "tests.parquet")
    assert {split: images.splits.count(split) for split in set(images.splits)} == {"train": 12, "test": 6}


def test_several_archives_are_parts_or_classes(samples, tmp_path):
    for name in NAMES:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for number, (*_, data) in enumerate(item for item in samples if item[1] == name):
                add(tar, f"{number}.png", data)
    assert scan(tmp_path).counts() == {"blue": 6, "green": 6, "red": 6}


def test_a_folder_with_images_is_not_one_of_archives(folder, tmp_path):
    shutil.copytree(folder / "train", tmp_path, dirs_exist_ok=True)
    with zipfile.ZipFile(tmp_path / "backup.zip", "w") as archive:
        archive.writestr("a/1.png", b"x")
    assert scan(tmp_path).counts() == {"blue": 4, "green": 4, "red": 4}


def test_every_command_takes_them_and_says_what_the_folder_gives(samples, folder, tmp_path, capsys):
    from resfit.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run([str(argument) for argument in (*arguments, "--json")])
        output = capsys.readouterr()
        assert not stopped.value.code, output.err
        return json.loads(output.out)

    write_zip(tmp_path, samples)
    write_parquet(tmp_path / "rows", samples)
    out = tmp_path / "out"
    fitted = [
        run("fit", source, "-o", out, "--allow-leakage")
        for source in (folder, tmp_path / "photos.zip", tmp_path / "rows")
    ]
    assert [(one["images"]["train"], one["images"]["test"]) for one in fitted] == [(12, 6)] * 3
    assert fitted[1]["images"]["ignored"] == 1  # of __MACOSX
    assert [one["test"]["accuracy"] for one in fitted] == [1.0] * 3
    assert run("evaluate", out, tmp_path / "rows", "--part", "test")["accuracy"] == 1.0
    predicted = run("predict", out, tmp_path / "photos.zip")
    assert sorted(one["label"] for one in predicted) == sorted(name for _, name, _ in samples)
    assert all("photos.zip#zip=" in one["path"] for one in predicted)
    checked = run("check", tmp_path / "rows")
    assert checked["images"] == run("check", folder)["images"]
    run("embed", tmp_path / "rows", "-o", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 18
    assert set(table["label"].to_pylist()) == set(NAMES)


# boxes in archives


@pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
@pytest.mark.parametrize("labels", ["csv", "voc", "yolo"])
def test_boxes_in_an_archive_are_those_of_the_folder(kind, labels, tmp_path):
    from resfit.data import drawn_boxes
    from resfit.data.boxes import find_box_formats, scan_boxes

    drawn_boxes.write_set(tmp_path / "set", {"train": 4, "test": 2})
    plain = scan_boxes(tmp_path / "set")
    if labels != "csv":
        (tmp_path / "set" / "labels.csv").unlink()
        for row, path in enumerate(plain.paths):
            write = {"voc": as_voc, "yolo": as_yolo}[labels]
            write(path, *plain.boxes_of(row)[:2], plain.sizes[row], plain.classes)
        if labels == "yolo":
            (tmp_path / "set" / "data.yaml").write_text(f"names: {list(plain.classes)}\ntrain: train\ntest: test\n")
        plain = scan_boxes(tmp_path / "set")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "set"))
    assert find_box_formats(archive) == find_box_formats(tmp_path / "set")
    packed = scan_boxes(archive)
    assert np.array_equal(packed.boxes, plain.boxes)
    assert np.array_equal(packed.labels, plain.labels)
    assert (packed.classes, packed.splits) == (plain.classes, plain.splits)
    assert len(packed.boxes) > 5
    contract = InputSpec(size=(32, 32))
    for one, other in zip(packed.paths, plain.paths, strict=True):
        assert np.array_equal(decode.decode_image(one, contract), decode.decode_image(other, contract))


def as_voc(path, boxes, labels, size, classes):
    edges = ("xmin", "ymin", "xmax", "ymax")
    objects = ""
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        inside = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(edges, box, strict=True))
        objects += f"<object><name>{classes[label]}</name><bndbox>{inside}</bndbox></object>"
    height, width = size
    path.with_suffix(".xml").write_text(
        f"<annotation><filename>{path.name}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def as_yolo(path, boxes, labels, size, classes):
    sides = size[::-1].tolist() * 2
    rows = [
        (label, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        for label, (x1, y1, x2, y2) in zip(labels.tolist(), (boxes / sides).tolist(), strict=True)
    ]
    path.with_suffix(".txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def test_an_archive_without_annotations_holds_no_boxes(tmp_path):
    from resfit.data.boxes import find_box_formats, scan_boxes

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.writestr("red/a.png", b"x")
        file.writestr("notes.txt", "hello")
    assert find_box_formats(tmp_path / "photos.zip") == []
    with pytest.raises(DataError, match=r"source must hold boxes.*photos\.zip"):
        scan_boxes(tmp_path / "photos.zip")
