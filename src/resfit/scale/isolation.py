"""Finds images that crash a decoder: halves of a shard are decoded in child processes until one image is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from resfit.data import decode
from resfit.errors import ImageError
from resfit.preprocessing import InputSpec
from resfit.scale.listing import ChangedError, Item, Reader

#: What the row of such an image says.
CRASHED = "crashed the decoder"


def crashing(items: Sequence[Item | None], contract: InputSpec) -> list[int]:
    """Returns the positions of images that crash the process when they are decoded.

    Args:
        items: Images; those that are ``None`` are left out.
        contract: How they are decoded.
    """
    places = [place for place, item in enumerate(items) if item is not None]

    def culprits(some: list[int]) -> list[int]:
        if not some or _survives([item for place in some if (item := items[place]) is not None], contract):
            return []
        if len(some) == 1:
            return some
        return culprits(some[: len(some) // 2]) + culprits(some[len(some) // 2 :])

    return culprits(places)


def _survives(items: list[Item], contract: InputSpec) -> bool:
    """Says whether a process of its own comes to the end of these images."""
    work = json.dumps({"items": items, "contract": contract.to_dict()})
    command = [sys.executable, "-c", "from resfit.scale import isolation; isolation.decode_all()"]
    done = subprocess.run(command, input=work.encode(), stdout=subprocess.DEVNULL)
    return done.returncode == 0


def decode_all() -> None:
    """Decodes the images that stand on the standard input; what the child process does."""
    work = json.load(sys.stdin)
    contract, reader = InputSpec.from_dict(work["contract"]), Reader()
    for row in work["items"]:
        try:
            decode.decode_image(reader.read(Item(*row)), contract)
        except (ImageError, ChangedError):
            continue  # is said where the shard is done
