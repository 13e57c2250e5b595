"""Unpacking archives: honest ones whole, and of the others nothing."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from resfit.errors import ArgumentError, CheckpointError
from resfit.weights import archives

CONTENT = {"saved_model.pb": b"graph" * 100, "variables/variables.index": b"", "assets/words.txt": b"red\n" * 70_000}


def tar(members, mode="w:gz", **options) -> bytes:
    """Returns a tar of ``(name, content or fields of TarInfo)``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
    return out.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            info, content = (name, content) if isinstance(name, zipfile.ZipInfo) else (zipfile.ZipInfo(name), content)
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack(tmp_path, data: bytes, **options):
    (tmp_path / "archive").write_bytes(data)
    return archives.unpack(tmp_path / "archive", tmp_path / "out", **options)


def refused(tmp_path, data: bytes, match: str, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        unpack(tmp_path, data, **options)
    assert str(tmp_path / "archive") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    assert not (tmp_path.parent / "evil").exists()


FOLDERS = [("./", {"type": tarfile.DIRTYPE}), ("./variables/", {"type": tarfile.DIRTYPE})]


@pytest.mark.parametrize(
    "data",
    [
        tar(CONTENT.items()),
        tar(CONTENT.items(), "w"),
        tar(CONTENT.items(), "w", format=tarfile.USTAR_FORMAT),
        tar(CONTENT.items(), "w", format=tarfile.GNU_FORMAT),
        tar([*FOLDERS, *((f"./{name}", content) for name, content in CONTENT.items())]),
        zipped(CONTENT.items()),
        zipped([("variables/", b""), *CONTENT.items()], zipfile.ZIP_STORED),
    ],
)
def test_honest_archives(tmp_path, data):
    assert unpack(tmp_path, data) == tmp_path / "out"
    assert files_in(tmp_path / "out") == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"]
    current = os.umask(0)
    os.umask(current)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~current


def test_rights_and_owners_are_not_taken_over(tmp_path):
    fields = {"mode": 0o6777, "uid": 12345, "uname": "mallory", "mtime": 1}
    unpack(tmp_path, tar([("folder", {"type": tarfile.DIRTYPE, **fields}), ("folder/a", {"size": 0, **fields})]))
    found = (tmp_path / "out/folder/a").stat()
    assert found.st_mode & 0o7111 == 0
    assert found.st_uid == os.getuid()
    assert found.st_mtime > 1


def test_long_names_and_names_beyond_ascii(tmp_path):
    names = {"a/" * 100 + "x" * 200: b"1", "žluťoučký/kůň": b"2"}
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        place = tmp_path / str(form)
        place.mkdir()
        unpack(place, tar(names.items(), format=form))
        assert files_in(place / "out") == names


BAD_NAMES = [
    "../evil",
    "/evil",
    "a/../../evil",
    "..",
    "a/..",
    "C:evil",
    "c:/evil",
    "a\\evil",
    "a\nb",
    "x" * 300,
    "a/" * 600,
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [tar, zipped])
def test_names_that_lead_outside(tmp_path, make, name):
    refused(tmp_path, make([("good", b"1"), (name, b"2")]), "name that leads outside")


def test_a_name_with_a_null_byte_in_a_zip(tmp_path):
    data = zipped([("good", b"1"), ("evil_txt", b"2")]).replace(b"evil_txt", b"evil\0txt")
    refused(tmp_path, data, "name that leads outside")


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"Z"]


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_no_files(tmp_path, kind):
    data = tar([("good", b"1"), ("bad", {"type": kind, "linkname": "good", "devmajor": 1, "devminor": 3})], "w")
    refused(tmp_path, data, "'bad'.*link, device")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o140777])
def test_zip_members_that_are_no_files(tmp_path, mode):
    info = zipfile.ZipInfo("bad")
    info.external_attr = mode << 16
    refused(tmp_path, zipped([("good", b"1"), (info, b"/etc/passwd")]), "'bad'.*link, device")


def test_a_link_and_what_goes_through_it(tmp_path):
    data = tar([("x", {"type": tarfile.SYMTYPE, "linkname": "../.."}), ("x/evil", b"1")])
    refused(tmp_path, data, "'x'.*link")


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("a", "./a"), ("a", "A"), ("a", "a/b"), ("a/b", "a"), ("f/a", "F/b"), ("é", "e\u0301"), ("a", "a//")],
)
@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_occur_twice(tmp_path, make, names):
    refused(tmp_path, make([(name, b"1") for name in names]), "occurs twice")


@pytest.mark.parametrize("make", [tar, zipped])
def test_limits(tmp_path, make):
    assert files_in(unpack(tmp_path, make([("f/a", b"1" * 60), ("f/b", b"1" * 40)]), max_bytes=100, max_members=3))
    for number, limits in enumerate(({"max_bytes": 99}, {"max_members": 2})):
        place = tmp_path / str(number)
        place.mkdir()
        refused(place, make([("f/a", b"1" * 60), ("f/b", b"1" * 40)]), "may (unpack to 99|have 2)", **limits)


