"""What is kept on a machine, of every kind: found, read through, deleted; and what must stay."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit import cache_kinds
from resfit.data import remote
from resfit.engines import compiled
from resfit.errors import ArgumentError
from resfit.features import digests, pixels
from resfit.features.digests import digest_files
from resfit.features.store import FeatureStore, StoreKey
from resfit.preprocessing import InputSpec
from resfit.storage import locks
from resfit.training import loop
from resfit.weights import download, fetch, registry, resolve, tfhub
from tests.hub import saved_models
from tests.weights import servers, tf_sources

OWN = ("weights", "features", "engines", "pixels", "sources", "runs", "latency", "speed", "digests")


@pytest.fixture
def root(tmp_path, monkeypatch):
    for variable, name in (("RESFIT_CACHE", "resfit"), ("TFHUB_CACHE_DIR", "tfhub"), ("KERAS_HOME", "keras")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(locks, "_kept", {})
    return tmp_path / "resfit"


def ended():
    """What a process kept is free once it has ended."""
    for held in locks._kept.values():
        held.close()
    locks._kept.clear()


def put_weights(name: str = "net.safetensors") -> Path:
    with servers.running() as site:
        site.files[f"/{name}"] = b"weights" * 100
        return resolve.resolve(f"{site.url}/{name}").parent


def put_features(root: Path, name: str = "net") -> FeatureStore:
    key = StoreKey(hashlib.sha256(name.encode()).hexdigest(), {"name": name, "view": "plain"})
    features = FeatureStore(root / "features", key, 5)
    features.append([bytes([n]) * 32 for n in range(3)], np.arange(15, dtype="f4").reshape(3, 5))
    return features


def put_engine() -> Path:
    entry = compiled.entry({"engine": "openvino", "name": "net", "precision": "float32"}, ("numpy",))

    def write(folder: Path) -> dict[str, object]:
        (folder / "net.bin").write_bytes(b"0123456789")
        return {"agreement": 1.0}

    entry.make(write)
    return entry.folder


def put_pixels(root: Path, tmp_path: Path) -> Path:
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(image)
    pixels.pixels([image], ["00"], InputSpec(size=(4, 4)), root / "pixels")
    (found,) = (root / "pixels").iterdir()
    return found


def put_source() -> Path:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/photos/a.png", b"a picture")
    return remote._of_cloud("memory://photos").parent


def put_run(root: Path) -> Path:
    folder = root / "runs" / ("ab" * 12)
    folder.mkdir(parents=True)
    loop.save_checkpoint(folder, {"step": 1}, {"kernel": np.ones(100, "f4")})
    return folder


def put_speed(root: Path) -> Path:
    path = root / "speed" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seconds": 0.001, "name": "resnet50", "what": "forward", "device": "gpu:0"}))
    return path


def put_latency(root: Path) -> Path:
    path = root / "latency" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seconds": 0.5, "architecture": "resnet18", "engine": "keras"}))
    return path


def put_digests(root: Path, tmp_path: Path) -> Path:
    file = tmp_path / "some file"
    file.write_bytes(b"content")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(digests, "_UNCERTAIN_NS", -1)  # it was written just now, and is remembered all the same
        digest_files([file], root)
    (folder,) = (root / "digests").iterdir()
    return folder


def put_module(tmp_path: Path) -> Path:
    folder = tmp_path / "tfhub" / ("cd" * 20)
    folder.mkdir(parents=True)
    tf_sources.write_checkpoint(folder / "variables" / "variables", {"a": np.ones(1000, "f4")})
    (folder / "saved_model.pb").write_bytes(b"\x12\x09\x0a\x07\x22\x05serve")  # a graph of one tag
    folder.with_name(f"{folder.name}.descriptor.txt").write_text("Module: https://tfhub.dev/a/b/1\nDownload Time: now")
    return folder


def put_keras(tmp_path: Path) -> Path:
    info = registry.get("resnet50")
    path = fetch.keras_cache() / info.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not what is published")
    return path


def put_all(root: Path, tmp_path: Path) -> dict[str, Path]:
    paths = {
        "weights": put_weights(),
        "features": put_features(root).folder,
        "engines": put_engine(),
        "pixels": put_pixels(root, tmp_path),
        "sources": put_source(),
        "runs": put_run(root),
        "latency": put_latency(root),
        "speed": put_speed(root),
        "digests": put_digests(root, tmp_path),
        "hub": put_module(tmp_path),
        "keras": put_keras(tmp_path),
    }
    ended()
    return paths


def age(path: Path, days: float) -> None:
    then = time.time() - 86400 * days
    for one in (path, *path.rglob("*")):
        os.utime(one, (then, then), follow_symlinks=False)


def names(found) -> list[str]:
    return sorted(item.kind for item in found)


def test_every_kind_is_found_with_its_size_its_source_and_its_last_use(root, tmp_path):
    paths = put_all(root, tmp_path)
    assert set(paths) == set(cache_kinds.KINDS)
    found = {item.kind: item for item in cache_kinds.find()}
    assert {kind: item.path for kind, item in found.items()} == paths
    assert found["weights"].source.startswith("http://127.0.0.1:")
    assert found["weights"].what == "net.safetensors"
    assert found["hub"].source == "https://tfhub.dev/a/b/1"
    assert found["keras"].source == registry.get("resnet50").url
    assert (found["features"].what, found["engines"].what) == ("net plain float32", "net openvino float32")
    assert found["engines"].bytes == sum(path.stat().st_size for path in paths["engines"].iterdir())
    assert found["runs"].bytes >= 400
    age(paths["engines"], 10)
    put_weights("other.safetensors")
    assert cache_kinds.find()[0].path == paths["engines"]
    assert time.time() - found["pixels"].used < 60
    assert [item.kind for item in cache_kinds.find(kinds=["runs"])] == ["runs"]
    with pytest.raises(ArgumentError, match=r"kind must be one of.*Did you mean 'features'"):
        cache_kinds.find(kinds=["feature"])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_damage_is_named_in_every_kind(root, tmp_path):
    paths = put_all(root, tmp_path)
    sound = {item.kind: cache_kinds.faults(item) for item in cache_kinds.find()}
    assert sound == {kind: [] for kind in sound} | {"keras": sound["keras"]}
    assert "another md5" in sound["keras"][0]
    damage(paths["weights"] / "net.safetensors")
    damage(paths["features"] / "rows.f32")
    damage(paths["engines"] / "net.bin")
    (paths["pixels"] / "rows.bin").write_bytes(bytes(1000))
    (paths["sources"] / "content" / "a.png").write_bytes(b"a pict")
    damage(paths["runs"] / "checkpoint.npz")
    paths["latency"].write_text("{")
    paths["speed"].write_text('{"seconds": 0}')
    damage(paths["digests"] / "rows.u8")
    damage(paths["hub"] / "variables" / "variables.data-00000-of-00001")
    told = {item.kind: "; ".join(cache_kinds.faults(item)) for item in cache_kinds.find()}
    for kind, text in (
        ("weights", "another sha256"),
        ("features", "1 of 3 rows"),
        ("engines", "net.bin has other content"),
        ("pixels", "1000 bytes"),
        ("sources", "a.png has 6 bytes in place of 9"),
        ("runs", "checkpoint.npz is damaged"),
        ("latency", "state seconds"),
        ("speed", "state seconds"),
        ("digests", "1 of 1 rows"),
        ("hub", "checksum"),
    ):
        assert text in told[kind], (kind, told[kind])
    gone = cache_kinds.prune(damaged=True)
    assert names(gone.deleted) == sorted(OWN)


def test_missing_parts_are_damage(root, tmp_path):
    paths = put_all(root, tmp_path)
    (paths["weights"] / "net.safetensors").unlink()
    (paths["features"] / "rows.f32").unlink()
    (paths["engines"] / "net.bin").unlink()
    (paths["hub"] / "saved_model.pb").unlink()
    (paths["pixels"] / "about.json").unlink()
    wrong = {item.kind for item in cache_kinds.find() if cache_kinds.faults(item)}
    assert wrong == {"weights", "features", "engines", "hub", "pixels", "keras"}


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_half_empty_module_is_damage_and_goes(root, tmp_path, inner):
    """Modules that TensorFlow saved, in the cache as :mod:`resfit.weights.tfhub` fills it from an archive."""
    whole = saved_models.vocabulary(tmp_path / "saved", tmp_path)
    (data,) = (path.relative_to(whole) for path in whole.glob("variables/*.data-*"))
    (words,) = (path.relative_to(whole) for path in whole.glob("assets/*"))
    losses = {
        "variables": lambda place: shutil.rmtree(place / "variables"),
        "variables.index": lambda place: (place / "variables" / "variables.index").unlink(),
        data.name: lambda place: os.truncate(place / data, (place / data).stat().st_size - 1),
        words.name: lambda place: (place / words).unlink(),
        "saved_model.pb": lambda place: (place / "saved_model.pb").write_bytes(b""),
    }
    with servers.running() as site:
        for name in ("sound", *losses):
            with io.BytesIO() as buffer:
                with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
                    archive.add(whole, arcname=inner or ".")
                site.files[f"/{name}"] = buffer.getvalue()
            place = tfhub.fetch(f"{site.url}/{name}")
            assert place.name == (inner or place.name)
            losses.get(name, lambda place: None)(place)
    ended()
    found = {item.source.rpartition("/")[2]: item for item in cache_kinds.find(kinds=["hub"])}
    assert found.keys() == {"sound", *losses}
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    assert (found["sound"].what, found["sound"].bytes) == ("SavedModel", size)
    told = {name: "; ".join(cache_kinds.faults(item)) for name, item in found.items()}
    assert told.pop("sound") == ""
    assert {name: name in text and "cut short" in text for name, text in told.items()} == dict.fromkeys(losses, True)
    gone = cache_kinds.prune(kinds=["hub"], damaged=True)
    assert {item.path for item in gone.deleted} == {item.path for name, item in found.items() if name in losses}
    left = sorted(path.name for path in (tmp_path / "tfhub").iterdir())
    assert left == [found["sound"].path.name, f"{found['sound'].path.name}.descriptor.txt"]


def test_modules_on_their_way(root, tmp_path):
    """What a killed download leaves, ours and that of ``tensorflow_hub``; and what is still being downloaded."""
    with servers.running() as site:
        site.files["/module"] = bytes(10_000)
        site.script["/module"] = [servers.Reply(cut=4000), servers.Reply(status=404)]
        with pytest.raises(OSError, match="404"):
            tfhub.fetch(f"{site.url}/module")
    folder, name = tmp_path / "tfhub", "ab" * 20
    (folder / f"{name}.{'0' * 32}.tmp" / "variables").mkdir(parents=True)
    (folder / f"{name}.lock").write_text(f"host.1.{'0' * 32}")
    (folder / "notes.txt").write_text("of somebody else")
    module = put_module(tmp_path)
    (folder / f"{module.name}.lock").write_text(f"host.1.{'1' * 32}")
    assert sorted(item.state for item in cache_kinds.find()) == ["", "leftover", "partial"]
    (loading,) = (item for item in cache_kinds.find() if item.state == "partial")
    with download.locked(folder / loading.path.name.split(".")[1]):  # as long as the download goes on
        assert (loading, "in use") in cache_kinds.prune(kinds=["hub"], dry_run=True).kept
    result = cache_kinds.prune(kinds=["hub"])
    assert [item.state for item in result.deleted] == ["partial"]
    assert result.deleted[0].bytes == 4000
    assert sorted(reason for _, reason in result.kept) == ["in use", "it may still be written"]
    for path in folder.iterdir():
        age(path, 2)
    assert sorted(item.state for item in cache_kinds.prune(kinds=["hub"]).deleted) == ["", "leftover"]
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.lock", "notes.txt"]


def test_a_cache_of_modules_that_is_not_here(root, monkeypatch):
    for elsewhere in ("gs://bucket/modules", "/no/such/folder"):
        monkeypatch.setenv("TFHUB_CACHE_DIR", elsewhere)
        assert cache_kinds.find(kinds=["hub"]) == []


def test_all_is_what_no_other_library_uses(root, tmp_path):
    paths = put_all(root, tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    planned = cache_kinds.prune(dry_run=True)
    assert names(planned.deleted) == sorted(OWN)
    assert all(path.exists() for path in before)
    done = cache_kinds.prune()
    assert [item.path for item in done.deleted] == [item.path for item in planned.deleted]
    assert names(cache_kinds.find()) == ["hub", "keras"]
    assert not [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert names(cache_kinds.prune(kinds=["hub", "keras"]).deleted) == ["hub", "keras"]
    assert not list((tmp_path / "tfhub").iterdir())
    assert not paths["keras"].exists()


def test_age_and_size_take_what_was_used_longest_ago(root):
    stores = [put_features(root, name) for name in ("old", "mid", "new")]
    folders = [one.folder for one in stores]
    for folder, days in zip(folders, (30, 20, 1), strict=True):
        age(folder, days)
    del stores
    assert [item.path for item in cache_kinds.prune(older_than=25, dry_run=True).deleted] == folders[:1]
    each = cache_kinds.find()[0].bytes
    assert [item.path for item in cache_kinds.prune(max_bytes=2 * each, dry_run=True).deleted] == folders[:1]
    assert [item.path for item in cache_kinds.prune(max_bytes=each, dry_run=True).deleted] == folders[:2]
    assert [item.path for item in cache_kinds.prune(max_bytes=0, older_than=10).deleted] == folders[:2]
    assert [item.path for item in cache_kinds.find()] == folders[2:]
    put_features(root, "new")  # opening it is using it
    assert cache_kinds.prune(older_than=0.5).deleted == ()


USERS = {
    "weights": "resolve.resolve(sys.argv[2])",
    "features": "kept = FeatureStore(root / 'features', StoreKey(sys.argv[2], {}), 5)",
    "engines": "kept = type('Engine', (), {})(); compiled.CompiledEntry(Path(sys.argv[2]), {}).used(kept)",
}


@pytest.mark.parametrize("kind", USERS)
def test_what_another_process_uses_stays(root, tmp_path, kind):
    paths = put_all(root, tmp_path)
    told = {
        "weights": json.loads((paths["weights"] / resolve.ORIGIN).read_text())["source"],
        "features": hashlib.sha256(b"net").hexdigest(),
        "engines": str(paths["engines"]),
    }[kind]
    program = f"""
    import sys
    from pathlib import Path
    from resfit.weights import resolve
    from resfit.engines import compiled
    from resfit.features.store import FeatureStore, StoreKey
    root = Path(sys.argv[1])
    {USERS[kind]}
    print("using", flush=True)
    sys.stdin.read()
    """
    user = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(root), told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user.stdout.readline() == "using\n"
    result = cache_kinds.prune()
    assert [(item.kind, reason) for item, reason in result.kept] == [(kind, "in use")]
    assert names(result.deleted) == sorted(set(OWN) - {kind})
    assert paths[kind].is_dir()
    user.communicate("")
    assert names(cache_kinds.prune().deleted) == [kind]


def test_links_are_neither_followed_nor_deleted(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    precious = put_features(elsewhere).folder
    (root / "weights").mkdir(parents=True)
    (root / "features").mkdir()
    (root / "features" / precious.name).symlink_to(precious)
    (root / "engines").symlink_to(elsewhere)
    inside = put_weights()
    (inside / "content").symlink_to(elsewhere)
    ended()
    (root / "not of resfit").mkdir()
    (root / "weights" / "somebody's folder").mkdir()
    result = cache_kinds.prune()
    assert names(result.deleted) == ["weights"]
    assert {item.kind: reason for item, reason in result.kept} == dict.fromkeys(
        ("features", "engines"), "a link, which is not followed"
    )
    assert (precious / "rows.f32").stat().st_size == 60
    assert (root / "features" / precious.name).is_symlink()
    assert (root / "not of resfit").is_dir()
    assert (root / "weights" / "somebody's folder").is_dir()


def test_noted_names_lead_nowhere_else(root, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    folder = put_weights()
    origin = json.loads((folder / resolve.ORIGIN).read_text())
    digest = hashlib.sha256(b"s").hexdigest()
    origin["files"] = {"../../../secret": {"size": 1, "sha256": digest}, str(secret): {"size": 1, "sha256": digest}}
    (folder / resolve.ORIGIN).write_text(json.dumps(origin))
    (item,) = cache_kinds.find()
    assert len(cache_kinds.faults(item)) == 2


def test_a_kill_in_the_middle_leaves_nothing_half(root, tmp_path):
    folder = put_features(root).folder
    program = """
    import os, shutil, signal, sys
    from resfit import cache_kinds
    whole = shutil.rmtree
    def killed(path):
        os.unlink(path / "rows.f32")
        os.kill(os.getpid(), signal.SIGKILL)
    shutil.rmtree = killed
    cache_kinds.prune()
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not folder.exists()
    (item,) = cache_kinds.find()
    assert (item.state, item.kind) == ("leftover", "features")
    assert cache_kinds.faults(item) == []
    put_features(root)  # made again meanwhile
    assert [one.state for one in cache_kinds.prune(older_than=1).deleted] == ["leftover"]
    assert [one.state for one in cache_kinds.find()] == [""]
    assert not item.path.exists()


