"""Downloading from servers that misbehave, by several processes, and with kills in between."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from resfit.errors import ArgumentError, DownloadError
from resfit.weights import download
from tests.weights import servers
from tests.weights.servers import Reply

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5, SHA256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()
QUICK = {"timeout": 0.3, "backoff": 0.0}


@pytest.fixture
def site(monkeypatch):
    monkeypatch.delenv(download.OFFLINE, raising=False)
    with servers.running() as running:
        running.files["/net.h5"] = BODY
        yield running


@pytest.fixture
def place(tmp_path):
    return tmp_path / "weights" / "net.h5"


def fetch(site, place, path="/net.h5", **options):
    return download.fetch(f"{site.url}{path}", place, **{**QUICK, **options})


def beside(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir()) if place.parent.exists() else []


def test_brings_a_file_once_and_leaves_nothing_else(site, place, capfd):
    assert fetch(site, place, size=len(BODY), hashes={"md5": MD5, "sha256": SHA256}) == place
    assert place.read_bytes() == BODY
    assert fetch(site, place, hashes={"sha256-prefix": SHA256[:8]}) == place
    assert len(site.requests) == 1
    assert beside(place) == ["net.h5"]
    assert capfd.readouterr() == ("", "")
    assert place.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_file_that_is_here_but_not_right_is_replaced(site, place):
    place.parent.mkdir()
    place.write_bytes(BODY[:-1] + b"x")
    assert fetch(site, place, size=len(BODY)).read_bytes() != BODY  # its size is all that is known
    assert fetch(site, place, hashes={"sha256": SHA256}).read_bytes() == BODY
    place.write_bytes(BODY[:-1])
    assert fetch(site, place, size=len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("known", [{}, {"hashes": {"md5": MD5}}, {"size": len(BODY)}])
@pytest.mark.parametrize(
    ("replies", "ranges", "sent"),
    [
        ([Reply(cut=1_000_000)], [None, "bytes=1000000-"], len(BODY)),
        ([Reply(stall=2_000_000)], [None, "bytes=2000000-"], len(BODY)),
        ([Reply(cut=10), Reply(cut=0), Reply(cut=70_000)], [None, "bytes=10-", "bytes=10-", "bytes=70010-"], len(BODY)),
        ([Reply(status=503), Reply(status=429)], [None, None, None], len(BODY)),
        # it ignores Range: all comes anew
        ([Reply(cut=1_000_000), Reply(ranges=False)], [None, "bytes=1000000-"], len(BODY) + 1_000_000),
        # the file is another now, and If-Range says so
        ([Reply(body=b"old" * 1_000_000, cut=1_000_000)], [None, "bytes=1000000-"], len(BODY) + 1_000_000),
        # and here it does not: the ETag of the part that comes is another
        (
            [Reply(body=b"old" * 1_000_000, cut=1_000_000), Reply(careless=True)],
            [None, "bytes=1000000-", None],
            None,
        ),
        ([Reply(chunked=True, cut=500_000)], [None, "bytes=500000-"], len(BODY)),
        ([Reply(chunked=True)], [None], len(BODY)),
    ],
)
def test_goes_on_where_it_stopped(site, place, replies, ranges, sent, known):
    site.script["/net.h5"] = list(replies)
    assert fetch(site, place, **known).read_bytes() == BODY
    assert site.ranges() == ranges
    assert sent in (None, site.sent)
    assert beside(place) == ["net.h5"]


def test_a_file_that_has_shrunk(site, place):
    site.script["/net.h5"] = [Reply(body=b"old" * 2_000_000, cut=4_000_000), Reply(careless=True)]
    assert fetch(site, place).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=4000000-", None]


def test_if_range_asks_for_the_same_file(site, place):
    site.script["/net.h5"] = [Reply(cut=1000)]
    fetch(site, place)
    assert site.requests[1][1]["if-range"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    dated = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    site.script["/net.h5"] = [Reply(cut=1000, etag='W/"weak"', headers=dated), Reply(headers=dated, careless=True)]
    place.unlink()
    fetch(site, place)
    assert site.requests[3][1]["if-range"] == dated["Last-Modified"]


def test_without_a_validator_it_starts_anew_unless_the_hash_is_known(site, place):
    site.script["/net.h5"] = [Reply(cut=1000, etag=""), Reply(etag="")]
    fetch(site, place)
    assert site.ranges() == [None, None]
    place.unlink()
    site.script["/net.h5"] = [Reply(cut=1000, etag=""), Reply(etag="")]
    fetch(site, place, hashes={"sha256": SHA256})
    assert site.ranges()[2:] == [None, "bytes=1000-"]
    assert place.read_bytes() == BODY


def test_a_mixture_of_two_files_is_found_out_by_the_hash(site, place):
    site.script["/net.h5"] = [Reply(body=b"x" * len(BODY), cut=1000, etag=""), Reply(etag="")]
    assert fetch(site, place, hashes={"sha256": SHA256}).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=1000-", None]


def test_the_next_call_goes_on(site, place):
    site.script["/net.h5"] = [Reply(cut=1_000_000)]
    with pytest.raises(DownloadError, match="ended after 1000000 of 3000000 bytes"):
        fetch(site, place, retries=0)
    assert beside(place) == [".net.h5.part", ".net.h5.part.json"]
    fetch(site, place)
    assert site.sent == len(BODY)
    assert beside(place) == ["net.h5"]


def test_what_came_from_elsewhere_is_not_gone_on_with(site, place):
    site.script["/net.h5"] = [Reply(cut=1_000_000)]
    with pytest.raises(DownloadError):
        fetch(site, place, retries=0)
    site.files["/other.h5"] = b"other"
    assert fetch(site, place, "/other.h5").read_bytes() == b"other"
    assert site.ranges() == [None, None]


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b"\xff", b'{"url": 3}'])
def test_a_damaged_note_means_a_new_start(site, place, note):
    place.parent.mkdir()
    (place.parent / ".net.h5.part").write_bytes(b"junk")
    (place.parent / ".net.h5.part.json").write_bytes(note)
    assert fetch(site, place).read_bytes() == BODY
    assert site.ranges() == [None]


def test_what_was_whole_but_not_renamed_needs_no_network(site, place):
    place.parent.mkdir()
    (place.parent / ".net.h5.part").write_bytes(BODY)
    note = {"url": f"{site.url}/net.h5", "etag": '"x"', "modified": None, "total": len(BODY)}
    (place.parent / ".net.h5.part.json").write_text(json.dumps(note))
    assert fetch(site, place).read_bytes() == BODY
    assert site.requests == []


@pytest.mark.parametrize(
    ("reply", "known", "message"),
    [
        (Reply(length=len(BODY) + 1), {"size": len(BODY)}, "has 3000001 bytes, not 3000000"),
        (Reply(length=1000), {"size": len(BODY)}, "has 1000 bytes, not 3000000"),
        (Reply(length=1000), {"hashes": {"md5": MD5}}, "another md5 came"),
        (Reply(body=b"<html>Sign in</html>"), {"hashes": {"sha256": SHA256}}, "another sha256 came"),
        (Reply(body=b"<html>Sign in</html>"), {"hashes": {"sha256-prefix": SHA256[:8]}}, "another sha256 came"),
        (Reply(body=b"<html>Sign in</html>"), {"size": len(BODY)}, "has 20 bytes, not 3000000"),
        (Reply(chunked=True), {"size": len(BODY) - 1}, "more than 2999999 bytes"),
        (Reply(length=-1), {"size": len(BODY) - 1}, "more than 2999999 bytes"),
        (Reply(), {"max_bytes": len(BODY) - 1}, "over the limit of 2999999"),
        (Reply(chunked=True), {"max_bytes": len(BODY) - 1}, "more than 2999999 bytes"),
        (
            Reply(length=10**17),
            {"max_bytes": 10**18},
            r"bytes in .+ are free; make room, or set RESFIT_CACHE",
        ),
        (Reply(status=401), {}, "401, it asks for credentials"),
        (Reply(status=403), {}, "403, it denies access"),
        (Reply(status=404), {}, "404, there is no such file"),
        (Reply(status=204), {}, "answers 204"),
        (Reply(status=206), {}, "sends another part"),
        (Reply(status=302, headers={"Location": "file:///etc/passwd"}), {}, "302|redirect"),
        (Reply(status=302, headers={"Location": "ftp://127.0.0.1/x"}), {}, "redirect from http to ftp"),
        (Reply(status=302, headers={"Location": "http://[broken"}), {}, "no proper address|302"),
    ],
)
def test_refuses_and_leaves_what_was_there(site, place, reply, known, message):
    place.parent.mkdir()
    place.write_bytes(b"mine")
    site.script["/net.h5"] = [reply] * 9
    with pytest.raises(DownloadError, match=message) as caught:
        fetch(site, place, **{"hashes": {"sha256": SHA256}, "retries": 1, **known})
    for part in (f"{site.url}/net.h5", str(place), "Put the file"):
        assert part in str(caught.value)
    assert len(site.requests) <= 2
    assert place.read_bytes() == b"mine"


def test_a_wrong_body_leaves_nothing(site, place):
    site.script["/net.h5"] = [Reply(body=b"wrong")]
    with pytest.raises(DownloadError, match="another md5 came"):
        fetch(site, place, hashes={"md5": MD5})
    assert beside(place) == []
    assert len(site.requests) == 1


@pytest.mark.parametrize("reply", [Reply(cut=0), Reply(stall=0), Reply(status=503), Reply(cut=500, ranges=False)])
def test_gives_up_after_so_many_attempts_that_bring_nothing(site, place, reply):
    site.script["/net.h5"] = [reply] * 20
    with pytest.raises(DownloadError, match=r"ended after|nothing came|503"):
        fetch(site, place, retries=3)
    assert len(site.requests) == 4


def test_attempts_that_bring_much_are_no_failures(site, place):
    site.files["/large"] = BODY * 3
    site.script["/large"] = [Reply(cut=1_500_000) for _ in range(5)]
    assert fetch(site, place, "/large", retries=1).read_bytes() == BODY * 3
    assert site.sent == 3 * len(BODY)


def test_waits_as_long_as_the_server_asks(site, place, monkeypatch):
    slept: list[float] = []
    soon = email.utils.formatdate(time.time() + 50, usegmt=True)
    past = email.utils.formatdate(time.time() - 50, usegmt=True)
    site.script["/net.h5"] = [
        *(Reply(status=429, headers={"Retry-After": text}) for text in ("7", soon, past, "no date", "-3")),
        Reply(status=503),
    ]
    monkeypatch.setattr(download.time, "sleep", slept.append)
    fetch(site, place, backoff=1.0, retries=9)
    assert slept[0] == 7
    assert 30 < slept[1] <= 50
    assert slept[2:] == [0, 8, 16, 32]  # without a word of the server's, they double


def test_does_not_wait_for_hours(site, place):
    site.script["/net.h5"] = [Reply(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(DownloadError, match=r"429.*come back in 3600 s"):
        fetch(site, place)
    assert len(site.requests) == 1


def test_follows_redirects_but_shows_headers_to_no_other_host(site, place):
    token = {"Authorization": "Bearer secret", "X-Private": "secret"}
    with servers.running() as other:
        other.files["/there"] = BODY
        site.script["/net.h5"] = [Reply(status=302, headers={"Location": "/here"})]
        site.script["/here"] = [Reply(status=307, headers={"Location": f"{other.url}/there"})]
        assert fetch(site, place, headers=token).read_bytes() == BODY
        assert [path for path, _ in site.requests] == ["/net.h5", "/here"]
        assert all(headers["authorization"] == "Bearer secret" for _, headers in site.requests)
        assert "secret" not in str(other.requests)
        assert other.requests[0][1]["accept-encoding"] == "identity"


def test_resumes_through_a_redirect(site, place):
    site.files["/there"] = BODY
    site.script["/net.h5"] = [Reply(status=302, headers={"Location": "/there"})] * 2
    site.script["/there"] = [Reply(cut=1_000_000)]
    assert fetch(site, place).read_bytes() == BODY
    assert site.sent == len(BODY)


def test_redirects_in_a_circle_end(site, place):
    site.script["/net.h5"] = [Reply(status=302, headers={"Location": "/net.h5"})] * 50
    with pytest.raises(DownloadError, match=r"302.*infinite loop"):
        fetch(site, place)
    for number in range(50):
        site.script[f"/{number}"] = [Reply(status=302, headers={"Location": f"/{number + 1}"})]
    with pytest.raises(DownloadError, match=r"302.*infinite loop"):
        fetch(site, place, "/0")
    assert len(site.requests) < 20


def test_no_redirect_to_less_safety():
    import urllib.request

    request = urllib.request.Request("https://example.org/net.h5")
    with pytest.raises(DownloadError, match="from https to http"):
        download._Redirects({}).redirect_request(request, None, 302, "", {}, "http://example.org/net.h5")


def test_a_server_that_is_not_there(place):
    with servers.running() as site:
        address = site.url
    with pytest.raises(DownloadError, match="no connection"):
        download.fetch(f"{address}/net.h5", place, retries=2, **QUICK)
    assert beside(place) == []


def test_something_that_does_not_speak_http(place):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"220 mail.example.org ESMTP\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DownloadError, match="no proper answer"):
            download.fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/x", place, retries=1, **QUICK)
        listening.shutdown(socket.SHUT_RDWR)


def test_offline_names_file_address_hash_and_place(site, place, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    with pytest.raises(DownloadError) as caught:
        fetch(site, place, hashes={"md5": MD5}, size=len(BODY), what="resnet50")
    text = str(caught.value)
    for part in ("resnet50", f"{site.url}/net.h5", MD5, "3000000 bytes", str(place), download.OFFLINE):
        assert part in text
    place.parent.mkdir()
    place.write_bytes(BODY)
    assert fetch(site, place, hashes={"md5": MD5}) == place
    assert site.requests == []


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_offline_switch(monkeypatch, value, offline):
    monkeypatch.setenv(download.OFFLINE, value)
    assert download.is_offline() == offline


@pytest.mark.parametrize(
    ("url", "hashes"),
    [
        *(("ftp://example.org/x", {}), ("/etc/passwd", {}), ("file:///etc/passwd", {}), ("https:///x", {})),
        *(("http://h/x", {"md5": "abc"}), ("http://h/x", {"sha256": MD5}), ("http://h/x", {"crc": "0" * 8})),
        *(("http://h/x", {"sha256-prefix": "0" * 7}), ("http://h/x", {"md5": "g" * 32})),
    ],
)
def test_what_is_no_address_or_hash(place, url, hashes):
    with pytest.raises(ArgumentError, match="must b"):
        download.fetch(url, place, hashes=hashes)


def test_a_folder_that_cannot_be_made(site, tmp_path):
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(DownloadError, match=r"cannot be written at .*weights/net\.h5"):
        fetch(site, tmp_path / "weights/net.h5")


def test_draws_a_bar_on_stderr_when_told_to(site, place, capfd):
    fetch(site, place, progress=True, what="[red]resnet50\n")
    out, err = capfd.readouterr()
    assert out == ""
    assert "[red]resnet50?" in err


# ---- several processes

_CHILD = """
import sys
from pathlib import Path
from resfit.weights import download
print("ready", flush=True)
sys.stdin.readline()
download.fetch(sys.argv[1], Path(sys.argv[2]), timeout=30, backoff=0)
"""


def _child(site, place):
    command = [sys.executable, "-c", _CHILD, f"{site.url}/net.h5", os.fspath(place)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def _go(child):
    child.stdin.write("\n")
    child.stdin.flush()


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to this"
        time.sleep(0.01)


def test_two_processes_download_once(site, place):
    children = [_child(site, place), _child(site, place)]
    site.script["/net.h5"] = [Reply(cut=1_000_000)]
    for child in children:
        _go(child)
    assert [child.wait(60) for child in children] == [0, 0]
    assert place.read_bytes() == BODY
    assert site.sent == len(BODY)
    assert beside(place) == ["net.h5"]


def test_many_threads_download_once(site, place):
    threads = [threading.Thread(target=fetch, args=(site, place)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.read_bytes() == BODY
    assert len(site.requests) == 1


def test_a_killed_process_is_followed_by_one_that_resumes(site, place):
    site.script["/net.h5"] = [Reply(stall=2_000_000)]
    part = place.with_name(".net.h5.part")
    first = _child(site, place)
    _go(first)
    _until(lambda: part.exists() and part.stat().st_size == 2_000_000)
    waiting = _child(site, place)  # for the lock of the one that is killed now
    _go(waiting)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    assert waiting.wait(60) == 0
    assert place.read_bytes() == BODY
    assert site.ranges() == [None, "bytes=2000000-"]
    assert site.sent == len(BODY)
    assert beside(place) == ["net.h5"]


def test_lock(tmp_path):
    order = []

    def other():
        with download.locked(tmp_path / "x"):
            order.append("other")

    with download.locked(tmp_path / "x"):
        thread = threading.Thread(target=other)
        thread.start()
        with pytest.raises(DownloadError, match="another process"), download.locked(tmp_path / "x", timeout=0.1):
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_body_is_its_own(tmp_path):
    with pytest.raises(ZeroDivisionError), download.locked(tmp_path / "x"):
        raise ZeroDivisionError
    with download.locked(tmp_path / "x", timeout=0):
        pass
