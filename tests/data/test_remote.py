"""Images in clouds and on hubs, from servers on 127.0.0.1."""

import hashlib
import http.server
import json
import sys
import threading
import time
import types
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit import cache_kinds, embedding
from resfit.data import decode, inputs, members, remote, urls
from resfit.data.dataset import scan
from resfit.errors import ArgumentError, DataError, DownloadError, MissingDependencyError
from resfit.preprocessing import InputSpec
from tests.data.test_sources import as_parquet, known, write_parquet, write_tar, write_tfds, write_zip
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
    assert decode.read_file(again.paths[-3]).endswith(b"another")
    assert memory.got == ["/bucket/red/000.png"]
    remote._end_copies()
    (entry,) = cache_kinds.find(kinds=["sources"])
    assert entry.what == "s3://bucket"
    assert cache_kinds.faults(entry) == []


def test_a_single_file_and_predict_and_embed(memory, samples, tmp_path):
    as_parquet(tmp_path / "a.parquet", samples)
    memory.system.pipe("/bucket/more/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert scan("s3://bucket/more/a.parquet").counts() == {"blue": 3, "green": 3, "red": 3}
    assert len(embedding.scan_any("s3://bucket/more/a.parquet")) == 9


class Gate:
    """The requests of a back end: held until they are let through, and counted."""

    def __init__(self, monkeypatch, system, method, passing):
        self.opened, self.passing = threading.Event(), passing
        self.under_way, self.most, self.asked = 0, 0, []
        lock, real = threading.Lock(), getattr(system, method)

        def request(place, *args, **options):
            with lock:
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                self.asked.append(place)
            try:
                if not self.passing(place):
                    assert self.opened.wait(60)
                return real(place, *args, **options)
            finally:
                with lock:
                    self.under_way -= 1

        monkeypatch.setattr(type(system), method, lambda self, *args, **options: request(*args, **options))


def fill(memory, folder, count):
    """Puts pictures of three classes into a bucket; returns the bytes of each by its name."""
    blue = (folder / "blue" / "000.png").read_bytes()
    files = {f"{name}/{n:03}.png": blue + bytes([n]) for name in NAMES for n in range(count)}
    for name, data in files.items():
        memory.system.pipe(f"/full/{name}", data)
    return files


def test_pictures_are_read_while_the_next_ones_are_copied(memory, folder, monkeypatch):
    files = fill(memory, folder, 20)
    first = {f"/full/{name}" for name in sorted(files)[:3]}
    gate = Gate(monkeypatch, memory.system, "get_file", lambda place: place in first)
    images = scan("s3://full")  # returns though most are still to come
    assert images.counts() == dict.fromkeys(NAMES, 20)
    paths = sorted(images.paths)
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    assert [decode.read_file(path) for path in paths[:3]] == [files[name] for name in names[:3]]
    assert not gate.opened.is_set()
    first.add(f"/full/{names[-1]}")
    assert decode.read_file(paths[-1]) == files[names[-1]]  # whoever waits for a file copies it
    assert members.size(paths[30]) == len(files[names[30]])  # as it was listed
    while len(gate.asked) < 20:
        time.sleep(0.001)
    assert {place.removeprefix("/full/") for place in gate.asked} == {*names[:19], names[-1]}  # 16 ahead, in order
    assert [path.stat().st_size for path in paths[20:59]] == [0] * 39
    gate.opened.set()
    assert [decode.read_file(path) for path in paths] == [files[name] for name in names]
    assert gate.most <= 17
    assert len(gate.asked) == len(set(gate.asked)) == 60
    assert scan("s3://full").paths == images.paths
    assert len(gate.asked) == 60


def test_features_are_those_of_the_folder_under_every_scheme(memory, folder):
    expected = resfit.embed(folder, cache=False)
    found = resfit.embed("s3://bucket", cache=False)
    assert (found.features == expected.features).all()
    assert found.labels == expected.labels
    for scheme in ("gs", "az", "https"):
        assert known(scan(f"{scheme}://bucket")) == known(scan(folder))


def test_a_picture_that_cannot_be_copied_ends_the_run_and_is_not_skipped(memory, folder, monkeypatch):
    files = fill(memory, folder, 12)
    broken = "/full/green/005.png"
    real = memory.system.get_file

    def fail(self, place, *rest, **options):
        if place == broken:
            raise ConnectionError("the store is gone")
        return real(place, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory.system), "get_file", fail)
        with pytest.raises(DataError, match=r"green/005\.png could not be copied.*ConnectionError: the store is gone"):
            resfit.embed("s3://full", cache=False)
    before = len(memory.got)
    images = scan("s3://full")
    assert sorted(map(decode.read_file, images.paths)) == sorted(files.values())
    assert len(memory.got) == 36
    assert 0 < len(memory.got) - before < 36  # those that had come are not copied again


