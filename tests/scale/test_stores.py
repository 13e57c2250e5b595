"""Images and runs in an object store (moto's server on 127.0.0.1), and full disks."""

import subprocess

import numpy as np
import pytest

from resfit import scale
from resfit.errors import ArgumentError, DataError
from resfit.scale.folder import RunFolder
from resfit.scale.unit import Unit
from tests.scale.common import contents, features, photos, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("stores") / "photos")


@pytest.fixture(scope="module")
def store(folder):
    """A bucket with the pictures, and a text beside them."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs reads buckets")
    moto = pytest.importorskip("moto.server", reason="moto is the server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    system.put(str(folder), "bucket/photos", recursive=True)
    system.pipe("bucket/photos/readme.txt", b"none of them")
    yield system
    server.stop()
    patch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_gives_what_the_folder_gives_and_a_change_is_seen(folder, store, tmp_path):
    here = scale.plan(folder, tmp_path / "run", shard_images=7)
    there = scale.plan("s3://bucket/photos", "s3://bucket/run", shard_images=7)
    assert (there.images, there.bytes) == (here.images, here.bytes)
    for plan in (here, there):
        unit = Unit(plan, threads=1)
        numbers = range(plan.shards)
        assert [unit.run(n, n + 1 if n + 1 < plan.shards else None).state for n in numbers] == ["done"] * 3
    mine, theirs = rows_of(here.url), rows_of(there.url)
    np.testing.assert_array_equal(features(theirs), features(mine))
    assert list(theirs.label) == list(mine.label)
    assert [path.replace("s3://bucket/photos", str(folder)) for path in theirs.path] == list(mine.path)
    assert theirs.error.fillna("").tolist() == mine.error.fillna("").tolist()
    assert scale.finish("s3://bucket/run").errors == 1
    assert RunFolder("s3://bucket/run").names("attempts") == []

    again = scale.plan("s3://bucket/photos", "s3://bucket/again", shard_images=7)
    key = "bucket/photos/blue/002.png"
    same_size = bytearray(store.cat_file(key))
    same_size[-20] ^= 1
    store.pipe(key, bytes(same_size))
    store.rm("bucket/photos/red/003.png")
    found = [Unit(again, threads=1).run(number) for number in range(3)]
    assert [one.state for one in found] == ["refused", "done", "refused"]
    assert "blue/002.png changed since the plan" in found[0].reason
    assert "red/003.png is not there any more" in found[2].reason


def test_what_cannot_be_planned_in_a_bucket_says_why(store, tmp_path):
    store.pipe("bucket/tars/a.tar", b"x")
    with pytest.raises(DataError, match=r"files such as 'a\.tar'.*Archives and tables are read from a disk"):
        scale.plan("s3://bucket/tars", tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"listed as it is\. Received: label_from"):
        scale.plan("s3://bucket/photos", tmp_path / "run", label_from="{label}_*")


def test_a_full_disk_loses_nothing_that_was_done(folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        whole = scale.plan(folder, tmp_path / "whole", shard_images=5)
        plan = scale.plan(folder, disk / "run", shard_images=5)
        for number in range(4):
            Unit(whole, threads=1).run(number)
        (disk / "filler").write_bytes(b"x" * 86_000)
        with pytest.raises(OSError, match="the disk is full"):
            scale.run(plan, on="index", rank=0, count=1, threads=1)
        there = contents(plan.url)
        assert 0 < len(there) < 4
        (disk / "filler").unlink()
        again = scale.run(plan, on="index", rank=0, count=1, threads=1)
        assert (again.there, again.done) == (len(there), 4 - len(there))
        assert contents(plan.url) == contents(whole.url)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
