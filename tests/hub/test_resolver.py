"""From handles to folders: downloads from a server of the test, the shared cache, and archives that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2

from resfit import hub
from resfit.errors import ArgumentError, DownloadError, MissingDependencyError, ResfitError
from resfit.hub import handles, resolver
from resfit.weights import archives, download, tfhub
from resfit.weights import resolve as sources
from resfit.weights.formats import saved_model
from tests import fuzzing
from tests.weights import servers
from tests.weights.servers import Reply

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TFHUB_CACHE_DIR", os.fspath(folder))
    monkeypatch.setenv("RESFIT_CACHE", os.fspath(tmp_path / "resfit"))
    monkeypatch.setenv("KAGGLEHUB_CACHE", os.fspath(tmp_path / "kagglehub"))
    return folder


@pytest.fixture
def server():
    with servers.running() as site:
        yield site


def _tar(folder, mode="w:gz", prefix="./"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        archive.add(folder, arcname=prefix)
    return buffer.getvalue()


def _members(*members, honest=True):
    """Returns an archive of members that are (TarInfo, bytes), if it is honest after a minimal SavedModel."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, data in [(tarfile.TarInfo("saved_model.pb"), b"")] * honest + [*members]:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def _sha1(text):
    return hashlib.sha1(text.encode()).hexdigest()


def _relative(folder):
    folder = Path(folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- downloads


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), ("/1", "w:gz")])
def test_an_archive_is_downloaded_once(server, cache, folders, suffix, mode):
    server.files["/half" + suffix] = _tar(folders["half_plus_one"], mode)
    handle = f"{server.url}/half{suffix}?key=a%20b"
    place = hub.resolve(handle)
    assert place == os.fspath(cache / _sha1(handle))
    assert _relative(place) == _relative(folders["half_plus_one"])
    assert [path for path, _ in server.requests] == [f"/half{suffix}?key=a+b&tf-hub-format=compressed"]
    descriptor = (cache / f"{_sha1(handle)}.descriptor.txt").read_text()
    expected = (
        rf"Module: {re.escape(handle)}\nDownload Time: .*\nDownloader Hostname: {re.escape(socket.gethostname())}"
    )
    assert re.fullmatch(rf"{expected} \(PID:{os.getpid()}\)", descriptor)
    times = [os.stat(os.path.join(place, name)).st_mtime_ns for name in _relative(place)]
    assert hub.resolve(handle) == place
    assert len(server.requests) == 1
    assert times == [os.stat(os.path.join(place, name)).st_mtime_ns for name in _relative(place)]
    assert {path.name.partition(".")[0] for path in cache.iterdir()} == {_sha1(handle)}
    assert not list(cache.glob("*.tmp")) + list(cache.glob("*.tar.gz"))


def test_end_to_end(server, folders):
    server.script["/half"] = [Reply(status=302, headers={"Location": "/elsewhere.tar.gz"})]
    server.files["/elsewhere.tar.gz"] = _tar(folders["half_plus_one"])
    server.files["/v1.tgz"] = _tar(folders["v1_module"])
    np.testing.assert_allclose(hub.KerasLayer(f"{server.url}/half")([[4.0]]), [[3.0]])
    np.testing.assert_allclose(hub.KerasLayer(f"{server.url}/v1.tgz")(tf.ones((1, 4, 4, 3))), np.ones((1, 3)))


