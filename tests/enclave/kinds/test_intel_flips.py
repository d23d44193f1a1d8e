"""No bit of a genuine quote can change unnoticed, and no bytes make the parser raise but InputError."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from tests.enclave.fuzz import fuzz_seconds, mutations
from tests.enclave.kinds.verdicts import flipped, refused_or_same
from tests.enclave.samples import sample

from cloister.enclave.kinds.intel import UNAUTHENTICATED, QuotePolicy, quote_refusals, verify_quote
from cloister.errors import InputError

JUNE = datetime(2025, 6, 20, 10, 16, 3, tzinfo=UTC)
SAMPLES = {
    "tdx/phala_tdx_quote": JUNE,
    "tdx/phala_tdx_quote_outdated": datetime(2026, 2, 19, 10, 58, 51, tzinfo=UTC),
    "tdx/google_quote_v5_sample.dat": datetime(2026, 2, 1, tzinfo=UTC),
    "tdx/google_cos113_quote.dat": datetime(2024, 10, 1, tzinfo=UTC),
    "sgx/phala_sgx_quote": JUNE,
}


def endorsements(path: str) -> Mapping[str, bytes]:
    return {} if "google" in path else {"collateral": sample(f"{path}_collateral.json")}


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", SAMPLES)
def test_one_bit_of_a_quote_changes_nothing_unnoticed(path: str, count: int) -> None:
    quote, at, given = sample(path), SAMPLES[path], endorsements(path)
    before = verify_quote(quote, given, at=at)
    assert UNAUTHENTICATED == ()
    for position, changed in flipped(quote, count):
        verdict = refused_or_same(lambda data: verify_quote(data, given, at=at), before, changed)
        assert verdict is True, position


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tdx/google_quote_v5_sample.dat", "sgx/phala_sgx_quote"])
def test_fuzz_no_bytes_make_a_quote_raise_but_input_errors(path: str) -> None:
    given = endorsements(path)
    for changed in mutations(sample(path), fuzz_seconds() / 2, seed=7):
        with contextlib.suppress(InputError):
            verify_quote(changed, given, at=SAMPLES[path])


@pytest.mark.slow
def test_fuzz_no_bytes_make_collateral_raise_but_input_errors() -> None:
    quote = sample("tdx/phala_tdx_quote")
    for changed in mutations(sample("tdx/phala_tdx_quote_collateral.json"), fuzz_seconds(), seed=8):
        with contextlib.suppress(InputError):
            verify_quote(quote, {"collateral": changed}, at=JUNE)
            quote_refusals(quote, {"collateral": changed}, at=JUNE, policy=QuotePolicy())
