"""Shared by this room: the token that unlocks secret bytes, and the manners of objects that hold them."""

from __future__ import annotations

from typing import Final, NoReturn, TypeAlias, final

from cloister.errors import InputError

__all__ = ["SECRET_ACCESS", "Buffer", "HoldsSecret", "SecretAccess", "check_length", "require_secret_access"]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are read and never kept."""


@final
class SecretAccess:
    """The type of the one token `SECRET_ACCESS`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "SECRET_ACCESS"


SECRET_ACCESS: Final = SecretAccess()
"""Passed to a method that returns secret bytes. It protects against accidents only: searching a code base for
its name finds every place where secrets leave their objects."""


def require_secret_access(token: SecretAccess) -> None:
    """Raise TypeError unless `token` is `SECRET_ACCESS`."""
    if token is not SECRET_ACCESS:
        raise TypeError("secret bytes leave only with the token SECRET_ACCESS")


class HoldsSecret:
    """Base of objects with secrets inside: not printed, pickled or copied, and compared by identity only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and is neither pickled nor copied")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()


def check_length(data: Buffer, length: int, what: str) -> None:
    """Raise InputError unless `data` is `length` bytes long."""
    if len(data) != length:
        raise InputError(f"{what} must be {length} bytes and is {len(data)}", fix="Check where it came from")
