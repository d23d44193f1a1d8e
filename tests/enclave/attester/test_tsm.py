"""configfs-tsm, against a twin of the kernel's folder tree (Documentation/ABI/testing/configfs-tsm)."""

from __future__ import annotations

import contextlib
import errno
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.enclave.fuzz import fuzz_seconds, mutations
from tests.enclave.samples import sample

from cloister.enclave.attester.attest import TsmAttester, find_attester
from cloister.enclave.attester.tsm import Configfs, TsmReports, certificates
from cloister.enclave.kinds import snp
from cloister.errors import InputError, IntegrityError

VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
DATA = bytes(range(64))


def table(*entries: tuple[uuid.UUID, bytes]) -> bytes:
    at = 24 * (len(entries) + 1)
    head, body = b"", b""
    for guid, certificate in entries:
        head += guid.bytes + (at + len(body)).to_bytes(4, "little") + len(certificate).to_bytes(4, "little")
        body += certificate
    return head + bytes(24) + body


class Kernel(Configfs):
    """What the kernel does with a request."""

    def __init__(self, provider: str = "sev_guest", aux: bytes | None = b"") -> None:
        self.provider = provider
        self.aux = aux
        self.meanwhile: Callable[[Path], None] = lambda folder: None

    def make(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "provider").write_text(self.provider + "\n")
        (folder / "generation").write_text("0\n")

    def write(self, attribute: Path, data: bytes) -> None:
        assert attribute.name == "inblob"
        if len(data) > 64:
            raise OSError(errno.EINVAL, "too long")
        folder = attribute.parent
        count = int((folder / "generation").read_text()) + 1
        (folder / "generation").write_text(f"{count}\n")
        (folder / "outblob").write_bytes(b"report over " + data)
        if self.aux is not None:
            (folder / "auxblob").write_bytes(self.aux)
        self.meanwhile(folder)

    def remove(self, folder: Path) -> None:
        for each in folder.iterdir():  # the kernel's attributes go with their folder
            each.unlink()
        folder.rmdir()


def test_a_report_carries_the_data_and_the_hosts_certificates(tmp_path: Path) -> None:
    kernel = Kernel(aux=table((VCEK, b"vcek"), (ARK, b"ark-of-amd"), (uuid.UUID(int=7), b"else")))
    report = TsmReports(tmp_path, kernel).report(DATA)
    assert report == ("snp", b"report over " + DATA, {"vcek": b"vcek", "ark": b"ark-of-amd"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("aux", [b"", None])
def test_a_host_may_give_no_certificates(tmp_path: Path, aux: bytes | None) -> None:
    assert TsmReports(tmp_path, Kernel(aux=aux)).report(DATA).certificates == {}


def test_a_tdx_guest(tmp_path: Path) -> None:
    kernel = Kernel("tdx_guest", aux=b"not a table")
    assert TsmReports(tmp_path, kernel).report(DATA) == ("tdx", b"report over " + DATA, {})


def test_somebody_else_writing_is_noticed(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.meanwhile = lambda folder: (folder / "generation").write_text("2\n") and None
    with pytest.raises(IntegrityError, match="somebody else"):
        TsmReports(tmp_path, kernel).report(DATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("provider", ["arm_cca_guest", "", "sev"])
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, provider: str) -> None:
    reports = TsmReports(tmp_path, Kernel(provider))
    assert reports.kind() is None
    with pytest.raises(InputError, match="format"):
        reports.report(DATA)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBUSY, errno.ENXIO, errno.EWOULDBLOCK])
def test_a_kernel_that_refuses_is_a_clear_error(tmp_path: Path, number: int) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(number, "no")

    kernel = Kernel()
    kernel.meanwhile = refuse
    with pytest.raises(InputError, match="the machine gives no report"):
        TsmReports(tmp_path, kernel).report(DATA)
    assert list(tmp_path.iterdir()) == []


def test_the_system_itself(tmp_path: Path) -> None:
    """The real four operations, on an ordinary folder: no attribute appears by itself there."""
    with pytest.raises(InputError, match="the machine gives no report"):
        TsmReports(tmp_path).report(DATA)
    assert TsmReports(tmp_path).kind() is None
    assert TsmReports(tmp_path / "none").kind() is None
    path = tmp_path / "inblob"
    path.write_bytes(b"")
    Configfs().write(path, b"data")
    assert Configfs().read(path) == b"data"


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_report_data_has_64_bytes(tmp_path: Path, length: int) -> None:
    with pytest.raises(InputError, match="64 bytes"):
        TsmReports(tmp_path, Kernel()).report(bytes(length))


def test_the_best_attester_is_the_confidential_guest(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    (folder / "endorsements").mkdir(parents=True)
    (folder / "endorsements" / "ask.pem").write_bytes(b"ask of the site")
    (folder / "endorsements" / "vcek.der").write_bytes(b"older")
    root = tmp_path / "report"
    root.mkdir()
    reports = TsmReports(root, Kernel(aux=table((VCEK, b"of the host"))))
    attester = find_attester(folder, software_allowed=False, reports=reports)
    assert isinstance(attester, TsmAttester)
    assert (attester.kind, attester.hardware) == ("snp", True)
    evidence = attester.attest(DATA)
    assert evidence.kind == "snp"
    assert evidence.endorsements == {"ask": b"ask of the site", "vcek": b"of the host"}
    attester.close()


def test_tables_that_do_not_hold_together() -> None:
    good = table((VCEK, b"vcek"), (VLEK, b"vlek"))
    assert certificates(good) == {"vcek": b"vcek", "vlek": b"vlek"}
    assert certificates(good + bytes(4096)) == certificates(good)  # hosts give whole pages
    for bad in (good[:24], good[:30], table((VCEK, b"a"), (VCEK, b"b")), table((VCEK, b""))):
        with pytest.raises(InputError):
            certificates(bad)
    far = bytearray(good)
    far[16:20] = b"\xff" * 4
    with pytest.raises(InputError, match="within its table"):
        certificates(bytes(far))


def test_mutated_tables_raise_nothing_else() -> None:
    for each in mutations(table((VCEK, b"v" * 40), (ARK, b"a" * 40)), 3000, 7):
        with contextlib.suppress(InputError):
            certificates(each)


def test_a_genuine_snp_report_through_the_twin_verifies_as_one(tmp_path: Path) -> None:
    genuine = sample("snp/coco_test-report.bin")
    kernel = Kernel()
    kernel.meanwhile = lambda folder: (folder / "outblob").write_bytes(genuine) and None
    evidence = find_attester(
        tmp_path / "home", software_allowed=False, reports=TsmReports(tmp_path, kernel)
    ).attest(DATA)
    claims = snp.verify(evidence, at=datetime(2026, 5, 1, tzinfo=UTC), expected=DATA)
    assert claims.kind == "snp"
    assert claims.freshness is False  # it is somebody else's report, over other data


@pytest.mark.slow
def test_fuzzed_tables_raise_nothing_else() -> None:
    start = table((VCEK, b"v" * 200), (VLEK, b"l" * 10), (ARK, b"a" * 40))
    for each in mutations(start, float(fuzz_seconds()), 11):
        with contextlib.suppress(InputError):
            certificates(each)
