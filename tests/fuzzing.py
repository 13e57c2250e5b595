"""Damages real files at random and reads them, in a process of its own that may run, grow and die.

The parent (:func:`survive`) fails on anything but a result or a :class:`ResfitError`: another exception, a crash, a
read of more than ten seconds, growth of more than a gigabyte. Run as a module, this file is the child.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SECONDS = 10
#: Copies in a default test of one reader; the slow tests read 50,000.
FEW = 200
BYTES = 1 << 30

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, 0x7FFFFFFFFFFFFFFF, (1 << 64) - 1]


def survive(
    read: str, files: Sequence[Path], folder: Path, count: int = FEW, seed: int = 0, kilobytes: int | None = None
) -> dict[str, int]:
    """Reads ``count`` damaged copies of real files or folders.

    Args:
        read: What reads them, as ``"module:function"``; called with a path.
        files: The real ones; each must be readable as it is. Small ones are read faster.
        folder: Where the copies are written, one at a time.
        count: Copies in all.
        seed: Says which.
        kilobytes: Damage is done to the first so many of a file alone (headers), half of the time.

    Returns:
        How many were ``"read"`` (the damage did not matter or was not seen) and ``"refused"``.
    """
    state = folder / "fuzzing.json"
    totals = ("read", "refused")
    order = {"read": read, "files": [str(file) for file in files], "seed": seed, "kilobytes": kilobytes}
    command = [sys.executable, "-m", "tests.fuzzing", str(folder), str(count), json.dumps(order)]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = json.loads(state.read_text()) if state.is_file() else {}
    if result.returncode != 0 or found.get("done") != count:
        raise AssertionError(
            f"{read}: copy {found.get('current')} of seed {seed} ({found.get('what')}) ended the process with code "
            f"{result.returncode}:\n{found.get('error', '')}\n{result.stderr[-3000:]}"
        )
    return {key: found[key] for key in totals}


def damage(data: bytes, chance: random.Random, kilobytes: int | None = None) -> bytes:
    """Returns a damaged copy: bits, bytes, numbers, blocks or the end of it changed.

    Args:
        data: The whole file.
        chance: Where the randomness comes from.
        kilobytes: As in :func:`survive`.
    """
    copy = bytearray(data)
    reach = len(copy)
    if kilobytes and chance.random() < 0.5:
        reach = min(reach, kilobytes * 1024)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        if not copy:
            break
        at = chance.randrange(max(min(reach, len(copy)), 1))
        kind = chance.randrange(8)
        if kind == 0:
            copy[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            copy[at] = chance.randrange(256)
        elif kind == 2:
            size = chance.choice((2, 4, 8))
            number = chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            copy[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 3:
            del copy[at:]
        elif kind == 4:
            del copy[at : at + chance.choice((1, 4, 100, 5000))]
        elif kind == 5:
            copy[at:at] = chance.randbytes(chance.choice((1, 4, 100)))
        elif kind == 6:
            length = chance.choice((4, 64, 1024))
            other = chance.randrange(len(copy))
            copy[at : at + length] = copy[other : other + length]
        else:
            length = chance.choice((1, 8, 256))
            copy[at : at + length] = chance.randbytes(length)
    return bytes(copy)


def _child(folder: Path, count: int, order: dict[str, Any]) -> None:
    import resource

    from resfit.errors import ResfitError

    module, _, function = order["read"].partition(":")
    read = getattr(importlib.import_module(module), function)
    sources = [Path(name) for name in order["files"]]
    for source in sources:
        read(source)  # as it is; and whatever is imported is imported now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    totals = {"read": 0, "refused": 0}
    state = folder / "fuzzing.json"

    def told(**more: Any) -> None:
        state.write_text(json.dumps({**totals, "seed": order["seed"], **more}))

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, late)

    def seconds_of(target: Path, what: str, number: int) -> float:
        began = time.monotonic()
        signal.alarm(6 * SECONDS)
        try:
            read(target)
            totals["read"] += 1
        except ResfitError:
            totals["refused"] += 1
        except BaseException:
            told(current=number, what=what, error=traceback.format_exc()[-3000:])
            raise
        finally:
            signal.alarm(0)
        return time.monotonic() - began

    for number in range(count):
        chance = random.Random(f"{order['seed']}-{number}")
        source = sources[number % len(sources)]
        target = folder / f"damaged-{source.name}"
        what = _damaged_copy(source, target, chance, order["kilobytes"])
        told(current=number, what=what, done=number)
        before_it = dict(totals)
        seconds = seconds_of(target, what, number)
        if seconds > SECONDS:  # a busy machine stalls a process; what is slow for its content is slow again
            totals.update(before_it)
            seconds = seconds_of(target, what, number)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if seconds > SECONDS or grown > BYTES:
            told(current=number, what=what, error=f"{seconds:.1f} s, grown by {grown / 1e6:.0f} MB")
            sys.exit(3)
    told(done=count)


def _damaged_copy(source: Path, target: Path, chance: random.Random, kilobytes: int | None) -> str:
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_file():
        target.write_bytes(damage(source.read_bytes(), chance, kilobytes))
        return source.name
    shutil.copytree(source, target)
    files = sorted(file for file in target.rglob("*") if file.is_file())
    victim = chance.choice(files)
    if chance.random() < 0.02:
        victim.unlink()
    else:
        victim.write_bytes(damage(victim.read_bytes(), chance, kilobytes))
    return str(victim.relative_to(target))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
