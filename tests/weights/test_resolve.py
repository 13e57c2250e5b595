"""Handles: to the right files, by the right library, into the right cache; and what is said where there are none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import pytest

from resfit.errors import ArgumentError, CheckpointError, DownloadError, MissingDependencyError
from resfit.storage.locks import USERS
from resfit.weights import download, registry, resolve
from tests.weights import servers
from tests.weights.servers import Reply


@pytest.fixture
def site():
    with servers.running() as running:
        yield running


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """No cache of this machine is looked at, and none is written."""
    monkeypatch.delenv(download.OFFLINE, raising=False)
    for variable, name in (
        *(("RESFIT_CACHE", "resfit"), ("TORCH_HOME", "torch"), ("TFHUB_CACHE_DIR", "tfhub")),
        *(("KAGGLEHUB_CACHE", "kagglehub"), ("HF_HOME", "hf"), ("KERAS_HOME", "keras")),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))


def archive(members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- paths


def test_paths(tmp_path):
    file = tmp_path / "a b.pth"
    file.write_bytes(b"weights")
    for source in (
        file,
        str(file),
        f"file://{str(file).replace(' ', '%20')}",
        f"file://localhost{file}".replace(" ", "%20"),
    ):
        assert resolve.resolve(source) == file
    assert resolve.resolve(tmp_path) == tmp_path
    assert resolve.resolve(file, hashes={"md5": hashlib.md5(b"weights").hexdigest()}) == file
    with pytest.raises(DownloadError, match="another md5"):
        resolve.resolve(file, hashes={"md5": "0" * 32})
    with pytest.raises(CheckpointError, match=r"must exist.*Did you mean 'resnet50'"):
        resolve.resolve("resnet5O")
    with pytest.raises(ArgumentError, match="lead to this machine"):
        resolve.resolve("file://elsewhere/a.pth")


def test_half_an_address():
    with pytest.raises(ArgumentError, match=r"proper address. Received: 'https://\['"):
        resolve.resolve("https://[")


@pytest.mark.parametrize("handle", ["ftp://h/x", "hff://a/b", "C://x", "data://x", "://x"])
def test_unknown_schemes(handle):
    with pytest.raises(ArgumentError, match=r"must begin with hf://.*kaggle://.*Received"):
        resolve.resolve(handle)


@pytest.mark.parametrize(
    "handle",
    ["hf://alone", "hf://../../etc", "hf://a/..", "kaggle://a/b", "kaggle://a/b/c/..", "hf:///a/b", "https://"],
)
def test_handles_that_are_none(handle):
    with pytest.raises(ArgumentError, match="must be"):
        resolve.resolve(handle)


def test_a_local_archive_is_unpacked_into_the_cache(tmp_path):
    path = tmp_path / "net.tar.gz"
    path.write_bytes(archive({"net/saved_model.pb": b"1", "net/variables/variables.index": b"2"}))
    found = resolve.resolve(path)
    assert files_in(found) == {"saved_model.pb": b"1", "variables/variables.index": b"2"}
    assert resolve.weights_root() in found.parents
    assert path.exists()
    stamp = (found / "saved_model.pb").stat().st_mtime_ns
    assert resolve.resolve(path) == found
    assert (found / "saved_model.pb").stat().st_mtime_ns == stamp
    path.write_bytes(archive({"net/saved_model.pb": b"other"}))
    assert files_in(resolve.resolve(path).parent) == {"saved_model.pb": b"other"}


# ---- the web


def test_a_file_of_the_web(site, tmp_path):
    site.files["/a/net.pth"] = b"weights"
    found = resolve.resolve(f"{site.url}/a/net.pth?download=1")
    assert (found.read_bytes(), found.name) == (b"weights", "net.pth")
    assert found.parent.parent == tmp_path / "resfit" / "weights"
    assert resolve.resolve(f"{site.url}/a/net.pth?download=1") == found
    assert len(site.requests) == 1
    origin = json.loads((found.parent / resolve.ORIGIN).read_text())
    assert origin == {
        "source": f"{site.url}/a/net.pth?download=1",
        "files": {"net.pth": {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}},
    }
    assert resolve.resolve(f"{site.url}/a/net.pth") != found  # another address


def test_a_file_that_was_damaged_since_is_brought_again(site):
    site.files["/net.pth"] = b"weights"
    found = resolve.resolve(f"{site.url}/net.pth")
    found.write_bytes(b"wei")
    assert resolve.resolve(f"{site.url}/net.pth").read_bytes() == b"weights"
    assert len(site.requests) == 2


def test_a_tar_that_is_none(site):
    """Torch's files are often called .pth.tar; readers go by the suffix."""
    site.files["/moco.pth.tar"] = b"PK\3\4 of torch"
    found = resolve.resolve(f"{site.url}/moco.pth.tar")
    assert (found.name, found.read_bytes()) == ("moco.pth", b"PK\3\4 of torch")


