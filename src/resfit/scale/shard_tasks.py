"""What is done with the images of a shard, and what its file holds beside their names: one class a task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit import engines
from resfit.data import decode, image_statistics
from resfit.errors import DataError
from resfit.scale.networks import LoadedNetwork
from resfit.storage.bounded_json import without_nan
from resfit.tasks.regression.regressor import COVERAGE

if TYPE_CHECKING:
    import pyarrow as pa

    from resfit.scale.listing import Item
    from resfit.scale.planning import Plan


class ShardTask(Protocol):
    """What a task does with one shard."""

    #: Whether images reach :meth:`add` as the network's input; otherwise as the bytes of their files.
    decodes: bool

    def seen(self, position: int, data: bytes) -> decode.Look | None:
        """Is told the bytes of an image, in one of the decoders' threads; may ask to be shown the image."""

    def add(self, positions: np.ndarray, images: Any) -> dict[int, str]:
        """Takes images of which each could be read; returns for those that cannot be used the reason."""

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns the columns of the shard's file; a row that is not usable is null."""

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns what is merged over all shards, JSON-ready."""


class EmbedShard:
    """Features, as :func:`resfit.embed` computes them."""

    decodes = True

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        assert engine is not None
        self._engine, self._count = engine, count
        self._dtype = np.dtype(plan.options["dtype"])
        self.rows = np.zeros((count, 0), self._dtype)

    def seen(self, position: int, data: bytes) -> decode.Look | None:
        """Wants to see nothing."""
        return None

    def add(self, positions: np.ndarray, images: Any) -> dict[int, str]:
        """Runs images through the network."""
        rows = np.asarray(self._engine.run(images))
        if not np.isfinite(rows).all():
            raise DataError("the network gives infinite or undefined features on these images")
        if not self.rows.shape[1]:
            self.rows = np.zeros((self._count, rows.shape[1]), self._dtype)
        self.rows[positions] = rows
        return {}

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``features``."""
        return {"features": _lists(self.rows, usable)}

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns the number of features."""
        return {"features": self.rows.shape[1]}


class CheckShard(EmbedShard):
    """Features, SHA-256 and what is measured of each image (:mod:`resfit.data.image_statistics`)."""

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        super().__init__(plan, network, engine, count)
        self._digests = [b""] * count
        self._records = np.zeros(count, image_statistics.RECORD)

    def seen(self, position: int, data: bytes) -> decode.Look | None:
        """Notes the digest, and measures the image when it is decoded."""
        self._digests[position] = hashlib.sha256(data).digest()

        def look(header: decode.ImageHeader, image: Any) -> None:
            self._records[position] = image_statistics.measure(header, image)[0]

        return look

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``features``, ``sha256`` and ``record``."""
        import pyarrow as pa

        digests = [digest if good else None for digest, good in zip(self._digests, usable, strict=True)]
        records = [row.tobytes() if good else None for row, good in zip(self._records, usable, strict=True)]
        return {
            **super().columns(usable),
            "sha256": pa.array(digests, pa.binary(32)),
            "record": pa.array(records, pa.binary(image_statistics.RECORD.itemsize)),
        }


class EvaluateShard(EmbedShard):
    """Probabilities of all classes, and the sums that figures over all images are made of."""

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        super().__init__(plan, network, engine, count)
        self._fitted = network.fitted

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``probabilities``, in the order of the classes."""
        self._probabilities = np.zeros((self._count, len(self._fitted.classes)), np.float32)
        if usable.any():
            self._probabilities[usable] = self._fitted.head().probabilities(self.rows[usable])
        return {"probabilities": _lists(self._probabilities, usable)}

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns, for one class an image, confusions as ``[true, predicted, images]`` and the sum of the log loss."""
        classes = self._fitted.classes
        found: dict[str, Any] = {"classes": list(classes), "separator": self._fitted.recipe.separator}
        if found["separator"]:
            return found
        places = {name: index for index, name in enumerate(classes)}
        truth = np.array([places.get(item.label, -1) for item in items])
        taken = usable & (truth >= 0)
        scores = self._probabilities[taken].astype(np.float64)
        pairs, counts = np.unique(np.stack([truth[taken], scores.argmax(axis=1)], axis=1), axis=0, return_counts=True)
        own = np.clip(scores[np.arange(len(scores)), truth[taken]], 1e-12, 1.0)
        found["confusion"] = [[*map(int, pair), int(count)] for pair, count in zip(pairs, counts, strict=True)]
        found["log_loss"] = float(-np.log(own).sum())
        return found


class EvaluateNumbersShard(EmbedShard):
    """Predicted numbers, and sums of their errors."""

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        super().__init__(plan, network, engine, count)
        self._fitted = network.fitted

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``predicted``, a list of a number for each column."""
        self._predicted = np.zeros((self._count, len(self._fitted.columns)), np.float64)
        if usable.any():
            self._predicted[usable] = self._fitted.head()(self.rows[usable])
        return {"predicted": _lists(self._predicted, usable)}

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns the number of images, and over them sums of errors and of true numbers, about ``shift``."""
        coverage = COVERAGE
        halves = self._fitted.half_widths(coverage)
        taken = np.array([good and bool(item.label) for good, item in zip(usable, items, strict=True)], bool)
        truth = numbers_of(
            [item.label for item, own in zip(items, taken, strict=True) if own], len(self._fitted.columns)
        )
        error, shift = self._predicted[taken] - truth, truth[0] if len(truth) else np.zeros(truth.shape[1])
        found = {
            "kind": "regression",
            "columns": list(self._fitted.columns),
            "halves": list(halves),
            "coverage": coverage,
            "n": len(truth),
            "shift": shift,
            "absolute": np.abs(error).sum(axis=0),
            "square": (error**2).sum(axis=0),
            "true": (truth - shift).sum(axis=0),
            "true_square": ((truth - shift) ** 2).sum(axis=0),
            "inside": (np.abs(error) <= halves).sum(axis=0) if halves else np.zeros(0),
        }
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.items()}


