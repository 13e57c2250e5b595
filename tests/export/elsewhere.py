"""An export as it is used elsewhere: its checksums, and the code of its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def contract_of(folder: Path) -> dict[str, Any]:
    """Returns what ``contract.json`` says, once every file of an export has the checksum that is listed for it."""
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert {name: digest for name, digest in found.items() if name != "SHA256SUMS"} == listed
    return json.loads((folder / "contract.json").read_text("utf-8"))


def code_of_card(folder: Path) -> str:
    """Returns the code of an export's ``README.md``."""
    text = (folder / "README.md").read_text("utf-8")
    return text.partition("```python\n")[2].partition("```")[0]
