"""Loading, swapping and ending under load: no request is lost and no answer is wrong."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from resfit.errors import ArtifactError
from resfit.serving.server import serve
from resfit.serving.settings import ServerSettings
from tests.serving.conftest import ROOT, in_threads, serving, wait_until


class Load:
    """Clients that ask again and again until they are told to stop."""

    def __init__(self, url: str, files, clients: int = 6):
        self.url, self.files, self.clients = url, files, clients
        self.stop = threading.Event()
        self.answers: list[tuple[int, dict]] = []
        self.failures: list[BaseException] = []
        self.thread = threading.Thread(target=lambda: in_threads(clients, self._ask))

    def _ask(self, number: int) -> None:
        with httpx.Client(timeout=60) as client:
            turn = number
            while not self.stop.is_set():
                place = turn % len(self.files)
                turn += 1
                try:
                    answer = client.post(self.url, content=self.files[place].read_bytes())
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    return
                assert answer.status_code == 200, answer.text
                self.answers.append((place, answer.json()))
                time.sleep(0.02)  # enough to keep the server busy, and leave it room to load

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def scores_of(answer: dict, classes) -> list[float]:
    return [answer["predictions"][0]["probabilities"][name] for name in classes]


def test_a_new_version_takes_over_under_load_without_a_lost_request(server, models, other, files, offline):
    from resfit.tasks.classification import Classifier

    changed = Classifier.load(other)
    after = changed.predict_proba(files, engine="openvino")
    with Load(f"{server.url}/predict?model=swapped", files) as load:
        wait_until(lambda: len(load.answers) > 20, 60)
        # a version that is being copied, is damaged, and then whole
        shutil.copytree(other, models / "swapped" / "2", ignore=shutil.ignore_patterns("model.keras"))
        (models / "swapped" / "2" / "model.keras").write_bytes(b"the beginning")
        status = f"{server.url}/v1/models/swapped/versions/2"
        wait_until(lambda: "damaged" in httpx.get(status).text, 60)
        assert httpx.get(status).json()["model_version_status"][0]["state"] == "END"
        shutil.copy(other / "model.keras", models / "swapped" / "2" / "model.keras")
        wait_until(lambda: any(answer["version"] == 2 for _, answer in list(load.answers)), 120)
        seen = len(load.answers)
        wait_until(lambda: len(load.answers) > seen + 20, 60)
    assert load.failures == []
    versions = [answer["version"] for _, answer in load.answers]
    assert set(versions) == {1, 2}
    for place, answer in load.answers:
        expected, classes = (offline.scores, offline.classes) if answer["version"] == 1 else (after, changed.classes)
        np.testing.assert_allclose(scores_of(answer, classes), expected[place], rtol=0, atol=5e-6)
    # both stay (--versions 2), the newest is meant where none is named, and a label names the old one
    assert httpx.get(f"{server.url}/v2/models/swapped").json()["versions"] == ["1", "2"]
    body = {"inputs": [{"name": "images", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}]}
    for path, version in (("", "2"), ("/versions/1", "1"), ("/versions/2", "2")):
        answer = httpx.post(f"{server.url}/v2/models/swapped{path}/infer", json=body, timeout=30)
        assert answer.json()["model_version"] == version
    metadata = httpx.get(f"{server.url}/v1/models/swapped/labels/stable/metadata").json()
    assert metadata["model_spec"]["version"] == "1"
    # a third one, and the first goes
    shutil.copytree(other, models / "swapped" / "3")
    wait_until(lambda: httpx.get(f"{server.url}/v2/models/swapped").json()["versions"] == ["2", "3"], 120)
    assert httpx.get(f"{server.url}/v1/models/swapped/versions/1").json()["model_version_status"][0]["state"] == "END"


def test_a_model_comes_and_goes(server, models, classifier, files):
    shutil.copytree(classifier, models / "guest")
    wait_until(lambda: httpx.get(f"{server.url}/v2/models/guest/ready").status_code == 200, 120)
    shutil.rmtree(models / "guest")
    wait_until(lambda: httpx.get(f"{server.url}/v2/models/guest/ready").status_code == 404, 60)
    assert httpx.get(f"{server.url}/v2/models/fashion/ready").status_code == 200


def test_not_ready_before_it_is_warm_and_drained_under_load_without_loss(classifier, files, offline, tmp_path):
    options = ("--drain", "1", "--name", "one")
    with serving(classifier, tmp_path, *options, ready=False) as running:
        first = httpx.get(f"{running.url}/v2/health/ready")
        assert httpx.get(f"{running.url}/v2/health/live").status_code == 200
        assert (first.status_code, first.json()) == (503, {"ready": False})
        loading = httpx.post(f"{running.url}/v1/models/one:predict", json={"instances": [1]})
        assert loading.status_code == 503
        assert loading.headers["retry-after"] == "1"
        wait_until(lambda: httpx.get(f"{running.url}/v2/health/ready").status_code == 200, 120)
        with Load(f"{running.url}/predict", files, clients=8) as load:
            wait_until(lambda: len(load.answers) > 30, 60)
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{running.url}/v2/health/ready").status_code == 503, 10)
            before = len(load.answers)
            wait_until(lambda: load.failures or running.process.poll() is not None, 60)
            assert running.process.wait(60) == 0
        assert len(load.answers) > before  # it went on answering
        # the only way to fail is that nobody listens any more
        assert [type(failure) for failure in load.failures] == [httpx.ConnectError] * len(load.failures)
        for place, answer in load.answers:
            np.testing.assert_allclose(scores_of(answer, offline.classes), offline.scores[place], rtol=0, atol=5e-6)
        answered = [entry for entry in running.log if entry.get("path") == "/predict"]
        assert [entry["status"] for entry in answered] == [200] * len(load.answers)
        assert running.log[-1]["event"] in ("ended", "version retired")


def test_requests_in_the_kernels_hands_are_answered_when_it_ends(classifier, files, offline, tmp_path):
    """Connections that nobody has taken yet when the server stops listening."""
    with serving(classifier, tmp_path, "--drain", "0") as running:
        process = running.process
        process.send_signal(signal.SIGSTOP)
        started = threading.Barrier(9)

        def ask(number):
            with httpx.Client(timeout=60) as client:
                started.wait()
                return client.post(f"{running.url}/predict", content=files[number].read_bytes()).json()

        answers: list = []
        asking = threading.Thread(target=lambda: answers.extend(in_threads(8, ask)))
        asking.start()
        started.wait()
        time.sleep(0.5)  # the kernel takes connections and bytes in the server's name
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        asking.join()
        assert process.wait(60) == 0
    assert [answer["predictions"][0]["label"] for answer in answers] == offline.labels[:8]


@pytest.mark.slow
def test_a_classifier_that_is_fitted_again_takes_over_and_a_damaged_one_does_not(classifier, other, tmp_path):
    place = tmp_path / "model.resfit"
    shutil.copytree(classifier, place)
    with serving(place, tmp_path / "log", "--poll", "0.1") as running:
        first = httpx.get(f"{running.url}/about").json()["models"][0]["classes"]
        from resfit.tasks.classification import Classifier

        Classifier.load(other).save(place)
        wait_until(lambda: httpx.get(f"{running.url}/about").json()["models"][0]["classes"] != first, 120)
        (place / "model.keras").write_bytes(b"damaged")
        status = f"{running.url}/v1/models/model"
        wait_until(lambda: "damaged" in httpx.get(status).text, 60)
        assert httpx.get(status).json()["model_version_status"][0]["state"] == "AVAILABLE"
        image = b"P6 1 1 255 abc"
        assert httpx.post(f"{running.url}/predict", content=image, timeout=30).status_code == 200
        assert running.stop() == 0


def test_a_damaged_classifier_ends_the_command(classifier, tmp_path, capfd):
    from resfit.cli.main import run

    place = tmp_path / "model.resfit"
    shutil.copytree(classifier, place)
    (place / "model.keras").write_bytes(b"damaged")
    with pytest.raises(SystemExit) as ended:
        run(["serve", str(place)])
    assert ended.value.code == 1
    assert "is damaged or was changed" in capfd.readouterr().err


def unreadable(classifier, place):
    """A classifier whose sums are right and whose network is none."""
    shutil.copytree(classifier, place)
    before = hashlib.sha256((place / "model.keras").read_bytes()).hexdigest()
    (place / "model.keras").write_bytes(b"PK no network")
    sums = (place / "SHA256SUMS").read_text()
    (place / "SHA256SUMS").write_text(sums.replace(before, hashlib.sha256(b"PK no network").hexdigest()))
    return place


def test_a_classifier_that_cannot_be_loaded_ends_the_command(classifier, tmp_path):
    command = [sys.executable, "-c", "from resfit.cli.main import run; run()", "serve", "--port", "0", "--drain", "300"]
    place = unreadable(classifier, tmp_path / "flowers.resfit")
    done = subprocess.run([*command, str(place)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert last.startswith("Error: a server needs a model that can be loaded. Received: flowers version 1: ")
    assert "model.keras" in last
    assert "Traceback" not in done.stderr


def test_a_folder_in_which_none_can_be_loaded_ends_the_server(classifier, tmp_path):
    unreadable(classifier, tmp_path / "models" / "a")
    shutil.copytree(classifier, tmp_path / "models" / "b" / "3")
    (tmp_path / "models" / "b" / "3" / "classifier.json").write_text("{")
    urls = []
    with pytest.raises(
        ArtifactError, match=r"a version 1: .*model\.keras.*; b version 3: .*classifier\.json cannot be read"
    ):
        serve(tmp_path / "models", ServerSettings(port=0), started=urls.append)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{urls[0]}/v2/health/live")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "classifier.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        serve(tmp_path / "b", ServerSettings(port=0), started=urls.append)
    assert len(urls) == 1


def test_an_empty_folder_is_served_as_soon_as_models_come(classifier, files, tmp_path):
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", tmp_path / "log", "--poll", "0.1", ready=False) as running:
        assert httpx.get(f"{running.url}/v2/health/live").status_code == 200
        assert httpx.get(f"{running.url}/v2/health/ready").status_code == 503
        assert httpx.post(f"{running.url}/predict", content=files[0].read_bytes()).status_code == 503
        assert [line["event"] for line in running.log if line["level"] == "warning"] == ["no models yet"]
        unreadable(classifier, tmp_path / "broken").rename(tmp_path / "models" / "broken")
        status = f"{running.url}/v1/models/broken"
        wait_until(lambda: "model.keras" in httpx.get(status).text, 60)
        assert httpx.get(status).json()["model_version_status"][0]["state"] == "END"
        shutil.copytree(classifier, tmp_path / "models" / "whole")
        wait_until(lambda: httpx.get(f"{running.url}/v2/health/ready").status_code == 200, 120)
        assert httpx.post(f"{running.url}/predict", content=files[0].read_bytes(), timeout=30).status_code == 200
        assert running.stop() == 0


@pytest.mark.slow
def test_fifty_servers_end_as_they_should(classifier, tmp_path):
    """While they load, when they are ready and under load: each with exit code 0, and none by an abort."""
    command = [sys.executable, "benchmarks/server_exit.py", str(classifier), "--times", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout
    assert "terminate" not in done.stdout