@pytest.mark.parametrize(
    ("members", "inner"),
    [
        ({"resnet_v1_50.ckpt": b"1"}, "resnet_v1_50.ckpt"),
        ({"model/saved_model.pb": b"1", "model/variables/v.index": b"2"}, "model"),
        ({"saved_model.pb": b"1", "variables/v.index": b"2"}, ""),
    ],
)
def test_an_archive_of_the_web(site, members, inner):
    site.files["/net.tar.gz"] = data = archive(members)
    found = resolve.resolve(f"{site.url}/net.tar.gz", hashes={"md5": hashlib.md5(data).hexdigest()})
    assert found.as_posix().endswith(f"/content/{inner}".rstrip("/"))
    assert resolve.resolve(f"{site.url}/net.tar.gz") == found
    assert len(site.requests) == 1
    assert {path.name for path in resolve.weights_root().glob("*/*")} == {"content", resolve.ORIGIN, USERS}


def test_an_unpacked_archive_with_missing_files_is_brought_again(site):
    site.files["/net.zip"] = archive({"a": b"1", "b": b"2"})
    found = resolve.resolve(f"{site.url}/net.zip")
    (found / "b").unlink()
    assert files_in(resolve.resolve(f"{site.url}/net.zip")) == {"a": b"1", "b": b"2"}
    assert len(site.requests) == 2


def test_an_archive_that_is_refused_leaves_nothing(site):
    site.files["/net.tar.gz"] = archive({"a": b"1", "../evil": b"2"})
    with pytest.raises(CheckpointError, match=r"'\.\./evil'"):
        resolve.resolve(f"{site.url}/net.tar.gz")
    assert not [path for path in resolve.weights_root().rglob("*") if path.is_file()]


