"""The log of a measured start: what Cloister measured before it ran, and the registers that replay from it.

One canonical JSON line an entry: {"detail", "digest", "name", "pcr"}. The register `pcr` of a TPM is extended
with SHA-256 of the canonical line without "pcr"; so a log that was altered, cut short or put in another order
does not replay to the registers that were quoted.

Invariants:
    1. Only registers 11 to 14 are ours: firmware has those below, and software can reset those from 16 on.
    2. A name stands for one digest. The same entry may come again (a process that was started twice); the
       same name with another digest is refused, so that no policy is met by the first of two.
    3. One log, one sequence of bytes: whatever is not in canonical form is refused.

This is self-measurement: the software that is judged says what it is. A replay shows that the log was not
altered since; it cannot show that the first entry was true. `Claims.self_reported` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from cloister.crypto import canonical_bytes
from cloister.errors import InputError

__all__ = ["START_PCRS", "StartEntry", "StartLog", "extended"]

START_PCRS: Final = (11, 12, 13, 14)
"""The registers a measured start may extend."""
_MAX_ENTRIES: Final = 4096
_MAX_BYTES: Final = 2 << 20
_ZERO: Final = bytes(32)


class StartEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measurement.

    Attributes:
        pcr: the register it was extended into.
        name: what was measured, such as "package" or "plan".
        digest: SHA-256 of the content, 64 lower-case hexadecimal digits.
        detail: for people: a version, a path within the package.
    """

    pcr: Annotated[int, msgspec.Meta(ge=START_PCRS[0], le=START_PCRS[-1])]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._/-]*\Z")]
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    detail: Annotated[str, msgspec.Meta(max_length=1024)] = ""

    @property
    def value(self) -> bytes:
        """The 32 bytes that the register is extended with."""
        stated = {"name": self.name, "digest": self.digest, "detail": self.detail}
        return hashlib.sha256(canonical_bytes(stated)).digest()


class StartLog:
    """Entries in the order in which they were extended."""

    def __init__(self) -> None:
        self._entries: list[StartEntry] = []
        self._digests: dict[str, str] = {}

    @property
    def entries(self) -> tuple[StartEntry, ...]:
        """What was measured, oldest first."""
        return tuple(self._entries)

    def extend(self, pcr: int, name: str, digest: str, detail: str = "") -> bytes:
        """Enter one measurement and return the 32 bytes to extend register `pcr` with.

        Args:
            pcr: 11 to 14.
            name: what was measured: lower-case letters, digits, ".", "_", "/" and "-".
            digest: SHA-256 of the content, hexadecimal.
            detail: for people, at most 1,024 characters.

        Raises:
            InputError: a field does not fit, or the name was measured before as something else.
        """
        fields = {"pcr": pcr, "name": name, "digest": digest, "detail": detail}
        try:
            entry = msgspec.convert(fields, StartEntry)
        except msgspec.ValidationError as error:
            raise InputError(
                f"this cannot be entered in a start log: {error}", where=str(name)[:64]
            ) from None
        value = entry.value
        self._enter(entry)
        return value

    def _enter(self, entry: StartEntry) -> None:
        if self._digests.get(entry.name, entry.digest) != entry.digest:
            raise InputError(
                "a name stands for two different contents in one measured start",
                where=entry.name,
                fix="Start the machine (or its software TPM) anew before running something else",
            )
        if len(self._entries) == _MAX_ENTRIES:
            raise InputError(
                f"a start log has more than {_MAX_ENTRIES} entries", fix="Start the machine anew"
            )
        self._digests[entry.name] = entry.digest
        self._entries.append(entry)

    def digests(self) -> dict[str, str]:
        """Return what was measured: digest (hexadecimal) by name."""
        return dict(self._digests)

    def replay(self, initial: Mapping[int, bytes] | None = None) -> dict[int, bytes]:
        """Return the registers' values, 32 bytes each, of those that were extended.

        Args:
            initial: what registers held before the first entry, where that is not 32 zero bytes.
        """
        registers: dict[int, bytes] = {}
        for entry in self._entries:
            before = registers.get(entry.pcr) or (initial or {}).get(entry.pcr, _ZERO)
            registers[entry.pcr] = extended(before, entry.value)
        return registers

    def to_bytes(self) -> bytes:
        """Return the log: one canonical JSON line an entry."""
        return b"".join(canonical_bytes(entry) + b"\n" for entry in self._entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> StartLog:
        """Return the log in `data`.

        Raises:
            InputError: too long, or not exactly what `to_bytes` writes.
        """
        if len(data) > _MAX_BYTES:
            raise InputError(f"a start log has more than {_MAX_BYTES >> 20} MiB")
        log = cls()
        for number, line in enumerate(data.splitlines(), start=1):
            try:
                log._enter(msgspec.json.decode(line, type=StartEntry))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"this is not a start log: {error}", where=f"line {number}") from None
        if log.to_bytes() != data:
            raise InputError("a start log is not in canonical form", fix="Give what the attester wrote")
        return log


def extended(register: bytes, value: bytes) -> bytes:
    """Return SHA-256(register || value): what a register holds after an extend (TPM 2.0 part 1, 17.2)."""
    return hashlib.sha256(register + value).digest()
