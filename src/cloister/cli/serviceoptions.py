"""What `cloister proxy`, `ask` and `receipts` share: whom to believe, who asks, and what went wrong."""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloister.cli import common
from cloister.cli.common import say
from cloister.errors import InputError, ProtocolError
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.enclave.policy import EnclavePolicy
    from cloister.inference.client.verify import Verified

__all__ = [
    "CaOption",
    "ModelDigestOption",
    "PolicyOption",
    "ReceiptsOption",
    "RelayOption",
    "TokenOption",
    "client_policy",
    "in_reach",
    "read_token",
    "tell_verified",
    "tls_of",
]

_MAX_POLICY: Final = 1 << 20
_MAX_TOKEN: Final = 4096

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="P.toml", help="Which evidence is accepted. Default: this home's enclave policy."
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Holds the token that the service's operator gave."),
]
RelayOption = Annotated[
    str | None,
    typer.Option("--relay", metavar="URL", help="Ask through a relay: the service does not see who asks."),
]
ReceiptsOption = Annotated[
    Path | None, typer.Option("--receipts", metavar="FILE", help="Keep the signed receipt of every answer.")
]


def _digest(text: str) -> str:
    """Return a model's digest as it is compared. Raises InputError where it is none, as a shortened one."""
    if text and not re.fullmatch("[0-9a-f]{64}", text.lower()):
        raise InputError(
            "a model's digest has 64 hexadecimal digits",
            where="--model-digest",
            fix="See `cloister model show`, or the page of `cloister proxy`",
        )
    return text.lower()


ModelDigestOption = Annotated[
    str,
    typer.Option("--model-digest", metavar="HEX", help="Accept this model and no other.", callback=_digest),
]
CaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Certificates that the service's TLS may end in, in PEM."),
]


def client_policy(path: Path | None) -> EnclavePolicy:
    """Return the policy that a command judges services by: a file's, else this home's, else the default.

    Raises:
        InputError: the file is none, or the home's is not signed.
        IntegrityError: the home's is not as its owner signed it.
    """
    from cloister.crypto import Identity
    from cloister.enclave.policy import EnclavePolicy
    from cloister.enclave.policyfile import enclave_policy_path, load_enclave_policy, read_enclave_policy

    if path is not None:
        return read_enclave_policy(read_bytes(path, limit=_MAX_POLICY, what="enclave policy"))
    if not common.identity_path().exists() and not enclave_policy_path(common.home()).exists():
        return EnclavePolicy()
    return load_enclave_policy(common.home(), Identity.read_public(common.identity_path()))


def read_token(path: Path | None) -> str | None:
    """Return the token in a file; None without one. Raises InputError where it holds none."""
    if path is None:
        return None
    data = read_bytes(path, limit=_MAX_TOKEN, what="file of the token")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        say(f"Others on this machine may read {path}; chmod 600 keeps it to you.")
    token = data.strip()
    if not token or not all(33 <= byte <= 126 for byte in token):
        raise InputError("the file holds no token", where=str(path), fix="Put the token into it, and no more")
    return token.decode()


def tls_of(authorities: Path | None) -> ssl.SSLContext | bool:
    """Return how TLS is verified. Raises InputError where the file has no certificates."""
    if authorities is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(authorities))
    except OSError as error:  # an SSLError is one
        raise InputError(
            "the file has no certificates that can be used", where=str(authorities), fix="Give PEM"
        ) from error


@contextmanager
def in_reach(url: str) -> Iterator[None]:
    """Turn what the network or a broken exchange raises into an error with one sentence."""
    import httpx2

    from cloister.inference.client.failures import failure_of
    from cloister.inference.client.outside import ExchangeError

    try:
        yield
    except ExchangeError as error:
        raise ProtocolError(
            str(error), peer=url, fix="Ask its operator; nothing was sent in the clear"
        ) from error
    except httpx2.RemoteProtocolError as error:
        raise ProtocolError(
            "the connection broke before the answer was complete",
            peer=url,
            fix="Ask again; where it always does, check whether the address is one of http or https",
        ) from error
    except httpx2.TransportError as error:
        what = failure_of(error).message.rstrip(".")
        fix = "Name its authority with --tls-ca" if "certificate" in what else "Check its address"
        if "busy" in what:
            fix = "Ask again later; then ask its operator"
        if isinstance(error, httpx2.TimeoutException):
            fix = "Ask again; if it stays silent, its operator can see whether the worker stands still"
        raise InputError(f"{what[:1].lower()}{what[1:]}", where=url, fix=fix) from error


def tell_verified(url: str, verified: Verified) -> None:
    """Say on stderr what was verified, and aloud what does not stand behind it."""
    from cloister.inference.client.page import BEHIND, named_model, vouched

    keys = verified.keys
    digest = f" ({keys.model_digest[:16]})" if named_model(keys.model_digest) else ""
    say(f"Verified {url}: {keys.model}{digest}, {verified.protection}.")
    if not digest:
        say(BEHIND)
    if verified.claims.software_only or verified.claims.measurement_match is not True:
        say(vouched(verified.claims))
