import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from resfit import cache_kinds
from resfit.errors import ArgumentError
from resfit.features import digests
from resfit.features.digests import digest_files
from resfit.features.extract import extract, store_key
from resfit.features.store import FeatureStore, StoreKey
from tests.pictures import CountingEngine, tiny_body, write_folder, write_picture

ROOT = Path(__file__).parents[2]
KEY = StoreKey("ab" * 32, {"network": "test"})


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture
def paths(tmp_path):
    return sorted(write_folder(tmp_path / "images", each=4).rglob("*.png"))


def age(*paths):
    """Puts files in the past, where a change of them cannot go unseen."""
    for path in paths:
        os.utime(path, (1e9, 1e9))


def digest(number):
    return bytes([number]) * 32


# the store


def test_store_gives_back_what_it_took(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    FeatureStore(tmp_path, KEY, 3).append([digest(i) for i in range(5)], rows)
    store = FeatureStore(tmp_path, KEY, 3)
    assert len(store) == 5
    assert digest(4) in store
    assert digest(5) not in store
    window = store.rows([digest(1), digest(2)])
    assert isinstance(window, np.memmap)
    np.testing.assert_array_equal(window, rows[1:3])
    np.testing.assert_array_equal(store.rows([digest(4), digest(0), digest(4)]), rows[[4, 0, 4]])
    assert store.rows([]).shape == (0, 3)


@pytest.mark.parametrize("cut", ["row", "record", "record and row", "garbage record"])
def test_store_cuts_what_a_kill_left_and_goes_on(tmp_path, cut):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    FeatureStore(tmp_path, KEY, 3).append([digest(i) for i in range(4)], rows)
    files = {path.name: path for path in tmp_path.rglob("*") if path.suffix in (".f32", ".bin")}
    if cut == "row":  # killed between row and record, in the middle of a row
        with open(files["rows.f32"], "ab") as file:
            file.write(b"12345")
        left = 4
    elif cut == "record":  # killed in the middle of the last record
        os.truncate(files["index.bin"], 4 * 40 - 7)
        left = 3
    elif cut == "record and row":
        os.truncate(files["rows.f32"], 3 * 12 - 1)
        left = 2
    else:
        content = bytearray(files["index.bin"].read_bytes())
        content[3 * 40 + 5] ^= 0xFF
        files["index.bin"].write_bytes(content)
        left = 3
    store = FeatureStore(tmp_path, KEY, 3)
    assert len(store) == left
    assert files["rows.f32"].stat().st_size == left * 12
    assert files["index.bin"].stat().st_size == left * 40
    store.append([digest(9)], np.full((1, 3), 9, np.float32))
    again = FeatureStore(tmp_path, KEY, 3)
    np.testing.assert_array_equal(again.rows([digest(1), digest(9)]), [[3, 4, 5], [9, 9, 9]])


def test_append_after_another_process_was_killed(tmp_path):
    store = FeatureStore(tmp_path, KEY, 2)
    store.append([digest(0)], np.zeros((1, 2)))
    for name in ("rows.f32", "index.bin"):  # half a row and half a record, from a process that is no more
        with open(store.folder / name, "ab") as file:
            file.write(b"12345")
    store.append([digest(1)], np.ones((1, 2)))
    again = FeatureStore(tmp_path, KEY, 2)
    assert again.drop_damaged([digest(0), digest(1)]) == 0
    np.testing.assert_array_equal(again.rows([digest(0), digest(1)]), [[0, 0], [1, 1]])


def test_damaged_row_is_dropped_and_replaced(tmp_path):
    store = FeatureStore(tmp_path, KEY, 2)
    store.append([digest(0), digest(1)], np.ones((2, 2), np.float32))
    path = store.folder / "rows.f32"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    assert store.drop_damaged([digest(0), digest(1)]) == 1
    assert digest(0) not in store
    assert digest(1) in store
    store.append([digest(0)], np.full((1, 2), 5, np.float32))
    again = FeatureStore(tmp_path, KEY, 2)
    assert again.drop_damaged([digest(0), digest(1)]) == 0
    np.testing.assert_array_equal(again.rows([digest(0)]), [[5, 5]])


def test_two_stores_see_each_others_rows(tmp_path):
    first, second = FeatureStore(tmp_path, KEY, 1), FeatureStore(tmp_path, KEY, 1)
    first.append([digest(1)], np.array([[1.0]]))
    second.append([digest(2)], np.array([[2.0]]))
    first.append([digest(3)], np.array([[3.0]]))
    for store in (first, FeatureStore(tmp_path, KEY, 1)):
        np.testing.assert_array_equal(store.rows([digest(3), digest(2), digest(1)]), [[3], [2], [1]])


def test_several_rows_of_one_image_the_last_counts(tmp_path, monkeypatch):
    from resfit.features import store as stores

    monkeypatch.setattr(stores, "_MOST_RECENT", 3)  # so that what is recent is sorted in, now and then
    store = FeatureStore(tmp_path, KEY, 1)
    for number in range(10):
        store.append([digest(number % 4), digest(100 + number)], np.full((2, 1), number))
        assert store.rows([digest(number % 4)])[0, 0] == number
    for opened in (store, FeatureStore(tmp_path, KEY, 1)):
        np.testing.assert_array_equal(opened.rows([digest(i) for i in range(4)])[:, 0], [8, 9, 6, 7])
        np.testing.assert_array_equal(opened.find([digest(50), digest(109)]), [-1, 19])


def test_digests_that_begin_alike_are_told_apart(tmp_path):
    alike = [b"\7" * 8 + bytes([end]) * 24 for end in range(5)]
    FeatureStore(tmp_path, KEY, 1).append(alike[:4], np.arange(4.0)[:, None])
    store = FeatureStore(tmp_path, KEY, 1)
    np.testing.assert_array_equal(store.find(alike), [0, 1, 2, 3, -1])


def test_checksums_are_those_of_zlib(tmp_path):
    import zlib

    from resfit.features import store as stores

    records = np.frombuffer(np.random.default_rng(0).bytes(40 * 70_000), stores._RECORD)
    received = stores._record_crcs(records)
    for place in (0, 1, 65_535, 65_536, 69_999):
        assert received[place] == zlib.crc32(records[place].tobytes()[:36])


def test_half_the_room_in_float16(tmp_path):
    from resfit.errors import DataError

    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    store = FeatureStore(tmp_path, KEY, 5, "float16")
    store.append([digest(i) for i in range(6)], rows)
    kept = FeatureStore(tmp_path, KEY, 5, "float16").rows([digest(3), digest(4)])
    np.testing.assert_array_equal(kept, rows[3:5].astype(np.float16))
    assert (store.folder / "rows.f16").stat().st_size == 6 * 5 * 2
    with pytest.raises(DataError, match="up to 65504"):
        store.append([digest(9)], np.full((1, 5), 1e5, np.float32))
    with pytest.raises(ArgumentError, match="dtype must be one of"):
        FeatureStore(tmp_path, KEY, 5, "float8")


def test_prune_takes_what_nobody_uses(tmp_path):
    used = FeatureStore(tmp_path / "features", KEY, 1)
    used.append([digest(1)], np.ones((1, 1)))
    idle = FeatureStore(tmp_path / "features", StoreKey("cd" * 32, {"name": "idle"}), 1)
    idle.append([digest(1), digest(2)], np.ones((2, 1)))
    folder = idle.folder
    assert cache_kinds.prune(tmp_path, older_than=1).deleted == ()
    del idle
    assert [item.path for item in cache_kinds.prune(tmp_path).deleted] == [folder]
    assert not folder.exists()
    np.testing.assert_array_equal(used.rows([digest(1)]), [[1]])


def test_two_processes_fill_one_store(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from resfit.features.store import FeatureStore, StoreKey
        store = FeatureStore(Path(sys.argv[1]), StoreKey("ab" * 32, {"network": "test"}), 3)
        for number in range(int(sys.argv[2]), 200, 2):
            store.append([bytes([number]) * 32], np.full((1, 3), number))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    running = [subprocess.Popen([sys.executable, "-c", program, tmp_path, str(n)], env=environment) for n in (0, 1)]
    assert [process.wait(60) for process in running] == [0, 0]
    store = FeatureStore(tmp_path, KEY, 3)
    assert len(store) == 200
    every = [digest(number) for number in range(200)]
    assert store.drop_damaged(every) == 0
    np.testing.assert_array_equal(store.rows(every)[:, 0], np.arange(200))


# digests


def test_unchanged_files_are_not_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    memory = tmp_path / "cache"
    age(path)
    (first,) = digest_files([path], memory)
    (again,) = digest_files([path], None)
    assert first.digest == again.digest
    path.chmod(0o000)  # the time of its change moves, so it is looked at again
    (blocked,) = digest_files([path], memory)
    assert blocked.reason.startswith("cannot be read") or os.geteuid() == 0
    assert digest_files([tmp_path / "none"], memory)[0].reason == "cannot be read: No such file or directory"


def test_what_is_no_regular_file_is_not_opened(body, paths, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    features = extract(body, [tmp_path / "pipe.jpg", *paths[:1]], cache=False)
    assert features.indices.tolist() == [1]
    assert [(item.path.name, item.reason) for item in features.skipped] == [("pipe.jpg", "not a regular file")]


def test_memory_of_digests_is_used_and_may_be_damaged(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    memory = tmp_path / "cache"
    time.sleep(0.06)  # past the doubt about its times
    (first,) = digest_files([path], memory)
    store = FeatureStore(memory / "digests", digests._KEY, 32, "uint8")
    store.append([digests._key(path, first.state)], np.frombuffer(digest(7), np.uint8)[None])
    assert digest_files([path], memory)[0].digest == digest(7)  # taken from memory, not from the file
    rows = next(memory.glob("digests/*/rows.u8"))
    rows.write_bytes(bytes(rows.stat().st_size))
    assert digest_files([path], memory)[0].digest == first.digest
    path.write_bytes(b"two")
    assert digest_files([path], memory)[0].digest != first.digest
    (memory / "digests.sqlite").write_bytes(b"of an earlier version")
    digest_files([path], memory)
    assert not (memory / "digests.sqlite").exists()


# extraction


def test_features_are_the_networks(body, paths):
    from resfit.data.decode import decode_image

    features = extract(body, paths, engine="keras", batch_size=5)
    images = np.stack([decode_image(path, body.input_spec) for path in paths])
    np.testing.assert_allclose(features.rows, body.predict(images, verbose=0), rtol=1e-4, atol=1e-6)
    assert features.rows.dtype == np.float32
    assert features.indices.tolist() == list(range(12))
    assert features.skipped == ()


def test_second_run_computes_nothing_and_a_change_costs_one(body, paths, tmp_path):
    cache = tmp_path / "cache"
    engine = CountingEngine(body)
    first = extract(body, paths, engine=engine, cache=cache)
    assert (first.computed, first.reused, engine.images) == (12, 0, 12)
    kept = np.array(first.rows)
    second = extract(body, paths, engine=engine, cache=cache)
    assert (second.computed, second.reused, engine.images, second.engine) == (0, 12, 12, "cache")
    np.testing.assert_array_equal(second.rows, kept)
    assert isinstance(second.rows, np.memmap)

    write_picture(paths[5], "red", seed=99)
    moved = paths[0].rename(paths[0].with_name("moved.png"))
    third = extract(body, [moved, *paths[1:]], engine=engine, cache=cache)
    assert (third.computed, third.reused, engine.images) == (1, 11, 13)
    assert not np.array_equal(third.rows[5], kept[5])
    np.testing.assert_array_equal(np.delete(third.rows, 5, axis=0), np.delete(kept, 5, axis=0))


def test_copies_are_computed_once(body, paths, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[0].read_bytes())
    features = extract(body, [paths[0], paths[1], copy], cache=False)
    assert features.computed == 2
    np.testing.assert_array_equal(features.rows[0], features.rows[2])


def test_another_network_or_contract_shares_nothing(body):
    import dataclasses

    key = store_key(body, body.input_spec).digest
    assert store_key(tiny_body(), body.input_spec).digest == key
    assert store_key(tiny_body(seed=1), body.input_spec).digest != key
    assert store_key(body, dataclasses.replace(body.input_spec, interpolation="bicubic")).digest != key
    assert store_key(body, body.input_spec, "int8").digest != key


def test_unusable_images_are_skipped_with_the_reason(body, paths, tmp_path):
    paths[3].write_bytes(b"")
    paths[7].write_bytes(b"no image")
    missing = tmp_path / "none.png"
    features = extract(body, [*paths, missing], cache=False)
    assert [skipped.path for skipped in features.skipped] == [paths[3], paths[7], missing]
    assert [skipped.reason for skipped in features.skipped] == [
        "empty file",
        "not an image of a known format",
        "cannot be read: No such file or directory",
    ]
    assert features.indices.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert len(features.rows) == len(features.digests) == 10


def test_nothing_is_left_without_a_cache(body, paths, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "unused"))
    features = extract(body, paths, cache=False, engine="keras")
    assert np.isfinite(features.rows).all()
    assert not (tmp_path / "unused").exists()


def test_progress_counts_up_to_all(body, paths):
    calls = []
    extract(body, paths, cache=False, batch_size=5, progress=lambda *call: calls.append(call))
    assert calls == [("reading", 12, 12), ("network", 5, 12), ("network", 10, 12), ("network", 12, 12)]


def test_network_without_one_vector_is_refused(body, paths):
    import keras

    maps = keras.Model(body.inputs, body.layers[-2].output)
    maps.input_spec = body.input_spec
    with pytest.raises(ArgumentError, match="pooling='avg'"):
        extract(maps, paths)
    bare = keras.Model(body.inputs, body.output)
    bare.input_spec = None
    with pytest.raises(ArgumentError, match="input_spec"):
        extract(bare, paths)


def test_killed_run_goes_on_where_it_was(body, tmp_path):
    """A process that is killed after its second batch, with a torn row added behind: the rest is computed, no more."""
    folder, cache = write_folder(tmp_path / "images", each=8), tmp_path / "cache"
    program = textwrap.dedent(
        """
        import os, signal, sys, time
        from pathlib import Path
        from resfit.features.extract import extract
        from tests.pictures import tiny_body

        def kill(what, done, total):
            if what == "network" and done >= 10:
                while not sum(path.stat().st_size for path in Path(sys.argv[2]).rglob("index.bin")) // 40 >= 10:
                    time.sleep(0.05)  # rows reach the disk about once a second
                os.kill(os.getpid(), signal.SIGKILL)

        paths = sorted(Path(sys.argv[1]).rglob("*.png"))
        extract(tiny_body(), paths, engine="keras", cache=sys.argv[2], batch_size=5, progress=kill)
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run([sys.executable, "-c", program, folder, cache], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    with open(next(cache.rglob("rows.f32")), "ab") as file:
        file.write(b"torn")
    paths = sorted(folder.rglob("*.png"))
    resumed = extract(body, paths, engine="keras", cache=cache)
    assert (resumed.reused, resumed.computed) == (10, 14)
    np.testing.assert_allclose(resumed.rows, extract(body, paths, cache=False).rows, rtol=1e-4, atol=1e-6)


def test_new_files_are_read_once_and_known_ones_not_at_all(body, paths, tmp_path, monkeypatch):
    import builtins
    from collections import Counter

    reads = Counter()
    original = builtins.open

    def counting(file, *arguments, **options):
        if str(file).endswith(".png"):
            reads[str(file)] += 1
        return original(file, *arguments, **options)

    time.sleep(0.06)  # past the doubt about their times
    monkeypatch.setattr(builtins, "open", counting)
    extract(body, paths, engine="keras", cache=tmp_path / "cache")
    assert reads == {str(path): 1 for path in paths}
    reads.clear()
    assert extract(body, paths, engine="keras", cache=tmp_path / "cache").engine == "cache"
    assert not reads


def test_rows_are_found_again_without_the_memory_of_digests(body, paths, tmp_path):
    extract(body, paths, engine="keras", cache=tmp_path)
    shutil.rmtree(tmp_path / "digests")
    again = extract(body, paths, engine="keras", cache=tmp_path)
    assert (again.computed, again.reused, again.engine) == (0, 12, "cache")


def test_views_are_the_networks_and_the_same_every_time(body, paths, tmp_path):
    import hashlib

    from resfit.data.decode import decode_renderings
    from resfit.data.views import Views

    views = Views(count=2, seed=3)
    first = extract(body, paths, engine="keras", cache=tmp_path, views=views, batch_size=5)
    assert (first.computed, len(first.views)) == (12, 2)
    for number in range(2):
        pixels = [
            decode_renderings(path, body.input_spec, [views.rendering(number, digest, body.input_spec)])[0]
            for path in paths
            for digest in [hashlib.sha256(path.read_bytes()).digest()]
        ]
        expected = body.predict(np.stack(pixels), verbose=0)
        np.testing.assert_allclose(first.views[number], expected, rtol=1e-4, atol=1e-6)
        assert not np.allclose(first.views[number], first.rows, rtol=1e-2)
    # a third view costs itself alone; in another order, with another engine, the rest stays
    engine = CountingEngine(body)
    more = extract(body, paths[::-1], engine=engine, cache=tmp_path, views=Views(count=3, seed=3))
    assert engine.images == 12
    np.testing.assert_array_equal(more.views[1], first.views[1][::-1])
    engine = CountingEngine(body)
    extract(body, paths, engine=engine, cache=tmp_path, views=Views(count=1, seed=4))
    assert engine.images == 12


def test_feature_maps_of_a_tap_in_float16(body, paths):
    import keras

    from resfit.data.decode import decode_image

    features = extract(body, paths, engine="keras", cache=False, until="stage2", feature_maps=True, dtype="float16")
    expected = keras.Model(body.inputs, body.get_layer("conv2_block1_out").output).predict(
        np.stack([decode_image(path, body.input_spec) for path in paths]), verbose=0
    )
    assert (features.rows.dtype, features.rows.shape) == (np.float16, expected.shape)
    np.testing.assert_allclose(features.rows, expected, rtol=2e-3, atol=1e-4)


def test_int8_is_calibrated_once(paths, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    from resfit.networks import build, catalog
    from resfit.preprocessing import TORCH
    from tests.numeric import randomize

    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "own"))
    spec = catalog.get("resnet18").spec.replace(depths=(1, 1, 1, 1))
    contract = TORCH.from_dict({**TORCH.to_dict(), "size": [32, 32]})
    body = randomize(build.build(spec, include_top=False, pooling="avg", input_spec=contract, preprocess=True))
    exact = extract(body, paths, cache=tmp_path)
    fast = extract(body, paths, cache=tmp_path, precision="int8")
    assert (exact.precision, fast.precision, fast.engine, fast.computed) == ("float32", "int8", "openvino", 12)
    cosines = (exact.rows * fast.rows).sum(1) / np.linalg.norm(exact.rows, axis=1) / np.linalg.norm(fast.rows, axis=1)
    assert 0.99 < cosines.min() < 0.9999999
    again = extract(body, paths, cache=tmp_path, precision="int8")
    assert (again.computed, again.engine, again.precision) == (0, "cache", "int8")
    more = extract(body, [*paths[1:], write_picture(tmp_path / "new.png", "red", 77)], cache=tmp_path, precision="int8")
    assert (more.computed, more.reused, more.engine) == (1, 11, "openvino")
    np.testing.assert_array_equal(more.rows[:11], fast.rows[1:])
    other = write_folder(tmp_path / "others", each=2)
    others = extract(body, sorted(other.rglob("*.png"))[:1], cache=tmp_path, precision="int8")
    assert others.computed + others.reused == 1
