"""Features of images under a network, whatever names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit import artifact
from resfit.embedding import Embedding, embed_images
from resfit.tasks import backbone
from resfit.tasks.classification.classifier import Classifier

if TYPE_CHECKING:
    import keras


def embed(source: Any, *, model: str | keras.Model = backbone.DEFAULT_MODEL, **options: Any) -> Embedding:
    """Returns the features of images under a network.

    Args:
        source: Images, as :func:`resfit.embedding.embed_images` takes them.
        model: As :func:`fit` takes it, or the folder of a classifier.
        **options: Further options of :func:`resfit.embedding.embed_images`.

    Raises:
        DataError: No image can be used.

    Example:
        >>> embed("photos/").save("photos.parquet")
    """
    if isinstance(model, str | os.PathLike) and artifact.is_artifact(Path(model)):
        return Classifier.load(model).embed(source, **options)
    body, _ = backbone.body_of(model)
    return embed_images(body, source, **options)
