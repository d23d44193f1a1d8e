"""Genuine samples of every kind as evidence, with the time at which each verifies and what was asked for.

The files are public (their folder's PROVENANCE.md names the sources); they are read where
$CLOISTER_TEST_EVIDENCE says and are not part of this repository.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.enclave.evidence import Evidence, Kind

__all__ = ["Sample", "positives"]

_SCALE_PREFIX = 4  # the Nitro sample is wrapped in SCALE: two tags, then two bytes of length and mode


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        name: of it, for figures.
        evidence: the document.
        at: when it verifies.
        asked: what it carries: a nonce or report data; None where nobody knows.
    """

    name: str
    evidence: Evidence
    at: datetime
    asked: bytes | None = None


def _snp(read: Callable[[str], bytes]) -> Iterator[Sample]:
    chain = {"ask_ark": read("snp/amd_ask_ark_milan.pem")}
    report = read("snp/coco_test-report.bin")
    endorsements = {"vcek": read("snp/coco_test-vcek.der"), **chain}
    yield Sample("snp", Evidence("snp", report, endorsements), _day(2024, 6, 1), report[0x50:0x90])


def _intel(read: Callable[[str], bytes]) -> Iterator[Sample]:
    moment = datetime(2025, 6, 20, 10, 16, 3, tzinfo=UTC)
    kinds: tuple[tuple[Kind, str], ...] = (("tdx", "tdx/phala_tdx_quote"), ("sgx", "sgx/phala_sgx_quote"))
    for kind, path in kinds:
        quote, collateral = read(path), read(f"{path}_collateral.json")
        yield Sample(kind, Evidence(kind, quote, {"collateral": collateral}), moment)
    quote = read("tdx/google_cos113_quote.dat")
    log = read("tdx/google_cos113_ccel_data.dat")
    nonce = read("tdx/google_cos113_nonce.dat")
    yield Sample("tdx with its event log", Evidence("tdx", quote, event_log=log), _day(2025, 1, 1), nonce)


def _tpm(read: Callable[[str], bytes]) -> Iterator[Sample]:
    yield Sample(
        "tpm", Evidence("tpm", read("tpm/gce_cos85_nonce9009.pb")), _day(2024, 6, 1), bytes.fromhex("9009")
    )


def _azure(read: Callable[[str], bytes]) -> Iterator[Sample]:
    chain = {"ask_ark": read("snp/amd_ask_ark_milan.pem")}
    for version in ("v0", "v1"):
        document = read(f"azure_snp_vtpm/evidence-{version}.json")
        evidence = Evidence("azure-snp-vtpm", document, chain)
        yield Sample(f"azure-snp-vtpm {version}", evidence, _day(2026, 6, 1), b"challenge")
    document = read("azure_tdx_vtpm/evidence-v0.json")
    yield Sample("azure-tdx-vtpm", Evidence("azure-tdx-vtpm", document), _day(2026, 6, 1), b"challenge")


def _nitro(read: Callable[[str], bytes]) -> Iterator[Sample]:
    wrapped = read("nitro/dstack_nitro_attestation.bin")
    length = int.from_bytes(wrapped[2:_SCALE_PREFIX], "little") >> 2
    document = wrapped[_SCALE_PREFIX : _SCALE_PREFIX + length]
    yield Sample("nitro", Evidence("nitro", document), datetime(2025, 12, 25, 13, 15, 37, tzinfo=UTC))


def _nvidia(read: Callable[[str], bytes]) -> Iterator[Sample]:
    kinds: tuple[tuple[Kind, str], ...] = (
        ("nvidia-gpu", "nvidia/ppcie_gpu_evidence.json"),
        ("nvidia-switch", "nvidia/ppcie_switch_evidence.json"),
    )
    for kind, path in kinds:
        listed = json.loads(read(path))
        first = (listed if isinstance(listed, list) else listed["evidences"])[0]
        report = base64.b64decode(first["evidence"])
        chain = base64.b64decode(first["certificate"])
        yield Sample(kind, Evidence(kind, report, {"chain": chain}), _day(2025, 1, 1), report[4:36])


def _day(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, tzinfo=UTC)


def positives(folder: Path) -> Iterator[Sample]:
    """Yield a sample of every kind that verifies."""

    def read(relative: str) -> bytes:
        return (folder / relative).read_bytes()

    for source in (_snp, _intel, _tpm, _azure, _nitro, _nvidia):
        yield from source(read)
