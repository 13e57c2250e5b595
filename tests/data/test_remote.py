"""Images in clouds and on hubs, from servers on 127.0.0.1."""

import hashlib
import http.server
import json
import sys
import threading
import types
import urllib.parse
from pathlib import Path

import pytest

from resfit import cache_kinds, embedding
from resfit.data import decode, remote
from resfit.data.dataset import scan
from resfit.errors import ArgumentError, DataError, DownloadError, MissingDependencyError
from tests.data.test_sources import as_parquet, known, write_parquet, write_tfds
from tests.pictures import COLOURS, write_folder

NAMES = list(COLOURS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"), 3)


@pytest.fixture
def samples(folder):
    return [("train", path.parent.name, path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


@pytest.fixture
def memory(folder, monkeypatch):
    """fsspec's own file system in memory, under a scheme that is read."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in folder.rglob("*.png"):
        system.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    counted = types.SimpleNamespace(got=[])
    real = system.get_file
    monkeypatch.setattr(type(system), "get_file", lambda self, a, b, **o: (counted.got.append(a), real(a, b, **o))[1])
    monkeypatch.setattr(remote, "_system", lambda handle: (system, "/" + handle.partition("://")[2].rstrip("/")))
    counted.system = system
    return counted


def test_handles_and_what_paths_have_left_of_them(tmp_path):
    for text in ("s3://bucket/a", "hf://datasets/o/n", "gs://b", "az://c/d", "tfds://cifar10", "https://h/x.zip"):
        assert remote.handle_of(text) == remote.handle_of(Path(text)) == text
    for text in ("photos", "/photos", "C:/photos", "s3", "s3:/", str(tmp_path)):
        assert remote.handle_of(text) == ""


def test_a_bucket_is_read_as_the_folder_and_only_what_changed_is_copied_again(memory, folder):
    images = scan("s3://bucket")
    assert known(images) == known(scan(folder))
    assert len(memory.got) == 9
    memory.got.clear()
    assert len(scan(Path("s3://bucket"))) == 9
    assert memory.got == []
    memory.system.pipe("/bucket/red/000.png", (folder / "blue" / "000.png").read_bytes() + b"another")
    memory.system.rm("/bucket/green/001.png")
    again = scan("s3://bucket")
    assert again.counts() == {"blue": 3, "green": 2, "red": 3}
    assert memory.got == ["/bucket/red/000.png"]
    (entry,) = cache_kinds.find(kinds=["sources"])
    assert entry.what == "s3://bucket"
    assert cache_kinds.faults(entry) == []


def test_a_single_file_and_predict_and_embed(memory, samples, tmp_path):
    as_parquet(tmp_path / "a.parquet", samples)
    memory.system.pipe("/bucket/more/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert scan("s3://bucket/more/a.parquet").counts() == {"blue": 3, "green": 3, "red": 3}
    assert len(embedding.scan_any("s3://bucket/more/a.parquet")) == 9


def test_what_cannot_be_copied_says_why(memory, monkeypatch):
    with pytest.raises(DataError, match="nothing there"):
        scan("s3://empty")
    monkeypatch.setattr(remote, "_ROOM", 1 << 60)
    with pytest.raises(DataError, match=r"must fit on the disk.*RESFIT_CACHE"):
        scan("s3://bucket")
    memory.system.pipe("/odd/a\\..\\b.png", b"x")
    with pytest.raises(DataError, match="names for files"):
        scan("s3://odd")


def test_a_missing_back_end_names_the_extra():
    if "adlfs" in sys.modules:
        pytest.skip("adlfs is installed")
    with pytest.raises((MissingDependencyError, DownloadError), match=r"resfit\[cloud\]|could not be copied"):
        scan("az://container/photos")


def test_s3_itself(folder, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("photos")
        system.put(str(folder), "photos/all", recursive=True)
        found = scan("s3://photos/all")
        assert known(found) == known(scan(folder))
        assert {path.parent.name for path in found.paths} == set(NAMES)
        with pytest.raises((DataError, DownloadError)):
            scan("s3://nobody-has-this")
    finally:
        server.stop()


@pytest.fixture
def hub(samples, tmp_path):
    """A hub with one data set, as huggingface_hub asks for it."""
    root = tmp_path / "hub"
    write_parquet(root, [*samples, *(("test", name, data + b"t") for _, name, data in samples[:2])])
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.parquet")}
    commit = "a" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            name = path.rpartition(f"/resolve/{commit}/")[2]
            body, more = b"", {}
            if path.startswith("/api/datasets/owner/colours/revision/"):
                siblings = [{"rfilename": one} for one in files]
                body = json.dumps({"id": "owner/colours", "sha": commit, "siblings": siblings}).encode()
            elif path.startswith("/api/datasets/owner/colours/tree/"):
                body = json.dumps(
                    [
                        {"type": "file", "path": one, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for one, data in files.items()
                    ]
                ).encode()
            elif name in files:
                body = files[name]
                more = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit}
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for key, value in {**more, "Content-Length": str(len(body)), "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_data_set_of_the_hub(hub, samples, tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, endpoint=hub, cache_dir=tmp_path / "hf", **k)
    )
    images = scan("hf://datasets/owner/colours")
    assert images.counts() == {"blue": 5, "green": 3, "red": 3}
    assert images.splits.count("test") == 2
    inside = scan("hf://datasets/owner/colours/data")
    assert sorted(decode.read_file(path) for path in inside.paths) == sorted(
        decode.read_file(path) for path in images.paths
    )
    with pytest.raises(ArgumentError, match="hf://datasets/OWNER/NAME"):
        scan("hf://owner/colours")


def test_names_of_tfds(samples, tmp_path, monkeypatch):
    write_tfds(tmp_path, samples)
    builder = types.SimpleNamespace(data_path=tmp_path, download_and_prepare=lambda: None)
    asked = []
    module = types.ModuleType("tensorflow_datasets")
    module.builder = lambda name: (asked.append(name), builder)[1]
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    assert scan("tfds://colours:1.0.0").counts() == {"blue": 3, "green": 3, "red": 3}
    assert asked == ["colours:1.0.0"]