def test_without_a_named_cache(server, folders, tmp_path, monkeypatch):
    monkeypatch.delenv("TFHUB_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    server.files["/a"] = _tar(folders["strings"])
    assert hub.resolve(f"{server.url}/a") == os.fspath(
        tmp_path / "temporary" / "tfhub_modules" / _sha1(f"{server.url}/a")
    )
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    if (tmp_path / "temporary" / "tfhub_modules").stat().st_uid not in (0, 12345):
        with pytest.raises(OSError, match="another user"):
            hub.resolve(f"{server.url}/a")


def test_the_cache_may_be_named_as_a_url(server, cache, folders, monkeypatch):
    server.files["/a"] = _tar(folders["strings"])
    monkeypatch.setenv("TFHUB_CACHE_DIR", f"file://{cache}")
    assert hub.resolve(f"{server.url}/a") == os.fspath(cache / _sha1(f"{server.url}/a"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", "gs://bucket/cache")
    with pytest.raises(OSError, match="folder of this machine"):
        hub.resolve(f"{server.url}/a")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, cache, folders):
    data = _tar(folders["half_plus_one"])
    server.files["/half"] = data
    server.script["/half"] = [Reply(cut=len(data) // 2), Reply(status=503, headers={"Retry-After": "0"})]
    place = hub.resolve(f"{server.url}/half")
    assert server.ranges() == [None, f"bytes={len(data) // 2}-", f"bytes={len(data) // 2}-"]
    assert _relative(place) == _relative(folders["half_plus_one"])


def test_several_at_once_download_once(server, cache, folders):
    server.files["/a"] = _tar(folders["half_plus_one"])
    found = []
    threads = [threading.Thread(target=lambda: found.append(hub.resolve(f"{server.url}/a"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [os.fspath(cache / _sha1(f"{server.url}/a"))] * 6
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 403])
def test_a_server_that_has_it_not(server, cache, status):
    server.script["/a"] = [Reply(status=status, body=b"no")] * 2
    with pytest.raises(DownloadError, match=str(status)):
        hub.resolve(f"{server.url}/a")
    with pytest.raises(OSError):  # noqa: PT011  # the class is what the original promises
        hub.KerasLayer(f"{server.url}/a")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_offline(server, folders, monkeypatch):
    server.files["/a"] = _tar(folders["strings"])
    place = hub.resolve(f"{server.url}/a")
    monkeypatch.setenv("RESFIT_OFFLINE", "1")
    assert hub.resolve(f"{server.url}/a") == place
    for handle in (f"{server.url}/b", "gs://bucket/model", "kaggle://google/a/tensorFlow2/b/1"):
        with pytest.raises(DownloadError, match="RESFIT_OFFLINE"):
            hub.resolve(handle)
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    with pytest.raises(DownloadError, match="RESFIT_OFFLINE"):
        hub.resolve(f"{server.url}/b")


# ---- the cache


@pytest.mark.parametrize(
    "lost", ["saved_model.pb", "variables/variables.index", "variables/*.data-*", "variables", "assets/*", "*"]
)
def test_a_half_empty_folder_is_filled_again(server, cache, folders, lost):
    server.files["/words"] = _tar(folders["vocabulary"])
    place = Path(hub.resolve(f"{server.url}/words"))
    for path in [path for found in place.glob(lost) for path in (found, *found.rglob("*"))]:
        if path.is_file():
            path.unlink()
    assert hub.resolve(f"{server.url}/words") == os.fspath(place)
    assert len(server.requests) == 2
    assert _relative(place) == _relative(folders["vocabulary"])
    assert hub.KerasLayer(f"{server.url}/words")(tf.constant(["red"])).numpy().tolist() == [[1.0, 2.0]]


def test_a_truncated_file_is_seen(server, folders):
    server.files["/a"] = _tar(folders["half_plus_one"])
    place = Path(hub.resolve(f"{server.url}/a"))
    (data,) = place.glob("variables/*.data-*")
    data.write_bytes(data.read_bytes()[:-4])
    hub.resolve(f"{server.url}/a")
    assert len(server.requests) == 2


def test_what_others_left_behind_does_not_matter(server, cache, folders):
    """The lock of a process of tensorflow_hub that died, and its folder."""
    server.files["/a"] = _tar(folders["strings"])
    name = _sha1(f"{server.url}/a")
    cache.mkdir()
    (cache / f"{name}.lock").write_text("host.1.abc")
    (cache / f"{name}.abc.tmp").mkdir()
    (cache / name).mkdir()
    assert os.path.isfile(os.path.join(hub.resolve(f"{server.url}/a"), "saved_model.pb"))


def test_the_cache_is_shared_with_the_original(server, cache, folders):
    server.files["/ours"] = server.files["/theirs"] = _tar(folders["half_plus_one"])
    ours, theirs = f"{server.url}/ours", f"{server.url}/theirs"
    place = hub.resolve(ours)
    command = [sys.executable, "-m", "tests.hub.original", "resolve", ours, theirs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == [place, os.fspath(cache / _sha1(theirs))]
    assert hub.resolve(theirs) == os.fspath(cache / _sha1(theirs))
    assert len(server.requests) == 2  # each side downloaded one


# ---- archives that are damaged or mean harm


_HARMFUL = {
    "traversal": lambda: _members((tarfile.TarInfo("../../evil"), b"x")),
    "absolute": lambda: _members((tarfile.TarInfo("/tmp/resfit-evil"), b"x")),
    "symbolic link": lambda: _members(_special("link", tarfile.SYMTYPE, "/etc/passwd")),
    "through a link": lambda: _members(_special("d", tarfile.SYMTYPE, ".."), (tarfile.TarInfo("d/evil"), b"x")),
    "hard link": lambda: _members(_special("link", tarfile.LNKTYPE, "/etc/passwd")),
    "device": lambda: _members(_special("device", tarfile.CHRTYPE)),
    "pipe": lambda: _members(_special("pipe", tarfile.FIFOTYPE)),
    "cut short": lambda: _members((tarfile.TarInfo("a"), os.urandom(100_000)))[:50_000],
    "no archive": lambda: b"<html>Sign in</html>",
    "empty": lambda: b"",
    "other format": lambda: _members((tarfile.TarInfo("model.tflite"), b"TFL3"), honest=False),
    "broken gzip": lambda: gzip.compress(b"x" * 1000)[:-8] + b"12345678",
}


@pytest.mark.parametrize("harm", _HARMFUL)
@pytest.mark.parametrize("where", ["server", "file"])
def test_harmful_archives(server, cache, tmp_path, harm, where):
    data = _HARMFUL[harm]()
    if where == "server":
        server.files["/a"] = data
        handle = f"{server.url}/a"
    else:
        (tmp_path / "a.tar.gz").write_bytes(data)
        handle = os.fspath(tmp_path / "a.tar.gz")
    before = _relative(tmp_path)
    with pytest.raises(ResfitError) as caught:
        hub.resolve(handle)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ValueError)
    left = [name for name in _relative(tmp_path) if name not in before and not name.endswith(".lock")]
    if (harm, where) != ("other format", "file"):  # nothing is wrong with such an archive; resfit.load may read it
        assert left == []
        assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.parent == cache]
    assert not Path("/tmp/resfit-evil").exists()


def test_a_bomb(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_GROWTH_FROM", 1_000_000)
    (tmp_path / "bomb.tar.gz").write_bytes(_members((tarfile.TarInfo("variables/zeros"), bytes(3_000_000))))
    with pytest.raises(OSError, match=r"1,000,000|1000000|large"):
        hub.resolve(os.fspath(tmp_path / "bomb.tar.gz"))
    assert _relative(tmp_path) == ["bomb.tar.gz"]


def test_fuzzed_archives(tmp_path, folders, cache):
    (tmp_path / "m.tar.gz").write_bytes(_tar(folders["strings"]))
    (tmp_path / "m.tar").write_bytes(_tar(folders["strings"], "w"))
    (tmp_path / "work").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    sources = [tmp_path / "m.tar.gz", tmp_path / "m.tar"]
    totals = fuzzing.survive("tests.hub.original:resolved", sources, tmp_path / "work", count=150)
    assert totals["refused"] > 50
    assert {path.name for path in tmp_path.iterdir()} - before <= {"resfit"}


# ---- other handles


def test_paths(folders, tmp_path, monkeypatch):
    place = folders["strings"]
    assert hub.resolve(place) == place
    assert hub.resolve(f"file://{place}") == place
    monkeypatch.chdir(Path(place).parent)
    assert hub.resolve("strings") == "strings"
    assert hub.KerasLayer("./strings")(["abc"])["length"].numpy().tolist() == [3]
    monkeypatch.setenv("HOME", os.fspath(Path(place).parent))
    assert hub.resolve("~/strings") == place
    assert hub.KerasLayer(Path(place))(["ab"])["length"].numpy().tolist() == [2]


def test_local_archives(cache, folders, tmp_path):
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(_tar(folders["strings"]))
    place = hub.resolve(os.fspath(archive))
    assert _relative(place) == _relative(folders["strings"])
    assert archive.exists()
    archive.write_bytes(_tar(folders["half_plus_one"], prefix="inner"))  # another, with a folder around it
    os.utime(archive, ns=(1, 1))
    other = hub.resolve(os.fspath(archive))
    assert other != place
    assert _relative(other) == _relative(folders["half_plus_one"])
    assert hub.resolve(os.fspath(archive)) == other


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ("s3://my_module.zip", "must begin with https://"),
        ("/no/such/folder", "must exist"),
        ("https://[", "proper address"),
        ("kaggle://google/resnet", "kaggle://OWNER/MODEL"),
        ("kaggle://../../../../etc/1", "kaggle://OWNER/MODEL"),
    ],
)
def test_handles_that_lead_nowhere(handle, message):
    with pytest.raises(OSError, match=message) as caught:
        hub.resolve(handle)
    assert isinstance(caught.value, ResfitError)


def test_a_file_is_no_handle(folders):
    with pytest.raises(OSError, match="pass its folder"):
        hub.resolve(folders["strings"] + "/saved_model.pb")
    for handle in (0, None, b"folder"):
        with pytest.raises(ArgumentError, match="must be a string"):
            hub.resolve(handle)


def test_uncompressed(server):
    server.script["/a"] = [Reply(status=303, headers={"Location": "https://example.com"}, body=b"gs://bucket/a\n")]
    assert resolver._storage_place(f"{server.url}/a?x=1") == "gs://bucket/a"
    assert [path for path, _ in server.requests] == ["/a?x=1&tf-hub-format=uncompressed"]


def test_uncompressed_leads_to_a_folder_that_is_read_in_place(server, monkeypatch):
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    monkeypatch.setattr(tf.io.gfile, "exists", lambda path: path == "gs://bucket/a")  # the network's part
    server.script["/a"] = [Reply(status=303, body=b"gs://bucket/a")]
    assert hub.resolve(f"{server.url}/a") == "gs://bucket/a"
    server.script["/b"] = [Reply(status=303, body=b"gs://bucket/b")]
    with pytest.raises(OSError, match="nothing there"):
        hub.resolve(f"{server.url}/b")


def test_an_archive_on_google_cloud_storage_is_unpacked_once(folders, cache, monkeypatch):
    copied = []

    def copy(source, target, overwrite):  # the network's part
        copied.append(source)
        Path(target).write_bytes(_tar(folders["half_plus_one"]))

    monkeypatch.setattr(tf.io.gfile, "copy", copy)
    place = hub.resolve("gs://bucket/half.tar.gz")
    assert place == os.fspath(cache / _sha1("gs://bucket/half.tar.gz"))
    np.testing.assert_allclose(hub.KerasLayer("gs://bucket/half.tar.gz")([[4.0]]), [[3.0]])
    assert copied == ["gs://bucket/half.tar.gz"]


@pytest.mark.parametrize("answer", [(303, b"file:///etc"), (200, b"gs://bucket/a"), (404, b"")])
def test_uncompressed_with_another_answer(server, monkeypatch, answer):
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    server.script["/a"] = [Reply(status=answer[0], body=answer[1])]
    with pytest.raises(ValueError, match=f"Received: {answer[0]}"):
        hub.resolve(f"{server.url}/a")


# ---- Kaggle


@pytest.mark.parametrize(
    "handle",
    [
        "https://www.kaggle.com/models/google/resnet-v2/tensorFlow2/50-feature-vector/2",
        "https://kaggle.com/models/google/resnet-v2/frameworks/tensorFlow2/variations/50-feature-vector/versions/2",
        "https://www.kaggle.com/models/google/resnet-v2/frameworks/tensorFlow2/variations/50-feature-vector/versions/2/?a=b",
        "kaggle://google/resnet-v2/tensorFlow2/50-feature-vector/2",
    ],
)
def test_forms_of_a_handle_at_kaggle(handle):
    assert str(tfhub.kaggle_place(handle)) == "google/resnet-v2/tensorFlow2/50-feature-vector/2"
    assert handles.is_known(handle)


@pytest.mark.parametrize(
    ("handle", "publisher"),
    [
        ("https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5", "google"),
        ("http://tfhub.dev/google/x/1", ""),
        ("gs://tfhub.dev/google/x/1", ""),
        ("https://tfhub.dev@example.com/google/x/1", ""),
        ("https://tfhub.dev/google/../mallory/x/1", ""),
        ("https://tfhub.dev/google/%2e%2e/mallory/x/1", ""),
        ("https://tfhub.dev/mallory/x/1", "mallory"),
        ("https://example.com/google/x/1", ""),
        ("tfhub:google/x", ""),
        ("google/x", ""),
        ("kaggle://mallory/x/tensorFlow2/google/1", "mallory"),
        ("https://[", ""),
        (3, ""),
    ],
)
def test_publishers(handle, publisher):
    assert handles.publisher(handle) == publisher
    assert handles.is_known(handle) is (publisher == "google")


def test_a_handle_that_has_moved_is_asked_for_there_first(monkeypatch, tmp_path, folders):
    asked = []

    def fetch(url, destination, **_):
        asked.append(url)
        if "kaggle" in url:
            raise DownloadError("404")
        destination.write_bytes(_tar(folders["strings"]))
        return destination

    monkeypatch.setattr(download, "fetch", fetch)
    hub.resolve("https://tfhub.dev/google/bit/m-r50x1/1")
    hub.resolve("https://tfhub.dev/google/bit/m-r50x3/1")  # where that has gone is not confirmed
    hub.resolve("https://hub.tensorflow.google.cn/google/a/1")
    assert asked == [
        "https://www.kaggle.com/models/google/bit/tensorFlow2/m-r50x1/1?tf-hub-format=compressed",
        "https://tfhub.dev/google/bit/m-r50x1/1?tf-hub-format=compressed",
        "https://tfhub.dev/google/bit/m-r50x3/1?tf-hub-format=compressed",
        "https://gcs.tensorflow.google.cn/tfhub-modules/google/a/1.tar.gz",
    ]


def test_every_move_is_a_place_of_the_same_publisher():
    for path, place in tfhub._moves().items():
        found = tfhub.kaggle_place(f"kaggle://{place}")
        assert found.version
        assert path.startswith(f"{found.owner}/")
        assert hub.describe(f"https://tfhub.dev/{path}") is hub.describe(f"kaggle://{place}")


def test_kaggle_from_its_cache(folders, tmp_path, monkeypatch):
    place = tmp_path / "kagglehub" / "models" / "google" / "a" / "tensorFlow2" / "b" / "1"
    shutil.copytree(folders["strings"], place)
    monkeypatch.setenv("RESFIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="no whole copy"):  # kagglehub has not finished it
        hub.resolve("kaggle://google/a/tensorFlow2/b/1")
    place.with_name("1.complete").touch()
    assert hub.resolve("kaggle://google/a/tensorFlow2/b/1") == os.fspath(place)


def test_kaggle_without_kagglehub_or_network(monkeypatch):
    pytest.importorskip("kagglehub")
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")  # localhost:7777
    with pytest.raises(OSError, match=r"could not be downloaded from .*kaggle\.com/models/google/a"):
        hub.resolve("kaggle://google/a/tensorFlow2/b/1")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MissingDependencyError, match=r"resfit\[hub\]"):
        hub.resolve("https://www.kaggle.com/models/google/a/tensorFlow2/b")


# ---- one cache for everything


HANDLES = (
    "https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5",
    "https://www.kaggle.com/models/google/resnet-v2/tensorFlow2/50-feature-vector/2",
    "https://www.kaggle.com/models/google/resnet-v2/frameworks/tensorFlow2/variations/50-feature-vector/versions/2",
)


@pytest.mark.parametrize("handle", HANDLES)
@pytest.mark.parametrize("lost", ["saved_model.pb", "variables/variables.index", "variables/*.data-*", "*"])
def test_load_uses_the_cache_of_the_hub(cache, folders, monkeypatch, handle, lost):
    """What tensorflow_hub put there serves resfit.load as it serves the hub; neither trusts a half-empty folder."""
    place = cache / _sha1(handle)
    shutil.copytree(folders["resnet"], place)
    asked = []

    def fetch(url, destination, **_):
        asked.append(url)
        destination.write_bytes(_tar(folders["resnet"]))
        return destination

    monkeypatch.setattr(download, "fetch", fetch)
    assert sources.resolve(handle) == place
    assert hub.resolve(handle) == os.fspath(place)
    assert asked == []
    for path in [path for found in place.glob(lost) for path in (found, *found.rglob("*"))]:
        if path.is_file():
            path.unlink()
    assert sources.resolve(handle) == place
    assert len(asked) == 1
    assert "kaggle.com/models/google/resnet-v2/" in asked[0]
    assert _relative(place) == _relative(folders["resnet"])
    assert hub.resolve(handle) == os.fspath(place)
    assert len(asked) == 1
    assert not (cache.parent / "resfit").exists()


@pytest.mark.parametrize("lost", ["tfhub_module.pb", "variables/variables.index"])
def test_a_half_empty_module_of_tensorflow_1_is_filled_again(server, folders, lost):
    server.files["/v1"] = _tar(folders["v1_module"])
    place = Path(hub.resolve(f"{server.url}/v1"))
    (place / lost).unlink()
    np.testing.assert_allclose(hub.KerasLayer(f"{server.url}/v1")(tf.ones((1, 4, 4, 3))), np.ones((1, 3)))
    assert len(server.requests) == 2


def test_what_is_lost_is_named(folders, tmp_path):
    for name, folder in folders.items():
        assert saved_model.lost(Path(folder)) == [], name
    copy = Path(shutil.copytree(folders["vocabulary"], tmp_path / "m"))
    (data,) = copy.glob("variables/*.data-*")
    (asset,) = copy.glob("assets/*")
    data.write_bytes(data.read_bytes()[:-1])
    asset.unlink()
    assert saved_model.lost(copy) == ["assets/words.txt", f"variables/{data.name}"]
    (copy / "variables" / "variables.index").write_bytes(b"")
    assert saved_model.lost(copy) == ["assets/words.txt", "variables/variables.index"]
    (copy / "saved_model.pb").write_bytes(b"")
    assert saved_model.lost(copy) == ["saved_model.pb"]
    assert saved_model.lost(tmp_path / "none") == ["saved_model.pb"]


def test_variables_are_missed_only_where_there_are_some(folders, tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None,))
        signature = tf.compat.v1.saved_model.predict_signature_def({"x": x}, {"y": x * 2.0})
        builder = tf.compat.v1.saved_model.Builder(os.fspath(tmp_path / "bare"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    shutil.rmtree(tmp_path / "bare" / "variables", ignore_errors=True)
    assert saved_model.lost(tmp_path / "bare") == []
    text = Path(shutil.copytree(folders["half_plus_one"], tmp_path / "text"))
    message = saved_model_pb2.SavedModel.FromString((text / "saved_model.pb").read_bytes())
    (text / "saved_model.pb").unlink()
    (text / "saved_model.pbtxt").write_text(text_format.MessageToString(message))
    assert saved_model.lost(text) == []
    (text / "variables" / "variables.index").unlink()
    assert saved_model.lost(text) == ["variables/variables.index"]


def test_a_model_at_kaggle_that_is_no_public_module(folders, tmp_path, monkeypatch):
    """Weights of another kind, or of a private model, come by kagglehub; the first reason is told if they do not."""
    kagglehub = pytest.importorskip("kagglehub")
    handle = "https://www.kaggle.com/models/me/mine/tensorFlow2/weights/3"
    (tmp_path / "brought").mkdir()
    (tmp_path / "brought" / "net.h5").write_bytes(b"weights")
    answers = [_members((tarfile.TarInfo("net.h5"), b"weights"), honest=False), None, None]

    def fetch(url, destination, **_):
        if (data := answers.pop(0)) is None:
            raise DownloadError("the server answers 403")
        destination.write_bytes(data)
        return destination

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(kagglehub, "model_download", lambda *_, **__: os.fspath(tmp_path / "brought"))
    assert sources.resolve(handle) == tmp_path / "brought"
    with pytest.raises(OSError, match=r"folder with saved_model\.pb"):
        hub.resolve(handle)

    def refuse(*_, **__):
        raise RuntimeError("no credentials")

    monkeypatch.setattr(kagglehub, "model_download", refuse)
    with pytest.raises(DownloadError, match="answers 403"):
        hub.resolve(handle)


def test_a_gutted_folder_of_kagglehub_is_brought_again(folders, tmp_path, monkeypatch):
    kagglehub = pytest.importorskip("kagglehub")
    place = tmp_path / "kagglehub" / "models" / "google" / "a" / "tensorFlow2" / "b" / "1"
    asked = []

    def model_download(handle, path=None, *, force_download=False):
        asked.append((handle, force_download))
        if force_download or not place.exists():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folders["resnet"], place)
            place.with_name("1.complete").touch()
        return os.fspath(place)

    monkeypatch.setattr(kagglehub, "model_download", model_download)
    handle = "kaggle://google/a/tensorFlow2/b/1"
    assert hub.resolve(handle) == os.fspath(place)
    (place / "variables" / "variables.index").unlink()
    assert hub.resolve(handle) == os.fspath(place)
    assert (place / "variables" / "variables.index").exists()
    (place / "saved_model.pb").unlink()
    assert sources.resolve(handle.removesuffix("/1")) == place
    assert (place / "saved_model.pb").exists()
    name = "google/a/tensorFlow2/b"
    assert asked == [(f"{name}/1", False), (f"{name}/1", False), (f"{name}/1", True), (name, False), (name, True)]
