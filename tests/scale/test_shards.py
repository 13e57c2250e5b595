"""Plan, unit, state and end of a run, in one process; engines are in test_engines.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import resfit
from resfit import scale
from resfit.errors import ArgumentError, DataError
from resfit.scale import isolation, listing, planning, running
from resfit.scale.drivers import index
from resfit.scale.drivers.base import Job
from resfit.scale.folder import RunFolder
from resfit.scale.unit import DEATHS, MOST_DEATHS, ShardResult, Unit
from tests.scale.common import contents, features, photos, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("scale") / "photos")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run of four shards that nothing disturbed."""
    plan = scale.plan(folder, tmp_path_factory.mktemp("scale") / "run", shard_images=5)
    unit = Unit(plan, threads=1)
    numbers = range(plan.shards)
    results = [
        unit.run(number, then if then < plan.shards else None)
        for number, then in zip(numbers, range(1, 5), strict=True)
    ]
    assert [found.state for found in results] == ["done"] * 4
    return plan


@pytest.fixture
def plan(folder, tmp_path):
    return scale.plan(folder, tmp_path / "run", shard_images=5)


def test_shards_hold_what_embed_gives(folder, whole):
    expected = resfit.embed(folder, cache=False)
    rows = rows_of(whole.url)
    usable = rows[rows.error.isna()]
    assert list(usable.path) == [str(path) for path in expected.paths]
    assert list(usable.label) == list(expected.labels)
    np.testing.assert_allclose(features(rows), expected.features, atol=1e-5)
    (broken,) = expected.skipped
    assert rows[rows.error.notna()][["path", "error"]].values.tolist() == [[str(broken.path), broken.reason]]
    assert len(rows) == whole.images == 19


def test_a_file_says_what_it_is_of(whole):
    for number in range(whole.shards):
        name = whole.output(number)
        assert name.startswith(f"{number:06}-{whole.shard(number).key[:12]}-{whole.fingerprint[:12]}")
        about = json.loads(pq.read_schema(Path(whole.url) / "shards" / name).metadata[b"resfit"])
        assert (about["shard"], about["fingerprint"], about["version"]) == (
            number,
            whole.fingerprint,
            resfit.__version__,
        )
        assert about["key"] == whole.shard(number).key
        assert about["images"] == whole.shard(number).images


def test_runs_are_the_same_to_the_last_bit_in_any_order_and_by_any_hands(whole, plan):
    ranks = [list(index.drive(Job(plan, np.flatnonzero(~plan.done()), 1, 1, print), rank, 2)) for rank in (1, 0)]
    assert [[found.shard for found in some] for some in ranks] == [[1, 3], [0, 2]]
    assert contents(plan.url) == contents(whole.url)


def test_what_is_there_is_not_done_again(plan, monkeypatch):
    unit = Unit(plan, threads=1)
    assert unit.run(2).state == "done"
    monkeypatch.setattr(Unit, "network", property(lambda self: pytest.fail("the network is loaded")))
    again = scale.run(plan.url, on="index", rank=2, count=3, threads=1)
    assert (again.done, again.there, again.left) == (0, 1, 3)
    assert Unit(plan).run(2) == ShardResult(2, "there", 5)


def test_two_drivers_at_once_change_nothing(whole, plan):
    one, other = Unit(plan, threads=1), Unit(plan, threads=1)
    reading = other._reading(0)  # has begun, and ends last
    assert one.run(0).state == "done"
    assert other._compute(reading).state == "done"
    reading.close()
    assert contents(plan.url).items() <= contents(whole.url).items()


