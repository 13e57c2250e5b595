"""The engines, and what becomes of a run whose workers, driver or nodes are killed. Each starts processes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit import scale
from resfit.errors import ArgumentError, ResfitError
from resfit.scale import planning
from resfit.scale.drivers.base import Job
from resfit.scale.folder import RunFolder
from resfit.scale.unit import Unit
from tests.scale.common import contents, features, photos, rows_of

pytestmark = pytest.mark.slow
SHARDS = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("engines") / "photos", each=23)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What an undisturbed run gives."""
    plan = scale.plan(folder, tmp_path_factory.mktemp("engines") / "whole", shard_images=5)
    assert plan.shards == SHARDS
    unit = Unit(plan, threads=1)
    for number in range(plan.shards):
        unit.run(number)
    rows, expected = rows_of(plan.url), resfit.embed(folder, cache=False)
    usable = rows[rows.error.isna()]
    assert list(usable.path) == [str(path) for path in expected.paths]
    assert not rows.path.duplicated().any()
    np.testing.assert_allclose(features(rows), expected.features, atol=1e-5)
    return contents(plan.url)


@pytest.fixture
def begun(monkeypatch):
    """The shards that workers were given, in order; with one given again after each death."""
    given = []
    real = Job.began
    monkeypatch.setattr(Job, "began", lambda self, shard, where: (given.append(shard), real(self, shard, where))[1])
    return given


def assert_cost(begun, deaths):
    """Checks that so many deaths cost at most as many shards."""
    assert set(begun) == set(range(SHARDS))
    assert len(begun) <= SHARDS + deaths


@pytest.fixture
def plan(folder, tmp_path):
    return scale.plan(folder, tmp_path / "run", shard_images=5)


def children(process):
    """The processes that a process has started, and those that these have."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *children(child)]
    return found


def is_running(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition, seconds=300):
    """Waits until something holds, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it never came")


def kill_a_worker(run, but=()):
    """Kills a process that has begun a shard, none of those that were killed before; returns its number."""
    folder = RunFolder(run)

    def attempt():
        with contextlib.suppress(OSError, ValueError, TypeError):  # ended meanwhile
            for name in folder.names("attempts"):
                process = folder.json(f"attempts/{name}")["process"]
                if process not in (os.getpid(), *but):
                    os.kill(process, signal.SIGKILL)
                    return process
        return None

    return until(attempt)


def beside(work):
    """Does something in a thread of its own, and returns the thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_local_workers_that_are_killed_are_replaced(plan, whole, begun):
    said, killed = [], []

    def disturb():
        killed.append(kill_a_worker(plan.url))
        until(lambda: len(RunFolder(plan.url).names("shards")) >= 4)
        killed.append(kill_a_worker(plan.url, killed))

    thread = beside(disturb)
    found = scale.run(plan, workers=2, threads=1, say=said.append)
    thread.join()
    assert len(set(killed)) == 2
    assert SHARDS - 2 <= found.done <= SHARDS  # a worker may die behind its file, and before it says so
    assert found.there == 0
    assert sum("a worker died (signal 9)" in line for line in said) == 2
    assert_cost(begun, 2)
    assert contents(plan.url) == whole
    assert RunFolder(plan.url).names("attempts") == []


def test_a_driver_that_is_killed_is_gone_on_with_by_another_engine(plan, whole, begun):
    program = "from resfit.cli import main; main.run()"
    command = [sys.executable, "-c", program, "scale", "run", plan.url, "--threads", "1", "--workers", "1"]
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(lambda: len(RunFolder(plan.url).names("shards")) >= 2)
    workers = children(driver.pid)
    driver.kill()
    driver.wait()
    assert workers
    until(lambda: not any(is_running(worker) for worker in workers))  # they end once nobody asks them for more
    last = len(RunFolder(plan.url).names("shards"))
    again = scale.run(plan.url, on="index", rank=0, count=1, threads=1)
    assert again.there >= last
    assert again.there + again.done == SHARDS
    assert len(begun) == again.done  # what was there is not done again
    assert contents(plan.url) == whole


def test_a_folder_that_cannot_be_written_ends_a_run_with_one_line(plan):
    (Path(plan.url) / "attempts").write_bytes(b"")  # a file where the folder goes
    with pytest.raises(ResfitError, match=r"shard \d+ could not be done"):
        scale.run(plan, workers=1, threads=1)


@pytest.fixture
def cluster(monkeypatch):
    """Ray on one machine that stands for two nodes of one processor."""
    ray = pytest.importorskip("ray", reason='resfit[ray] brings Ray: pip install "resfit[ray]"')
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests its workers would hardly get on

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = found.add_node(num_cpus=1)
    ray.init(address=found.address, log_to_driver=False)
    yield found, node
    ray.shutdown()
    found.shutdown()


def test_ray_does_the_same_though_a_worker_and_a_node_die(cluster, plan, whole):
    ray, (found, node) = sys.modules["ray"], cluster
    with pytest.raises(ArgumentError, match=r"3 actors of 1 CPUs must have room.*nodes of \[1, 1\] CPUs"):
        scale.run(plan, on="ray", workers=3, threads=1)
    with pytest.raises(ArgumentError, match="room for 0"):
        scale.run(plan, on="ray", workers=1, threads=2)
    killed = []

    def disturb():
        killed.append(kill_a_worker(plan.url))
        until(lambda: len(RunFolder(plan.url).names("shards")) >= 4)
        found.remove_node(node, allow_graceful=False)

    thread = beside(disturb)
    result = scale.run(plan, on="ray", workers=2, threads=1)
    thread.join()
    assert len(killed) == 1
    assert (result.done, result.refused) == (SHARDS, {})
    assert contents(plan.url) == whole
    assert ray.is_initialized()


@pytest.fixture(scope="module")
def spark():
    pytest.importorskip("pyspark", reason='resfit[spark] brings PySpark: pip install "resfit[spark]"')
    from pyspark.sql import SparkSession

    patch = pytest.MonkeyPatch()
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false")
    try:
        session = builder.getOrCreate()
    except Exception as error:
        pytest.skip(f"Spark needs Java 17: {error}")
    yield session
    session.stop()
    patch.undo()


def test_spark_goes_on_where_others_stopped_though_a_worker_dies(spark, plan, whole):
    with pytest.raises(ArgumentError, match=r"3 tasks of 1 CPUs must have room.*2 cores"):
        scale.run(plan, on="spark", workers=3, threads=1)
    first = scale.run(plan, on="index", rank=1, count=5, threads=1)
    assert (first.done, first.left) == (3, SHARDS - 3)
    thread = beside(lambda: kill_a_worker(plan.url))
    result = scale.run(plan, on="spark", workers=2, threads=1)
    thread.join()
    assert (result.there, result.refused) == (3, {})
    assert planning.load(plan.url).done().all()
    assert contents(plan.url) == whole
