"""A set of pictures with a broken one, and what is read of the shards of a run."""

import numpy as np
import pyarrow.parquet as pq

from resfit.scale import planning
from tests.pictures import write_folder


def photos(folder, each=6):
    """Writes three classes of pictures and one that is cut off; returns the folder."""
    write_folder(folder, each)
    broken = folder / "red" / "broken.png"
    broken.write_bytes((folder / "red" / "000.png").read_bytes()[:60])
    return folder


def rows_of(run):
    """Returns the rows of all shards that are there, in order, as pandas reads them."""
    import pandas as pd

    plan = planning.load(run)
    frames = []
    for number in np.flatnonzero(plan.done()):
        with plan.folder.open(f"shards/{plan.output(int(number))}") as file:
            frames.append(pq.read_table(file).to_pandas())
    return pd.concat(frames, ignore_index=True)


def contents(run):
    """Returns the bytes of the files of all shards, by name."""
    plan = planning.load(run)
    return {name: plan.folder.read(f"shards/{name}") for name in plan.folder.names("shards")}


def features(rows):
    """Returns the features of the rows that have any, as an array."""
    return np.stack(rows[rows.error.isna()].features)


#: Put before the program of a worker: a decoder that ends the process on pictures of one height.
CRASHING = """
import os, signal
from resfit.data import decode
real = decode.decode_image
def crashing(source, *rest, **more):
    if isinstance(source, bytes) and b"crash me" in source:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, *rest, **more)
decode.decode_image = crashing
"""
