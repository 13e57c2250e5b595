"""A SavedModel as a Keras 3 layer: what ``tensorflow_hub.KerasLayer`` is to Keras 2.

The layer calls the SavedModel; it does not translate it. Its weights are the variables of the SavedModel themselves,
so an optimiser that moves the layer moves the SavedModel, and an update that the SavedModel makes (moving statistics of
batch normalisation) is seen in the layer. See ``docs/hub.md`` for what differs from the original.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from resfit.errors import ArgumentError, CheckpointError, closest
from resfit.hub import handles, loading, models, resolver, scan, specs

#: A ``.keras`` archive carries the SavedModel of a layer along up to this size, unless the layer says otherwise.
MOST_EMBEDDED = 200_000_000

_FOLDER = "saved_model"

#: Folders of SavedModels that came out of archives, as long as they are needed.
_extracted: weakref.WeakValueDictionary[str, _Extracted] = weakref.WeakValueDictionary()


class ConfigError(ArgumentError, NotImplementedError):
    """A layer around a Python object has no configuration. Also a ``NotImplementedError``, as the original raises."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The arguments of a layer that its configuration holds; None for what was not given."""

    handle: Any
    arguments: dict[str, Any] | None
    tags: list[str] | None
    signature: str | None
    signature_outputs_as_dict: bool | None
    output_key: str | None
    output_shape: Any
    trust: bool | None
    embed_saved_model: bool | None