def test_a_copy_that_was_stopped_is_gone_on_with(memory, folder, monkeypatch):
    files = fill(memory, folder, 12)
    gate = Gate(monkeypatch, memory.system, "get_file", lambda place: "blue" in place)
    images = scan("s3://full")
    copy = list(remote._copies.values())[-1]
    decode.read_file(sorted(images.paths)[11])
    ending = threading.Thread(target=copy.end)
    ending.start()
    while not copy._arrivals._stopped:
        pass
    gate.opened.set()
    ending.join()
    come = len(gate.asked)
    assert 12 <= come < 36
    with pytest.raises(DataError, match="was stopped before it was whole"):
        decode.read_file(sorted(images.paths)[-1])
    monkeypatch.setenv("RESFIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match=rf"Received: {36 - come} files are missing"):
        scan("s3://full")
    monkeypatch.delenv("RESFIT_OFFLINE")
    assert sorted(map(decode.read_file, scan("s3://full").paths)) == sorted(files.values())
    assert len(gate.asked) == 36
    copy = list(remote._copies.values())[-1]
    copy.end()
    monkeypatch.setenv("RESFIT_OFFLINE", "1")
    assert len(scan("s3://full")) == 36


def test_a_large_archive_is_copied_in_ranges(memory, samples, tmp_path, monkeypatch):
    write_tar(tmp_path, samples)
    data = (tmp_path / "photos.tar").read_bytes()
    memory.system.pipe("/bucket/big/a.tar", data)
    monkeypatch.setattr(remote, "LARGE", 1000)
    monkeypatch.setattr(remote, "RANGE", 700)
    gate = Gate(monkeypatch, memory.system, "cat_file", lambda place: False)
    opening = threading.Timer(0.3, gate.opened.set)
    opening.start()
    images = scan("gs://bucket/big/a.tar")
    assert known(images) == known(scan(tmp_path / "photos.tar"))
    assert len(gate.asked) == -(-len(data) // 700)
    assert 1 < gate.most <= 8
    assert memory.got == []
    memory.system.pipe("/bucket/big/b.tar", data)
    real = memory.system.cat_file

    def change(self, place, **options):
        memory.system.pipe(place, data + b"0" * 512)
        return real(place, **options)

    monkeypatch.setattr(type(memory.system), "cat_file", change)
    with pytest.raises(DownloadError, match=r"b\.tar could not be copied"):
        scan("gs://bucket/big/b.tar")


def test_handles_in_a_list_are_copied_together(memory, folder):
    contract = InputSpec(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    found = inputs.listed([f"s3://bucket/{name}" for name in names], contract)
    assert [path.read_bytes() for path in found.paths] == [(folder / name).read_bytes() for name in names]
    with pytest.raises(ArgumentError, match="allow_urls=True"):
        inputs.listed(["s3://bucket/red/000.png", "https://host/1.png"], contract)


@pytest.fixture
def web(samples, tmp_path):
    """A server with a page of links to pictures, and archives of them."""
    site = tmp_path / "site"
    for position, (_, name, data) in enumerate(samples):
        path = site / "photos" / name / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_zip(site, samples)
    write_tar(site, samples)
    write_tar(site, samples, ".gz")
    state = types.SimpleNamespace(asked=[])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=site)

        def do_GET(self):
            state.asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        state.url, state.site = f"http://127.0.0.1:{running.server_port}", site
        yield state
        running.shutdown()


def test_pages_and_archives_of_a_web_server(web, folder, monkeypatch):
    pytest.importorskip("aiohttp", reason='resfit[cloud] brings aiohttp: pip install "resfit[cloud]"')
    expected = sorted(path.read_bytes() for path in folder.rglob("*.png"))
    images = scan(f"{web.url}/photos/")
    assert images.counts() == {"blue": 3, "green": 3, "red": 3}
    assert sorted(map(decode.read_file, images.paths)) == expected
    without_slash = scan(Path(f"{web.url}/photos/"))  # as a command gets it
    assert sorted(map(decode.read_file, without_slash.paths)) == expected
    assert without_slash.counts() == images.counts()
    asked = len(web.asked)
    remote._end_copies()
    changed = min((web.site / "photos/red").iterdir())
    changed.write_bytes(changed.read_bytes() + b"0")
    again = scan(f"{web.url}/photos/")
    assert sorted(map(decode.read_file, again.paths)) != expected
    pictures = [path for path in web.asked[asked:] if path.endswith(".png")]
    assert pictures == [f"/photos/red/{changed.name}"]
    monkeypatch.setattr(remote, "LARGE", 1000)
    for name in ("photos.zip", "photos.tar", "photos.tar.gz"):
        found = scan(f"{web.url}/{name}")
        assert found.counts() == {"blue": 3, "green": 3, "red": 3}
        assert sorted(map(decode.read_file, found.paths)) == expected
        assert web.asked.count(f"/{name}") == 1


def test_addresses_of_images_are_fetched_ahead(web):
    contract = InputSpec(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    paths = sorted((web.site / "photos").rglob("*.png"))
    addresses = [f"{web.url}/{path.relative_to(web.site).as_posix()}" for path in paths]
    addresses.insert(4, f"{web.url}/photos/nothing.png")
    sources = inputs.listed(urls.opened(addresses), contract)
    assert web.asked == []
    batches = list(inputs.batches(sources, contract, 4))
    expected = next(decode.decode_many(paths, contract, batch_size=16)).images
    assert (np.concatenate([batch.images for batch in batches]) == expected).all()
    assert [failure for batch in batches for failure in batch.failures] == [
        (4, "cannot be read: the server answers 404 File not found")
    ]


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


def test_s3_itself(folder, samples, tmp_path, monkeypatch):
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
        write_tar(tmp_path, samples)
        system.put(str(tmp_path / "photos.tar"), "photos/packed/photos.tar")
        monkeypatch.setattr(remote, "LARGE", 1000)
        monkeypatch.setattr(remote, "RANGE", 700)
        packed = scan("s3://photos/packed")
        assert known(packed) == known(scan(tmp_path / "photos.tar"))
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
