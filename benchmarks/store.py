"""The feature store against shards of Arrow IPC, both sides in turn in one run; prints one ratio a figure.

    python benchmarks/store.py
    python benchmarks/store.py --rows 200000 --width 512 --commit 64

Rows are float32 under the SHA-256 of an image. A commit is what must survive a kill: some rows, on disk when the call
returns. The other side is the usual store of Arrow: each commit is one immutable file (digest, checksum and row),
written beside its place, synced and renamed; its index is rebuilt from the files, whose columns are memory-mapped.
--compact merges its files to some of 65,536 rows before it is opened, which a store of Arrow has to do at some time.

A ratio above 1 says that the feature store is faster, or smaller.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from resfit.features.store import FeatureStore, StoreKey

KEY = StoreKey.of({"name": "benchmark"})


class ArrowStore:
    """Rows in immutable shards of Arrow IPC, found by the digest of an image."""

    def __init__(self, folder: Path, width: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.width = folder, width
        self.schema = pa.schema(
            [("digest", pa.binary(32)), ("crc", pa.uint32()), ("row", pa.list_(pa.float32(), width))]
        )
        self.digests: list[np.ndarray] = []
        self.rows_of: list[np.ndarray] = []
        for path in sorted(folder.glob("*.arrow")):
            self._take(path)
        self._index()

    def _take(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
            self.digests.append(np.frombuffer(batch["digest"].buffers()[1], "V32", len(batch)))
            self.rows_of.append(batch["row"].flatten().to_numpy(zero_copy_only=True).reshape(-1, self.width))

    def _index(self) -> None:
        self.starts = np.cumsum([0, *(len(part) for part in self.digests)])
        digests = np.concatenate(self.digests) if self.digests else np.zeros(0, "V32")
        heads = np.ascontiguousarray(digests).view("<u8").reshape(-1, 4)[:, 0]
        self.order = np.argsort(heads, kind="stable")
        self.heads = heads[self.order]

    def append(self, digests: list[bytes], rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, np.float32)
        columns = [
            pa.array(digests, pa.binary(32)),
            pa.array([zlib.crc32(row) for row in rows], pa.uint32()),
            pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), self.width),
        ]
        path = self.folder / f"{len(self.digests):08}-{digests[0].hex()[:16]}.arrow"
        temporary = path.with_suffix(".part")
        with open(temporary, "wb") as file:
            with pa.ipc.new_file(file, self.schema) as writer:
                writer.write_batch(pa.record_batch(columns, schema=self.schema))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        self._take(path)

    def rows(self, digests: list[bytes]) -> np.ndarray:
        wanted = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 4)[:, 0]
        positions = self.order[np.searchsorted(self.heads, wanted)]
        shards = np.searchsorted(self.starts, positions, side="right") - 1
        found = np.empty((len(digests), self.width), np.float32)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            found[places] = self.rows_of[shard][positions[places] - self.starts[shard]]
        return found

    def compact(self, rows: int = 65_536) -> None:
        """Merges the shards to larger ones."""
        digests, values = np.concatenate(self.digests), np.concatenate(self.rows_of)
        old = sorted(self.folder.glob("*.arrow"))
        self.digests, self.rows_of = [], []
        for start in range(0, len(digests), rows):
            self.append([d.tobytes() for d in digests[start : start + rows]], values[start : start + rows])
        for path in set(old) - {*sorted(self.folder.glob("*.arrow"))[: len(self.digests)]}:
            path.unlink()


def opened(kind: str, folder: Path, width: int) -> FeatureStore | ArrowStore:
    return FeatureStore(folder, KEY, width) if kind == "resfit" else ArrowStore(folder, width)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory(kind: str, folder: Path, width: int) -> float:
    """Returns the memory of its own, in MB, that a process takes for an open store."""
    program = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from benchmarks.store import opened
def own():
    return sum(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(("RssAnon", "RssShmem")))
before = own(); store = opened({kind!r}, Path({str(folder)!r}), {width}); print((own() - before) / 1024)
"""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--commit", type=int, default=64, help="rows of one commit")
    parser.add_argument("--rounds", type=int, default=3, help="for opening and reading")
    parser.add_argument("--compact", action="store_true", help="merge Arrow's files before they are opened")
    parser.add_argument("--folder", type=Path, help="where the stores are written; default: the temporary folder")
    given = parser.parse_args()
    random = np.random.default_rng(0)
    digests = [random.bytes(32) for _ in range(given.rows)]
    rows = random.standard_normal((given.rows, given.width), np.float32)
    sides = ("resfit", "arrow")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        places = {kind: Path(folder, kind) for kind in sides}
        stores = {kind: opened(kind, places[kind], given.width) for kind in sides}
        seconds = dict.fromkeys(sides, 0.0)
        for number, start in enumerate(range(0, given.rows, given.commit)):
            part = slice(start, start + given.commit)
            for kind in sides if number % 2 else sides[::-1]:
                seconds[kind] += timed(lambda kind=kind, part=part: stores[kind].append(digests[part], rows[part]))
        ratio = seconds["arrow"] / seconds["resfit"]
        print(f"write, commits of {given.commit}: {_rates(given.rows, seconds)}  {ratio:.2f}")
        if given.compact:
            print(f"compacting Arrow's files: {timed(stores['arrow'].compact):.2f} s")
        stores.clear()
        opening: dict[str, list[float]] = {kind: [] for kind in sides}
        reading: dict[str, list[float]] = {kind: [] for kind in sides}
        order = random.permutation(given.rows)
        wanted = [digests[place] for place in order]
        for number in range(2 * given.rounds):
            for kind in sides if number % 2 else sides[::-1]:
                opening[kind].append(
                    timed(lambda kind=kind: stores.update({kind: opened(kind, places[kind], given.width)}))
                )
                found = []
                reading[kind].append(
                    timed(lambda kind=kind, found=found: found.append(np.array(stores[kind].rows(wanted))))
                )
                assert np.array_equal(found[0], rows[order])
        for what, values in (("open", opening), ("read all in another order", reading)):
            own, other = (statistics.median(values[kind]) for kind in sides)
            print(f"{what}: resfit {own:.3f} s, Arrow {other:.3f} s  {other / own:.2f}")
        sizes = {kind: size_of(places[kind]) / 1e6 for kind in sides}
        ratio = sizes["arrow"] / sizes["resfit"]
        print(f"disk: resfit {sizes['resfit']:.1f} MB, Arrow {sizes['arrow']:.1f} MB  {ratio:.2f}")
        grown = {kind: memory(kind, places[kind], given.width) for kind in sides}
        print(f"memory when open: resfit {grown['resfit']:.1f} MB, Arrow {grown['arrow']:.1f} MB")


def _rates(count: int, seconds: dict[str, float]) -> str:
    return ", ".join(f"{kind} {count / value:,.0f} rows/s" for kind, value in seconds.items())


if __name__ == "__main__":
    main()