def test_a_broken_plan_and_unfinished_runs_are_named(folder, plan, tmp_path):
    with pytest.raises(DataError, match=r"4 missing, such as 0, 1, 2, 3"):
        scale.finish(plan)
    with pytest.raises(DataError, match=r"must have a plan\.json"):
        scale.status(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="has another plan"):
        scale.plan(folder, plan.url, shard_images=6)
    assert scale.plan(folder, plan.url, shard_images=5).describe() == plan.describe()
    with pytest.raises(ArgumentError, match=r"shards 0 to 3. Received: 4"):
        Unit(plan).run(4)
    (Path(plan.url) / "plan.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        scale.load(plan.url)


def test_an_image_that_changed_since_the_plan_refuses_its_shard_alone(folder, tmp_path):
    import shutil

    mine = tmp_path / "photos"
    shutil.copytree(folder, mine)
    plan = scale.plan(mine, tmp_path / "run", shard_images=5)
    (mine / "blue" / "001.png").write_bytes(b"another")
    os.utime(mine / "green" / "005.png", ns=(1, 1))
    (mine / "red" / "003.png").unlink()
    found = [Unit(plan, threads=1).run(number) for number in range(4)]
    assert [one.state for one in found] == ["refused", "done", "refused", "refused"]
    assert "blue/001.png changed since the plan" in found[0].reason
    assert "7 now" in found[0].reason
    assert "green/005.png changed since the plan: its time of change" in found[2].reason
    assert "red/003.png is not there any more" in found[3].reason
    assert scale.status(plan).refused == {one.shard: one.reason for one in found if one.reason}
    assert not RunFolder(plan.url).names("attempts")
    shutil.copy2(folder / "blue" / "001.png", mine / "blue" / "001.png")  # as it was, to the nanosecond
    assert Unit(plan, threads=1).run(0).state == "done"
    assert sorted(scale.status(plan).refused) == [2, 3]


def test_another_network_or_version_refuses(plan, monkeypatch):
    import dataclasses

    other = dataclasses.replace(plan, fingerprint="0" * 64)
    found = Unit(other, threads=1).run(1)
    assert found.state == "refused"
    assert "another one on this worker" in found.reason
    monkeypatch.setattr(resfit, "__version__", "9.9")
    found = Unit(plan, threads=1).run(1)
    assert (found.state, found.reason[:26]) == ("refused", "planned with resfit 0.1.0,")


def test_a_model_that_is_a_file_travels_with_the_run(folder, whole, tmp_path):
    body = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
    body.save(tmp_path / "own.keras")
    plan = scale.plan(folder, tmp_path / "run", model=tmp_path / "own.keras", shard_images=5)
    expected = resfit.embed(folder, model=str(tmp_path / "own.keras"), cache=False).features
    (tmp_path / "own.keras").unlink()
    assert plan.model == "model/own.keras"
    assert Unit(plan, threads=1).run(1).state == "done"
    np.testing.assert_allclose(features(rows_of(plan.url)), expected[5:10], atol=1e-5)


def test_predictions_are_those_of_one_machine(folder, tmp_path):
    plan = scale.plan(folder, tmp_path / "run", task="predict", shard_images=8)
    for number in range(plan.shards):
        assert Unit(plan, threads=1).run(number).state == "done"
    from resfit.tasks import dispatch

    expected = dispatch.load_or_pretrained("resnet10_tiny").predict(folder)
    rows = rows_of(plan.url).sort_values("path", ignore_index=True)
    assert list(rows.path) == [str(one.path) for one in expected]
    good = [one for one in expected if not one.error]
    assert list(rows[rows.error.isna()].predicted) == [one.label for one in good]
    np.testing.assert_allclose(rows[rows.error.isna()].probability, [one.probability for one in good], atol=1e-6)
    assert rows[rows.error.notna()].error.tolist() == [one.error for one in expected if one.error]
    finished = scale.finish(plan)
    assert sum(finished.result["predicted"].values()) == 18
    assert (finished.images, finished.errors) == (19, 1)
    assert "broken.png" in (Path(plan.url) / "errors.csv").read_text()


def test_float16_and_the_end_of_a_run(folder, whole, tmp_path):
    plan = scale.plan(folder, tmp_path / "run", dtype="float16", shard_images=10)
    results = [Unit(plan, threads=1).run(number) for number in range(plan.shards)]
    assert [found.errors for found in results] == [0, 1]
    half, full = features(rows_of(plan.url)), features(rows_of(whole.url))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))
    assert scale.finish(plan).result == {"features": 320}
    file = Path(plan.url) / "shards" / plan.output(0)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"000000-.*cannot be read"):
        scale.finish(plan)


def test_fewer_processors_than_workers_need_is_an_error_before_the_start(plan, monkeypatch):
    monkeypatch.setattr(running.processors, "available", lambda: 4)
    with pytest.raises(ArgumentError, match=r"3 workers of 2 threads need 6 processors. Received: 4"):
        scale.run(plan, workers=3, threads=2)
    with pytest.raises(ArgumentError, match=r"Did you mean 'spark'"):
        scale.run(plan, on="sparc")
    with pytest.raises(ArgumentError, match="rank and count are of on='index'"):
        scale.run(plan, rank=1)


def test_no_progress_is_a_line_with_what_waits_for_what(plan):
    said = []
    job = Job(plan, [0, 1], 1, 1, said.append)
    job.began(3, "worker process 17")
    with running._watch(job, 0.02) as came:
        came()
        deadline = 500
        while not said and deadline:
            deadline -= 1
            __import__("time").sleep(0.01)
    assert said[0].startswith("no shard has finished for 0 s. Waiting for: shard 3 in worker process 17 for 0 s.")
    assert "a free worker" in running.waited_for(Job(plan, [0], 1, 1, print), 300)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, None),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (2, 3),
        ),
        ({"JOB_COMPLETION_INDEX": "5"}, None),
        ({"JOB_COMPLETION_INDEX": "5", "JOB_COMPLETIONS": "8"}, (5, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({}, None),
    ],
)
def test_ranks_of_slurm_and_kubernetes(variables, expected):
    if expected is None:
        with pytest.raises(ArgumentError, match=r"rank|which of how many"):
            index.place(None, None, variables)
    else:
        assert index.place(None, None, variables) == expected
    assert index.place(1, 3, variables) == (1, 3)