def test_offline_says_where_to_put_the_file(site, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    site.files["/net.tar.gz"] = archive({"a": b"1", "b": b"2"})
    with pytest.raises(DownloadError, match=r"Put the file from http\S+/net\.tar\.gz at (\S+)\.") as caught:
        resolve.resolve(f"{site.url}/net.tar.gz")
    place = Path(str(caught.value).split(" at ")[-1].split(". Or unset")[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(site.files["/net.tar.gz"])
    assert files_in(resolve.resolve(f"{site.url}/net.tar.gz")) == {"a": b"1", "b": b"2"}
    assert site.requests == []


def test_what_torch_hub_has_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    theirs = tmp_path / "torch/hub/checkpoints" / f"resnet18-{digits}.pth"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"weights")
    url = f"https://download.pytorch.org/models/{theirs.name}"
    assert resolve.resolve(url) == theirs
    assert resolve.resolve(url, hashes={"sha256-prefix": digits}) == theirs
    theirs.write_bytes(b"other")
    with pytest.raises(DownloadError, match=digits):
        resolve.resolve(url)


# ---- which files


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"],
            ["config.json", "model.safetensors"],
        ),
        (["pytorch_model.bin", "preprocessor_config.json"], ["preprocessor_config.json", "pytorch_model.bin"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "x.bin",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["config.json", "metadata.json", "model.weights.h5", "preprocessor.json", "task.json", "task.weights.h5"],
            ["config.json", "metadata.json", "model.weights.h5", "preprocessor.json", "task.json", "task.weights.h5"],
        ),
        (
            ["model.weights.json", "model_00000.weights.h5", "model_00001.weights.h5", "task.weights.h5", "x.keras"],
            ["model.weights.json", "model_00000.weights.h5", "model_00001.weights.h5", "task.weights.h5"],
        ),
        (
            ["saved_model.pb", "variables/variables.index", "assets/a", "other/b", "variables/variables.data-0"],
            ["assets/a", "saved_model.pb", "variables/variables.data-0", "variables/variables.index"],
        ),
        (["notes.txt", "sub/net.onnx"], ["sub/net.onnx"]),
        (["a.pth", "b.safetensors"], ["b.safetensors"]),
        (
            ["checkpoint", "model.ckpt-9.index", "model.ckpt-10.index", "model.ckpt-10.data-0", "model.ckpt-10.meta"],
            ["model.ckpt-10.data-0", "model.ckpt-10.index"],
        ),
    ],
)
def test_only_what_is_needed(names, chosen):
    assert sorted(resolve.choose(names, "here")) == chosen


@pytest.mark.parametrize(("names", "match"), [(["a.pth", "b.pth"], r"a\.pth, b\.pth"), (["x"], "x"), ([], "nothing")])
def test_nothing_that_is_obvious(names, match):
    with pytest.raises(CheckpointError, match=f"here must hold .*Received: {match}"):
        resolve.choose(names, "here")


# ---- Hugging Face: the real library in a process of its own, against a hub on this machine

