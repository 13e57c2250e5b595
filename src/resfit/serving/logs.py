"""Structured logs: a JSON object a line on stderr. Nothing of an image, of a query or of a header gets into them."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

#: The logger of the server.
LOGGER = logging.getLogger("resfit.serving")
_LONGEST = 300


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage()[:_LONGEST],
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def set_up(level: str = "info") -> None:
    """Sends the server's logs, and uvicorn's, to stderr as JSON.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in (LOGGER.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    # what uvicorn says of every odd client is in the request log already
    logging.getLogger("uvicorn.error").setLevel("ERROR")


def event(what: str, *, level: int = logging.INFO, exception: bool = False, **fields: Any) -> None:
    """Logs an event.

    Args:
        what: What happened, the same words each time.
        level: As ``logging`` counts.
        exception: Whether the exception under way is written too.
        **fields: JSON-ready facts; long text is cut.
    """
    cut = {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in fields.items()}
    LOGGER.log(level, what, extra={"fields": cut}, exc_info=exception)
