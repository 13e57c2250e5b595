"""Requests that are meant to hurt: what they take in memory, whom they keep waiting, whom they could deceive."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import threading
import time
import tracemalloc
import zlib

import httpx
import numpy as np
import pytest

from resfit.serving import inference_v2, tfserving
from resfit.serving.packed import unpack
from resfit.serving.problems import Problem
from resfit.serving.settings import ServerSettings
from tests.serving.conftest import wait_until
from tests.serving.light import light_server, parts

MB = 10**6


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    with light_server(tmp_path_factory.mktemp("light")) as server:
        yield server


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    found = parts(tmp_path_factory.mktemp("parts"))
    found.repository.refresh()
    yield found
    assert found.pipeline.close(30)
    assert found.repository.close(30)


def v2(data: str, shape="[1,1,1,3]", datatype="FP32") -> str:
    return f'{{"inputs":[{{"name":"images","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'


def v1(data: str, key="instances") -> str:
    return f'{{"{key}":{data}}}'


def late(data: str) -> str:
    """The data before what says of which type they are."""
    return f'{{"inputs":[{{"data":{data},"name":"images","shape":[1,1,1,3],"datatype":"FP32"}}]}}'


LONG = "[" + json.dumps("x" * MB) + ',"a"' * 300 + "]"
TINY = '["aa"' + ',"aa"' * 200_000 + "]"
DENSE = "[1" + ",1" * 200_000 + "]"
DEEP = "[" * 14 + "1" + "]" * 14
HOSTILE = {
    "a long string among short ones": (v2(LONG, "[1,301,1,1]"), v2(LONG, "[1,1,1,3]"), late(LONG), v1(LONG)),
    "a million tiny strings": (v2(TINY), late(TINY), v2(TINY, "[64]", "BYTES"), v1(TINY), v1(TINY, "inputs")),
    "more numbers than declared": (v2(DENSE), late(DENSE), v2(DENSE, datatype="FP64"), v1(f"[{DENSE}]")),
    "deep lists again and again": (v2("[" + f"{DEEP}," * 30_000 + "1]"), v1("[" + f"{DEEP}," * 30_000 + "1]")),
    "deeper than any image": (v2("[" * MB), v1("[" * MB), late("[" * MB), v1("[" * MB + "]" * MB)),
    "a shape of the whole universe": (v2("[1]", f"[1,{2**40},{2**40},3]"), v2(DENSE, f"[1,{10**400},1,3]")),
    "a shape that only a large body could hold": (v2("[1,2,3]", "[1,3000,3000,3]"), v2("[]", "[1,3000,3000,3]")),
    "integers of many digits": (
        v2("[" + "1" * MB + ",1,1]"),
        v2("[" + "1" * 400 + ",1,1]"),
        v1(f"[[[[{'9' * 400}]]]]"),
    ),
    "floats of many digits": (v2("[1." + "1" * MB + ",1,1]"), v2(f"[1{'0' * 400}.5,1,1]"), v1("[[[[1e400,1,1]]]]")),
    "one key again and again": ("{" + '"inputs":[],' * 80_000 + '"a":1}', "{" + '"a":1,' * 160_000 + '"b":1}'),
    "many keys": ("{" + ",".join(f'"{number}":0' for number in range(80_000)) + "}",),
    "empty objects": (
        v1("[" + "{}," * 300_000 + "{}]"),
        v2("[" + "{}," * 300_000 + "{}]"),
        late("[{}" + ",{}" * MB + "]"),
    ),
    "large values that nobody reads": (
        f'{{"a":[{"0," * MB}0]}}',
        f'{{"id":"{"x" * MB}"}}',
        f'{{"a":[{"[]," * 300_000}0]}}',
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_body_is_refused_and_takes_a_bounded_multiple_of_its_bytes(context, kind):
    version = context.repository.models["mean"][1]
    for text in HOSTILE[kind]:
        body = text.encode()
        for read in (
            lambda body: inference_v2._read(body, None, context, version),
            lambda body: tfserving._read_predict(body, context, version),
            lambda body: tfserving._read_classify(body, context),
        ):
            tracemalloc.start()
            try:
                with pytest.raises(Problem) as refused:
                    read(body)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert refused.value.status in (400, 413)
            # pieces and values that are no images have an allowance of their own
            assert peak < 10 * len(body) + 6 * MB, (text[:80], read)


@pytest.mark.parametrize("datatype", ["UINT8", "FP16", "FP32", "FP64", "INT64"])
def test_what_is_taken_takes_a_bounded_multiple_too(context, datatype):
    version = context.repository.models["mean"][1]
    body = v2("[" + "1," * 59_999 + "1]", "[1,100,200,3]", datatype).encode()
    image = json.dumps(np.ones((100, 200, 3), int).tolist())
    tracemalloc.start()
    try:
        (numbers,) = inference_v2._read(body, None, context, version).sources
        (nested,) = tfserving._read_predict(v1(f"[{image}]").encode(), context, version).sources
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (numbers == 1).all()
    assert (nested == numbers).all()
    assert peak < 10 * len(body) + 6 * MB


def test_the_data_may_stand_before_what_says_how_to_read_them(context):
    version = context.repository.models["mean"][1]
    file = base64.b64encode(b"abc").decode()
    head = '"name":"images","shape":[1,1,1,3],"datatype":"UINT8"'
    for text, expected in (
        (f'{{"inputs":[{{"data":[1,2,3],{head}}}]}}', [[[1, 2, 3]]]),
        (f'{{"inputs":[{{"data":[[[[1,2.0,3e0]]]],{head}}}],"id":"a"}}', [[[1, 2, 3]]]),
    ):
        (source,) = inference_v2._read(text.encode(), None, context, version).sources
        assert source.tolist() == expected
    text = f'{{"inputs":[{{"data":[["{file}"]],"datatype":"BYTES","shape":[1,1],"name":"images"}}]}}'
    assert inference_v2._read(text.encode(), None, context, version).sources == [b"abc"]


def test_binary_bytes_are_counted_before_they_are_cut_out(context):
    version = context.repository.models["mean"][1]
    for data in (bytes(4 * MB), struct.pack("<I", 2**32 - 1) * MB, b"\1\0\0\0a" * MB):
        given = {"name": "images", "shape": [64], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [given]}).encode()
        tracemalloc.start()
        try:
            with pytest.raises(Problem, match=r"Received: more than 64|is longer than"):
                inference_v2._read(head + data, str(len(head)), context, version)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2 * len(data)


# who is kept waiting


def answers_meanwhile(light, work) -> int:
    """How often the server says that it lives while it works on something else."""
    done = threading.Event()

    def run():
        try:
            work()
        finally:
            done.set()

    thread = threading.Thread(target=run)
    count = 0
    with httpx.Client(timeout=60) as client:
        assert client.get(f"{light.url}/v2/health/live").json() == {"live": True}
        thread.start()
        while not done.is_set():
            assert client.get(f"{light.url}/v2/health/live").status_code == 200
            count += 1
    thread.join()
    return count


def tiny_chunks(light, count: int) -> None:
    head = b"POST /v1/models/mean:predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(light.address, 60) as connection:
        connection.sendall(head + b"1\r\n \r\n" * count + b"1\r\n[\r\n0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_the_server_answers_others_while_it_reads_a_large_request(light):
    """Where it is read in one piece, one answer comes before and one behind it; benchmarks/ has the milliseconds."""
    pixels = "[" + "1," * 2_999_999 + "1]"
    large = v2(pixels, "[1,1000,1000,3]").encode()

    def post(body, **headers):
        answer = httpx.post(f"{light.url}/v2/models/mean/infer", content=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text

    assert answers_meanwhile(light, lambda: post(large)) > 2
    packed = {"Content-Encoding": "gzip"}
    assert answers_meanwhile(light, lambda: post(gzip.compress(large, 1), **packed)) > 2
    assert answers_meanwhile(light, lambda: tiny_chunks(light, 100_000)) > 2


def test_large_requests_of_every_kind_are_answered(light):
    spaces = b" " * 10 * MB + b"x"
    form = b"--b\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\n" + b"\r\n-" * MB
    text = v1(json.dumps([{"b64": "/" * 4 * MB}])).replace("/", "\\/").encode()
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for path, body, status, headers in (
        ("/v1/models/mean:predict", spaces, 400, {}),
        ("/predict", form, 400, kind),
        ("/v1/models/mean:predict", text, 200, {}),
    ):
        answer = httpx.post(f"{light.url}{path}", content=body, headers=headers, timeout=120)
        assert answer.status_code == status, answer.text


# packed bodies


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_packed_bodies_mean_what_they_hold(light, coding, pack):
    headers = {"Content-Encoding": coding}
    body = pack(v2("[0,0,255]", datatype="UINT8").encode())
    answer = httpx.post(f"{light.url}/v2/models/mean/infer", content=body, headers=headers)
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], [2 / 3, 1 / 3], atol=1e-6)
    body = pack(v1("[[[[0,0,255]]]]").encode())
    answer = httpx.post(f"{light.url}/v1/models/mean:predict", content=body, headers=headers)
    np.testing.assert_allclose(answer.json()["predictions"][0]["scores"], [2 / 3, 1 / 3], atol=1e-6)
    answer = httpx.post(f"{light.url}/predict", content=pack(b"\xff"), headers=headers)
    assert answer.json()["predictions"][0]["label"] == "bright"


def test_a_packed_body_may_not_grow_beyond_the_bound(light):
    bomb = gzip.compress(bytes(40 * MB))
    answer = httpx.post(f"{light.url}/predict", content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]) == (
        413,
        "a request may have at most 33554432 bytes, unpacked too.",
    )
    wait_until(lambda: light.context.metrics.text().decode().count("resfit_buffered_bytes 0.0") == 1, 30)
    tracemalloc.start()
    with pytest.raises(Problem):
        unpack(bomb, "gzip", MB)
    assert tracemalloc.get_traced_memory()[1] < 3 * MB
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "body", "status", "error"),
    [
        ("gzip", b"no gzip", 400, "is not gzip, or is damaged"),
        ("gzip", zlib.compress(b"a"), 400, "is not gzip, or is damaged"),
        ("gzip", gzip.compress(b"a" * 1000, mtime=0)[:-9], 400, "ends in the middle"),
        ("deflate", zlib.compress(b"a")[:-2], 400, "ends in the middle"),
        ("deflate", zlib.compress(b"a") + b"b", 400, "something follows"),
        ("gzip", gzip.compress(b"", mtime=0) * 100, 400, "something follows"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"a", mtime=0), mtime=0), 415, "packed once with gzip or deflate"),
        ("br", b"a", 415, "packed once with gzip or deflate"),
    ],
)
def test_packed_bodies_that_are_none(light, coding, body, status, error):
    answer = httpx.post(f"{light.url}/predict", content=body, headers={"Content-Encoding": coding})
    assert answer.status_code == status
    assert error in answer.json()["error"]
    assert answer.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


def test_several_members_are_one_body():
    assert unpack(gzip.compress(b"ab") + gzip.compress(b"cd"), "gzip", 100) == b"abcd"


# base64

FILE = bytes(range(250)) * 4
USUAL = base64.b64encode(FILE).decode()


def wrapped(text: str, width: int, ending: str) -> str:
    return ending.join(text[start : start + width] for start in range(0, len(text), width)) + ending


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(USUAL),
        json.dumps(USUAL.rstrip("=")),
        json.dumps(wrapped(USUAL, 76, "\n")),
        json.dumps(wrapped(USUAL, 64, "\r\n")),
        json.dumps(base64.urlsafe_b64encode(FILE).decode()),
        json.dumps("data:image/png;base64," + USUAL),
        json.dumps(USUAL).replace("/", "\\/"),
        json.dumps(USUAL).replace("+", "\\u002b").replace("=", "\\u003D"),
    ],
)
def test_base64_in_the_forms_in_which_clients_write_it(context, text, monkeypatch):
    from resfit.serving import encoded

    version = context.repository.models["mean"][1]
    for piece in (encoded.PIECE, 57, 16):  # whatever the cuts fall on
        monkeypatch.setattr(encoded, "PIECE", piece)
        body = v1(f'[{{"b64": {text}}}]').encode()
        assert tfserving._read_predict(body, context, version).sources == [FILE]
        body = v2(f"[{text}]", "[1]", "BYTES").encode()
        assert inference_v2._read(body, None, context, version).sources == [FILE]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("http:\\/\\/a.example\\/b.png", "a URL is never fetched"),
        ("https://a.example/b.png", "a URL is never fetched"),
        ("data:image/svg+xml,%3Csvg%3E", "must say ';base64'"),
        ("b'aGk='", "as Python prints bytes"),
        ("+/-_", "mixes the usual alphabet"),
        ("aG k", "the character ' '"),
        ("aGk=aGk=", "behind its padding"),
        ("aGkaG", "a character is missing"),
        ("a\\u00e9Gk", "no ASCII"),
        ('aG\\"k', "the character"),
    ],
)
def test_what_is_no_base64_is_told_why(context, text, cause):
    version = context.repository.models["mean"][1]
    with pytest.raises(Problem, match="image 0 must be base64") as refused:
        inference_v2._read(v2(f'["{text}"]', "[1]", "BYTES").encode(), None, context, version)
    assert cause in str(refused.value)


# numbers that are none once they are cast


@pytest.mark.parametrize(("datatype", "value"), [("FP64", 1e300), ("FP64", -1e39), ("FP32", np.inf), ("FP16", np.nan)])
def test_binary_numbers_are_finite_as_the_network_gets_them(light, datatype, value):
    data = np.full(3, value, inference_v2.DATATYPES[datatype]).tobytes()
    given = {
        "name": "images",
        "shape": [1, 1, 1, 3],
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [given]}).encode()
    headers = {inference_v2.HEADER: str(len(head))}
    answer = httpx.post(f"{light.url}/v2/models/mean/infer", content=head + data, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "image 0 must have finite values.")


@pytest.mark.parametrize(
    ("datatype", "number"), [("FP32", "1e39"), ("FP16", "70000"), ("FP64", "1e300"), ("FP64", "1e999")]
)
def test_numbers_in_json_are_finite_as_the_network_gets_them(light, datatype, number):
    answer = httpx.post(f"{light.url}/v2/models/mean/infer", content=v2(f"[{number},1,1]", datatype=datatype))
    assert (answer.status_code, answer.json()["error"]) == (400, "image 0 must have finite values.")


# whose request it is, and where it ends


def raw(light, data: bytes, *, half: bool = False) -> bytes:
    """Sends bytes, closes the sending side if told to, and returns all that comes back."""
    with socket.create_connection(light.address, 30) as connection:
        connection.sendall(data)
        if half:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


SMUGGLED = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 0\r\n",
        b"Content-Length: 5, 0\r\n",
        b"Content-Length: +5\r\n",
        b"X: a\r\n Content-Length: 5\r\n",
        b"X: a\nContent-Length: 5\r\n",
        b"X: a\rContent-Length: 5\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
def test_a_request_whose_end_is_not_clear_is_the_last_of_its_connection(light, head):
    request = b"POST /v1/models/mean:predict HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n0\r\n\r\n"
    received = raw(light, request + SMUGGLED)
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.split()[1] in (b"400", b"501")
    assert b"connection: close" in received.lower()


def test_chunks_of_http_1_0_are_the_last_of_their_connection(light):
    head = b"POST /predict HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = raw(light, head + b"0\r\n\r\n" + SMUGGLED)
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1


def test_an_unclear_head_behind_a_clear_request_is_seen_too(light):
    received = raw(light, SMUGGLED + b"GET / HTTP/1.1\nHost: localhost\r\n\r\n")
    assert [part.split()[0] for part in received.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n"])
def test_a_client_that_has_closed_its_sending_side_gets_its_answer(light, ending):
    body = b"\xff" * 100_000
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
    received = raw(light, head + ending + b"\r\n" + body, half=True)
    assert received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"label":"bright"' in received


def test_two_requests_before_the_end_of_sending_get_two_answers(light):
    chunked = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\xff\r\n0\r\n\r\n"
    received = raw(light, chunked + chunked.replace(b"\xff", b"\x01"), half=True)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert received.index(b'"bright"') < received.rindex(b'"label":"dark"')


def test_half_a_request_before_the_end_of_sending_gets_none(light):
    assert raw(light, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc", half=True) == b""
    assert raw(light, b"GET / HT", half=True) == b""
    assert raw(light, b"", half=True) == b""


class Waiting:
    """Lets go of a decoder when it is told to."""

    def __init__(self, served):
        self._decode, self.gate = served.decode, threading.Event()

    def __call__(self, data, max_pixels):
        assert self.gate.wait(30)
        return self._decode(data, max_pixels)


@pytest.mark.parametrize("half", [True, False])
def test_a_slow_answer_reaches_who_still_reads_and_is_given_up_for_who_has_gone(light, monkeypatch, half):
    waiting = Waiting(light.served)
    monkeypatch.setattr(light.served, "decode", waiting)
    statuses: list[int] = []
    noted = light.context.metrics.request
    monkeypatch.setattr(light.context.metrics, "request", lambda *about: (statuses.append(about[1]), noted(*about)))
    with socket.create_connection(light.address, 30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n\xff")
        if not half:
            connection.close()
            end = time.monotonic() + 30
            while statuses != [499] and time.monotonic() < end:
                time.sleep(0.02)
            assert statuses == [499]
            waiting.gate.set()
            return
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.4)  # some bytes of the answer are on their way
        assert statuses == []
        waiting.gate.set()
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.count(b"HTTP") == 1
    assert json.loads(received.split(b"\r\n\r\n", 1)[1])["predictions"][0]["label"] == "bright"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 200),
        ({"Origin": "http://localhost:99", "Host": "localhost:99"}, 200),
        ({"Origin": "https://localhost", "Host": "localhost:443"}, 200),
        ({"Origin": "http://localhost", "Host": "localhost:99"}, 403),
        ({"Origin": "http://localhost.evil.example", "Host": "localhost"}, 403),
        # what a proxy before the server makes of Host does not matter to a browser that says where it comes from
        ({"Origin": "https://models.example", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_of_other_sites_may_not_post(light, headers, status):
    for method, path in (("POST", "/predict"), ("PUT", "/predict"), ("POST", "/v1/models/mean:predict")):
        answer = httpx.request(method, f"{light.url}{path}", content=b"\xff", headers=headers)
        assert (answer.status_code == 403) == (status == 403)
    assert httpx.get(f"{light.url}/v2/models/mean", headers=headers).status_code == 200


def test_a_site_that_is_let_in_may_post_and_read_the_answer(tmp_path):
    headers = {"Origin": "https://lab.example", "Sec-Fetch-Site": "cross-site"}
    token = "a-token-of-twenty-characters"
    with light_server(tmp_path, origins=("https://lab.example",), token=token) as light:
        asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = httpx.options(f"{light.url}/predict", headers=asked)
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, "https://lab.example")
        answer = httpx.post(f"{light.url}/predict", content=b"\xff", headers=headers)
        assert answer.status_code == 401
        headers["Authorization"] = f"Bearer {token}"
        answer = httpx.post(f"{light.url}/predict", content=b"\xff", headers=headers)
        assert answer.json()["predictions"][0]["label"] == "bright"
        assert answer.headers["access-control-allow-origin"] == "https://lab.example"
        other = {**headers, "Origin": "https://lab.example.evil.example"}
        answer = httpx.post(f"{light.url}/predict", content=b"\xff", headers=other)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    from resfit.errors import ArgumentError

    for bad in ("*", "lab.example", "https://lab.example/", "https://LAB.example", "null"):
        with pytest.raises(ArgumentError, match="an allowed origin is a scheme and a host"):
            ServerSettings(origins=(bad,))
