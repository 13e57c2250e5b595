"""The server under load, beside the engine alone and beside a plain FastAPI endpoint around ``model.predict``.

    python benchmarks/serving.py                    # a minute or two
    python benchmarks/serving.py --seconds 60 --soak 600 --model resnet50 --size 224

Clients run in a process of their own and ask in a closed loop: each sends its next request when it has its answer. All
three servers answer the same JPEGs, and every answer is compared with what the classifier says of the file offline.
Printed are ratios of things measured in turn in one run, so that a busy machine shows in both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCE = 1e-4
# the endpoint that everybody writes first
PLAIN = """
import io, sys
import numpy as np, uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from resfit.tasks.classification import Classifier
clf = Classifier.load(sys.argv[1])
height, width = clf.input_spec.size
app = FastAPI()

@app.post("/predict")
def predict(file: UploadFile):
    image = Image.open(io.BytesIO(file.file.read())).convert("RGB").resize((width, height))
    scores = clf.model.predict(np.asarray(image)[None], verbose=0)[0]
    return dict(zip(clf.classes, scores.tolist()))

clf.model.predict(np.zeros((1, height, width, 3), "uint8"), verbose=0)
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10_tiny", help="name of the catalog; others have random weights")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="how many ask at once")
    parser.add_argument("--soak", type=float, default=0, help="seconds of mixed good and bad requests")
    parser.add_argument("--log", action="store_true", help="show the servers' logs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(json.loads(options.worker))))
        return
    with tempfile.TemporaryDirectory(prefix="resfit-serving-") as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    artifact, files = prepare(options, folder)
    from resfit.tasks.classification import Classifier

    classifier = Classifier.load(artifact)
    expected = classifier.predict_proba(files, engine="openvino")
    answers = folder / "expected.npz"
    np.savez(answers, paths=[str(path) for path in files], scores=expected, classes=classifier.classes)
    print(f"{options.model}, {options.size} pixels, {len(files)} JPEGs, {os.cpu_count()} cores, images a second:")
    before = offline(classifier, files, options.seconds)
    with served(["-c", PLAIN, str(artifact)], options) as port:
        plain = max((load(port, "plain", count, options.seconds, answers) for count in (1, 8)), key=rate)
    print(f"  plain FastAPI and model.predict: {rate(plain):.0f}")
    command = ["-c", "from resfit.cli.main import run; run()", "serve", str(artifact), "--log-level", "warning"]
    with served([*command, "--port"], options) as port:
        load(port, "form", 8, 2, answers)
        best, single, found = 0.0, 0.0, []
        for count in options.clients:
            found.append(load(port, "form", count, options.seconds, answers))
            best = max(best, rate(found[-1]))
            single = single or found[-1]["p50"]
            print(describe(f"{count} clients", found[-1]))
        # in turn: a machine that others use as well is not the same all the time
        after = offline(classifier, files, options.seconds)
        decoding, running = ((a + b) / 2 for a, b in zip(before, after, strict=True))
        # decoding and network share the cores, so that together they take the sum of their times
        alone = 1 / (1 / decoding + 1 / running)
        network = f"network alone {before[1]:.0f} before and {after[1]:.0f} after"
        print(f"  {network}, decoding {decoding:.0f}, both {alone:.0f}")
        print(f"best / network alone: {best / running:.2f}; best / network and decoding: {best / alone:.2f} (>= 0.85)")
        print(f"best / plain: {best / rate(plain):.1f} (>= 3)")
        half = load(port, "form", 16, options.seconds, answers, most=best / 2)
        print(describe("half load", half))
        print(f"p99 at half load / median of a single client: {half['p99'] / single:.2f} (< 3)")
        binary = load(port, "binary", max(options.clients), options.seconds, answers)
        print(describe("v2, pixels as binary data", binary))
        print(f"v2 / network alone: {rate(binary) / running:.2f}")
        if options.soak:
            soak(port, options.soak, answers)
        wrong = sum(one["wrong"] + one["errors"] for one in (*found, half, binary))
        print(f"wrong answers and errors: {wrong}")


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Path, list[Path]]:
    """Fits a classifier to a part of the shipped sample, and writes images as large JPEGs, as cameras do."""
    from PIL import Image

    import resfit
    from resfit.data import samples

    source = samples.unpack(folder / "sample")
    some = folder / "some"
    for path in sorted(source.glob("train/*/*.png")):
        if int(path.stem) < 10:
            (some / path.parent.name).mkdir(parents=True, exist_ok=True)
            (some / path.parent.name / path.name).symlink_to(path)
    body: object = options.model
    if options.model != "resnet10_tiny":
        shape = (options.size, options.size, 3)
        body = resfit.load(
            options.model, weights=None, include_top=False, pooling="avg", preprocess=True, input_shape=shape
        )
    resfit.fit(some, model=body, out=folder / "model.resfit", cache=False)
    files = []
    for number, path in enumerate(sorted(source.glob("test/*/00[0-5].png"))):
        target = folder / f"{number:03}.jpg"
        side = options.size + 32
        Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(target, quality=90)
        files.append(target)
    return folder / "model.resfit", files


