"""Measured start: what changes the log, what does not, and that it goes on after a kill."""

from __future__ import annotations

import hashlib
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm

import cloister
from cloister.enclave.attester import SoftwareTpm, Tpm, attest, find_attester
from cloister.enclave.attester import measured as measured_module
from cloister.enclave.attester.measured import (
    Measured,
    entered,
    extend_into,
    file_digests,
    measure,
    standing,
)
from cloister.enclave.eventlog.start import START_PCRS, StartLog, extended
from cloister.enclave.evidence import report_data
from cloister.enclave.kinds import tpm as kind
from cloister.errors import InputError, IntegrityError, PolicyRefused

AT = datetime(2026, 6, 1, tzinfo=UTC)
ASKED = report_data("test", bytes(32), bytes(32))


class Twin:
    """Registers in memory."""

    def __init__(self) -> None:
        self.values = dict.fromkeys(START_PCRS, bytes(32))
        self.extends = 0

    def extend(self, pcr: int, value: bytes) -> None:
        self.values[pcr] = extended(self.values[pcr], value)
        self.extends += 1

    def pcrs(self, selection: tuple[int, ...]) -> dict[int, bytes]:
        return {pcr: self.values[pcr] for pcr in selection}


def digests(measured: tuple[Measured, ...]) -> dict[str, str]:
    return {each.name: each.digest for each in measured}


def test_it_measures_the_same_twice_and_names_what() -> None:
    one = measure(plan=b"plan", policy=b"policy")
    assert one == measure(plan=b"plan", policy=b"policy")
    assert [each.name for each in one] == [
        "interpreter",
        "package",
        "dependencies",
        "hooks",
        "plan",
        "policy",
    ]
    changed = digests(measure(plan=b"plan2", policy=b"policy"))
    assert [name for name, digest in digests(one).items() if changed[name] != digest] == ["plan"]


