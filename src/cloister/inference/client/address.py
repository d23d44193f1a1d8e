"""Where a service is, and the only two paths that a client asks it for."""

from __future__ import annotations

from urllib.parse import urlsplit

from cloister.errors import InputError
from cloister.inference.exchange import EXCHANGE_PATH, KEYS_PATH

__all__ = ["Address"]


class Address:
    """The address of a service, or of a relay before it.

    Args:
        url: such as "https://models.example" or "http://127.0.0.1:8000"; no path, query or user.

    Attributes:
        url: normalised, without a slash at its end.
        host: lower-case, without brackets.
        encrypted: whether it is asked through TLS. The exchange is encrypted either way.

    Raises:
        InputError: it is no such address.
    """

    __slots__ = ("encrypted", "host", "url")

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _none(url) from None
        strange = parts.username or parts.password or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not host or strange or not url.isprintable():
            raise _none(url)
        if parts.path not in ("", "/"):
            raise InputError(
                "a service's address has no path",
                where=url,
                fix=f"Write {parts.scheme}://{parts.netloc}",
            )
        shown = f"[{host}]" if ":" in host else host
        self.host = host.lower()
        self.encrypted = parts.scheme == "https"
        self.url = f"{parts.scheme}://{shown}{f':{port}' if port is not None else ''}"

    @property
    def exchange(self) -> str:
        """Where sealed requests go."""
        return self.url + EXCHANGE_PATH

    def keys(self, nonce: bytes) -> str:
        """Return where the key set is, with evidence that carries `nonce`."""
        return f"{self.url}{KEYS_PATH}?nonce={nonce.hex()}"


def _none(url: str) -> InputError:
    shown = url if url.isprintable() and "@" not in url else "it is not shown"
    return InputError(
        "this is no address of a service", where=shown, fix="Write such as https://models.example"
    )