def offline(classifier, files: list[Path], seconds: float) -> tuple[float, float]:
    """Returns images a second of decoding alone and of the network alone, in batches as the server makes them."""
    from resfit import engines
    from resfit.data.decode import decode_image, decode_many

    images = np.stack([decode_image(path, classifier.input_spec) for path in files])[:32]
    engine = engines.create(classifier.body(), "openvino")

    def measured(work, count: int) -> float:
        work()
        begin, done = time.monotonic(), 0
        while time.monotonic() - begin < seconds:
            work()
            done += count
        return done / (time.monotonic() - begin)

    data = [path.read_bytes() for path in files]
    decoding = measured(lambda: list(decode_many(data, classifier.input_spec)), len(files))
    return decoding, measured(lambda: engine.run(images), len(images))


@contextlib.contextmanager
def served(command: list[str], options: argparse.Namespace):
    """Runs a server in a process of its own; the port is added to the command."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    quiet = None if options.log else subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *command, str(port)], stderr=quiet, cwd=ROOT)
    try:
        import httpx

        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code in (200, 404):
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def load(port: int, kind: str, clients: int, seconds: float, answers: Path, most: float = 0) -> dict:
    """Asks from a second process, and returns what it saw."""
    job = {
        "port": port,
        "kind": kind,
        "clients": clients,
        "seconds": seconds,
        "answers": str(answers),
        "most": most,
    }
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)


def rate(seen: dict) -> float:
    return seen["done"] / seen["seconds"]


def describe(what: str, seen: dict) -> str:
    times = f"p50 {seen['p50']:.1f} ms, p99 {seen['p99']:.1f} ms"
    return f"  {what}: {rate(seen):.0f}, {times}, largest difference {seen['difference']:.1e}"


# what follows runs in the second process


def worker(job: dict) -> dict:
    with np.load(job["answers"]) as known:
        files = [Path(path).read_bytes() for path in known["paths"]]
        scores, classes = known["scores"], [str(name) for name in known["classes"]]
    requests = [request(job["kind"], data, job["port"]) for data in files]
    pause = job["clients"] / job["most"] if job["most"] else 0.0
    state: dict = {"done": 0, "wrong": 0, "errors": 0, "difference": 0.0}
    times: list[float] = []
    lock, begin = threading.Lock(), time.monotonic()

    def ask(number: int) -> None:
        due = begin + pause * random.random()
        with Connection(job["port"]) as connection:
            turn = number
            while time.monotonic() - begin < job["seconds"]:
                if pause:
                    time.sleep(max(0.0, due - time.monotonic()))
                    due += pause
                place = turn % len(requests)
                turn += job["clients"]
                started = time.monotonic()
                status, body = connection.ask(requests[place])
                took = time.monotonic() - started
                with lock:
                    times.append(took)
                    state["done"] += 1
                    if status != 200:
                        state["errors"] += 1
                    elif job["kind"] != "plain":  # that one decodes in its own way
                        difference = float(np.abs(answer(job["kind"], body, classes) - scores[place]).max())
                        state["difference"] = max(state["difference"], difference)
                        state["wrong"] += difference > TOLERANCE

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(job["clients"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    milliseconds = 1000 * np.sort(times)
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    return {**state, "seconds": time.monotonic() - begin, "p50": p50, "p99": p99}


def request(kind: str, data: bytes, port: int) -> bytes:
    """Returns a whole HTTP request, made once, so that the clients take as little of the machine as they can."""
    more = ""
    if kind == "binary":
        import io

        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(data)))
        shape = [1, *pixels.shape]
        parameters = {"binary_data_size": pixels.nbytes}
        given = {"name": "images", "shape": shape, "datatype": "UINT8", "parameters": parameters}
        outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [given], "outputs": outputs}).encode()
        more, path = f"Inference-Header-Content-Length: {len(head)}\r\n", "/v2/models/model/infer"
        body, content = head + pixels.tobytes(), "application/octet-stream"
    else:
        path, boundary = "/predict", "0123456789abcdef"
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
        part += "Content-Type: image/jpeg\r\n\r\n"
        body = part.encode() + data + f"\r\n--{boundary}--\r\n".encode()
        content = f"multipart/form-data; boundary={boundary}"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {content}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answer(kind: str, body: bytes, classes: list[str]) -> np.ndarray:
    if kind == "binary":
        return np.frombuffer(body[-4 * len(classes) :], "<f4")
    (prediction,) = json.loads(body)["predictions"]
    return np.array([prediction["probabilities"][name] for name in classes], np.float32)


class Connection:
    """A kept-alive connection that sends requests as they are."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, data: bytes) -> tuple[int, bytes]:
        self._socket.sendall(data)
        status, length = int(self._file.readline().split()[1]), 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, self._file.read(length)


