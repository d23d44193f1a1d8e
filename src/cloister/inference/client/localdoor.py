"""The proxy's door to its own machine: who may come in, what goes on, and what comes back out."""

from __future__ import annotations

from typing import Final

import httpx2

from cloister.errors import InputError
from cloister.inference.client.asgi import Scope, headers_of
from cloister.inference.client.failures import Failure
from cloister.inference.client.outside import ANY_HOST

__all__ = ["handed_on", "request_of", "stranger"]

_LOCAL_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
_NOT_HANDED_ON: Final = frozenset(
    {b"connection", b"transfer-encoding", b"content-length", b"set-cookie", b"server", b"date", b"alt-svc"}
)
_TIMEOUT: Final = httpx2.Timeout(600.0, connect=10.0).as_dict()
_NOT_LOCAL: Final = Failure(
    403, "not_local", "This proxy answers programs of its own machine, by its loopback name.", "forbidden"
)
_WEB_PAGE: Final = Failure(403, "web_page", "This proxy answers no web page.", "forbidden")


def stranger(scope: Scope) -> Failure | None:
    """Return why a request is not answered: it names another host, or a web page sent it.

    A web page that has rebound its name to the loopback still names itself as host; one that posts here
    names its origin; one that embeds an address of ours says that it is cross-site.
    """
    headers = headers_of(scope)
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name not in _LOCAL_NAMES:
        return _NOT_LOCAL
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() != f"http://{host}":
        return _WEB_PAGE
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return _WEB_PAGE
    return None


def request_of(scope: Scope, body: bytes) -> httpx2.Request:
    """Return the request as it goes into the exchange. Raises InputError where it cannot be sent."""
    target: bytes = scope["raw_path"].partition(b"?")[0]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    try:
        url = httpx2.URL(scheme="http", host=ANY_HOST, raw_path=target)
    except httpx2.InvalidURL:
        raise InputError("the request's path cannot be sent") from None
    return httpx2.Request(
        scope["method"], url, headers=scope["headers"], content=body, extensions={"timeout": _TIMEOUT}
    )


def handed_on(response: httpx2.Response) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that its application gets: none that lets a web page in."""
    found = []
    for name, value in response.headers.raw:
        lower = name.lower()
        if lower not in _NOT_HANDED_ON and not lower.startswith(b"access-control-"):
            found.append((lower, value))
    return found
