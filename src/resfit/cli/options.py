"""Arguments and options that several commands take, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(help="A folder that `resfit fit` wrote.", metavar="OUT")]
Images = Annotated[
    list[Path], typer.Argument(help="Images, folders and patterns; - reads an image, or a list of paths.")
]
Labelled = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, also with train/ val/ test/ inside; or a CSV of path,label[,split,group]."
    ),
]

Engine = Annotated[str, typer.Option("--engine", help="auto, keras, openvino, onnxruntime or litert.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images in one pass. Default: by their size.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep features on disk.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

PathColumn = Annotated[str, typer.Option(help="Column of a CSV with the path.")]
LabelColumn = Annotated[str, typer.Option(help="Column of a CSV with the class.")]
SplitColumn = Annotated[str, typer.Option(help="Column of a CSV with train, val or test.")]
