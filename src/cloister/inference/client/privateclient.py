"""`PrivateClient` and its asynchronous twin: clients of `httpx2` whose every request is a private exchange.

    with PrivateClient("https://models.example", policy, token=token) as client:
        answer = client.post("/v1/chat/completions", json={...})

They are what the official `openai` client takes as `http_client`; its base URL is then "http://private/v1".
The service is verified before the first request, or by `attest`, and again when a verification has become a
day old. `receipt_of` gives what the service signed about an answer.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from cloister.crypto import PublicIdentity
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.policyfile import read_enclave_policy
from cloister.errors import InputError
from cloister.files import read_bytes
from cloister.inference.client.asynctransport import AsyncPrivateTransport
from cloister.inference.client.outside import TURN
from cloister.inference.client.receipts import ReceiptStore
from cloister.inference.client.transport import PrivateTransport
from cloister.inference.client.turn import Keep, Turn
from cloister.inference.client.verify import Verified, Verifier
from cloister.inference.exchange.receipt import Receipt

__all__ = ["AsyncPrivateClient", "PrivateClient", "receipt_of", "verifier_of"]

_MAX_POLICY: Final = 1 << 20
_LIMITS: Final = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
_TIMEOUT: Final = httpx2.Timeout(600.0, connect=10.0)
"""A model may think for minutes before its first word."""

Policy = EnclavePolicy | Path | Verifier


def verifier_of(policy: Policy, *, model_digest: str = "") -> Verifier:
    """Return how a policy judges services.

    Args:
        policy: an enclave policy, the path of one in TOML, or a verifier, which is returned as it is.
        model_digest: the one model that is accepted, hexadecimal; empty for any.

    Raises:
        InputError: the file is no enclave policy, or a verifier was given with a model's digest.
    """
    if isinstance(policy, Verifier):
        if model_digest:
            raise InputError("a verifier has its own model digest", fix="Give it to the verifier")
        return policy
    if isinstance(policy, Path):
        policy = read_enclave_policy(read_bytes(policy, limit=_MAX_POLICY, what="enclave policy"))
    return Verifier.of(policy, model_digest=model_digest)


def receipt_of(response: httpx2.Response) -> Receipt | None:
    """Return what the service signed about an answer; None until the answer was read to its end."""
    turn = response.extensions.get(TURN)
    return turn.receipt if isinstance(turn, Turn) else None


class PrivateClient(httpx2.Client):
    """An `httpx2.Client` for one service, which is verified first and then asked privately.

    Args:
        url: the service, such as "https://models.example".
        policy: which evidence is accepted: an enclave policy, the path of one in TOML, or a `Verifier`. The
            default accepts sound, fresh evidence that is rooted in hardware.
        token: proves that the client may ask; None: the bearer token of each request.
        seal_to: readers; answers are sealed to them in the enclave, and this client cannot read them.
        receipts: a file to keep receipts in, a `ReceiptStore`, or None.
        relay: a relay that is asked in the service's place, so that the service does not see who asks.
        model_digest: the one model that is accepted, hexadecimal; empty for any the evidence vouches for.
        verify: of TLS, where the URL is of https: True, or a context. The exchange does not rest on it.
        timeout: as `httpx2`; the default waits ten minutes for an answer.
        headers: sent with each request, inside the exchange.
        event_hooks: as `httpx2`.

    Attributes:
        store: keeps receipts; None where none are kept.

    Raises:
        InputError: an argument does not fit.
        StorageError: the file of receipts cannot be written.
    """

    _transport: PrivateTransport

    def __init__(
        self,
        url: str,
        policy: Policy = EnclavePolicy(),  # noqa: B008  # frozen
        *,
        token: str | None = None,
        seal_to: Sequence[PublicIdentity] = (),
        receipts: Path | ReceiptStore | None = None,
        relay: str | None = None,
        model_digest: str = "",
        verify: ssl.SSLContext | bool = True,
        timeout: httpx2.Timeout | float | None = _TIMEOUT,
        headers: Mapping[str, str] | None = None,
        event_hooks: Mapping[str, list[Callable[..., Any]]] | None = None,
    ) -> None:
        self.store, self._owned = _store(receipts)
        transport = PrivateTransport(
            url,
            verifier_of(policy, model_digest=model_digest),
            httpx2.HTTPTransport(verify=_tls(relay or url, verify), trust_env=False, limits=_LIMITS),
            token=token,
            seal_to=seal_to,
            keep=_keep(self.store),
            relay=relay,
        )
        super().__init__(
            transport=transport,
            base_url=transport.url,
            timeout=timeout,
            headers=headers,
            event_hooks=None if event_hooks is None else dict(event_hooks),
            trust_env=False,
            follow_redirects=False,
        )

    @property
    def verified(self) -> Verified | None:
        """The service as it was last verified; None before the first request."""
        return self._transport.verified

    def attest(self) -> Verified:
        """Verify the service now.

        Raises:
            PolicyRefused, VerificationError, ProtocolError: it does not pass; nothing was sent to it.
            httpx2.TransportError: it cannot be reached.
        """
        return self._transport.attest()

    def close(self) -> None:
        """Close connections, and the file of receipts where this client opened it."""
        super().close()
        if self._owned and self.store is not None:
            self.store.close()


class AsyncPrivateClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` for one service, on one asyncio loop; otherwise as `PrivateClient`."""

    _transport: AsyncPrivateTransport

    def __init__(
        self,
        url: str,
        policy: Policy = EnclavePolicy(),  # noqa: B008  # frozen
        *,
        token: str | None = None,
        seal_to: Sequence[PublicIdentity] = (),
        receipts: Path | ReceiptStore | None = None,
        relay: str | None = None,
        model_digest: str = "",
        verify: ssl.SSLContext | bool = True,
        timeout: httpx2.Timeout | float | None = _TIMEOUT,
        headers: Mapping[str, str] | None = None,
        event_hooks: Mapping[str, list[Callable[..., Any]]] | None = None,
    ) -> None:
        self.store, self._owned = _store(receipts)
        transport = AsyncPrivateTransport(
            url,
            verifier_of(policy, model_digest=model_digest),
            httpx2.AsyncHTTPTransport(verify=_tls(relay or url, verify), trust_env=False, limits=_LIMITS),
            token=token,
            seal_to=seal_to,
            keep=_keep(self.store),
            relay=relay,
        )
        super().__init__(
            transport=transport,
            base_url=transport.url,
            timeout=timeout,
            headers=headers,
            event_hooks=None if event_hooks is None else dict(event_hooks),
            trust_env=False,
            follow_redirects=False,
        )

    @property
    def verified(self) -> Verified | None:
        """The service as it was last verified; None before the first request."""
        return self._transport.verified

    @property
    def transport(self) -> AsyncPrivateTransport:
        """What carries the requests; for those who need no client around it."""
        return self._transport

    async def attest(self) -> Verified:
        """Verify the service now; raises as `PrivateClient.attest`."""
        return await self._transport.attest()

    async def aclose(self) -> None:
        """Close connections, and the file of receipts where this client opened it."""
        await super().aclose()
        if self._owned and self.store is not None:
            self.store.close()


def _tls(url: str, verify: ssl.SSLContext | bool) -> ssl.SSLContext | bool:
    """Return how TLS is verified; roots are not loaded for an address that uses none."""
    if url.lower().startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return verify


def _store(receipts: Path | ReceiptStore | None) -> tuple[ReceiptStore | None, bool]:
    return (ReceiptStore(receipts), True) if isinstance(receipts, Path) else (receipts, False)


def _keep(store: ReceiptStore | None) -> Keep | None:
    return None if store is None else store.add
