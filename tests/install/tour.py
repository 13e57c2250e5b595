"""Runs in an environment of a user: every command and every public name, up to its first error. Prints JSON.

What it prints is ``{"ways": {what was done: outcome}, "left": {what was done: [what it wrote, if it failed]}}``. An
outcome is ``"ok"`` or ``"Type: message"`` of the error. Called as ``python tour.py FOLDER``, with class folders of
pictures in ``FOLDER/photos``, of DICOM files in ``FOLDER/scans``, of HEIC files in ``FOLDER/phone`` and pictures with
boxes in ``FOLDER/boxes``. Further words: ``names`` tries the public names too, ``brief`` leaves out what takes long,
and ``only=JSON`` runs the listed commands alone.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ways: dict[str, str] = {}
left: dict[str, list[str]] = {}
only = [way for word in sys.argv[2:] if word.startswith("only=") for way in json.loads(word[5:])]


def tried(what: str, function: Callable[[], Any]) -> None:
    """Notes how a call ends."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            function()
    except SystemExit as stopped:
        said = output.getvalue().strip().splitlines()
        ways[what] = f"exit {stopped.code}: {said[-1] if said else ''}" if stopped.code else "ok"
    except Exception as error:
        ways[what] = f"{type(error).__name__}: {error}"
    else:
        ways[what] = "ok"


def command(*arguments: object, writes: Path | None = None) -> None:
    """Runs a command; an error that a user would read as one line is noted with its type."""
    from resfit.cli import main

    what = " ".join(str(argument) for argument in arguments)
    if only and what not in only:
        return
    tried(what, lambda: main.run([*map(str, arguments), "--debug"]))
    if writes is not None and ways[what] != "ok" and writes.exists():
        left[what] = sorted(str(path) for path in [writes, *writes.rglob("*")])


def commands() -> None:
    """Every command, each option that needs a package of its own."""
    command("models", "resnet5*")
    command("models", "--weights")
    command("info", "resnet50")
    command("suggest", "--max-params", "30M", "--plot", "suggested.png")
    command("check", "photos", "--report", "checks.html", writes=Path("checks.html"))
    command("check", "photos", "--cleanlab")
    command("fit", "photos", "-o", "out.resfit")
    command("fit", "photos", "-o", "large.resfit", "--model", "resnet50", writes=Path("large.resfit"))
    command("fit", "photos", "-o", "int8.resfit", "--precision", "int8", writes=Path("int8.resfit"))
    if "brief" not in sys.argv[2:]:
        command("fit", "photos", "-o", "tuned.resfit", "--strategy", "finetune", "--set", "epochs=1", "--lr-find")
    command("fit", "scans", "-o", "scans.resfit", "--max-skipped", "0.5", writes=Path("scans.resfit"))
    command("fit", "phone", "-o", "phone.resfit", "--max-skipped", "0.5", writes=Path("phone.resfit"))
    for tracker in ("mlflow", "wandb", "tensorboard"):
        target = Path(f"{tracker}.resfit")
        command("fit", "photos", "-o", target, "--log", tracker, writes=target)
    for source in ("s3://bucket/photos", "hf://datasets/owner/photos", "tfds://mnist"):
        command("check", source)
    command("fit", "boxes", "-o", "boxes.resfit", "--size", "96", "--budget", "10s")
    command("predict", "boxes.resfit", "boxes/test", "--draw", "drawn")
    command("export", "boxes.resfit", "--format", "openvino", "-o", "boxes-as-openvino")
    if "brief" not in sys.argv[2:]:
        command("evaluate", "boxes.resfit", "boxes", "--allow-leakage")
        command("explain", "boxes.resfit", "boxes/test/0000.jpg", "-o", "why-boxes")
        command("export", "boxes.resfit", "--format", "onnx", "-o", "boxes-as-onnx", writes=Path("boxes-as-onnx"))
    command("fit", "numbers.csv", "--task", "regression", "-o", "numbers.resfit")
    command("scale", "plan", "photos", "-o", "shards", "--shard-images", "10")
    for on in ("ray", "spark", "local"):
        command("scale", "run", "shards", "--on", on, "--workers", "1", "--threads", "1")
    command("scale", "status", "shards")
    command("scale", "finish", "shards")
    command("predict", "out.resfit", "photos/red/000.png")
    for engine in ("openvino", "onnxruntime", "litert"):
        command("predict", "out.resfit", "photos", "--engine", engine)
        command("embed", "photos", "-o", f"{engine}.npz", "--engine", engine, writes=Path(f"{engine}.npz"))
    command("evaluate", "out.resfit", "photos")
    command("evaluate", "out.resfit", "photos", "--report", "report.html", writes=Path("report.html"))
    command("explain", "out.resfit", "photos/red/000.png", "-o", "why")
    command("embed", "photos", "-o", "features.parquet")
    command("embed", "photos", "-o", "large.npz", "--model", "resnet50", writes=Path("large.npz"))
    for target in ("network.keras", "network.weights.h5", "network.safetensors", "timms", "network.pth"):
        command("convert", "resnet10_tiny", target, writes=Path(target))
    for handle in ("hf://timm/resnet50.a1_in1k", "gs://bucket/net.h5", "s3://bucket/net.h5", "kaggle://a/b/keras/c"):
        command("convert", handle, "fetched.safetensors", writes=Path("fetched.safetensors"))
    # tf_hub takes as long as all others
    own = ("tf_saved_model", "keras") if "brief" in sys.argv[2:] else ("tf_saved_model", "tf_hub", "keras")
    for format in (*own, "onnx", "openvino", "litert"):
        command("export", "out.resfit", "--format", format, "-o", f"as-{format}", writes=Path(f"as-{format}"))
    command("export", "resnet18", "--format", "torch", "-o", "as-torch", writes=Path("as-torch"))
    for format in ("onnx", "openvino", "litert"):
        target = f"as-{format}-int8"
        command("export", "out.resfit", "--format", format, "--precision", "int8", "-o", target, writes=Path(target))
    command("benchmark", "resnet10_tiny", "--seconds", "0.01", "--batch", "1", "--engine", "openvino")
    run = ("pretrain", "photos", "-o", "run", "--epochs", "1", "--batch-size", "8", "--size", "32")
    command(*run)
    command("cache", "list")
    command("cache", "verify")
    serve()
    command("demo", "-o", "with-report", "--report", writes=Path("with-report"))
    command("demo", "-o", "demo")
    command("cache", "prune", "--all")


