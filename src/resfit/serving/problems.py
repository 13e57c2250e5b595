"""What a client is told when its request cannot be answered."""

from __future__ import annotations

from collections.abc import Mapping

from resfit.errors import ResfitError


class Problem(ResfitError):
    """A request that is refused, with the status that says why.

    Args:
        status: HTTP status, 400 or above.
        text: What is wrong and what would be right; never anything of the image.
        retry_after: Seconds after which it may be tried again; 0 for no such advice.
        reason: One word for the metrics.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        text: str,
        *,
        retry_after: int = 0,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after
        self._more = dict(headers or {})
        self.reason = reason or _REASONS.get(status, "other")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        found = dict(self._more)
        if self.retry_after:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


_REASONS = {
    400: "malformed",
    401: "token",
    403: "origin",
    404: "unknown",
    405: "method",
    408: "slow",
    413: "size",
    415: "type",
    421: "host",
    422: "image",
    429: "busy",
    431: "size",
    501: "missing",
    503: "unready",
    504: "timeout",
}


def malformed(text: str) -> Problem:
    """A request that does not follow the protocol."""
    return Problem(400, text)


def unusable(text: str) -> Problem:
    """An image that cannot be used."""
    return Problem(422, text)


def busy(seconds: int) -> Problem:
    """More is asked than can be done now."""
    return Problem(429, "too many images are waiting. Try again later.", retry_after=max(1, seconds))
