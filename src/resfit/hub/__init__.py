"""TensorFlow Hub in Keras 3: ``from resfit import hub`` in place of ``import tensorflow_hub as hub``.

``KerasLayer``, ``load`` and ``resolve`` take what the originals take. ``list_models``, ``describe`` and ``to_keras``
know the residual networks among the handles; ``publish`` writes a network as such a SavedModel.

Importing this package imports Keras and TensorFlow, so that Keras knows the layer when it reads a saved model.
"""

from resfit import dependencies
from resfit.weights.tfhub import HandleError

dependencies.require_backend()

from resfit.hub.layer import KerasLayer  # noqa: E402
from resfit.hub.loading import load  # noqa: E402
from resfit.hub.models import HubModel, describe, list_models  # noqa: E402
from resfit.hub.native import to_keras  # noqa: E402
from resfit.hub.publish import publish  # noqa: E402
from resfit.hub.resolver import resolve  # noqa: E402

__all__ = ["HandleError", "HubModel", "KerasLayer", "describe", "list_models", "load", "publish", "resolve", "to_keras"]