def soak(port: int, seconds: float, answers: Path) -> None:
    """Mixes good and bad requests for a long time, and looks at memory, statuses and answers."""
    import httpx
    import psutil

    with np.load(answers) as known:
        files = [Path(path).read_bytes() for path in known["paths"]]
        scores, classes = known["scores"], [str(name) for name in known["classes"]]
    (process,) = (one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN")
    memory, statuses, wrong = [], {}, 0
    bad = (
        ("/predict", b"no image"),
        ("/predict", files[0][: len(files[0]) // 2]),
        ("/predict", b"x" * 40_000_000),
        ("/v1/models/model:predict", b"[" * 100_000),
        ("/v2/models/model/infer", b'{"inputs": [{"name": "images", "shape": [1, 1099511627776, 3]}]}'),
        ("/v1/models/../x", b"{}"),
    )
    chance, lock, begin = random.Random(0), threading.Lock(), time.monotonic()

    def ask(_: int) -> None:
        nonlocal wrong
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while time.monotonic() - begin < seconds:
                place = chance.randrange(len(files))
                is_good = chance.random() < 0.8
                path, body = ("/predict", files[place]) if is_good else chance.choice(bad)
                try:
                    seen = client.post(path, content=body)
                except httpx.HTTPError as error:  # a body that is too large may be cut off while it is sent
                    status = type(error).__name__
                else:
                    status = str(seen.status_code)
                    if is_good:
                        off = np.abs(answer("form", seen.content, classes) - scores[place]).max()
                        wrong += bool(off > TOLERANCE)
                with lock:
                    statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(psutil.Process(process).memory_info().rss / 2**20)
        time.sleep(max(0.2, seconds / 200))
    tenth = max(1, len(memory) // 10)
    first, last = np.median(memory[tenth : 2 * tenth]), np.median(memory[-tenth:])
    print(f"  soak of {seconds:.0f} s: statuses {dict(sorted(statuses.items()))}, wrong answers {wrong}")
    print(f"  memory {first:.0f} MiB after a tenth of it, {last:.0f} MiB at the end: x {last / first:.3f}")


if __name__ == "__main__":
    main()
