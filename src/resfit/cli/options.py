"""Arguments and options that several commands take, in one wording."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def _choose_device(device: str) -> str:
    """Sets the device of this process, before TensorFlow is used."""
    from resfit import devices

    devices.choose(device)
    return device


Artifact = Annotated[Path, typer.Argument(help="A folder that `resfit fit` wrote.", metavar="OUT")]
Images = Annotated[
    list[Path], typer.Argument(help="Images, folders and patterns; - reads an image, or a list of paths.")
]
Labelled = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, also with train/ val/ test/ inside; a table of path,label[,split,group]; or "
        "files that hold images: tar, zip, Parquet, Arrow, TFRecord; also s3://, gs://, az://, hf://datasets/, tfds://."
    ),
]

#: The same, where features may be given in its place.
LabelledOrFeatures = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of class folders, also with train/ val/ test/ inside; a table of path,label[,split,group]; or "
        "files that hold images: tar, zip, Parquet, Arrow, TFRecord; also s3://, gs://, az://, hf://datasets/, tfds://"
        ". Not with --features."
    ),
]

Engine = Annotated[str, typer.Option("--engine", help="auto, keras, openvino, onnxruntime or litert.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, gpu, gpu:1 or gpu:all. auto is a GPU where TensorFlow can use one.",
        callback=_choose_device,
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images in one pass. Default: by their size.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep features on disk.")]
Task = Annotated[
    str,
    typer.Option(
        "--task", help="auto, classification, regression or detection. auto sees it from the data and says which."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

PathColumn = Annotated[
    str | None, typer.Option(help="Column of a table with the paths. Default: found by what the columns hold.")
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column with the class or labels. Default: found; columns of 0 and 1 are a label each."),
]
SplitColumn = Annotated[str | None, typer.Option(help="Column of a table with train, val or test. Default: found.")]
GroupColumn = Annotated[
    str | None,
    typer.Option(help="Column of a table with what must stay together. Default: group, patient or patient_id."),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder where the paths of a table start. Default: the table's own folder.")
]
LabelSeparator = Annotated[
    str | None, typer.Option(help="What stands between the labels of an image that may have several, such as ';'.")
]
Multilabel = Annotated[
    bool | None,
    typer.Option(
        "--multilabel/--single-label",
        help="Whether an image may have several labels, in one row each or in columns of 0 and 1.",
    ),
]
LabelFrom = Annotated[
    str | None,
    typer.Option(
        help="Take the label from the file names, by a pattern of {label}, {split}, {group}, {number}, * and ?, such "
        "as '{label}_{number}.*'. With / it takes in folders.",
        metavar="PATTERN",
    ),
]
TrainPart = Annotated[Path | None, typer.Option("--train", help="Folder or table of the training images.")]
ValPart = Annotated[Path | None, typer.Option("--val", help="Folder or table of the validation images.")]
TestPart = Annotated[Path | None, typer.Option("--test", help="Folder or table of the test images.")]

#: Options that say what labelled images are, by the names of the arguments.
SOURCE = (
    *("path_column", "label_column", "split_column", "group_column", "image_root", "label_separator", "multilabel"),
    *("label_from", "train", "val", "test"),
)


def of_source(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a command that say what its labelled images are, as far as they were given.

    Args:
        arguments: Of the command, by name; ``locals()`` in its first line.
    """
    return {name: arguments[name] for name in SOURCE if arguments.get(name) is not None}