def test_what_may_still_be_written_stays_for_a_day(root):
    work = put_engine().with_name(".0123.abc")
    shutil.copytree(put_engine(), work)
    result = cache_kinds.prune(older_than=5)
    assert [(item.path, reason) for item, reason in result.kept] == [(work, "it may still be written")]
    age(work, 2)
    assert [item.path for item in cache_kinds.prune(older_than=5).deleted] == [work]


def test_a_download_that_was_cut_off_is_partial_and_no_damage(root):
    with servers.running() as site:
        site.files["/net.safetensors"] = bytes(10_000)
        site.script["/net.safetensors"] = [servers.Reply(cut=4000), servers.Reply(status=404)]
        with pytest.raises(OSError, match="404"):
            resolve.resolve(f"{site.url}/net.safetensors")
    ended()
    (item,) = cache_kinds.find()
    assert item.state == "partial"
    assert 4000 <= item.bytes < 5000
    assert cache_kinds.faults(item) == []
    assert [one.path for one in cache_kinds.prune().deleted] == [item.path]


def test_who_waits_for_a_lock_gets_the_new_one(tmp_path):
    """Whoever wants to use what is just being deleted holds a lock on what is there afterwards, not on what was."""
    lock = tmp_path / "entry" / locks.USERS
    with locks.unused(lock) as free:  # nothing is there yet
        assert free
    locks.hold(lock).close()
    waiting = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, pathlib; from resfit.storage import locks; path = pathlib.Path(sys.argv[1]); "
            "print('ready', flush=1); held = locks.hold(path); print(path.exists(), flush=True); sys.stdin.read()",
            str(lock),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with locks.unused(lock) as free:
        assert free
        assert waiting.stdout.readline() == "ready\n"
        time.sleep(0.2)
        shutil.rmtree(lock.parent)
    assert waiting.stdout.readline() == "True\n"
    with locks.unused(lock) as free:
        assert not free
    waiting.communicate("")
    with locks.unused(lock) as free:
        assert free


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_rows_of_every_format_are_verified(tmp_path, dtype):
    kept = FeatureStore(tmp_path / "features", StoreKey.of({"of": dtype}), 8, dtype)
    kept.append([bytes([number]) * 32 for number in range(5)], np.arange(40).reshape(5, 8))
    (item,) = cache_kinds.find(cache=tmp_path, kinds=["features"])
    assert cache_kinds.faults(item) == []
    (rows,) = kept.folder.glob("rows.*")
    rows.write_bytes(rows.read_bytes()[:-1] + b"\xff")
    assert cache_kinds.faults(item) == ["1 of 5 rows have another checksum"]
