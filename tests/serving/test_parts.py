"""The parts without a server: batches, places, bounds of JSON, what is on disk."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import time

import numpy as np
import pytest

from resfit.errors import ArtifactError
from resfit.explain import overlays
from resfit.serving import folders, wire
from resfit.serving.batching import Batcher, Slots, Work
from resfit.serving.metrics import Metrics
from resfit.serving.pipeline import Pipeline
from resfit.serving.problems import Problem
from resfit.serving.repository import NotServed, Repository, Version
from resfit.serving.settings import ServerSettings, is_loopback
from tests.serving.conftest import wait_until


class Observed:
    def __init__(self):
        self.batches: list[int] = []

    def stage(self, name, seconds):
        pass

    def batch(self, images):
        self.batches.append(images)


def work(value: float, done=lambda: None) -> Work:
    return Work(concurrent.futures.Future(), done, np.full((1, 1, 1), value))


def batcher(run, observed=None, **options) -> Batcher:
    chosen = {"max_batch": 4, "max_delay": 0.0, "workers": 1, **options}
    return Batcher(run, observer=observed or Observed(), **chosen)


def submit(target: Batcher, *works: Work) -> None:
    for _ in works:
        target.announce()
    for one in works:
        target.submit(one)


def test_images_that_wait_are_run_together_and_each_gets_its_own_answer():
    gate, observed = threading.Event(), Observed()

    def run(images):
        gate.wait(10)
        return [float(image.sum()) for image in images]

    target = batcher(run, observed)
    first, *others = (work(value) for value in range(10))
    submit(target, first)
    while target.waiting:
        time.sleep(0.001)
    submit(target, *others)
    gate.set()
    assert [one.future.result(10) for one in (first, *others)] == list(range(10))
    assert observed.batches == [1, 4, 4, 1]
    target.close()


def test_an_image_waits_for_those_on_their_way_but_not_for_ever():
    observed = Observed()
    target = batcher(lambda images: [0] * len(images), observed, max_delay=0.2)
    target.announce()
    target.announce()
    target.submit(early := work(1))
    time.sleep(0.02)
    target.submit(late := work(2))
    early.future.result(10)
    late.future.result(10)
    assert observed.batches == [2]
    target.announce()  # one that never comes
    submit(target, alone := work(3))
    assert alone.future.result(10) == 0
    target.miss()
    target.close()


def test_one_bad_image_does_not_spoil_the_batch():
    def run(images):
        if any(image.sum() == 2 for image in images):
            raise ValueError("two")
        return [float(image.sum()) for image in images]

    gone: list[int] = []
    target = batcher(run, max_delay=0.5)
    works = [work(value, lambda value=value: gone.append(value)) for value in range(4)]
    submit(target, *works)
    assert [works[place].future.result(10) for place in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="two"):
        works[2].future.result(10)
    target.close()
    assert sorted(gone) == [0, 1, 2, 3]


def test_what_was_cancelled_is_not_run_and_gives_its_place_back():
    gate, seen, gone = threading.Event(), [], []

    def run(images):
        gate.wait(10)
        seen.extend(float(image.sum()) for image in images)
        return [0] * len(images)

    target = batcher(run)
    submit(target, first := work(1))
    while target.waiting:
        time.sleep(0.001)
    left, stays = work(2, lambda: gone.append(2)), work(3)
    submit(target, left, stays)
    assert left.future.cancel()
    gate.set()
    stays.future.result(10)
    first.future.result(10)
    assert (seen, gone) == ([1, 3], [2])
    target.close()


def test_closing_answers_what_waits_and_refuses_what_comes():
    target = batcher(lambda images: [1] * len(images), max_delay=1.0)
    works = [work(1) for _ in range(9)]
    submit(target, *works)
    target.close()
    assert [one.future.result(0) for one in works] == [1] * 9
    submit(target, after := work(1))
    with pytest.raises(Problem) as refused:
        after.future.result(0)
    assert refused.value.status == 503


def test_places_run_out_and_come_back():
    slots = Slots(3)
    slots.take(2)
    with pytest.raises(Problem) as busy:
        slots.take(2)
    assert (busy.value.status, busy.value.headers) == (429, {"Retry-After": "1"})
    slots.give()
    slots.take(2)
    with pytest.raises(Problem) as never:
        slots.take(4)
    assert never.value.status == 413
    assert slots.taken == 3


SMALL = ServerSettings(max_json_depth=4, max_json_items=100)


@pytest.mark.parametrize(
    "text",
    [
        "[[[[1]]]]",
        '{"a": "]]]]", "b": [1]}',
        '"[[[[[["',
        '["\\"[[[[[", 1]',
        "[" + "[]," * 98 + "[]]",
        "1",
        "[1, 2.5e3]",
    ],
)
def test_json_within_bounds_is_parsed_as_json_parses_it(text):
    assert wire.parse(text.encode(), SMALL) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("[[[[[1]]]]]", 400),
        ('{"a":{"a":{"a":{"a":{}}}}}', 400),
        ("[" + "[]," * 100 + "1]", 413),
        ('"a', 400),
        ('["\\', 400),
        ("", 400),
        ("nul", 400),
        ("1" * 5000, 400),
        ("\xff", 400),
    ],
)
def test_json_out_of_bounds_is_refused(text, status):
    with pytest.raises(Problem) as refused:
        wire.parse(text.encode("latin-1"), SMALL)
    assert refused.value.status == status


@pytest.mark.parametrize("body", [b'"\\"' * 2_000_000, b'["' * 3_000_000, b"[" * 8_000_000, b"{" * 8_000_000 + b'"'])
def test_hostile_json_is_refused_in_time_linear_in_its_length(body):
    begin = time.process_time()
    with pytest.raises(Problem):
        wire.parse(body, ServerSettings())
    assert time.process_time() - begin < 20  # a quadratic scan would take hours


def test_addresses_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org", "")))


def test_a_map_laid_over_its_image_is_the_overlay():
    random = np.random.default_rng(0)
    image, heat = random.integers(0, 256, (9, 7, 3), dtype=np.uint8), random.uniform(0, 1, (9, 7))
    layer = overlays.layer(heat).astype(np.float64)
    share = 0.6 * layer[..., 3:] / 255  # as a browser lays it over, at the opacity of the slider
    laid = image * (1 - share) + layer[..., :3] * share
    assert np.abs(laid - overlays.overlay(image, heat, strength=0.6)).max() <= 1.5


# the way from bytes to answers, with a decoder that takes its time


class Slow:
    """What answers in a version: decoding waits until it is told to go on."""

    def __init__(self):
        self.gate, self.ran = threading.Event(), []

    def decode(self, data, max_pixels):
        self.gate.wait(30)
        return np.full((1, 1, 1), len(data))

    def predict(self, images):
        self.ran.extend(int(image.sum()) for image in images)
        return [int(image.sum()) for image in images]


def pipeline(**options) -> tuple[Pipeline, Version, Slow]:
    chosen, metrics, slow = ServerSettings(**options), Metrics(), Slow()
    return Pipeline(chosen, metrics), Version("m", 1, slow, chosen, metrics), slow


def until(true) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_decoding_that_takes_too_long_is_given_up_and_keeps_its_place_until_it_ends():
    pipe, version, slow = pipeline(decode_timeout=0.05)

    async def ask():
        asked = asyncio.ensure_future(pipe.run(version, "predict", [b"abc"]))
        while not asked.done():
            await asyncio.sleep(0.02)
            pipe.expire()
        return await asked

    (problem,) = asyncio.run(ask())
    assert (problem.status, str(problem)) == (422, "decoding takes more than the 0.05 s that are allowed")
    assert pipe.slots.taken == 1
    slow.gate.set()
    until(lambda: pipe.slots.taken == 0)
    assert slow.ran == []
    pipe.close()


def test_an_answer_that_is_late_is_an_error_and_a_client_that_leaves_costs_no_pass():
    pipe, version, slow = pipeline(timeout=0.1)
    with pytest.raises(Problem) as late:
        asyncio.run(pipe.run(version, "predict", [b"a", b"bc"]))
    assert (late.value.status, late.value.headers) == (504, {"Retry-After": "1"})

    async def leave():
        asked = asyncio.ensure_future(pipe.run(version, "predict", [b"def"]))
        await asyncio.sleep(0.02)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(leave())
    slow.gate.set()
    until(lambda: pipe.slots.taken == 0)
    assert asyncio.run(pipe.run(version, "predict", [b"ghij"])) == [4]
    assert slow.ran == [4]
    pipe.close()


# what is on disk, with a classifier that does nothing


class Nothing:
    engine = "none"
    classes = ("a",)

    def __init__(self, folder, engine):
        if (folder / "model.keras").read_text() == "bad":
            raise ValueError("it is\nbad")
        self.folder = folder

    def warm_up(self, batch):
        pass

    def predict(self, images):
        return [str(self.folder)] * len(images)


def write(folder, content="good"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_text(content)
    (folder / "classifier.json").write_text('{"kind": "resfit classifier"}')


def repository(root, **options) -> Repository:
    return Repository(root, ServerSettings(**options), Metrics(), Nothing)


def served(found: Repository) -> dict:
    return {name: sorted(versions) for name, versions in found.models.items()}


def test_folders_are_models_and_numbers_are_versions(tmp_path):
    write(tmp_path / "plain")
    for number in ("1", "2", "10", "03", "x", "0"):
        write(tmp_path / "many" / number)
    write(tmp_path / "..hidden")
    write(tmp_path / "with space")
    (tmp_path / "many" / "11").mkdir()  # nothing in it yet
    found = repository(tmp_path, versions=2)
    found.refresh()
    assert served(found) == {"plain": [1], "many": [2, 10]}
    assert found.number("many") == 10
    for model, version in (("many", 1), ("none", None), ("..hidden", None), ("with space", None)):
        with pytest.raises(NotServed):
            found.number(model, version)
    found.close()


def test_an_old_version_stays_until_its_last_user_has_gone(tmp_path):
    write(tmp_path / "m" / "1")
    found = repository(tmp_path)
    found.refresh()
    with found.lease("m") as old:
        write(tmp_path / "m" / "2")
        found.refresh()
        assert served(found) == {"m": [2]}
        submit(old.batcher("predict"), late := work(1))
        assert late.future.result(10) == str(tmp_path / "m" / "1")
        threads = old.batcher("predict")._threads
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not old.enter()
    found.close()


def test_what_cannot_be_loaded_leaves_what_works(tmp_path):
    write(tmp_path / "m" / "1")
    found = repository(tmp_path)
    found.refresh()
    write(tmp_path / "m" / "2", "bad")
    found.refresh()
    assert served(found) == {"m": [1]}
    assert found.states("m")[2].error == "it is bad"
    write(tmp_path / "m" / "2", "good again")
    found.refresh()
    assert served(found) == {"m": [2]}
    for path in sorted(tmp_path.rglob("*.*")):
        path.unlink()
    found.refresh()  # an empty disk ends no service
    assert served(found) == {"m": [2]}
    found.close()


def started(root, **options) -> Repository:
    found = repository(root, poll=0.05, **options)
    found.start()
    return found


def test_where_nothing_works_at_the_start_it_is_told_why(tmp_path):
    write(tmp_path / "a", "bad")
    write(tmp_path / "b" / "7", "bad")
    (tmp_path / "c" / "1").mkdir(parents=True)
    (tmp_path / "c" / "1" / "classifier.json").write_text("{")  # the server looks at what is there, not at what it says
    (tmp_path / "c" / "1" / "model.keras").write_text("bad")
    found = started(tmp_path)
    wait_until(lambda: found.failure, 30)
    assert found.failure == "a version 1: it is bad; b version 7: it is bad; c version 1: it is bad"
    assert not found.is_ready
    found.close()
    for number in range(9):
        write(tmp_path / f"many{number}", "bad")
    found = started(tmp_path)
    wait_until(lambda: found.failure, 30)
    assert found.failure.endswith("many0 version 1: it is bad; many1 version 1: it is bad; and 7 more")
    found.close()


def test_what_is_told_to_end_while_it_loads_has_not_failed(tmp_path):
    write(tmp_path / "a")
    loads, goes_on = threading.Event(), threading.Event()

    def load(folder, engine):
        loads.set()
        goes_on.wait(30)
        return Nothing(folder, engine)

    found = Repository(tmp_path, ServerSettings(poll=0.05), Metrics(), load)
    found.start()
    assert loads.wait(30)
    assert not found.close(0)
    goes_on.set()
    assert found.close()
    assert found.failure == ""


def test_where_some_work_they_are_served_and_the_others_named(tmp_path):
    write(tmp_path / "a", "bad")
    write(tmp_path / "b")
    found = started(tmp_path)
    wait_until(lambda: found.is_ready, 30)
    assert served(found) == {"b": [1]}
    assert (found.states("a")[1].error, found.failure) == ("it is bad", "")
    found.close()


def test_an_empty_folder_waits_whatever_comes(tmp_path):
    root = tmp_path / "models"
    (root / "a" / "1").mkdir(parents=True)
    (root / ".b.partial").mkdir()
    (root / ".b.partial" / "model.keras").write_text("on its way")
    (root / "a" / "labels.json").write_text('{"stable": 1}')
    found = started(root)
    write(root / "a" / "1", "bad")
    wait_until(lambda: found.states("a").get(1, None) is not None and found.states("a")[1].error, 30)
    assert (found.failure, found.is_ready) == ("", False)
    write(root / "a" / "1")
    wait_until(lambda: found.is_ready, 30)
    assert served(found) == {"a": [1]}
    found.close()
    with pytest.raises(ArtifactError, match="no folder"):
        folders.preflight(tmp_path / "none")


def test_a_classifier_that_is_still_being_written_at_the_start_is_no_failure(tmp_path):
    write(tmp_path / "m", "bad")
    sampling_order = []

    def load(folder, engine):
        sampling_order.append(folder)
        if len(sampling_order) == 1:
            (folder / "model.keras").write_text("good, and longer")  # while the first half of it is looked at
            raise ValueError("cut short")
        return Nothing(folder, engine)

    found = Repository(tmp_path / "m", ServerSettings(poll=0.05), Metrics(), load)
    found.start()
    wait_until(lambda: found.is_ready, 30)
    assert (found.failure, len(sampling_order)) == ("", 2)
    found.close()


def test_labels_are_read_from_a_file_and_nonsense_in_it_is_none(tmp_path):
    write(tmp_path / "m" / "1")
    found = repository(tmp_path)
    for content, number in (('{"a": 1}', 1), ('{"a": "1"}', None), ("[1]", None), ("[" * 9999, None), ("\xff", None)):
        (tmp_path / "m" / folders.LABELS).write_text(content, "latin-1")
        found.refresh()
        if number is None:
            with pytest.raises(NotServed):
                found.number("m", label="a")
        else:
            assert found.number("m", label="a") == number
    found.close()


@pytest.mark.parametrize(
    ("folder", "name"),
    [("flowers.resfit", "flowers"), ("my photos", "my-photos"), ("Blüten.resfit", "Bl-ten"), ("...", "model")],
)
def test_the_name_of_a_single_classifier(tmp_path, folder, name):
    write(tmp_path / "x" / folder)
    found = repository(tmp_path / "x" / folder)
    found.refresh()
    assert served(found) == {name: [1]}
    found.close()