_CHILD = """
import json, os, sys
from resfit.weights import resolve
for line in sys.stdin:
    handle, options, environment = json.loads(line)
    os.environ.update(environment)
    try:
        answer = ["", str(resolve.resolve(handle, **options))]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Resolver:
    """A process that resolves handles one after another, with its own environment and caches."""

    def __init__(self, **environment: str):
        environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, handle: str, options: dict | None = None, **environment: str) -> Path:
        print(json.dumps([handle, options or {}, environment]), file=self._process.stdin, flush=True)
        kind, text = json.loads(self._process.stdout.readline())
        if kind:
            raise AssertionError(f"{kind}: {text}")
        return Path(text)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def hugging_face(site, tmp_path):
    """A process with an empty cache whose hub is ``site``."""
    child = Resolver(HF_ENDPOINT=site.url, HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_secret", HF_HUB_ETAG_TIMEOUT="5")
    yield child
    child.close()


def publish(site, repository: str, contents: dict[str, bytes], commit: str = COMMIT, revision: str = "main") -> None:
    about = {
        "id": repository,
        "sha": commit,
        "siblings": [{"rfilename": name} for name in contents],
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "private": False,
    }
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in contents.items()
    ]
    for asked in (revision, commit):
        site.files[f"/api/models/{repository}/revision/{asked}"] = json.dumps(about).encode()
        site.files[f"/api/models/{repository}/tree/{asked}"] = json.dumps(tree).encode()
        for name, data in contents.items():
            site.files[f"/{repository}/resolve/{asked}/{name}"] = data
            site.headers[f"/{repository}/resolve/{asked}/{name}"] = {"X-Repo-Commit": commit}
    site.files[f"/api/models/{repository}"] = site.files[f"/api/models/{repository}/revision/main"]


TIMM = {
    "README.md": b"read",
    "config.json": b'{"architecture": "resnet18"}',
    "model.safetensors": b"tensors",
    "pytorch_model.bin": b"pickle",
}


def asked_for(site) -> set[str]:
    return {path.split("/resolve/")[1].partition("/")[2] for path, _ in site.requests if "/resolve/" in path}


def test_hugging_face(site, tmp_path, hugging_face):
    publish(site, "timm/resnet18.a1_in1k", TIMM)
    found = hugging_face("hf://timm/resnet18.a1_in1k")
    assert files_in(found) == {name: TIMM[name] for name in ("config.json", "model.safetensors")}
    assert found.is_relative_to(tmp_path / "hf/hub/models--timm--resnet18.a1_in1k/snapshots")
    assert asked_for(site) == {"config.json", "model.safetensors"}
    assert {headers.get("authorization") for _, headers in site.requests} == {"Bearer hf_secret"}

    sent = site.sent
    assert hugging_face("timm://resnet18.a1_in1k") == found  # a row of the registry
    assert site.sent - sent < 10_000
    assert asked_for(site) == {"config.json", "model.safetensors"}

    # one file, by its page too; and a hash that is known
    good = {"hashes": {"sha256": hashlib.sha256(b"pickle").hexdigest()}}
    file = hugging_face("hf://timm/resnet18.a1_in1k/pytorch_model.bin", good)
    assert (file.name, file.read_bytes()) == ("pytorch_model.bin", b"pickle")
    assert hugging_face("hf://timm/resnet18.a1_in1k@main/pytorch_model.bin") == file
    with pytest.raises(AssertionError, match=r"DownloadError.*another md5"):
        hugging_face("hf://timm/resnet18.a1_in1k/pytorch_model.bin", {"hashes": {"md5": "0" * 32}})

    # offline, by the switch of the program or because the hub does not answer
    count = len(site.requests)
    assert hugging_face("hf://timm/resnet18.a1_in1k", RESFIT_OFFLINE="1") == found
    assert hugging_face("hf://timm/resnet18.a1_in1k/pytorch_model.bin") == file
    for missing in ("hf://timm/none", "hf://timm/none/a.bin"):
        with pytest.raises(AssertionError, match=rf"DownloadError: {missing} must be in .*{tmp_path}.*RESFIT_OFFLINE"):
            hugging_face(missing)
    assert len(site.requests) == count
    site.script = {path: [Reply(status=400)] * 50 for path in site.files if path.startswith("/api")}
    assert hugging_face("hf://timm/resnet18.a1_in1k", RESFIT_OFFLINE="") == found


def test_hugging_face_revisions(site, hugging_face):
    other = "f" * 40
    publish(site, "org/net", {"model.safetensors": b"new"})
    publish(site, "org/net", {"model.safetensors": b"old"}, commit=other, revision="v1.0")
    assert files_in(hugging_face("hf://org/net@v1.0")) == {"model.safetensors": b"old"}
    assert files_in(hugging_face("hf://org/net")) == {"model.safetensors": b"new"}
    assert hugging_face(f"hf://org/net@{other}/model.safetensors").read_bytes() == b"old"
    # main moves on: what is there now is brought
    publish(site, "org/net", {"model.safetensors": b"newer"}, commit="a" * 40)
    assert files_in(hugging_face("hf://org/net")) == {"model.safetensors": b"newer"}
    assert files_in(hugging_face("hf://org/net@v1.0", RESFIT_OFFLINE="1")) == {"model.safetensors": b"old"}


def test_hugging_face_says_no(site, hugging_face):
    publish(site, "org/net", {"README.md": b"nothing"})
    with pytest.raises(AssertionError, match=r"CheckpointError: hf://org/net must hold weights.*README"):
        hugging_face("hf://org/net")
    with pytest.raises(AssertionError, match=r"DownloadError: hf://org/net/a\.bin must be a file of org/net"):
        hugging_face("hf://org/net/a.bin")
    with pytest.raises(AssertionError, match=r"DownloadError: hf://org/none could not be downloaded from .*HF_TOKEN"):
        hugging_face("hf://org/none")
    gated = Reply(status=403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
    site.script = {path: [gated] * 50 for path in site.files if path.startswith("/api/models/org/net")}
    with pytest.raises(AssertionError, match=r"DownloadError: hf://org/net could not.*HF_TOKEN"):
        hugging_face("hf://org/net")


def test_the_hubs_own_offline_switch(site, tmp_path):
    child = Resolver(HF_ENDPOINT=site.url, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    with pytest.raises(AssertionError, match=r"DownloadError: hf://org/net must be in .*pass its path"):
        child("hf://org/net")
    child.close()
    assert site.requests == []


@pytest.mark.parametrize(
    ("url", "handle"),
    [
        ("/timm/resnet18.a1_in1k", "hf://timm/resnet18.a1_in1k"),
        ("/timm/resnet18.a1_in1k/", "hf://timm/resnet18.a1_in1k"),
        ("/org/net/tree/v1", "hf://org/net@v1"),
        ("/org/net/resolve/main/sub/a.bin", "hf://org/net@main/sub/a.bin"),
        ("/org/net/blob/main/a.bin", "hf://org/net@main/a.bin"),
        ("/datasets/org/net", ""),
        ("/org/net/discussions", ""),
        ("/org", ""),
    ],
)
def test_pages_of_hugging_face(url, handle):
    assert resolve._hugging_face_place(url) == handle


def test_without_the_libraries(monkeypatch):
    for package, handle in (
        *(("huggingface_hub", "hf://a/b"), ("kagglehub", "kaggle://a/b/keras/c/1"), ("fsspec", "gs://a/b")),
        ("kagglehub", "https://www.kaggle.com/models/a/b/frameworks/keras/variations/c/versions/1"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingDependencyError, match=rf"{package}.*pip install"):
            resolve.resolve(handle)


# ---- Kaggle


def kaggle(folder: Path, version: str, *names: str) -> Path:
    for name in names:
        (folder / version).mkdir(parents=True, exist_ok=True)
        (folder / version / name).write_text(name)
    return folder / version


def test_what_kagglehub_has_is_used(tmp_path, monkeypatch):
    folder = tmp_path / "kagglehub/models/keras/resnetv1/keras/resnet_50"
    here = kaggle(folder, "3", "config.json", "model.weights.h5", "task.json", "task.weights.h5")
    monkeypatch.setenv(download.OFFLINE, "1")
    handle = "kaggle://keras/resnetv1/keras/resnet_50"
    for name in (handle, f"{handle}/3", f"{handle}/3/config.json"):
        with pytest.raises(DownloadError, match=r"no whole copy.*kaggle\.com/models/keras/resnetv1/keras/resnet_50"):
            resolve.resolve(name)
    (folder / "3.complete").touch()
    kaggle(folder, "2", "config.json")
    (folder / "2.complete").touch()
    (folder / "10.complete").touch()  # its files are gone
    with pytest.raises(DownloadError):
        resolve.resolve(handle)
    (folder / "10.complete").unlink()
    assert resolve.resolve(handle) == here
    assert resolve.resolve(f"{handle}/2") == folder / "2"
    monkeypatch.delenv(download.OFFLINE)
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # not even the library is needed
    assert resolve.resolve(f"{handle}/3") == here
    assert resolve.resolve(f"{handle}/3/config.json") == here / "config.json"
    page = "https://www.kaggle.com/models/keras/resnetv1"
    assert resolve.resolve(f"{page}/keras/resnet_50/3") == here
    assert resolve.resolve(f"{page}/frameworks/keras/variations/resnet_50/versions/3") == here


def test_what_kerashub_brought_file_by_file_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    folder = tmp_path / "kagglehub/models/keras/resnetv1/keras/resnet_50"
    names = ("config.json", "model.weights.h5", "task.json", "task.weights.h5")
    here = kaggle(folder, "3", *names)
    for name in names:
        with pytest.raises(DownloadError):
            resolve.resolve("kaggle://keras/resnetv1/keras/resnet_50/3")
        (folder / ".complete/3").mkdir(parents=True, exist_ok=True)
        (folder / f".complete/3/{name}.complete").touch()
    assert resolve.resolve("kaggle://keras/resnetv1/keras/resnet_50/3") == here


def test_kagglehub_against_a_server(tmp_path, monkeypatch):
    """The real library; its test environment is one fixed port of this machine."""
    pytest.importorskip("kagglehub")
    try:
        socket.create_server(("127.0.0.1", 7777)).close()
    except OSError:
        pytest.skip("port 7777 is taken")
    members = {"config.json": b"{}", "model.weights.h5": b"weights"}

    class Kaggle(servers._Handler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, asked))
            listed = json.dumps({"files": [{"name": name} for name in members], "nextPageToken": ""}).encode()
            self._answer(Reply(), members[asked["path"]] if "path" in asked else listed)

    site = servers.Site(port=7777, handler=Kaggle)
    with servers.running(site):
        child = Resolver(KAGGLE_API_ENVIRONMENT="TEST", KAGGLEHUB_CACHE=str(tmp_path / "kagglehub"))
        found = child("kaggle://keras/resnetv1/keras/resnet_50/3")
        assert files_in(found) == members
        assert found == tmp_path / "kagglehub/models/keras/resnetv1/keras/resnet_50/3"
        count = len(site.requests)
        assert child("kaggle://keras/resnetv1/keras/resnet_50/3") == found
        assert len(site.requests) == count
        child.close()


# ---- clouds


@pytest.fixture
def bucket():
    """fsspec's file system in memory stands for both clouds; everything above it is what runs with them."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Cloud(MemoryFileSystem):
        protocol = ("gs", "s3")
        store: ClassVar[dict] = {}
        pseudo_dirs: ClassVar[list] = [""]

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(str(path).split("://")[-1])

    known = dict(fsspec.registry)
    for scheme in ("gs", "s3"):
        fsspec.register_implementation(scheme, Cloud, clobber=True)
    yield Cloud()
    for scheme in ("gs", "s3"):
        sys.modules["fsspec.registry"]._registry.pop(scheme, None)
        if scheme in known:
            fsspec.register_implementation(scheme, known[scheme])