def test_one_byte_of_any_file_of_the_package_changes_it(tmp_path: Path) -> None:
    copy = tmp_path / "cloister"
    shutil.copytree(Path(cloister.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = file_digests(copy)
    whole = digests(measure(package=copy))["package"]
    assert "enclave/attester/measured.py" in before
    assert any(not name.endswith(".py") for name in before)  # style sheets and the like count too
    files = sorted(each for each in copy.rglob("*") if each.is_file())
    assert before == {
        path.relative_to(copy).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    for path in random.Random(3).sample([each for each in files if each.stat().st_size], 5):  # noqa: S311
        content = path.read_bytes()
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        after = file_digests(copy)
        assert [name for name in before if after[name] != before[name]] == [path.relative_to(copy).as_posix()]
        assert digests(measure(package=copy))["package"] != whole
        path.write_bytes(content)
    (copy / "new.py").write_bytes(b"")
    assert digests(measure(package=copy))["package"] != whole
    (copy / "new.py").rename(copy / "newer.py")
    assert file_digests(copy) != before
    (copy / "newer.py").unlink()
    assert digests(measure(package=copy))["package"] == whole


def _installed(place: Path, record: str) -> Path:
    folder = place / "other-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "RECORD").write_text(record)
    return folder


def test_dependencies_are_what_is_installed_wherever_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = "other/a.py,sha256=abc,3\nother/b.py,sha256=def,3\nother/__pycache__/a.pyc,,\n"
    elsewhere = (
        "../../bin/other,sha256=of-a-path,9\nother-1.0.dist-info/direct_url.json,sha256=url,1\n"
        "other-1.0.dist-info/INSTALLER,sha256=pip,1\nother/b.py,sha256=def,3\nother/a.py,sha256=abc,3\n"
    )
    seen = []
    for name, text in (("one", record), ("two", elsewhere), ("three", record.replace("abc", "abd"))):
        _installed(tmp_path / name, text)
        monkeypatch.setattr("sys.path", [str(tmp_path / name)])
        seen.append(digests(measure())["dependencies"])
    assert seen[0] == seen[1] != seen[2]


def test_the_standard_library_is_measured() -> None:
    found = measured_module._interpreter()
    assert {"python", "hashlib.py", "json/__init__.py", "ssl.py"} <= set(found)
    assert any(name.endswith(".so") for name in found) or "libpython" not in found
    assert not any("site-packages" in name for name in found)


def test_the_log_replays_to_the_registers_and_is_not_entered_twice() -> None:
    twin = Twin()
    log = extend_into(twin, measure(plan=b"plan"))
    count = twin.extends
    assert log.replay() == {pcr: value for pcr, value in twin.values.items() if value != bytes(32)}
    again = extend_into(twin, measure(plan=b"plan"), log)
    assert (twin.extends, again.to_bytes()) == (count, log.to_bytes())


def test_other_software_in_one_start_of_a_machine_is_refused() -> None:
    twin = Twin()
    log = extend_into(twin, (Measured(11, "package", "aa" * 32, ""),))
    with pytest.raises(InputError, match="two different contents"):
        extend_into(twin, (Measured(11, "package", "bb" * 32, ""),), log)
    assert twin.extends == 1


def test_registers_somebody_else_extended_are_refused() -> None:
    twin = Twin()
    twin.extend(12, bytes(32))
    with pytest.raises(IntegrityError, match="does not say"):
        extend_into(twin, (Measured(11, "package", "aa" * 32, ""),))


def test_a_start_that_was_killed_between_two_extends_goes_on() -> None:
    three = tuple(Measured(11 + n, f"part{n}", f"{n}{n}" * 32, "") for n in range(3))
    whole = entered(StartLog(), three)
    for count in range(4):
        twin = Twin()
        for entry in whole.entries[:count]:
            twin.extend(entry.pcr, entry.value)
        begun = standing(whole, twin)
        assert len(begun.entries) == count
        assert extend_into(twin, three, begun).to_bytes() == whole.to_bytes()
        assert twin.extends == 3


def test_evidence_of_a_measured_start_verifies_and_says_who_measured(tmp_path: Path) -> None:
    needs_swtpm()
    measured = measure(plan=b"plan")
    attester = find_attester(tmp_path, software_allowed=True, measured=measured, device=tmp_path / "no")
    try:
        assert attester.hardware is False
        evidence = attester.attest(ASKED)
    finally:
        attester.close()
    assert b"not hardware-protected" in evidence.endorsements["software"]
    claims = kind.verify(evidence, at=AT, expected=ASKED)
    assert (claims.signature, claims.bindings, claims.freshness, claims.event_log) == (True,) * 4
    assert claims.self_reported is True
    assert claims.hardware_rooted is False
    assert claims.software_only
    assert {f"start:{name}": digest for name, digest in digests(measured).items()}.items() <= (
        claims.measurements.items()
    )


def test_a_changed_package_shows_in_evidence(tmp_path: Path) -> None:
    needs_swtpm()
    copy = tmp_path / "cloister"
    shutil.copytree(Path(cloister.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    seen = []
    for _ in range(2):
        attester = find_attester(
            tmp_path / "home", software_allowed=True, measured=measure(package=copy), device=tmp_path / "no"
        )
        seen.append(kind.verify(attester.attest(ASKED), at=AT, expected=ASKED).measurements)
        attester.close()
        with (copy / "py.typed").open("ab") as file:
            file.write(b"#")
    assert {name for name in seen[0] if seen[0][name] != seen[1][name]} == {"start:package", "pcr11"}


def test_without_hardware_and_without_leave_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="nothing on this machine can vouch"):
        find_attester(tmp_path, software_allowed=False, device=tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Ask.pem", "a b", "software", "software.txt", "ek-cert"])
def test_endorsements_with_names_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "endorsements").mkdir()
    (tmp_path / "endorsements" / name).write_bytes(b"x")
    with pytest.raises(InputError, match="name that cannot be"):
        find_attester(tmp_path, software_allowed=True)


@pytest.fixture
def machine(tpm: Tpm, monkeypatch: pytest.MonkeyPatch) -> Tpm:
    """A TPM that plays a machine's own: it does not say that it is software, and outlives its users."""
    monkeypatch.setattr(Tpm, "software", property(lambda self: False))
    monkeypatch.setattr(Tpm, "device", classmethod(lambda cls, path: tpm))
    monkeypatch.setattr(Tpm, "close", lambda self: None)
    return tpm


def test_a_machines_tpm_goes_on_with_its_log(
    machine: Tpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "tpmrm0"
    device.write_bytes(b"")
    firmware = tmp_path / "firmware.log"
    firmware.write_bytes(b"what the firmware logged")
    monkeypatch.setattr(attest, "_FIRMWARE_LOG", firmware)
    home = tmp_path / "home"
    logs = []
    for _ in range(2):  # two processes after one start of the machine
        attester = find_attester(home, software_allowed=False, measured=measure(), device=device)
        assert attester.hardware
        evidence = attester.attest(ASKED)
        assert "software" not in evidence.endorsements
        logs.append(evidence.event_log)
    assert logs[0] == logs[1]
    assert kind.verify(evidence, at=AT, expected=ASKED).event_log is True
    unmeasured = find_attester(tmp_path / "else", software_allowed=False, device=device)
    assert unmeasured.attest(ASKED).event_log == b"what the firmware logged"
    with pytest.raises(IntegrityError, match="does not say"):  # its log is not there: registers are not zero
        find_attester(tmp_path / "else", software_allowed=False, measured=measure(), device=device)


def test_attesting_needs_64_bytes(software: SoftwareTpm) -> None:
    with pytest.raises(InputError, match="64 bytes"):
        attest.TpmAttester(software.tpm).attest(bytes(32))
