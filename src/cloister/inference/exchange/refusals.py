"""What a service says where it does not answer: one of four words, and nothing more precise.

A request that is malformed, does not open, was seen before or was cut gets one word for all of these, so that
nobody learns from refusals what became of bytes that he altered.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

from cloister.errors import ProtocolError

__all__ = ["REFUSAL_STATUS", "Refused", "StaleKey", "TooLarge"]

REFUSAL_STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {"stale-key": 409, "request": 400, "busy": 503, "too-large": 413}
)
"""The HTTP status of each word."""


class Refused(ProtocolError):
    """A request that is not taken: malformed, does not open, seen before, or cut.

    Attributes:
        reason: the word that the client is told.
    """

    reason: ClassVar[str] = "request"

    def __init__(self) -> None:
        super().__init__("a request that does not open as one", fix="Seal it again and send it once")


class TooLarge(Refused):
    """A request whose body exceeds the service's limit."""

    reason: ClassVar[str] = "too-large"

    def __init__(self) -> None:
        ProtocolError.__init__(self, "a request that is too large", fix="Send less at once")


class StaleKey(ProtocolError):
    """A request under a key set that this service does not have, or no longer.

    Attributes:
        reason: the word that the client is told.
    """

    reason: ClassVar[str] = "stale-key"

    def __init__(self) -> None:
        super().__init__(
            "a request under a key set that is not in use", fix="Attest the service anew, and ask once more"
        )
