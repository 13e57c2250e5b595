"""Fitted models that OpenVINO runs without Keras: their Keras model is read when something asks for it.

What is kept of a network, and how it is found again, :mod:`resfit.engines.stored` says; here is of which folder, and
when.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from resfit import artifact, devices, engines
from resfit.artifact import ArtifactKind
from resfit.data import inputs
from resfit.engines import stored
from resfit.errors import ArgumentError, ArtifactError, MissingDependencyError
from resfit.tasks.base import FittedModel

if TYPE_CHECKING:
    import keras

#: Engines that a network is kept for.
ENGINES = ("auto", "openvino")
#: Called before a model is read by Keras: what the command line keeps TensorFlow's lines off the terminal with.
before_keras: list[Callable[[], None]] = []
_COMPARED = 4  # images that a network is compared with Keras on

#: Description of a head, JSON-ready, and its numbers.
Head: TypeAlias = tuple[Any, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """Where a fitted model was read from.

    Attributes:
        folder: Its folder.
        digests: SHA-256 of the files that decide its answers.
        load: Returns its model, with a check that it is still the one that was there.
        record: What is kept of its network; ``None`` where that is nothing.
    """

    folder: Path
    digests: tuple[str, ...]
    load: Callable[[], keras.Model]
    record: stored.Record | None = None

    def key(self, part: str = "") -> str:
        """Returns the key of what is kept.

        Args:
            part: Name of one of the networks of a fitted model; empty for the one that it predicts with.
        """
        return stored.key_of(*self.digests, *([part] if part else []))


@dataclasses.dataclass(frozen=True, eq=False)
class StoredPart:
    """A network of a fitted model that is to be kept.

    Attributes:
        network: With one input and one output.
        head: Gets images ``(n, height, width, channels)`` and what the converted network gives for them. Returns the
            head that belongs to it; ``None`` where the two do not give the answers of Keras.
        name: As :meth:`Origin.key` takes it.
    """

    network: keras.Model
    head: Callable[[np.ndarray, np.ndarray], Head | None]
    name: str = ""


def prepare_keras() -> None:
    """Calls :data:`before_keras`; for whoever is about to read a Keras model."""
    for call in before_keras:
        call()


def origin(folder: Path, kind: ArtifactKind, sums: Mapping[str, str], load: Callable[[], keras.Model]) -> Origin | None:
    """Returns where a fitted model stands, with what is kept of it.

    Args:
        folder: Its folder.
        kind: The kind of the folder.
        sums: As :func:`resfit.artifact.read_with_sums` returns them.
        load: Reads its model.

    Returns:
        ``None`` for a folder whose description has no checksum, so that a key would not cover it.
    """
    expected, described = sums[artifact.MODEL], sums.get(kind.description)
    if described is None:
        return None

    def checked() -> keras.Model:
        if not artifact.is_model(folder, expected):
            raise ArtifactError(
                f"{folder / artifact.MODEL} must be the model that was there when the {kind.noun} was loaded. "
                f"Received: another one, or none. Load the {kind.noun} again."
            )
        return load()

    found = Origin(folder, (expected, described), checked)
    return dataclasses.replace(found, record=stored.find(found.key()))


class LazyModel(FittedModel):
    """A fitted model whose Keras model is read when it is first needed: its network may be kept as OpenVINO runs it.

    Args:
        model: The Keras model; ``None`` reads it from where it stands.
        origin: Where it was loaded from.
        attachments: Further files of its folder by their names.
    """

    kind: ArtifactKind

    def __init__(
        self,
        model: keras.Model | None,
        origin: Origin | None = None,
        attachments: Mapping[str, bytes] | None = None,
    ):
        if model is not None:
            self.model = model
        self._origin = origin
        self._attachments = dict(attachments or {})

    def attachment(self, name: str) -> bytes:
        """Returns a further file of the model's folder, such as ``"skipped.csv"``; empty if it has none.

        Args:
            name: Relative to the folder.
        """
        return self._attachments.get(name, b"")

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy is made of: the model itself, not where it was read from."""
        return {**self.__dict__, "model": self.model, "_origin": None}

    @functools.cached_property
    def model(self) -> keras.Model:
        """The Keras model, read when it is first needed."""
        if self._origin is None:
            raise ArgumentError("a fitted model needs a network. Received: model=None.")
        return self._origin.load()

    @abc.abstractmethod
    def parts(self) -> Iterable[StoredPart]:
        """Returns the networks that are to be kept, the one that it predicts with first."""

    def network(self) -> keras.Model | engines.StoredNetwork:
        """Returns the network without its head, as engines take it: as it is kept in the cache, or the Keras model."""
        if (record := self._record) is None:
            return self.body()
        return engines.StoredNetwork(record, self.body)

    def check_finite(self) -> None:
        """Makes sure that all weights are numbers.

        Raises:
            ArtifactError: One is not.
        """
        if self._record is None:  # what is kept has been looked at
            super().check_finite()

    def keep_network(self, folder: Path, files: Sequence[Path]) -> None:
        """Keeps the network in the cache as OpenVINO runs it: later programs load this model without Keras.

        Predictions are the same. It is kept only where it has agreed with Keras; nothing of the images is kept.

        Args:
            folder: Where the model has been saved.
            files: Images to compare it on, of which the first few are read.
        """
        try:
            sums = artifact.read_with_sums(folder, self.kind)[2]
        except ArtifactError:
            return
        place = origin(folder, self.kind, sums, lambda: self.model)
        if place is None or not _can_keep(place):
            return
        sources = inputs.listed(list(files[:_COMPARED]), self.input_spec)
        for batch in inputs.batches(sources, self.input_spec, _COMPARED):
            if len(batch.indices):
                _keep(self, place, batch.images)

    def keep_for_later(self, images: np.ndarray) -> None:
        """Keeps the network as :meth:`keep_network` does, for the folder that this was loaded from; tried once.

        Args:
            images: Some as the network takes them, ``(n, height, width, channels)``, to compare on.
        """
        if self._can_keep and len(images):
            place, self._origin = self._origin, None
            assert place is not None
            _keep(self, place, images[:_COMPARED])

    @property
    def _record(self) -> stored.Record | None:
        """What is kept of it in the cache, where the Keras model has not been read."""
        return None if self._origin is None or "model" in self.__dict__ else self._origin.record

    @property
    def _can_keep(self) -> bool:
        """Whether its network could be kept in the cache and is not yet."""
        place = self._origin
        return place is not None and place.record is None and "model" in self.__dict__ and _can_keep(place)


def _can_keep(place: Origin) -> bool:
    """Says whether a network could be kept, and it has not been tried in vain."""
    return devices.current().kind == "cpu" and stored.can_be_kept() and not stored.is_settled(place.key())


def _keep(fitted: LazyModel, place: Origin, images: np.ndarray) -> None:
    """Keeps the networks of a fitted model that agree with Keras on these images; of others, that they do not."""
    with contextlib.suppress(OSError, MissingDependencyError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user did not ask for this engine
        finite = all(np.isfinite(np.asarray(variable, np.float32)).all() for variable in fitted.model.variables)
        for part in fitted.parts():
            with engines.unchanged(part.network):
                network, head = engines.entry_of(part.network, "openvino"), None
                with contextlib.suppress(ArgumentError, RuntimeError):  # OpenVINO cannot run it
                    running = engines.create(part.network, "openvino")
                    rows = running.run(images)
                    agreed = network.facts().get("agreement") or 0.0
                    if finite and running.name == "openvino" and agreed >= engines.AGREEMENT:
                        head = part.head(images, rows)
                description, arrays = head or (None, {})
                stored.keep(
                    place.key(part.name),
                    part.network,
                    network if head is not None else None,
                    engines.fingerprint(part.network),
                    description,
                    arrays,
                )
