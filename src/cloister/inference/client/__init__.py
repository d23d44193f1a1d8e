"""The client's side of private inference: verify a service, ask it, keep its receipts; a proxy and a relay.

    from cloister import PrivateClient

    with PrivateClient("https://models.example", policy) as http:
        client = openai.OpenAI(base_url="http://private/v1", http_client=http, api_key=token)

`Verifier` and what keeps receipts need the base install alone; the rest asks for the extra `serve`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.inference.client.asynctransport import AsyncPrivateTransport
    from cloister.inference.client.checkreceipts import check_receipts
    from cloister.inference.client.outside import ExchangeError
    from cloister.inference.client.privateclient import AsyncPrivateClient, PrivateClient
    from cloister.inference.client.proxy import Proxy
    from cloister.inference.client.receipts import ReceiptStore
    from cloister.inference.client.relay import Relay
    from cloister.inference.client.transport import PrivateTransport
    from cloister.inference.client.verify import Verified, Verifier

__all__ = [
    "AsyncPrivateClient",
    "AsyncPrivateTransport",
    "ExchangeError",
    "PrivateClient",
    "PrivateTransport",
    "Proxy",
    "ReceiptStore",
    "Relay",
    "Verified",
    "Verifier",
    "check_receipts",
]

_MODULES: Final = {
    "asynctransport": ("AsyncPrivateTransport",),
    "checkreceipts": ("check_receipts",),
    "outside": ("ExchangeError",),
    "privateclient": ("AsyncPrivateClient", "PrivateClient"),
    "proxy": ("Proxy",),
    "receipts": ("ReceiptStore",),
    "relay": ("Relay",),
    "transport": ("PrivateTransport",),
    "verify": ("Verified", "Verifier"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            try:
                return getattr(importlib.import_module(f"{__name__}.{module}"), name)
            except ModuleNotFoundError as error:
                if error.name is None or error.name.partition(".")[0] not in ("httpx2", "httpcore2"):
                    raise
                raise InputError(
                    f"{name} needs the package {error.name}", fix="Install cloister[serve]"
                ) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
