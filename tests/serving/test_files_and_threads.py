"""What may lie in a folder of models, and how everything ends: whatever hangs, no thread outlives the server unseen."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import numpy as np
import pytest

from resfit.errors import ArtifactError
from resfit.serving import folders
from resfit.serving.adapter import Served
from resfit.serving.metrics import Metrics
from resfit.serving.problems import Problem
from resfit.serving.repository import AVAILABLE, END, Repository
from resfit.serving.settings import ServerSettings
from tests.serving.light import Brightness, light_server


class Checked(Brightness):
    """A model without a network, whose folder is looked at as every folder is."""

    def __init__(self, folder, engine):
        folders.check(folder, ["report.html", "model_card.md", "MODEL_CARD.md", "README.md"])
        super().__init__(folder, engine)

    document, has_document = Served.document, Served.has_document


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("classifier.json", "model.keras"):
        (folder / name).write_text("{}")
    return folder


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(path.parent)  # the name of a socket is short
        one.bind(path.name)


def device(path):
    path.symlink_to("/dev/zero")


def link_out(path):
    path.symlink_to("/etc/passwd")


def link_to_itself(path):
    path.symlink_to(path.name)


def nothing_behind(path):
    path.symlink_to("nothing")


@pytest.mark.parametrize("name", ["classifier.json", "model.keras", "references.npz", "unlike.npz", "tensorboard/a"])
@pytest.mark.parametrize("make", [pipe, unix_socket, device, link_out, link_to_itself])
def test_a_classifier_of_anything_but_regular_files_is_not_opened(tmp_path, monkeypatch, name, make):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "models" / "good")
    path = write(tmp_path / "models" / "bad") / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    found = Repository(tmp_path / "models", ServerSettings(), Metrics(), Served.load)
    with pytest.raises(ArtifactError, match=r"must be a regular file|leads out of its folder|leads to itself"):
        Served.load(path.parents["/" in name], "auto")
    found = Repository(tmp_path / "models", ServerSettings(), Metrics(), Checked)
    found.refresh()
    assert list(found.models) == ["good"]
    if found.states("bad"):  # a file that leads nowhere is none
        assert (found.states("bad")[1].state, name in found.states("bad")[1].error) == (END, True)
    assert found.close(30)
    if name == "classifier.json" and make is not link_to_itself:
        with pytest.raises(ArtifactError, match=r"must be a regular file|leads out of its folder"):
            folders.preflight(tmp_path / "models" / "bad")


def test_links_within_the_folder_are_followed(tmp_path):
    """As Kubernetes mounts a ConfigMap: files are links to a folder beside them, which is one itself."""
    place = write(tmp_path / "m" / "..2026_01")
    (tmp_path / "m" / "..data").symlink_to("..2026_01")
    for name in ("classifier.json", "model.keras"):
        (tmp_path / "m" / name).symlink_to(f"..data/{name}")
    folders.check(tmp_path / "m")
    assert folders.read_file(tmp_path / "m", "classifier.json", 10) == b"{}"
    (tmp_path / "linked").symlink_to(place)  # whoever links a whole model in means it
    folders.check(tmp_path / "linked")
    with pytest.raises(ArtifactError, match="at most 1 bytes"):
        folders.read_file(tmp_path / "m", "classifier.json", 1)


@pytest.mark.parametrize("make", [pipe, unix_socket, device, link_out, link_to_itself, nothing_behind])
@pytest.mark.parametrize("name", ["README.md", "model_card.md"])
def test_a_document_that_is_no_file_of_the_folder_is_not_shown(tmp_path, monkeypatch, make, name):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "models" / "mean")
    make(folder / name)
    make(folder / "report.html")
    make(tmp_path / "models" / "other")
    with light_server(tmp_path / "models", Checked) as light:
        for path in ("/card", "/report"):
            assert httpx.get(f"{light.url}{path}", timeout=30).status_code == 404
        assert not light.served.has_document("card")
        assert not light.served.has_document("report")
        (folder / "MODEL_CARD.md").write_text("# A card")
        assert httpx.get(f"{light.url}/card").text == "# A card"
        assert light.served.has_document("card")


@pytest.mark.parametrize("make", [pipe, device, link_out])
def test_names_of_versions_are_read_from_a_regular_file_alone(tmp_path, make):
    write(tmp_path / "m" / "1")
    make(tmp_path / "m" / "labels.json")
    assert folders.labels_of(tmp_path / "m") == {}
    found = Repository(tmp_path, ServerSettings(), Metrics(), Checked)
    found.refresh()
    assert found.states("m")[1].state == AVAILABLE
    assert found.close(30)


# what hangs


def test_closing_does_not_wait_for_a_file_that_hangs(tmp_path):
    write(tmp_path / "m")
    gate, begun = threading.Event(), threading.Event()

    def load(folder, engine):
        begun.set()
        assert gate.wait(60)
        return Brightness(folder, engine)

    found = Repository(tmp_path, ServerSettings(), Metrics(), load)
    found.start()
    assert begun.wait(30)
    assert not found.close(0.05)
    gate.set()
    assert found.close(30)
    assert not found.models  # what comes too late is not served any more


def test_closing_does_not_wait_for_a_decoder_that_hangs(tmp_path):
    gate, begun = threading.Event(), threading.Event()

    class Hanging(Brightness):
        def decode(self, data, max_pixels):
            begun.set()
            assert gate.wait(60)
            return super().decode(data, max_pixels)

    with light_server(tmp_path, Hanging, timeout=0.2) as light:
        assert httpx.post(f"{light.url}/predict", content=b"\xff", timeout=30).status_code == 504
        assert begun.is_set()
        assert not light.context.pipeline.close(0.05)
        gate.set()


def run(code: str, *arguments: str, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_server_ends_while_a_file_hangs(tmp_path):
    write(tmp_path / "models" / "m")
    pipe(tmp_path / "pipe")
    code = """
        import sys
        from resfit.cli import console, main
        from resfit.serving import folders, server

        console.load_tensorflow = lambda: None
        server._PATIENCE = 0.2
        pipe = sys.argv.pop(1)
        folders.check = lambda folder, documents: open(pipe).read()  # nobody writes
        main.run()
    """
    options = ("serve", str(tmp_path / "models"), "--port", "0", "--drain", "0")
    process = run(code, str(tmp_path / "pipe"), *options)
    try:
        assert process.stderr is not None
        while "Serving" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert '"event": "threads are left behind"' in errors


def test_no_thread_is_in_the_networks_code_when_python_ends():
    """A thread that comes back from OpenVINO to a Python that has ended: "terminate called without an active..."."""
    pytest.importorskip("openvino")
    code = """
        import concurrent.futures, pathlib, sys, tempfile, threading, time
        import numpy as np, openvino, openvino.opset13 as op
        from resfit.serving import repository
        from resfit.serving.batching import Work
        from resfit.serving.metrics import Metrics
        from resfit.serving.settings import ServerSettings

        image = op.parameter([-1, 96, 96, 3], np.float32)
        turned = op.transpose(image, op.constant(np.array([0, 3, 1, 2])))
        filters = op.constant(np.random.rand(64, 3, 5, 5).astype(np.float32))
        network = openvino.Model([op.convolution(turned, filters, [1, 1], [0, 0], [0, 0], [1, 1])], [image])

        class Network:
            engine, classes = "openvino", ()
            def __init__(self, folder, engine):
                self.compiled = openvino.Core().compile_model(network, "CPU")
                self.lock = threading.Lock()
            def warm_up(self, batch):
                pass
            def predict(self, images):
                with self.lock:
                    for _ in range(20):
                        self.compiled(np.stack(images))
                return images

        with tempfile.TemporaryDirectory() as root:
            folder = pathlib.Path(root, "m")
            folder.mkdir()
            for name in ("classifier.json", "model.keras"):
                (folder / name).write_text("{}")
            found = repository.Repository(pathlib.Path(root), ServerSettings(), Metrics(), Network)
            found.refresh()
            batcher = found.models["m"][1].batcher("predict")
            for _ in range(4):
                batcher.announce()
                work = Work(concurrent.futures.Future(), lambda: None, np.zeros((96, 96, 3), np.float32))
                batcher.submit(work)
            time.sleep(0.02)
            assert found.close(60)
    """
    process = run(code)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert "terminate" not in errors


def test_a_version_that_was_replaced_is_waited_for_too(tmp_path):
    write(tmp_path / "m")
    gate, ended = threading.Event(), threading.Event()

    class Busy(Brightness):
        def predict(self, images):
            assert gate.wait(60)
            time.sleep(0.05)
            ended.set()
            return super().predict(images)

    found = Repository(tmp_path, ServerSettings(), Metrics(), Busy)
    found.refresh()
    from concurrent.futures import Future

    from resfit.serving.batching import Work

    batcher = found.models["m"][1].batcher("predict")
    batcher.announce()
    batcher.submit(Work(Future(), lambda: None, np.zeros((2, 2, 3))))
    (tmp_path / "m" / "model.keras").write_text("another")
    found.refresh()
    assert not found.close(0.05)
    gate.set()
    assert found.close(60)
    assert ended.is_set()


# weights that are no numbers


@pytest.fixture(scope="module")
def loaded(classifier):
    from resfit.tasks.classification import Classifier

    return Classifier.load(classifier)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [-1, 3, 40])
def test_a_network_with_weights_that_are_no_numbers_does_not_become_ready(loaded, classifier, value, place):
    variable = loaded.model.variables[place]
    before = np.array(variable)
    after = before.copy()
    after.flat[0] = value
    try:
        served = Served(loaded, classifier, "keras")
        variable.assign(after)
        with pytest.raises(
            ArtifactError, match=r"every weight of a network must be finite. Received: NaN or infinity in "
        ):
            served.warm_up(2)
    finally:
        variable.assign(before)


def test_a_classifier_whose_scores_are_no_numbers_does_not_become_ready(loaded, classifier):
    from resfit.tasks.classification import Classifier

    Served(loaded, classifier, "keras").warm_up(1)
    other = Classifier.load(classifier)
    other.calibration = dataclasses.replace(other.calibration, temperature=float("nan"))
    with pytest.raises(ArtifactError, match="must give finite answers"):
        Served(other, classifier, "keras").warm_up(1)


def test_an_image_whose_scores_are_no_numbers_is_a_problem_and_spoils_no_other(loaded, classifier):
    served = Served(loaded, classifier, "keras")
    good = np.full(served.shape, 100, np.float32)
    bad = np.full(served.shape, np.nan, np.float32)  # as sums that overflow in the network would be
    for found in (served.predict([good, bad]), served.embed([good, bad])):
        assert not isinstance(found[0], Problem)
        assert isinstance(found[1], Problem)
        assert "is not finite" in str(found[1])


def test_fractions_of_at_most_1_are_refused_and_whole_numbers_taken_as_they_are(loaded, classifier):
    served = Served(loaded, classifier, "keras")
    height, width, _ = served.shape
    bright = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
    np.testing.assert_array_equal(served.fit(bright), bright)
    with pytest.raises(Problem, match=r"0\.\.255 are needed: multiply them by 255"):
        served.fit(bright / 255)
    dark = np.zeros((height, width, 3), np.float32)
    dark[0, 0] = 1  # as JSON's integers arrive: one step above black
    np.testing.assert_array_equal(served.fit(dark), dark)
    np.testing.assert_array_equal(served.fit(0 * dark), 0 * dark)
