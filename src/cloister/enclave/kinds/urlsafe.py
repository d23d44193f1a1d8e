"""Base64 in its URL-safe alphabet (RFC 4648, section 5), in the one form that an encoder writes."""

from __future__ import annotations

import base64
import binascii

from cloister.errors import InputError

__all__ = ["from_base64url"]


def from_base64url(text: str, name: str) -> bytes:
    """Return the bytes in a text, padded or not.

    Raises:
        InputError: another alphabet, white space, or bits after the last byte that are not zero.
    """
    bare = text.rstrip("=")
    padded = bare + "=" * (-len(bare) % 4)
    try:
        data = base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InputError("this is not base64 for URLs", where=name) from None
    if text not in (bare, padded) or base64.urlsafe_b64encode(data).decode() != padded:
        raise InputError("base64 is not in its one form", where=name)
    return data