def serve() -> None:
    """Starts the server, asks whether it lives, and ends it; without its packages the command is tried."""
    from resfit import dependencies

    if only and "serve out.resfit --port 0" not in only:
        return
    if not dependencies.is_installed("fastapi", "uvicorn"):
        command("serve", "out.resfit", "--port", "0")
        return

    def ask() -> None:
        program = "from resfit.cli.main import run; run()"
        arguments = [sys.executable, "-c", program, "serve", "out.resfit", "--port", "0", "--json"]
        server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = json.loads("".join(server.stdout.readline() for _ in range(3)))["url"]
            with urllib.request.urlopen(f"{url}/v2/health/live", timeout=30) as answer:
                assert answer.status == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()

    tried("serve out.resfit --port 0", ask)


def names() -> None:
    """Every public name: that it is there, and what a call without a network does."""
    import resfit

    for name in resfit.__all__:
        tried(f"resfit.{name}", lambda name=name: getattr(resfit, name))
    if ways["resfit.load"] != "ok":
        return
    from resfit import applications, hub

    tried("load", lambda: resfit.load("resnet10_tiny"))
    tried("load fresh", lambda: resfit.load("resnet18", weights=None))
    tried("load published", lambda: resfit.load("resnet50"))
    tried("summary", lambda: str(resfit.summary(resfit.load("resnet10_tiny"))))
    tried("suggest", lambda: resfit.suggest(max_params=30e6))
    tried("describe", lambda: resfit.describe("resnet50"))
    for name in dir(applications):
        member = getattr(applications, name)
        if inspect.ismodule(member) or not callable(member) or name.startswith("_"):
            continue
        published = inspect.signature(member).parameters.get("weights")
        if published is None:
            tried(f"applications.{name}", lambda member=member: member)
        elif name in ("ResNet18", "ResNet50", "ResNet50V2"):
            tried(f"applications.{name}()", lambda member=member: member())
    for name in hub.__all__:
        tried(f"hub.{name}", lambda name=name: getattr(hub, name))
    handle = "https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5"
    tried("hub.KerasLayer()", lambda: hub.KerasLayer(handle))
    tried("hub.list_models()", lambda: hub.list_models())
    tried("hub.describe()", lambda: hub.describe(handle))
    tried("hub.to_keras()", lambda: hub.to_keras(handle))


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[1])
    if "names" in sys.argv[2:]:
        names()
    commands()
    print(json.dumps({"ways": ways, "left": left}))