class EvaluateBoxesShard:
    """Detections down to the lowest score, of which figures over all pictures are made."""

    decodes = False

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        self._fitted, self._options = network.fitted, plan.options
        self._found: list[Any] = [None] * count

    def seen(self, position: int, data: bytes) -> decode.Look | None:
        """Wants to see nothing."""
        return None

    def add(self, positions: np.ndarray, images: Any) -> dict[int, str]:
        """Predicts."""
        engine, size = self._options["engine"], self._options["batch_size"]
        found = self._fitted.predict(list(images), threshold=0.0, engine=engine, batch_size=size)
        for position, one in zip(positions, found, strict=True):
            self._found[position] = one
        return {int(position): one.error for position, one in zip(positions, found, strict=True) if one.error}

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``boxes`` (left, top, right, bottom one after the other), ``scores`` and ``classes``."""
        import pyarrow as pa

        kept = [found if good else None for found, good in zip(self._found, usable, strict=True)]
        kinds = {"boxes": pa.float32(), "scores": pa.float32(), "classes": pa.int32()}
        return {
            name: pa.array([None if one is None else getattr(one, name).ravel() for one in kept], pa.list_(kind))
            for name, kind in kinds.items()
        }

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns the number of pictures and of detections, and what the detector's figures are named by."""
        own = [len(found) for found, good in zip(self._found, usable, strict=True) if good]
        thresholds = {name: float(value) for name, value in self._fitted.thresholds.items()}
        known = {"classes": list(self._fitted.classes), "thresholds": thresholds}
        return {"kind": "detection", **known, "n": len(own), "detections": sum(own)}


def numbers_of(labels: Sequence[str], columns: int) -> np.ndarray:
    """Returns the numbers of items: float64 array ``(n, columns)``.

    Args:
        labels: Their labels, none of them empty.
        columns: Numbers of each.
    """
    return np.array([[float(value) for value in label.split(";")] for label in labels], np.float64).reshape(-1, columns)


def _evaluating(plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int) -> ShardTask:
    kinds: dict[str, Any] = {"regression": EvaluateNumbersShard, "detection": EvaluateBoxesShard}
    return kinds.get(network.fitted.task, EvaluateShard)(plan, network, engine, count)


class PredictShard:
    """What :meth:`resfit.tasks.base.FittedModel.predict` says, as JSON, and of classifiers the class."""

    decodes = False

    def __init__(self, plan: Plan, network: LoadedNetwork, engine: engines.Engine | None, count: int):
        self._fitted, self._options = network.fitted, plan.options
        self._found: list[dict[str, Any] | None] = [None] * count

    def seen(self, position: int, data: bytes) -> decode.Look | None:
        """Wants to see nothing."""
        return None

    def add(self, positions: np.ndarray, images: Any) -> dict[int, str]:
        """Predicts."""
        engine, size = self._options["engine"], self._options["batch_size"]
        errors: dict[int, str] = {}
        for position, one in zip(
            positions, self._fitted.predict(list(images), engine=engine, batch_size=size), strict=True
        ):
            found = one.to_dict()
            if found.pop("error", None):
                errors[int(position)] = one.error
                continue
            found.pop("path", None)
            self._found[position] = without_nan(found)
        return errors

    def columns(self, usable: np.ndarray) -> dict[str, pa.Array]:
        """Returns ``prediction``, and of classifiers ``predicted`` and ``probability``."""
        import pyarrow as pa

        rows = [found if good else None for found, good in zip(self._found, usable, strict=True)]
        columns = {"prediction": pa.array([None if row is None else json.dumps(row) for row in rows], pa.string())}
        if self._fitted.task == "classification":
            for name, key, kind in (("predicted", "label", pa.string()), ("probability", "probability", pa.float64())):
                columns[name] = pa.array([None if row is None else row[key] for row in rows], kind)
        return columns

    def sums(self, items: list[Item], usable: np.ndarray) -> dict[str, Any]:
        """Returns how many images each class was predicted for, of classifiers."""
        if self._fitted.task != "classification":
            return {}
        names, counts = np.unique(
            [str(row["label"]) for row, good in zip(self._found, usable, strict=True) if good and row is not None],
            return_counts=True,
        )
        return {"predicted": dict(zip(names.tolist(), counts.tolist(), strict=True))}


def _lists(rows: np.ndarray, usable: np.ndarray) -> pa.Array:
    """Returns rows as lists of one length."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return (
        pa.FixedSizeListArray.from_arrays(flat, max(1, rows.shape[1]), mask=pa.array(~usable))
        if rows.size
        else (pa.nulls(len(rows), pa.list_(flat.type, 1)))
    )


#: By name.
SHARD_TASKS: dict[str, Any] = {
    "embed": EmbedShard,
    "predict": PredictShard,
    "evaluate": _evaluating,
    "check": CheckShard,
}