def test_folders_count_too(tmp_path):
    refused(tmp_path, tar([(f"{number}/" * 30 + "x", b"") for number in range(10)]), "may have 100", max_members=100)


def test_what_follows_the_last_member(tmp_path):
    refused(tmp_path, gzip.compress(gzip.decompress(tar([("a", b"1")])) + bytes(1 << 25)), "must end after its last")


@pytest.mark.parametrize("make", [tar, zipped])
def test_bombs(tmp_path, make, monkeypatch):
    monkeypatch.setattr(archives, "_GROWTH_FROM", 10_000)
    refused(tmp_path, make([("zeros", bytes(3_000_000))]), "'zeros' makes it more|all members together")


def test_a_bomb_of_declared_sizes(tmp_path):
    header = tarfile.TarInfo("huge")
    header.size = 10**15
    refused(tmp_path, gzip.compress(header.tobuf()), "'huge' makes it more")


def test_a_zip_that_declares_less_than_it_holds(tmp_path):
    data = bytearray(zipped([("zeros", bytes(1_000_000))]))
    for signature, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, 10)
    refused(tmp_path, bytes(data), "BadZipFile|declares")


def test_a_zip_with_members_that_overlap(tmp_path):
    """Forty names for one member's bytes: each declares them honestly, all together are too many."""
    one = zipped([("a0", random.Random(0).randbytes(1000))])
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    entry = one[start:end]
    many = b"".join(entry[:28] + struct.pack("<H", 3) + entry[30:46] + b"b%02d" % number for number in range(40))
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 40, 40, len(many), start, 0)
    refused(tmp_path, one[:start] + many + tail, "BadZipFile|more", max_bytes=30_000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 29
    data = header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 25)
    tracemalloc.start()
    refused(tmp_path, gzip.compress(data), f"header of {1 << 29} bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(data)


def test_headers_without_end(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    refused(tmp_path, gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) * 50_000), "RecursionError|Error")


def test_a_header_that_points_back(tmp_path):
    record = b"13 size=-512\n"
    extended = tarfile.TarInfo("x")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    data = extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tarfile.TarInfo("y").tobuf()
    refused(tmp_path, data + bytes(1024), "makes it more|Error")


def test_a_table_of_contents_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_AT_ONCE", 100_000)
    refused(tmp_path, zipped([(f"{number:0200}", b"") for number in range(1000)]), "table")


def test_an_encrypted_zip(tmp_path):
    data = bytearray(zipped([("secret", b"1")]))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    refused(tmp_path, bytes(data), "'secret'.*encrypted")


def test_other_compressions(tmp_path):
    refused(tmp_path, zipped([("a", b"1")], zipfile.ZIP_LZMA), "compression method 14")
    (tmp_path / "archive").unlink()
    refused(tmp_path, tar(CONTENT.items(), "w:xz"), r"whole tar, tar\.gz or zip")


@pytest.mark.parametrize("data", [b"", b"x", b"PK\3\4", b"\x1f\x8b", bytes(600), b"<html>" * 500, b"x" * 5000])
def test_what_is_no_archive(tmp_path, data):
    if data == bytes(600):  # zeros are how a tar ends
        assert files_in(unpack(tmp_path, data)) == {}
    else:
        refused(tmp_path, data, r"whole tar, tar\.gz or zip")


@pytest.mark.parametrize("data", [tar(CONTENT.items()), zipped(CONTENT.items())])
def test_truncated_archives(tmp_path, data):
    for number, end in enumerate((len(data) // 3, len(data) - 20, len(data) - 9, len(data) - 1)):
        place = tmp_path / str(number)
        place.mkdir()
        refused(place, data[:end], r"whole tar, tar\.gz or zip")


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_flipped_bit_is_found(tmp_path, make):
    data = bytearray(make([("weights", random.Random(0).randbytes(100_000))]))
    data[len(data) // 2] ^= 1
    refused(tmp_path, bytes(data), r"whole tar, tar\.gz or zip")


@pytest.mark.parametrize("data", [tar(CONTENT.items(), "w"), tar(CONTENT.items()), zipped(CONTENT.items())])
def test_damaged_archives_raise_nothing_else(tmp_path, data):
    generator = random.Random(0)
    wrong = 0
    for number in range(400):
        mutated = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            mutated[generator.randrange(len(mutated) if number % 2 else min(len(mutated), 1600))] = generator.choice(
                (0, 1, 0x2E, 0x2F, 0x7F, 0xFF)
            )
        place = tmp_path / str(number)
        place.mkdir()
        try:
            unpack(place, bytes(mutated))
        except CheckpointError:
            wrong += 1
            assert [path.name for path in place.iterdir()] == ["archive"]
    assert wrong > 50


def test_the_destination_must_be_new(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArgumentError, match="must not exist"):
        unpack(tmp_path, tar(CONTENT.items()))


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        archives.unpack(tmp_path / "none", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
