"""What hostile requests cost a server: memory, and how long others wait for an answer.

Starts a server, sends it each request of a list, and prints for each what the server's memory grew by beside the size
of the request, and the longest wait of a client that asks all the while whether the server lives::

    python benchmarks/hostile_requests.py photos.resfit

Linux alone: memory is read from ``/proc``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MB = 10**6
COMMAND = [
    sys.executable,
    "-c",
    "from resfit.cli.main import run; run()",
    "serve",
    "--port",
    "0",
    "--name",
    "m",
    "--json",
]


def tensor(data: str, shape: str, datatype: str) -> bytes:
    """A request of the Open Inference Protocol."""
    return f'{{"inputs":[{{"name":"images","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'.encode()


def requests() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Yields name, path, headers and body of each request."""
    v1, v2, json_type = "/v1/models/m:predict", "/v2/models/m/infer", {"Content-Type": "application/json"}
    strings = '["' + "x" * MB + '"' + ',"a"' * 300 + "]"
    yield "a long string among short ones, v2", v2, json_type, tensor(strings, "[1,301,1,1]", "FP32")
    yield "the same, v1", v1, json_type, b'{"instances":' + strings.encode() + b"}"
    tiny = '["aa"' + ',"aa"' * 5 * MB + "]"
    yield "five million strings, v2", v2, json_type, tensor(tiny, "[1,1,1,3]", "FP32")
    yield "the same, v1", v1, json_type, b'{"instances":' + tiny.encode() + b"}"
    given = {"name": "images", "shape": [64], "datatype": "BYTES", "parameters": {"binary_data_size": 31 * MB}}
    head = json.dumps({"inputs": [given]}).encode()
    yield "31 MB of empty BYTES", v2, {"Inference-Header-Content-Length": str(len(head))}, head + bytes(31 * MB)
    lies = struct.pack("<I", 1) * (31 * MB // 4)
    yield "31 MB of BYTES that lie", v2, {"Inference-Header-Content-Length": str(len(head))}, head + lies
    yield "15 million numbers too many", v2, json_type, tensor("[1" + ",1" * 15 * MB + "]", "[1,1,1,3]", "FP32")
    pixels = "[" + "1," * (15 * MB - 1) + "1]"
    yield "15 million numbers as declared", v2, json_type, tensor(pixels, "[1,2500,2000,3]", "FP64")
    yield "30 MB of brackets", v1, json_type, b'{"instances":' + b"[" * 30 * MB + b"}"
    yield "30 MB of spaces", v1, json_type, b" " * 30 * MB + b"x"
    yield "30 MB of keys", v1, json_type, b"{" + b'"a":1,' * 5 * MB + b"}"
    form = b"--b\r\nContent-Disposition: form-data; name=a; filename=a\r\n\r\n" + b"\r\n--" * 7 * MB
    yield "a form of nearly nothing but ends", "/predict", {"Content-Type": "multipart/form-data; boundary=b"}, form


def resident(process: int, name: str) -> float:
    """A row of the process' memory, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / MB
    raise LookupError(name)


def measured(
    address: str, process: int, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, float, float, int]:
    """Sends one request.

    Returns:
        Its status, the growth of the server's memory in MB, the longest wait for liveness in seconds, and how often
        that was asked for.
    """
    Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak is counted from here
    before = resident(process, "VmRSS")
    status: list[int] = []

    def send() -> None:
        connection = http.client.HTTPConnection(address, timeout=300)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        status.append(answer.status)
        connection.close()

    sender = threading.Thread(target=send)
    client = http.client.HTTPConnection(address, timeout=300)
    longest, count = 0.0, 0
    sender.start()
    while sender.is_alive() or not count:
        begin = time.monotonic()
        client.request("GET", "/v2/health/live")
        client.getresponse().read()
        longest, count = max(longest, time.monotonic() - begin), count + 1
        time.sleep(0.002)
    client.close()
    return status[0], resident(process, "VmHWM") - before, longest, count


def main() -> None:
    """Runs the list and prints a row for each request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    source = parser.parse_args().source
    process = subprocess.Popen([*COMMAND, source], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    address = json.loads("".join(process.stdout.readline() for _ in range(3)))["url"].removeprefix("http://")
    try:
        while True:
            client = http.client.HTTPConnection(address, timeout=300)
            client.request("GET", "/v2/health/ready")
            if client.getresponse().status == 200:
                break
            time.sleep(0.2)
        columns = ("MB", "status", "MB more", "times", "longest ms", "answers")
        print(f"{'request':36}", *(f"{column:>10}" for column in columns))
        for name, path, headers, body in requests():
            status, grown, longest, count = measured(address, process.pid, path, headers, body)
            size = len(body) / MB
            row = (f"{size:.1f}", status, f"{grown:.1f}", f"{grown / size:.1f}", f"{1000 * longest:.0f}", count)
            print(f"{name:36}", *(f"{cell:>10}" for cell in row), flush=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
