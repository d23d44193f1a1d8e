from __future__ import annotations

import contextlib

import pytest
from tests.enclave.kinds.intelparts import Maker, sgx_extension, sgx_report, td_report
from tests.enclave.pki import AT
from tests.enclave.samples import sample

from cloister.enclave.kinds.intel import verify_quote
from cloister.enclave.kinds.intelquote import parse_quote
from cloister.errors import InputError


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def accepted(quotes: dict[str, bytes]) -> list[str]:
    found = []
    for what, quote in quotes.items():
        with contextlib.suppress(InputError):
            parse_quote(quote)
            found.append(what)
    return found


def test_headers_say_what_they_must() -> None:
    quote = Maker().quote(td_report())
    assert parse_quote(quote).kind == "tdx"
    cases = {
        "version 2": changed(quote, 0, b"\x02"),
        "version 6": changed(quote, 0, b"\x06"),
        "an EPID key": changed(quote, 2, b"\x01"),
        "an ECDSA P-384 key": changed(quote, 2, b"\x03"),
        "a version of SGX that nobody signs": changed(quote, 4, b"\x00"),
        "TDX in a version of SGX": changed(quote, 0, b"\x03"),
        "an unknown environment": changed(quote, 4, b"\x82"),
        "another vendor": changed(quote, 12, b"\0"),
    }
    assert accepted(cases) == []


def test_lengths_fill_each_other_exactly() -> None:
    quote = Maker().quote(td_report())
    size, outer = 632, 632 + 4 + 128
    inner = outer + 6 + 384 + 64
    cases = {
        "signature data one byte longer": changed(quote, size, bytes([quote[size] + 1])) + b"\0",
        "signature data one byte shorter": changed(quote, size, bytes([quote[size] - 1])),
        "signature data of 4 GiB": changed(quote, size, b"\xff\xff\xff\xff"),
        "a certificate where the enclave's report must be": changed(quote, outer, b"\x05"),
        "certification data of 4 GiB": changed(quote, outer + 2, b"\xff\xff\xff\xff"),
        "certification data one byte shorter": changed(quote, outer + 2, bytes([quote[outer + 2] - 1])),
        "authentication data of 64 KiB": changed(quote, inner, b"\xff\xff"),
        "authentication data of none": changed(quote, inner, b"\0"),
        "an encrypted platform id": changed(quote, inner + 2 + 32, b"\x03"),
    }
    assert accepted(cases) == []


def test_version_5_says_which_body_it_has() -> None:
    quote = sample("tdx/google_quote_v5_sample.dat")
    assert parse_quote(quote).fields["mrservicetd"] == bytes(48)
    cases = {
        "an SGX body": changed(quote, 48, b"\x01"),
        "TDX 1.0 with the size of 1.5": changed(quote, 48, b"\x02"),
        "a body nobody knows": changed(quote, 48, b"\x09"),
        "another size": changed(quote, 50, b"\x87"),
        "a size of 4 GiB": changed(quote, 50, b"\xff\xff\xff\xff"),
    }
    assert accepted(cases) == []


def test_an_sgx_quote_has_its_own_layout() -> None:
    quote = Maker().quote(sgx_report(mrenclave=b"e" * 32, mrsigner=b"s" * 32, report_data=b"d" * 64))
    fields = parse_quote(quote).fields
    assert (fields["mrenclave"], fields["mrsigner"], fields["report_data"]) == (
        b"e" * 32,
        b"s" * 32,
        b"d" * 64,
    )


def test_malformed_sgx_extensions_are_refused() -> None:
    good = sgx_extension()
    cases = [
        b"",
        good[:-1],
        good + b"\0",
        b"\x31" + good[1:],
        changed(good, 1, b"\x80"),
        changed(good, 1, b"\x84"),
    ]
    cases += [changed(good, at, bytes([good[at] ^ 0xFF])) for at in range(0, 8)]
    cases.append(good.replace(bytes(range(16)), bytes(range(15))))
    for extension in cases:
        quote = Maker(extension=extension).quote(td_report())
        with pytest.raises(InputError):
            verify_quote(quote, {}, at=AT)