def test_three_deaths_bisect_a_shard_until_the_culprit_is_a_row(folder, plan, whole, monkeypatch):
    culprit = str(folder / "blue" / "004.png")
    marks = RunFolder(plan.url)
    monkeypatch.setattr(isolation, "_survives", lambda items, contract: all(item.path != culprit for item in items))
    for death in range(DEATHS):
        marks.write_json(f"attempts/000000.{death:012}", {"host": "node", "process": death, "time": 0})
    assert scale.status(plan).working[0][:2] == (0, "process 0 on node")
    assert Unit(plan, threads=1).run(0) == ShardResult(0, "done", 5, 1, pytest.approx(0, abs=600))
    rows = rows_of(plan.url)
    assert rows.error.fillna("").tolist() == [""] * 4 + ["crashed the decoder"]
    np.testing.assert_array_equal(features(rows), features(rows_of(whole.url))[:4])
    assert marks.names("attempts") == []
    for death in range(MOST_DEATHS):  # whatever the images are
        marks.write_json(f"attempts/000001.{death:012}", {"host": "node", "process": death, "time": 0})
    found = Unit(plan, threads=1).run(1)
    assert found.state == "refused"
    assert found.reason.startswith("6 workers died of it")
    assert Unit(plan, threads=1).run(1).state == "done"  # asked for once more, it gets another chance


def test_two_culprits_are_found_by_halves():
    asked = []

    def survives(items, contract):
        asked.append(len(items))
        return not {3, 9} & {item.size for item in items}

    items = [listing.Item(str(n), str(n), n, "") if n != 5 else None for n in range(12)]
    real, isolation._survives = isolation._survives, survives
    try:
        assert isolation.crashing(items, None) == [3, 9]
    finally:
        isolation._survives = real
    assert len(asked) < 16


@pytest.mark.slow
def test_a_process_that_dies_while_it_decodes_is_seen(folder, tmp_path, monkeypatch):
    """In a child process, whose decoder is made to crash by a file that Python reads when it begins."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'isolation' in ' '.join(sys.orig_argv):\n"
        "    import os, signal\n    from resfit.data import decode\n    real = decode.decode_image\n"
        "    def crash(source, spec, **more):\n"
        "        if len(source) == SIZE:\n            os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        return real(source, spec, **more)\n    decode.decode_image = crash\n".replace(
            "SIZE", str((folder / "blue" / "002.png").stat().st_size)
        )
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    files = [*sorted((folder / "blue").iterdir())[1:3], folder / "red" / "broken.png"]
    items = [listing.Item(str(path), str(path), *listing._state(path)) for path in files]
    contract = resfit.load("resnet10_tiny", include_top=False).input_spec
    sizes = [item.size for item in items]
    assert sizes.count(sizes[1]) == 1
    assert isolation.crashing(items, contract) == [1]


@pytest.mark.slow
def test_a_driver_of_100000_shards_stays_small(tmp_path):
    """Memory of a process that knows the state of each, in a process of its own."""
    program = """
import sys
from pathlib import Path
from resfit import scale
from resfit.scale import planning
from resfit.scale.folder import RunFolder
from resfit.scale.listing import Item
begun = planning.Plan(sys.argv[1], "s3://b", "embed", "m", "f" * 64, "0.1.0", {}, 0, 0, 0)
shards = ([Item(f"s3://b/{n}.jpg", f"s3://b/{n}.jpg", 100_000, "v")] for n in range(100_000))
planning._write(RunFolder(sys.argv[1]), begun, shards)
plan = scale.load(sys.argv[1])
for number in range(0, 100_000, 100):
    plan.folder.write("shards/" + plan.output(number), b"")
assert int(plan.done().sum()) == 1000
assert scale.status(plan).images == 100_000
assert plan.items(99_999)[0].path == "s3://b/99999.jpg"
# the peak since this program began; that of getrusage counts the process that started it
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500


def test_a_plan_of_many_shards_reads_one_listing_and_no_item(folder, tmp_path, monkeypatch):
    begun = planning.Plan(str(tmp_path), "s3://b", "embed", "m", "f" * 64, "0.1.0", {}, 0, 0, 0)
    shards = ([listing.Item(f"{n}.jpg", f"{n}.jpg", 1, "v")] for n in range(1000))
    made = planning._write(RunFolder(tmp_path), begun, shards)
    for number in range(1000):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / made.output(number)).touch()
    calls = []
    for name in ("names", "open", "has"):
        real = getattr(RunFolder, name)
        monkeypatch.setattr(
            RunFolder, name, lambda self, what, real=real, name=name: (calls.append((name, what)), real(self, what))[1]
        )
    found = scale.run(tmp_path)
    assert (found.done, found.there) == (0, 1000)
    assert calls == [("open", "plan.json"), ("names", "shards"), ("open", "shards.parquet")]
