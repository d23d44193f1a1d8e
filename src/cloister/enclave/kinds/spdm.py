"""The bytes of an NVIDIA report: an SPDM request for measurements, its response, and the device's signature.

Layout: request (37 bytes) | response: header, measurement blocks, the device's nonce, opaque data, signature.
Source: DMTF DSP0274, Security Protocol and Data Model 1.1, tables 30 to 34; fields of the opaque data: NVIDIA
nvtrust, guest tools. The signature is over everything before it, the request with the verifier's nonce
included. Devices are read through a buffer: after the signature there are zeros or nothing.

Nothing is checked here but the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.enclave.kinds.binding import Cursor
from cloister.errors import InputError

__all__ = ["DRIVER_VERSION", "FIRMWARE_ID", "NVDEC", "VBIOS_VERSION", "Report", "parse_report"]

_REQUEST: Final = bytes.fromhex("11e001ff")
"""Version 1.1, GET_MEASUREMENTS, with a signature, all measurements."""
_RESPONSE: Final = bytes.fromhex("11600000")
_NONCE: Final = 32
_SIGNATURE: Final = 96
_DMTF: Final = 1
_MAX_OPAQUE: Final = 1024
"""SPDM 1.1, table 32."""

DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC: Final = 11
FIRMWARE_ID: Final = 20
_TEXTS: Final = {
    DRIVER_VERSION: "driver_version",
    15: "chip_sku",
    16: "chip_sku_mod",
    17: "project",
    18: "project_sku",
    19: "project_sku_mod",
    35: "chip_info",
}
_NUMBERS: Final = {14: "board_id", 34: "opaque_version"}
_FLAGS: Final = {0xAA: "on", 0x55: "off"}
_MODES: Final = {0: "single", 1: "multiple", 2: "protected-pcie"}


@dataclass(frozen=True, slots=True)
class Report:
    """A report in its parts.

    Attributes:
        signed: what the signature is over.
        nonce: the verifier's, 32 bytes.
        measurements: by index, from 1; most have 48 bytes.
        opaque: the device's own fields, by type.
        signature: r and s of P-384, 96 bytes.
    """

    signed: bytes
    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signature: bytes

    def properties(self) -> dict[str, str]:
        """Return the fields that people know by name.

        Raises:
            InputError: a text is not printable ASCII, or a field has another size than it must.
        """
        found = {name: _text(self.opaque[kind], name) for kind, name in _TEXTS.items() if kind in self.opaque}
        for kind, name in _NUMBERS.items():
            if kind in self.opaque:
                found[name] = str(int.from_bytes(self.opaque[kind], "little"))
        if version := self.opaque.get(VBIOS_VERSION):
            found["vbios_version"] = _vbios(version)
        if (status := self.opaque.get(21)) is not None:
            found["protected_pcie"] = _FLAGS.get(int.from_bytes(status, "little"), status.hex())
        if (mode := self.opaque.get(36)) is not None:
            found["mode"] = _MODES.get(int.from_bytes(mode, "little"), mode.hex())
        if (lock := self.opaque.get(25)) is not None:
            found["switch_lock"] = lock.hex()
        return {name: value for name, value in found.items() if value}


def parse_report(data: bytes) -> Report:
    """Return the parts of a report.

    Raises:
        InputError: cut short, with fields that are out of range, or with more after it than zeros.
    """
    cursor = Cursor(data, "the device's report")
    if cursor.take(4) != _REQUEST:
        raise InputError("this is not an SPDM 1.1 request for all measurements with a signature")
    nonce = cursor.take(_NONCE)
    if cursor.little(1) > 7:
        raise InputError("the device's report names a certificate slot that cannot be")
    if cursor.take(4) != _RESPONSE:
        raise InputError("this is not an SPDM 1.1 response with measurements")
    count = cursor.little(1)
    measurements = _blocks(Cursor(cursor.take(cursor.little(3)), "the measurement record"), count)
    cursor.take(_NONCE)  # the device's own
    size = cursor.little(2)
    if size > _MAX_OPAQUE:
        raise InputError(f"opaque data has at most {_MAX_OPAQUE} bytes, not {size}")
    opaque = _opaque(cursor.take(size))
    signed = data[: cursor.at]
    signature = cursor.take(_SIGNATURE)
    if any(cursor.rest()):
        raise InputError("after the device's report there is more than zeros")
    return Report(signed, nonce, measurements, opaque, signature)


def _blocks(cursor: Cursor, count: int) -> Mapping[int, bytes]:
    blocks: dict[int, bytes] = {}
    for number in range(1, count + 1):
        index, specification = cursor.little(1), cursor.little(1)
        block = Cursor(cursor.take(cursor.little(2)), "a measurement block")
        if index != number or specification != _DMTF:
            raise InputError(f"measurement block {number} is out of order or not of DMTF's form")
        block.take(1)  # what was measured, and whether it is raw
        blocks[index] = block.take(block.little(2))
        block.end()
    cursor.end()
    if not blocks:
        raise InputError("the device's report holds no measurements")
    return blocks


def _opaque(data: bytes) -> Mapping[int, bytes]:
    cursor = Cursor(data, "the opaque data")
    fields: dict[int, bytes] = {}
    while cursor.at < len(data):
        kind = cursor.little(2)
        if kind in fields:
            raise InputError(f"the opaque data has field {kind} twice")
        fields[kind] = cursor.take(cursor.little(2))
    return fields


def _text(value: bytes, name: str) -> str:
    text = value.rstrip(b"\0")
    if not all(0x20 <= byte < 0x7F for byte in text):
        raise InputError("a field of the device's report is not printable text", where=name)
    return text.decode("ascii")


def _vbios(value: bytes) -> str:
    """Return a VBIOS version as NVIDIA prints it: text, or 8 bytes whose order is its tools'."""
    if len(value) != 8:
        return _text(value, "vbios_version")
    backwards = value[::-1]
    return ".".join(f"{byte:02X}" for byte in backwards[4:] + backwards[3:4])
