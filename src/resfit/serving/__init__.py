"""A fitted model on the wire: an HTTP server that clients of TensorFlow Serving and of Triton already know, and a page.

``settings`` says what may be asked of it, ``folders`` and ``repository`` which models and versions there are,
``pipeline`` and ``batching`` how images become answers, ``tfserving``, ``inference_v2`` and ``rest_api`` how they are
asked for, ``limits`` what is refused before anything is done, and ``server`` how it starts and ends without losing a
request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(fitted: Any, *, started: Callable[[str], None] | None = None, **settings: Any) -> bool:
    """Serves a fitted model until SIGTERM or SIGINT.

    Args:
        fitted: What :func:`resfit.fit` returned, or was loaded.
        started: Called with the server's URL once it listens.
        **settings: Fields of :class:`resfit.serving.settings.ServerSettings`, such as ``port``.

    Returns:
        Whether all threads have ended, as :func:`resfit.serving.server.serve` says.
    """
    from resfit.serving import server
    from resfit.serving.settings import ServerSettings

    chosen = ServerSettings(**settings)
    with tempfile.TemporaryDirectory(prefix="resfit-serve-") as folder:
        fitted.save(Path(folder) / "model.resfit")
        return server.serve(Path(folder) / "model.resfit", chosen, started=started)
