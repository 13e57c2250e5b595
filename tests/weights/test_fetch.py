"""Bringing files: Keras' cache, digests, no network, and the way out that the errors name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import re
import threading

import pytest

from resfit.errors import CheckpointError, DownloadError
from resfit.weights import fetch, registry

WHOLE, BODY = b"with the classifier", b"without"


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/www on this machine and counts the requests."""
    (tmp_path / "www").mkdir()
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    running = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "www"))
    )
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.requests = requests
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def row(server, tmp_path, monkeypatch):
    """A row whose files lie on the server, and an empty cache."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv(fetch.OFFLINE, raising=False)
    (tmp_path / "www/net.h5").write_bytes(WHOLE)
    (tmp_path / "www/net_notop.h5").write_bytes(BODY)
    base = f"http://127.0.0.1:{server.server_port}"
    return dataclasses.replace(
        registry.get("resnet50"),
        url=f"{base}/net.h5",
        md5=digest(WHOLE),
        url_notop=f"{base}/net_notop.h5",
        md5_notop=digest(BODY),
    )


@pytest.mark.parametrize(("include_top", "content"), [(True, WHOLE), (False, BODY)])
def test_downloads_once_into_keras_cache(row, server, tmp_path, include_top, content, capfd):
    path = fetch.fetch(row, include_top=include_top)
    assert path.parent == tmp_path / "keras/models"
    assert path.read_bytes() == content
    assert fetch.fetch(row, include_top=include_top) == path
    assert len(server.requests) == 1
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert capfd.readouterr().out == ""


def test_a_file_that_keras_downloaded_is_used_offline(row, server, tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.OFFLINE, "1")
    (tmp_path / "keras/models").mkdir(parents=True)
    (tmp_path / "keras/models/net.h5").write_bytes(WHOLE)
    assert fetch.fetch(row).read_bytes() == WHOLE
    # the whole file serves without its classifier too
    assert fetch.fetch(row, include_top=False).read_bytes() == WHOLE
    assert server.requests == []


def test_offline_names_file_url_digest_and_place(row, tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.OFFLINE, "1")
    with pytest.raises(DownloadError) as caught:
        fetch.fetch(row)
    text = str(caught.value)
    for part in ("net.h5", row.url, row.md5, str(tmp_path / "keras/models/net.h5"), fetch.OFFLINE):
        assert part in text


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_offline_switch(monkeypatch, value, offline):
    monkeypatch.setenv(fetch.OFFLINE, value)
    assert fetch.is_offline() == offline


def test_a_damaged_file_in_the_cache_is_told_offline_and_replaced_online(row, tmp_path, monkeypatch):
    (tmp_path / "keras/models").mkdir(parents=True)
    damaged = tmp_path / "keras/models/net.h5"
    damaged.write_bytes(WHOLE[:-1])
    monkeypatch.setenv(fetch.OFFLINE, "1")
    with pytest.raises(DownloadError, match="another md5 is there"):
        fetch.fetch(row)
    assert damaged.read_bytes() == WHOLE[:-1]
    monkeypatch.delenv(fetch.OFFLINE)
    assert fetch.fetch(row).read_bytes() == WHOLE


def test_what_comes_with_another_digest_is_not_kept(row, tmp_path):
    (tmp_path / "www/net.h5").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fetch.fetch(row)
    assert list((tmp_path / "keras/models").iterdir()) == []


def test_a_failed_download_leaves_what_was_there(row, tmp_path):
    (tmp_path / "keras/models").mkdir(parents=True)
    (tmp_path / "keras/models/net.h5").write_bytes(b"mine")
    (tmp_path / "www/net.h5").unlink()
    with pytest.raises(DownloadError, match="404"):
        fetch.fetch(row)
    assert (tmp_path / "keras/models/net.h5").read_bytes() == b"mine"


def test_what_cannot_be_loaded_is_told_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    row = registry.get("resnet50.radimagenet")
    with pytest.raises(CheckpointError, match=f"(?s)fetch RadImageNet-ResNet50_notop.h5 by hand.*{re.escape(row.url)}"):
        fetch.fetch(row)


def test_files_of_other_publishers_come_with_their_digests(row, server, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    prefix = hashlib.sha256(WHOLE).hexdigest()[:8]
    other = dataclasses.replace(row, source="torchvision", md5="", sha256=prefix)
    assert fetch.fetch(other).read_bytes() == WHOLE
    wrong = dataclasses.replace(other, url=row.url_notop)
    with pytest.raises(DownloadError, match=prefix):
        fetch.fetch(wrong)


def test_a_mirror_is_asked_where_the_first_place_fails(row, server, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    gone = f"http://127.0.0.1:{server.server_port}/gone.h5"
    moved = dataclasses.replace(row, source="cifar", url=gone, mirror=row.url, md5="", sha256="")
    assert fetch.fetch(moved).read_bytes() == WHOLE
    with pytest.raises(DownloadError, match=r"(?s)gone\.h5.*also-gone\.h5"):
        fetch.fetch(dataclasses.replace(moved, mirror=gone.replace("gone", "also-gone")))


def test_embedded_weights(tmp_path, monkeypatch):
    info = registry.get("resnet10_tiny")
    missing = dataclasses.replace(info, url="weights/none.safetensors")
    assert not missing.loadable
    with pytest.raises(CheckpointError, match="not in this installation"):
        fetch.fetch(missing)
    assert fetch.fetch(info) == registry.embedded_path(info) if info.loadable else True