@keras.saving.register_keras_serializable(package="resfit")
class KerasLayer(keras.layers.Layer):
    """A SavedModel, a module in the TF1 Hub format, or any callable, as a layer.

    Called with one positional argument, a tensor or a nest of tensors; with a signature a dict is passed as keywords.
    ``training`` reaches a callable that takes it, as a Python bool, which is True only while the layer is trainable
    and called for training.

    These attributes of the callable have a meaning: ``trainable_variables`` (trainable weights of the layer),
    ``variables`` (the others are non-trainable weights), ``regularization_losses`` (callables without arguments,
    counted while the layer is trainable and has trainable weights).

    Args:
        handle: What :func:`resfit.hub.resolve` takes, or a callable.
        trainable: Whether its published trainable variables are trained. Not for signatures and the TF1 Hub format.
        arguments: Further keyword arguments of the callable; to save the layer they must be JSON.
        tags: Which graph of a SavedModel that holds several. Default: none for the TF1 Hub format, the only one
            otherwise.
        signature: Call this signature and not the object. Default for the TF1 Hub format: ``"default"``.
        signature_outputs_as_dict: Return all outputs of the signature.
        output_key: Return this output. Default for the TF1 Hub format: ``"default"``.
        output_shape: Shape, or nest of shapes, of the outputs without the batch; for SavedModels that do not tell.
            ``()`` is one number an example.
        load_options: ``tf.saved_model.LoadOptions``; not saved.
        trust: Load a SavedModel whose graph reads or writes files or the network, though it is not by a publisher
            that is known; see :mod:`resfit.hub.scan`.
        embed_saved_model: Whether a ``.keras`` archive carries the SavedModel along. Default: below 200 MB.
        **kwargs: ``name``, ``dtype`` and ``input_shape``, as Keras layers take them. A SavedModel that tells its
            dtypes keeps them, whatever the policy.

    Raises:
        ArgumentError: Arguments contradict each other or the SavedModel; a ``ValueError``.
        HandleError: The handle leads to no SavedModel; an ``OSError``.
        CheckpointError: The SavedModel is damaged, or needs ``trust=True``.

    Example:
        >>> features = KerasLayer("https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5")  # doctest: +SKIP
        >>> model = keras.Sequential([keras.Input((224, 224, 3)), features, keras.layers.Dense(10)])  # doctest: +SKIP
    """

    def __init__(
        self,
        handle: str | os.PathLike[str] | Callable[..., Any],
        trainable: bool = False,
        arguments: Mapping[str, Any] | None = None,
        tags: Iterable[str] | None = None,
        signature: str | None = None,
        signature_outputs_as_dict: bool | None = None,
        output_key: str | None = None,
        output_shape: Any = None,
        load_options: Any = None,
        *,
        trust: bool = False,
        embed_saved_model: bool | None = None,
        **kwargs: Any,
    ) -> None:
        pending = kwargs.pop("_pending", None)
        if (batched := kwargs.pop("batch_input_shape", None)) is not None:
            kwargs["input_shape"] = tuple(batched)[1:]
        input_shape = kwargs.pop("input_shape", None)
        super().__init__(trainable=bool(trainable), autocast=kwargs.pop("autocast", False), **kwargs)
        if isinstance(handle, os.PathLike):
            handle = os.fspath(handle)
        if callable(handle) and (tags is not None or load_options is not None):
            raise ArgumentError(
                f"a callable handle is not loaded, so it takes neither tags nor load_options. Received: tags={tags!r}, "
                f"load_options={load_options!r}. Leave them out, or pass a string."
            )
        self._settings = _Settings(
            handle=handle,
            arguments=dict(arguments or {}) or None,
            tags=None if tags is None else sorted([tags] if isinstance(tags, str) else tags),
            signature=signature,
            signature_outputs_as_dict=signature_outputs_as_dict,
            output_key=output_key,
            output_shape=None if output_shape is None else specs.shape_nest(output_shape),
            trust=trust or None,
            embed_saved_model=embed_saved_model,
        )
        self._load_options = load_options
        self._seen: specs.Seen = specs.Seen()
        self.input_spec = self._contract = models.contract(handle)
        self._range_checked = False
        self._object: Any = None
        self._folder: str | None = None
        self._holder: _Extracted | None = None
        if pending is not None:
            self._stand_in(pending)
        elif callable(handle):
            self._use(handle)
        else:
            self._holder = _extracted.get(handle) if isinstance(handle, str) else None
            self._load(resolver.resolve(handle), trust=trust or handles.is_known(handle))
        self.built = True
        if input_shape is not None and "float" in self.compute_dtype:
            self._input_shape_arg = tuple(input_shape)  # what Sequential looks for; it takes floats then

    # ---- what is called

    def _load(self, folder: str, *, trust: bool) -> None:
        """Loads the SavedModel of a folder."""
        settings = self._settings
        self._use(loading.load_folder(folder, settings.tags, self._load_options, trust=trust, name=settings.handle))
        self.supports_jit = scan.compiles(folder)
        self._folder = folder

    def _use(self, found: Any) -> None:
        """Settles what of an object is called, and how, and takes over its variables."""
        settings = self._settings
        self._is_v1 = bool(getattr(found, "_is_hub_module_v1", False))
        signature, key, as_dict = settings.signature, settings.output_key, settings.signature_outputs_as_dict
        if self._is_v1:
            signature = signature or "default"
            key = key or (None if as_dict else "default")
        if signature and (key is not None) == bool(as_dict):
            raise ArgumentError(
                "a signature takes either output_key or signature_outputs_as_dict=True. "
                f"Received: output_key={key!r}, signature_outputs_as_dict={as_dict!r}."
            )
        if as_dict and not signature:
            raise ArgumentError(
                "signature_outputs_as_dict belongs to a signature (or the TF1 Hub format). "
                "Received: signature=None. Pass signature=..., or leave it out."
            )
        self._signature, self._key = signature, key
        self._function = specs.Function.of(_callable_of(found, signature, settings.handle))
        if self._function.input_dtypes:  # the SavedModel computes as it was saved, whatever the policy
            self.dtype_policy = keras.DTypePolicy(self._function.input_dtypes[0])
        self._track(_published(found), list(getattr(found, "regularization_losses", ())))
        self._object = found  # last, as it says that all is there

    def _stand_in(self, pending: Mapping[str, Any]) -> None:
        """Makes weights that stand in for the variables of a SavedModel that is still in the archive."""
        try:
            self._seen = specs.Seen.from_config(pending["calls"])
            for name, shape, dtype, is_trainable in pending["variables"]:
                self.add_weight(
                    shape, "zeros", dtype, trainable=bool(is_trainable), autocast=False, name=name, regularizer=None
                )
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(f"'archived' must be what a layer writes of itself. Received: {error}.") from error

    def _track(self, published: Sequence[tuple[Any, bool]], losses: Sequence[Any]) -> None:
        """Makes variables weights of the layer, or gives the weights that stand in for them their variables.

        Args:
            published: The variables and whether each is published as trainable.
            losses: Regularisation losses of the callable.
        """
        if any(not callable(loss) for loss in losses):
            raise ArgumentError(
                "regularization_losses of a handle must be callables that return a scalar each. "
                f"Received: {[type(loss).__name__ for loss in losses]}."
            )
        if self.built:
            self._replace(published)
        for variable, is_trainable in () if self.built else published:
            if not isinstance(variable, keras.Variable):
                name = variable.name.split(":")[0].replace("/", "_")
                variable = keras.Variable(variable, trainable=is_trainable, autocast=False, name=name)
            self._track_variable(variable)
        for variable, is_trainable in published:
            if is_trainable and isinstance(variable, tf.Variable):
                for part in _parts(variable):  # a gradient tape sees it, though it was saved with the flag off
                    part._trainable = True
        # A regulariser is asked for on each look at `losses`, and only for weights that are trainable just then.
        owners = self._trainable_variables
        for owner, own in zip(owners, (losses[place :: len(owners)] for place in range(len(losses))), strict=False):
            owner.regularizer = lambda _, own=own: sum((loss() for loss in own[1:]), own[0]())

    def _replace(self, published: Sequence[tuple[Any, bool]]) -> None:
        """Puts the variables of a SavedModel in place of stand-ins, with the values of the stand-ins."""
        weights = self._trainable_variables + self._non_trainable_variables
        expected, found = [tuple(weight.shape) for weight in weights], [tuple(one.shape) for one, _ in published]
        if expected != found:
            raise CheckpointError(
                "the SavedModel of an archive must have the variables that the archive states. "
                f"Received: shapes {found} for {expected}."
            )
        for weight, (variable, _) in zip(weights, published, strict=True):
            variable.assign(weight.numpy())
            for part, old in zip(_parts(variable), _parts(weight.value), strict=True):
                part._unique_id = old._unique_id  # by which an optimiser knows it
            weight._value = variable

    @property
    def resolved_object(self) -> Any:
        """The object that the handle leads to, with all its attributes."""
        if self._object is None:
            raise CheckpointError(
                f"layer {self.name!r} gets its SavedModel from the .keras archive that it was saved in, and has not "
                f"got it yet. Received: a configuration alone. Load the archive with keras.saving.load_model, or make "
                f"a new KerasLayer({self._settings.handle!r})."
            )
        return self._object

    # ---- calling

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer. A nest of plain Python values becomes one tensor."""
        if isinstance(inputs, (list, tuple, str, bytes, int, float)) and all(
            isinstance(leaf, (str, bytes, bool, int, float)) for leaf in tree.flatten(inputs)
        ):
            inputs = tf.convert_to_tensor(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Calls the SavedModel.

        Args:
            inputs: A tensor or a nest of tensors. Floats are cast to the floats that it takes.
            training: Whether it is called for training; without effect while the layer is frozen.

        Raises:
            ArgumentError: The layer is trainable though it calls a signature, or ``output_key`` names no output.
        """
        self._check_callable()
        inputs = self._function.cast(inputs, self.compute_dtype)
        if self._contract is not None and not self._range_checked:
            self._check_range(inputs, *models.value_range(self._contract))
        args, kwargs = [inputs], dict(self._settings.arguments or {})
        if self._signature and isinstance(inputs, dict):
            args, kwargs = [], {**kwargs, **inputs}
        if self._function.takes_training:
            kwargs["training"] = bool(self.trainable and training)
        result = self._function.call(*args, **kwargs)
        specs.forget_watched(weight.value for weight in self.weights)
        if self._key:
            if not isinstance(result, dict):
                raise ArgumentError(
                    f"output_key needs a dict of outputs. Received: output_key={self._key!r} for a "
                    f"{type(result).__name__}. Leave output_key out."
                )
            if self._key not in result:
                raise ArgumentError(
                    f"output_key must be one of {sorted(result)}. Received: {self._key!r}.{closest(self._key, result)}"
                )
            result = result[self._key]
        if self._settings.output_shape is not None:
            specs.set_shapes(result, self._settings.output_shape, specs.batch_of(inputs))
        return result

    def _check_callable(self) -> None:
        if self.resolved_object is None or not self.trainable:
            return
        if self._is_v1 or self._signature:
            kind = "a module in the TF1 Hub format" if self._is_v1 else f"signature {self._signature!r}"
            raise ArgumentError(
                "only a reusable SavedModel can be trained, through its own call. "
                f"Received: trainable=True for {kind}. Set trainable=False."
            )
        if not self.trainable_weights and not getattr(self, "_warned_of_nothing", False):
            self._warned_of_nothing = True
            warnings.warn(
                f"layer {self.name!r} is trainable, but {self._settings.handle!r} publishes no trainable variables",
                stacklevel=2,
            )

    def _check_range(self, inputs: Any, low: float, high: float) -> None:
        """Warns, at the first call with values, of images in another range than the module's."""
        if not tf.is_tensor(inputs) or not (tf.executing_eagerly() or specs.is_looping()):
            return  # the values are not there yet, or are none of ours to look at

        def look(least: Any, most: Any) -> None:
            if self._range_checked or least > most:
                return
            self._range_checked = True
            if least < low - (high - low) / 2 or most > high + (high - low) / 2:
                warnings.warn(
                    f"{self._settings.handle} takes values {low:g}..{high:g}. Received: {least:g}..{most:g}. "
                    f"Scale the images first, for example with keras.layers.Rescaling.",
                    stacklevel=2,
                )

        tf.py_function(look, [tf.reduce_min(inputs), tf.reduce_max(inputs)], [])

    # ---- shapes

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what the layer returns, as Keras tensors: traced, not run."""
        if self._object is None:
            return self._seen.outputs(inputs)
        given = specs.to_tf(inputs)
        traced = tf.function(lambda nest: self.call(nest, training=training), autograph=False)
        outputs = specs.to_keras(traced.get_concrete_function(given).structured_outputs)
        self._seen.add(inputs, outputs)
        return outputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape, or nest of shapes, of the outputs.

        Args:
            input_shape: Shape, or nest of shapes, of the inputs, with the batch.
        """
        dtypes = iter(self._function.input_dtypes if self._object is not None else ())
        inputs = tree.map_shape_structure(
            lambda shape: keras.KerasTensor(shape, dtype=next(dtypes, self.compute_dtype)), input_shape
        )
        if self._settings.output_shape is not None:
            return specs.with_batch(self._settings.output_shape, specs.batch_of(inputs))
        return tree.map_structure(lambda spec: tuple(spec.shape), self.compute_output_spec(inputs))

    # ---- saving

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer; for an archive that carries the SavedModel, its weights' shapes too.

        Raises:
            ConfigError: The handle is a Python object; a ``NotImplementedError``.
            ArgumentError: ``arguments`` are not JSON.
        """
        settings = self._settings
        if not isinstance(settings.handle, str):
            raise ConfigError(
                "only a layer made from a string has a configuration. "
                f"Received: a handle of type {type(settings.handle).__name__}. Save the weights alone, or the object "
                "as a SavedModel."
            )
        try:
            json.dumps(settings.arguments)
        except TypeError as error:
            raise ArgumentError(f"arguments must be JSON to be saved. Received: {settings.arguments!r}.") from error
        given = {**vars(settings), "output_shape": specs.as_json(settings.output_shape)}
        config = {**super().get_config(), **{key: value for key, value in given.items() if value is not None}}
        if not specs.is_archiving():
            if self._holder is not None:
                config["handle"] = self._folder  # the handle may lead nowhere on this machine
        elif self._embeds():
            stated = [
                [weight.name, list(weight.shape), weight.dtype, flag]
                for weights, flag in ((self._trainable_variables, True), (self._non_trainable_variables, False))
                for weight in weights
            ]
            config["archived"] = {"variables": stated, "calls": self._seen.to_config()}
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasLayer:
        """Makes a layer from its configuration.

        An archive does not decide that it is trusted: in Keras' safe mode ``trust`` is not taken from it.
        """
        config = dict(config)
        safe = specs.in_safe_mode()
        config["trust"] = bool(config.get("trust")) if safe is None else not safe
        archived = config.pop("archived", None)
        return cls(**config) if archived is None else cls(**config, _pending=archived)

    def save_assets(self, folder: str) -> None:
        """Writes the SavedModel into a ``.keras`` archive."""
        if self._folder is not None and self._embeds():
            shutil.copytree(self._folder, Path(folder) / _FOLDER)
        elif self._settings.embed_saved_model is not False and self._folder and not tf.io.gfile.exists(self._folder):
            warnings.warn(
                f"the archive cannot carry the SavedModel of layer {self.name!r}, as {self._folder} is no longer "
                "there; it will load only where the handle leads to it",
                stacklevel=2,
            )

    def load_assets(self, folder: str | None) -> None:
        """Takes the SavedModel out of a ``.keras`` archive, if the layer was saved with it."""
        if self._object is not None:
            return
        source = Path(folder or "") / _FOLDER
        if folder is None or not source.is_dir():
            raise CheckpointError(
                f"the archive must hold the SavedModel of layer {self.name!r}, as its configuration says. "
                "Received: none. The file is incomplete; save the model again."
            )
        self._holder = _Extracted(source)
        self._load(self._holder.path, trust=bool(self._settings.trust))

    def _embeds(self) -> bool:
        """Whether an archive carries the SavedModel: the choice of the layer, by default up to 200 MB."""
        choice = self._settings.embed_saved_model
        if self._folder is None or not os.path.isdir(self._folder) or choice is False:
            return False
        return bool(choice) or loading.folder_size(self._folder) < MOST_EMBEDDED


class _Extracted:
    """A folder of its own for the SavedModel of an archive, for as long as a layer or a copy of it needs its files."""

    def __init__(self, source: Path) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="resfit-hub-", ignore_cleanup_errors=True)
        self.path = os.fspath(shutil.copytree(source, Path(self._temporary.name) / _FOLDER))
        _extracted[self.path] = self


def _callable_of(found: Any, signature: str | None, handle: Any) -> Any:
    """Returns what a layer calls: the object itself or one of its signatures.

    Raises:
        ArgumentError: There is no such signature, or the object cannot be called.
    """
    if callable(found) and not signature:
        return found
    available = list(getattr(found, "signatures", None) or ())
    if signature is None:
        raise ArgumentError(
            f"a SavedModel that cannot be called needs signature=..., one of {available}. Received: {handle!r}."
        )
    if signature not in available:
        raise ArgumentError(
            f"signature must be one of {available}. Received: {signature!r} for {handle!r}."
            f"{closest(signature, available)}"
        )
    return found.signatures[signature]


def _published(found: Any) -> list[tuple[Any, bool]]:
    """Returns the variables of an object, each once, and whether they are published as trainable; these come first."""
    trainable = {id(variable): variable for variable in getattr(found, "trainable_variables", ())}
    every = {**trainable, **{id(variable): variable for variable in getattr(found, "variables", ())}}
    kept = [(variable, key in trainable) for key, variable in every.items()]
    return [(variable, flag) for variable, flag in kept if variable.dtype not in (tf.string, tf.resource, tf.variant)]


def _parts(variable: Any) -> tuple[Any, ...]:
    """Returns the copies of a variable on the devices of a ``tf.distribute`` strategy, or itself."""
    return tuple(getattr(variable, "values", None) or (variable,))
