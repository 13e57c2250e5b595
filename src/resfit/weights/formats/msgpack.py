"""Files of Flax (JAX) in ``.msgpack``: recognised, so that the refusal says what they are and what reads them."""

from __future__ import annotations

from pathlib import Path

from resfit.errors import CheckpointError
from resfit.weights.formats.base import Tensors, register_format


@register_format("msgpack", suffixes=(".msgpack",), avoided=True)
def read(path: Path) -> Tensors:
    """Refuses the file, and says what brings its weights to a format that is read.

    Args:
        path: The file.

    Raises:
        CheckpointError: Always.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"weights file must exist. Received: {path}.")
    raise CheckpointError(
        f"{path}: weights of Flax (JAX) in msgpack are not read. Received: such a file. With Flax, "
        "numpy.savez(target, **{'.'.join(key): value for key, value in "
        "flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(data)).items()}) writes its arrays; "
        "transformers before version 5 brings a model of the hub over whole: "
        "from_pretrained(folder, from_flax=True), then save_pretrained, which writes .safetensors."
    )
