"""What hostile pickles try: every one is refused or read as data, in bounded memory, and nothing of it is ever run."""

from __future__ import annotations

import collections
import pickle
import tracemalloc

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights.formats import restricted_pickle

P2 = b"\x80\x02"
NUMBER = b"J\x01\x00\x00\x00"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def named(name: str) -> bytes:
    module, _, own = name.rpartition(".")
    return f"c{module}\n{own}\n".encode()


def doubled(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references, and so on: 2 ** levels parts in 3 * levels bytes."""
    return b"N" + b"".join(b"2\x86" for _ in range(levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"r\xff\xff\xff\x7f.", "place 2147483647 of the memo"),  # a memo of 34 GB
        (b"\x8e" + (1 << 60).to_bytes(8, "little") + b".", "expected 1152921504606846976 bytes"),
        (b"T\xff\xff\xff\x7fab.", "expected 2147483647 bytes"),
        (b"\x82\x01.", "EXT1"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"\x8b\xff\x00\x00\x00" + b"\x7f" * 255 + b".", "more than 128 bits"),
        (b"I" + b"9" * 5000 + b"\n.", "4300 digits"),
        (b"}N" + b"\x85" * 100_000 + b"Ns.", "a tuple of many parts as a key"),  # hashing it would end the process
        (b"}" + doubled(80) + b"Ns.", "a tuple of many parts as a key"),  # hashing it would never end
        (b"}(" + doubled(80) + b"Nu.", "a tuple of many parts as a key"),
        (b"(" + doubled(80) + b"\x91.", "a tuple of many parts as a key"),  # frozenset
        (b"(.", "a mark where a value belongs|could not find MARK|IndexError|exhausted"),
        (b"R.", "IndexError"),
        (b"h\x05.", "KeyError"),
        (text("x") + b"Q.", "a reference to something outside"),
        (named("builtins.bytearray") + NUMBER + b"\x85R.", "bytes of an unknown encoding"),  # bytearray(10**12)
        (named("_codecs.encode") + text("a") + text("rot13") + b"\x86R.", "bytes of an unknown encoding"),
        (named("collections.OrderedDict") + b"N}" + text("name") + NUMBER + b"s\x86b.", "TypeError"),
        (named("numpy.dtype") + text("f4") + b"\x85R)b.", None),
        (b"}q\x00h\x00h\x00s.", "unhashable"),
        (named("a." + "b" * 400) + b".", "a name of more than 300 characters"),
        (named("torch._tensor._rebuild_from_type_v2") + b"(hhh\x00tR.", "KeyError"),
    ],
)
def test_steps_that_ask_for_more_than_the_file_is(content, message):
    if message is None:
        restricted_pickle.load(P2 + content)
        return
    with pytest.raises(CheckpointError, match=message):
        restricted_pickle.load(P2 + content)


def test_steps_are_counted(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "_MOST_STEPS", 1000)
    restricted_pickle.load(P2 + b"N" * 998 + b".")
    with pytest.raises(CheckpointError, match="more than 1000 steps"):
        restricted_pickle.load(P2 + b"N" * 999 + b".")


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.__import__", "builtins.getattr"),
        *("builtins.open", "__builtin__.apply", "subprocess.Popen", "runpy._run_code", "importlib.import_module"),
        *("pickle.loads", "operator.attrgetter", "pathlib.Path.touch", "shutil.rmtree", "code.interact", "pty.spawn"),
        *("codecs.encode", "functools.reduce", "types.FunctionType", "types.CodeType", "ctypes.CDLL"),
        "copyreg.add_extension",
    ],
)  # fmt: skip
@pytest.mark.parametrize("called", [True, False])
def test_names_of_python_that_are_no_data_refuse_the_file(name, called):
    content = P2 + named(name) + (text("x") + b"\x85R" if called else b"") + b"."
    with pytest.raises(CheckpointError, match=r"no code is run\. Received: a pickle that asks for"):
        restricted_pickle.load(content)


def test_other_names_make_placeholders_and_are_never_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    state = b"}" + text("__class__") + named("trap.Other") + b"s"
    made, _ = restricted_pickle.load(P2 + named("trap.Thing") + text("rm -rf") + b"\x85R" + state + b"b.")
    assert isinstance(made, restricted_pickle.Placeholder)
    assert (made.name, made.arguments) == ("trap.Thing", ("rm -rf",))
    assert not hasattr(made, "__dict__")


def test_what_a_pickle_does_to_a_class_ends_with_it():
    """A state with slots for a class would set its attributes; every pickle has classes of its own."""
    mapping = pickle.dumps(collections.OrderedDict(a=np.ones(2)), protocol=2)
    before = vars(restricted_pickle.Placeholder).copy()
    for target in ("collections.OrderedDict", "numpy.dtype", "some.Thing"):
        hostile = P2 + named(target) + b"N}" + text("__new__") + named("some.Thing") + b"s\x86b."
        with pytest.raises(CheckpointError):
            restricted_pickle.load(hostile)
    assert vars(restricted_pickle.Placeholder) == before
    found, _ = restricted_pickle.arrays(restricted_pickle.load(mapping)[0], ".")
    assert found["a"].numbers().tolist() == [1, 1]


def peak(action) -> int:
    tracemalloc.start()
    try:
        action()
    except CheckpointError:
        pass
    finally:
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return reached


@pytest.mark.parametrize(
    "content",
    [
        # a mapping of 10,000 entries, copied 10,000 times
        b"}q\x00(" + b"".join(b"J" + n.to_bytes(4, "little") + b"N" for n in range(10_000)) + b"u0"
        + named("collections.OrderedDict") + b"q\x010]" + b"(" + b"h\x01h\x00\x85R" * 10_000 + b"e.",
        # an array of a terabyte, of which nothing is there
        named("numpy.core.multiarray._reconstruct") + b")R(K\x01\x8a\x05\x00\x00\x00\x00\x7f\x85" + named("numpy.dtype")
        + text("f4") + b"\x85RNC\x00tb.",
        # classes without end
        named("dill._dill._create_namedtuple") + b"q\x00" + b"(" + (b"h\x00" + text("a") + b"]\x86R") * 20_000 + b"t.",
        # deep nesting, which is taken apart again at the end
        b"](" * 50_000 + b"e" * 50_000 + b".",
        b"N" + b"\x85" * 200_000 + b".",
        # one text for many arrays
        text("x" * 100_000) + b"q\x00" + named("_codecs.encode") + b"q\x01("
        + (b"h\x01h\x00" + text("latin1") + b"\x86R") * 500 + b"t.",
    ],
)  # fmt: skip
def test_memory_is_bounded_by_the_file(content):
    assert peak(lambda: restricted_pickle.load(P2 + content)) < 500 * len(content) + 5_000_000


def test_containers_that_multiply_are_refused():
    level: list = [np.ones(1)]
    for _ in range(10):
        level = [level] * 10
    with pytest.raises(CheckpointError, match="nested at most 16 deep and hold at most 500000"):
        restricted_pickle.arrays(restricted_pickle.load(pickle.dumps(level))[0], ".")
