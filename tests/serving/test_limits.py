"""Every bound of the server, with clients that keep to none of them."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import TOKEN, in_threads, wait_until

AUTH = {"Authorization": f"Bearer {TOKEN}"}


def post(server, path="/predict", **options):
    headers = {**AUTH, **options.pop("headers", {})}
    return httpx.post(f"{server.url}{path}", headers=headers, timeout=60, **options)


def raw(server, data: bytes, wait: float = 10) -> bytes:
    """Sends bytes and returns all that comes back until the server closes."""
    with socket.create_connection(server.address, wait) as connection:
        connection.sendall(data)
        received = b""
        while True:
            try:
                piece = connection.recv(65536)
            except ConnectionResetError:
                return received
            if not piece:
                return received
            received += piece


# who may ask, and under which name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong-token-of-its-length"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer \xff"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models/fashion", "/v2/models/fashion", "/about", "/metrics", "/card", "/x"])
def test_without_the_token_nothing_is_told(guarded, path, headers):
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = httpx.get(f"{guarded.url}{path}", headers=encoded)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_the_token_opens_and_health_and_page_need_none(guarded, files, offline):
    answer = post(guarded, content=files[0].read_bytes())
    assert answer.json()["predictions"][0]["label"] == offline.labels[0]
    for path in ("/", "/page.js", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
        assert httpx.get(f"{guarded.url}{path}").status_code == 200


def test_the_report_opens_by_a_signed_link_alone(guarded):
    link = httpx.get(f"{guarded.url}/about", headers=AUTH).json()["models"][0]["report_link"]
    signed = {"model": "fashion", **link}
    assert httpx.get(f"{guarded.url}/report", params=signed).status_code == 404  # allowed, and there is none
    late = {**signed, "until": str(int(link["until"]) + 1)}
    for bad in ({"model": "fashion"}, late, {**signed, "model": "x"}, {**signed, "signature": "\xff"}):
        assert httpx.get(f"{guarded.url}/report", params=bad).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_is_not_this_machine_is_refused(server, host):
    answer = httpx.get(f"{server.url}/about", headers={"Host": host})
    assert answer.status_code == 421


def test_the_names_of_this_machine_are_known(server):
    for host in ("localhost", "LOCALHOST:99", "127.0.0.1:1", "[::1]:8080", "[::1]"):
        assert httpx.get(f"{server.url}/about", headers={"Host": host}).status_code == 200


def test_no_other_site_is_let_in(server):
    answer = httpx.get(f"{server.url}/about", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{server.url}/predict", headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_headers_of_every_answer(server):
    for path in ("/", "/about", "/nothing", "/openapi.json"):
        headers = httpx.get(f"{server.url}{path}").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "'unsafe-inline'" not in headers["content-security-policy"]
        assert "server" not in headers
    report = httpx.get(f"{server.url}/report?model=fashion").headers
    assert report["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")


# sizes


def test_a_body_is_refused_by_its_length(guarded):
    answer = post(guarded, content=b"x" * 400_001)
    assert (answer.status_code, answer.json()["error"]) == (413, "a request may have at most 400000 bytes.")


def test_a_body_is_counted_where_it_does_not_say_its_length(guarded):
    def pieces():
        for _ in range(50):
            yield b"x" * 10_000

    assert post(guarded, content=pieces()).status_code == 413


def test_a_body_that_is_longer_than_it_says_ends_with_its_request(guarded, files):
    data = files[0].read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Type: image/png\r\nContent-Length: {len(data)}\r\n\r\n"
    received = raw(guarded, head.encode() + data + b"x" * 1000 + b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in received  # what follows is no request


def test_the_number_of_files_is_bounded_everywhere(guarded, files):
    parts = [("file", files[0].read_bytes())] * 4
    for path in ("/predict", "/embed"):
        assert post(guarded, path, files=parts).status_code == 413
    assert post(guarded, files=parts[:3]).status_code == 200
    rows = {"instances": [[[[0, 0, 0]]]] * 4}
    assert post(guarded, "/v1/models/fashion:predict", json=rows).status_code == 413
    given = {"name": "images", "shape": [4, 1, 1, 3], "datatype": "UINT8", "data": [0] * 12}
    assert post(guarded, "/v2/models/fashion/infer", json={"inputs": [given]}).status_code == 413


def test_a_shape_of_the_whole_universe_is_refused_before_anything_is_made(guarded):
    given = {"name": "images", "shape": [1, 2**40, 2**40, 3], "datatype": "UINT8", "data": []}
    assert post(guarded, "/v2/models/fashion/infer", json={"inputs": [given]}).status_code == 413


def test_json_may_not_be_deep(guarded):
    for body in (b"[" * 100_000, b'{"a":' * 50_000, b'{"instances":' + b"[" * 20 + b"]" * 20 + b"}"):
        answer = post(guarded, "/v1/models/fashion:predict", content=body)
        assert (answer.status_code, answer.json()["error"]) == (400, "JSON may be nested at most 16 levels deep.")


def test_brackets_in_strings_are_no_nesting(guarded):
    body = json.dumps({"signature_name": '[[[[[[[[[[[[[[[[[[[[["\\', "instances": []})
    assert "not found in signature" in post(guarded, "/v1/models/fashion:predict", content=body).json()["error"]


def test_a_long_head_is_refused(guarded):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: "
    assert raw(guarded, head + b"x" * 40_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431")
    assert raw(guarded, head + b"x" * 70_000).startswith(b"HTTP/1.1 400")  # before it ends


def test_packed_bodies_are_bounded_before_and_after(guarded, files, offline):
    headers = {"Content-Encoding": "deflate"}
    answer = post(guarded, content=zlib.compress(b"\0" * 400_001), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (
        413,
        "a request may have at most 400000 bytes, unpacked too.",
    )
    assert post(guarded, content=b"x" * 400_001, headers=headers).status_code == 413
    answer = post(guarded, content=zlib.compress(files[0].read_bytes()), headers=headers)
    assert answer.json()["predictions"][0]["label"] == offline.labels[0]
    assert guarded.metric("resfit_buffered_bytes", TOKEN) == 0


# images


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", progressive=True, quality=5)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2] * scans) + data[-2:]


def test_an_image_of_too_many_pixels_is_refused_by_its_header(guarded, server):
    answer = post(guarded, content=bomb(1001, 1000))
    assert answer.status_code == 422
    assert answer.json()["error"] == "1001x1000 pixels, more than the 1000000 that are allowed"
    for _ in range(8):
        answer = httpx.post(f"{server.url}/predict?model=fashion", content=bomb(65_500, 65_500), timeout=60)
        assert answer.status_code == 422
        assert "more than the 50000000 that are allowed" in answer.json()["error"]


def test_a_jpeg_of_endless_scans_is_refused(server):
    answer = httpx.post(f"{server.url}/predict?model=fashion", content=many_scans(3000), timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (422, "a JPEG of more than 100 scans")


def test_a_progressive_jpeg_is_none_of_these(server, classifier, tmp_path):
    from resfit.tasks.classification import Classifier

    path = tmp_path / "a.jpg"
    path.write_bytes(many_scans(1))
    answer = httpx.post(f"{server.url}/predict?model=fashion", content=path.read_bytes(), timeout=60)
    (expected,) = Classifier.load(classifier).predict(path, engine="openvino")
    assert answer.json()["predictions"][0]["probability"] == pytest.approx(expected.probability, abs=5e-6)


# times


def test_a_head_that_never_ends_is_cut_off(guarded):
    assert raw(guarded, b"GET / HTTP/1.1\r\nHost: local") == b""
    assert raw(guarded, b"") == b""
    wait_until(lambda: guarded.metric("resfit_errors_total", TOKEN) > 0, 10)


def test_a_head_that_comes_drop_by_drop_is_cut_off(guarded):
    with socket.create_connection(guarded.address, 10) as connection, pytest.raises(OSError):  # noqa: PT011, PT012
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            connection.sendall(b"a")
            time.sleep(0.1)


def test_the_second_request_of_a_connection_has_no_more_time(guarded):
    first = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    received = raw(guarded, first + b"GET /v2")
    assert received.startswith(b"HTTP/1.1 200")


def test_a_body_that_never_ends_is_answered_and_cut_off(guarded):
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
    received = raw(guarded, head.encode() + b"abc")
    assert received.startswith(b"HTTP/1.1 408")
    assert b"within 1 s" in received


def test_clients_that_leave_are_noted_and_leave_nothing_behind(guarded, files):
    body = files[0].read_bytes()
    head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for _ in range(20):
        with socket.create_connection(guarded.address, 10) as connection:
            connection.sendall(head.encode() + body)
    with socket.create_connection(guarded.address, 10) as connection:
        connection.sendall(head.encode() + body[:10])
    wait_until(lambda: guarded.metric("resfit_accepted_images", TOKEN) == 0, 20)
    wait_until(lambda: guarded.metric("resfit_buffered_bytes", TOKEN) == 0, 20)
    assert 499 in {entry.get("status") for entry in guarded.log}
    assert post(guarded, content=body).status_code == 200


# a full house


def test_too_much_at_once_is_sent_away_with_advice_and_no_answer_is_wrong(guarded, files, offline):
    def ask(number):
        place = number % len(files)
        answer = post(guarded, content=files[place].read_bytes())
        if answer.status_code == 200:
            assert answer.json()["predictions"][0]["label"] == offline.labels[place]
        else:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        return answer.status_code

    statuses = []
    for _ in range(10):
        statuses += in_threads(24, ask)
        if {200, 429} <= set(statuses):
            break
    assert {200, 429} == set(statuses)
    wait_until(lambda: guarded.metric("resfit_accepted_images", TOKEN) == 0, 20)


# names and methods


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/..%2f..%2fetc%2fpasswd:predict",
        "/v1/models/%2e%2e:predict",
        "/v1/models/fashion%00:predict",
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/%2fetc%2fpasswd/infer",
        "/predict?model=../../etc/passwd",
        "/predict?model=fashion&version=1/../2",
        "/predict?model=fashion&version=-1",
    ],
)
def test_names_are_looked_up_and_nothing_else(server, path):
    for method in ("GET", "POST"):
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        status = int(raw(server, head.encode()).split()[1])
        assert status in (400, 404, 405)


def test_files_of_the_page_are_the_only_files(server):
    for path in (
        "/../pyproject.toml",
        "/%2e%2e/pyproject.toml",
        "/page.js/..%2f..",
        "//etc/passwd",
        "/page/index.html",
    ):
        received = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert received.startswith(b"HTTP/1.1 404")


def test_a_url_in_a_request_is_never_fetched(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        requests = [
            ("/predict?model=fashion", {"data": {"file": url}}),
            (f"/predict?model={url}", {"content": b"x"}),
            ("/v1/models/fashion:predict", {"json": {"instances": [url]}}),
            ("/v1/models/fashion:predict", {"json": {"instances": [{"uri": url}]}}),
            (
                "/v2/models/fashion/infer",
                {"json": {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [url]}]}},
            ),
        ]
        for path, options in requests:
            assert httpx.post(f"{server.url}{path}", **options).status_code in (400, 404, 415)
        listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_logs_hold_ids_and_nothing_of_images_or_queries(server, files):
    body = files[0].read_bytes()
    headers = {"X-Request-ID": "an-id-of-mine", "Content-Type": "image/png"}
    url = f"{server.url}/predict?model=fashion&secret=in-the-query"
    assert httpx.post(url, content=body, headers=headers).headers["x-request-id"] == "an-id-of-mine"
    bad = httpx.get(f"{server.url}/about", headers={"X-Request-ID": "a b\t{}"}).headers["x-request-id"]
    assert len(bad) == 32
    wait_until(lambda: "an-id-of-mine" in server.errors.read_text(), 10)
    (entry,) = [entry for entry in server.log if entry.get("request_id") == "an-id-of-mine"]
    assert (entry["path"], entry["status"], entry["model"], entry["images"]) == ("/predict", 200, "fashion", 1)
    assert "in-the-query" not in server.errors.read_text()
    assert "PNG" not in server.errors.read_text()


def test_metrics_tell_stages_batches_and_errors(server, files):
    before = server.metric("resfit_batch_images_sum")
    httpx.post(f"{server.url}/predict?model=fashion", files=[("file", path.read_bytes()) for path in files], timeout=60)
    assert server.metric("resfit_batch_images_sum") == before + len(files)
    text = httpx.get(f"{server.url}/metrics").text
    for stage in ("read", "decode", "queue", "engine"):
        assert f'resfit_stage_seconds_bucket{{le="0.001",stage="{stage}"}}' in text
    assert 'resfit_request_seconds_bucket{le="0.005",route="/predict",status="200"}' in text
    assert 'resfit_model_loaded{model="fashion",version="1"} 1.0' in text
    errors = server.metric("resfit_errors_total")
    httpx.post(f"{server.url}/predict?model=fashion", content=b"no image")
    assert server.metric("resfit_errors_total") == errors + 1


# the command line


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--port", "99999"], 2, "port must lie in [0, 65535]"),
        (["--max-batch", "0"], 2, "max_batch must lie in"),
        (["--engine", "openvina"], 2, "Did you mean 'openvino'?"),
        (["--log-level", "loud"], 2, "log_level must be one of"),
        (["--token-file", "none"], 1, "No such file"),
    ],
)
def test_wrong_options_end_at_once(classifier, capfd, monkeypatch, options, code, text):
    from resfit.cli.main import run

    monkeypatch.delenv("RESFIT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as ended:
        run(["serve", str(classifier), *options])
    assert ended.value.code == code
    assert text in capfd.readouterr().err


def test_there_must_be_something_to_serve(tmp_path, capfd):
    from resfit.cli.main import run

    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"an image")
    with pytest.raises(SystemExit):
        run(["serve", str(tmp_path / "photos")])
    assert "which holds none" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        run(["serve", str(tmp_path / "nowhere")])
    assert "no folder" in capfd.readouterr().err


def test_a_token_that_keeps_nobody_out_is_refused(tmp_path):
    from resfit.errors import ArgumentError
    from resfit.serving.settings import ServerSettings, read_token

    with pytest.raises(ArgumentError, match="at least 16"):
        ServerSettings(token="short")
    (tmp_path / "token").write_text(f" {TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    assert TOKEN not in repr(ServerSettings(token=TOKEN))
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ArgumentError, match="is empty"):
        read_token(tmp_path / "token")
