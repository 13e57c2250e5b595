"""Images at web addresses, fetched where the caller allows it: bounded in size and time, http and https alone."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from typing import Any

#: Most bytes of an image that is fetched, and the seconds that it may take.
MAX_BYTES, MAX_SECONDS = 64 * 2**20, 60.0

#: Images that are fetched at once.
REQUESTS = 16

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_CHUNK = 1 << 16
_SILENCE = 15.0  # seconds in which a server must send something


def is_url(value: Any) -> bool:
    """Says whether a value is the web address of something."""
    return isinstance(value, str) and bool(_ADDRESS.match(value))


class RemoteImage:
    """An image at an address, read when it is decoded; as a file that is open for reading in binary.

    Args:
        url: The address, ``http://`` or ``https://``.
    """

    def __init__(self, url: str):
        self.url = url

    def seekable(self) -> bool:
        """Says that it can be read once, from its beginning."""
        return False

    def read(self, _: int = -1) -> bytes:
        """Fetches the whole image.

        Raises:
            OSError: It cannot be fetched, or is larger or slower than allowed.
        """
        end = time.monotonic() + MAX_SECONDS
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.UnknownHandler,
        ):
            opener.add_handler(handler())
        request = urllib.request.Request(self.url, headers={"User-Agent": "resfit"})
        found = bytearray()
        try:
            with opener.open(request, timeout=_SILENCE) as answer:
                while chunk := answer.read1(_CHUNK):
                    found += chunk
                    if len(found) > MAX_BYTES:
                        raise OSError(f"more than the {MAX_BYTES} bytes that are allowed")
                    if time.monotonic() > end:
                        raise OSError(f"it takes more than the {MAX_SECONDS:g} s that are allowed")
        except urllib.error.HTTPError as error:
            raise OSError(f"the server answers {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise OSError(str(error.reason)) from error
        except ValueError as error:  # no address after all
            raise OSError(str(error)) from error
        return bytes(found)


def opened(images: Any) -> Any:
    """Returns images with what fetches them in the place of web addresses.

    Args:
        images: One image or several, as :meth:`resfit.Classifier.predict` takes them.
    """
    if is_url(images):
        return RemoteImage(images)
    if isinstance(images, list | tuple):
        return [RemoteImage(one) if is_url(one) else one for one in images]
    return images
