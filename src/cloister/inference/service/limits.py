"""How much a service takes at once; front and worker keep to the same numbers, each for itself."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloister.inference.exchange.padding import padded
from cloister.inference.service.pipe import MAX_STREAMS

__all__ = ["Limits"]


class Limits(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Bounds of a service.

    Attributes:
        streams: requests that are open at once.
        body: bytes of a request's body.
        held: bytes of all requests that the worker holds at once.
        stall_seconds: how long a client may neither send nor read before its request is dropped.
        attestations: requests for evidence that may wait at once.
        share: requests of one client that are answered at once, where there are several clients; 0 for half
            of `streams`. Where anybody may ask, nobody has a name, and this bounds nothing.
        slowest: bytes a second that a client has to send on the whole, `stall_seconds` apart.
    """

    streams: Annotated[int, msgspec.Meta(ge=1, le=4096)] = MAX_STREAMS
    body: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 30)] = 32 << 20
    held: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 34)] = 256 << 20
    stall_seconds: Annotated[float, msgspec.Meta(gt=0.0)] = 60.0
    attestations: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    slowest: Annotated[int, msgspec.Meta(ge=1)] = 16 << 10
    share: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0

    @property
    def sealed_body(self) -> int:
        """Bytes of the largest sealed request: padding, frames and head included."""
        return padded(self.body) * 65 // 64 + (1 << 17)