def test_clouds(bucket, monkeypatch):
    names = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001", "logs/events")
    for name in names:
        bucket.pipe(f"/models/simclr/{name}", name.encode())
    found = resolve.resolve("gs://models/simclr/")
    assert files_in(found) == {name: name.encode() for name in names[:3]}
    file = resolve.resolve("s3://models/simclr/logs/events")
    assert (file.name, file.read_bytes()) == ("events", b"logs/events")
    bucket.store.clear()
    monkeypatch.setenv(download.OFFLINE, "1")
    assert resolve.resolve("gs://models/simclr/") == found
    with pytest.raises(DownloadError, match=r"gs://models/none must be in .*RESFIT_OFFLINE"):
        resolve.resolve("gs://models/none")


def test_clouds_that_say_no(bucket, monkeypatch):
    with pytest.raises((CheckpointError, DownloadError), match="gs://models/none"):
        resolve.resolve("gs://models/none")
    bucket.pipe("/models/net/saved_model.pb", b"1")
    bucket.pipe("/models/net/variables/a\\b", b"2")
    with pytest.raises(CheckpointError, match="leads outside"):
        resolve.resolve("gs://models/net")
    monkeypatch.setattr(download, "MOST_BYTES", 1)
    with pytest.raises(DownloadError, match="2 files and 2 bytes"):
        resolve.resolve("gs://models/net")
    monkeypatch.undo()
    assert [path for path in resolve.weights_root().rglob("*") if path.is_file()] == []


def test_every_address_of_the_registry_is_a_handle_that_is_understood(monkeypatch):
    """Offline, each row ends in the error that says what to put where, not in one about its handle."""
    monkeypatch.setenv(download.OFFLINE, "1")
    rows = [row for row in registry.rows().values() if row.source != registry.RESFIT]
    assert len(rows) > 220
    for row in rows:
        for handle in filter(None, (row.url, row.mirror)):
            with pytest.raises(DownloadError, match=r"RESFIT_OFFLINE"):
                resolve.resolve(handle)
