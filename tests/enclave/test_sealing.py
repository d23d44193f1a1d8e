"""Sealed data: what opens it, and every attack on it that this machine can try."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.attester.machine import needs_swtpm
from tests.enclave.fuzz import flips, fuzz_seconds, mutations

from cloister.enclave import sealing
from cloister.enclave.attester import SoftwareTpm
from cloister.enclave.attester.nv import NvCounter
from cloister.enclave.sealing import read_header, seal, seal_file, unseal, unseal_file
from cloister.errors import CloisterError, InputError, IntegrityError, PolicyRefused, StorageError

DATA = b"a key of the owner's"


@pytest.fixture
def software(tmp_path: Path) -> Iterator[SoftwareTpm]:
    needs_swtpm()
    with SoftwareTpm(tmp_path / "state") as each:
        yield each


def test_it_opens_in_the_state_it_was_sealed_in_also_after_a_restart(tmp_path: Path) -> None:
    needs_swtpm()
    with SoftwareTpm(tmp_path) as one:
        sealed = seal(one.tpm, DATA, label="keys", counter="keys")
        assert unseal(one.tpm, sealed, label="keys") == DATA
        assert DATA not in sealed
    with SoftwareTpm(tmp_path) as again:
        assert unseal(again.tpm, sealed, label="keys") == DATA


def test_it_says_that_it_is_not_hardware_protected(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter=None)
    assert b"not hardware-protected" in sealed
    assert read_header(sealed).protection.startswith("not hardware-protected")
    assert read_header(sealed).counter is None


def test_other_measurements_refuse(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", pcrs=[11, 12], counter=None)
    software.tpm.extend(13, b"\x02" * 32)
    assert unseal(software.tpm, sealed, label="keys") == DATA  # register 13 was not asked for
    software.tpm.extend(12, b"\x02" * 32)
    with pytest.raises(PolicyRefused, match="measurements"):
        unseal(software.tpm, sealed, label="keys")


def test_an_older_copy_is_refused(software: SoftwareTpm) -> None:
    old = seal(software.tpm, b"old", label="keys", counter="keys")
    assert unseal(software.tpm, old, label="keys") == b"old"
    new = seal(software.tpm, b"new", label="keys", counter="keys")
    with pytest.raises(PolicyRefused, match="not the newest copy"):
        unseal(software.tpm, old, label="keys")
    assert unseal(software.tpm, new, label="keys") == b"new"


def test_the_tpm_itself_refuses_an_older_copy(software: SoftwareTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    old = seal(software.tpm, b"old", label="keys", counter="keys")
    number = read_header(old).counter
    assert number is not None
    seal(software.tpm, b"new", label="keys", counter="keys")
    # whoever changes this program, so that it believes the old number, still meets the TPM's own comparison
    lie = lambda tpm, header, key, pcrs: (NvCounter(tpm, "keys"), number.value)  # noqa: E731
    monkeypatch.setattr(sealing, "_counter", lie)
    with pytest.raises(PolicyRefused, match="counter has moved on"):
        unseal(software.tpm, old, label="keys")


def test_the_tpm_itself_refuses_another_policy(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter="keys")
    header, line = sealing._split(sealed)
    seal(software.tpm, DATA, label="keys", counter="keys")
    forged = sealing.msgspec.structs.replace(header, counter=None)
    with pytest.raises(PolicyRefused):
        unseal(software.tpm, sealing.canonical_bytes(forged) + b"\n" + sealed[len(line) :], label="keys")


def test_another_tpm_refuses(software: SoftwareTpm, tmp_path: Path) -> None:
    for counter in ("keys", None):
        sealed = seal(software.tpm, DATA, label="keys", counter=counter)
        with SoftwareTpm(tmp_path / f"other-{counter}") as other:
            with pytest.raises(IntegrityError):
                unseal(other.tpm, sealed, label="keys")
            for _ in range(3):  # nor when it has a counter of that name
                NvCounter(other.tpm, "keys").increment()
                with pytest.raises((IntegrityError, PolicyRefused)):
                    unseal(other.tpm, sealed, label="keys")


def test_an_altered_byte_anywhere_refuses_and_moves_no_counter(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter="keys")
    value = NvCounter(software.tpm, "keys").read()
    for _, altered in flips(sealed):
        with pytest.raises((InputError, IntegrityError, PolicyRefused)):
            unseal(software.tpm, altered, label="keys")
    assert NvCounter(software.tpm, "keys").read() == value
    assert unseal(software.tpm, sealed, label="keys") == DATA


def test_a_forged_next_number_does_not_move_the_counter(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter="keys")
    value = NvCounter(software.tpm, "keys").read()
    forged = sealed.replace(b'"value":%d}' % value, b'"value":%d}' % (value + 1))
    assert forged != sealed
    with pytest.raises(PolicyRefused):
        unseal(software.tpm, forged, label="keys")
    assert unseal(software.tpm, sealed, label="keys") == DATA


def test_nothing_but_our_errors_comes_out_of_mutations(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter=None)
    for each in mutations(sealed, 300, 5):
        try:
            opened = unseal(software.tpm, each, label="keys")
        except CloisterError:
            continue
        assert (opened, each) == (DATA, sealed)


def test_another_label_refuses(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys of one", counter=None)
    with pytest.raises(IntegrityError, match="another name"):
        unseal(software.tpm, sealed, label="keys of two")


@pytest.mark.parametrize("pcrs", [[], [24], [-1]])
def test_registers_must_be_some(software: SoftwareTpm, pcrs: list[int]) -> None:
    with pytest.raises(InputError, match="registers"):
        seal(software.tpm, DATA, label="keys", pcrs=pcrs, counter=None)


@pytest.mark.parametrize("data", [b"", b"{}", b"{}\n", b"\n", b"\xff" * 100, b"{" * 20000])
def test_what_is_no_sealed_data_is_said_to_be_none(software: SoftwareTpm, data: bytes) -> None:
    with pytest.raises(InputError, match="sealed data"):
        unseal(software.tpm, data, label="keys")


def test_a_file_is_replaced_and_its_older_copy_refused(software: SoftwareTpm, tmp_path: Path) -> None:
    path, copy = tmp_path / "keys.sealed", tmp_path / "copy"
    seal_file(software.tpm, path, b"one", label="keys", counter="keys")
    assert path.stat().st_mode & 0o777 == 0o600
    shutil.copy(path, copy)
    seal_file(software.tpm, path, b"two", label="keys", counter="keys")
    assert unseal_file(software.tpm, path, label="keys") == b"two"
    shutil.copy(copy, path)
    with pytest.raises(PolicyRefused, match="not the newest copy"):
        unseal_file(software.tpm, path, label="keys")


class _KilledError(Exception):
    """The process was killed here."""


def _kill(*_: object, **__: object) -> None:
    raise _KilledError


@pytest.mark.parametrize("reseal_first", [False, True])
def test_killed_after_the_file_and_before_the_counter(
    software: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reseal_first: bool
) -> None:
    path, copy = tmp_path / "keys.sealed", tmp_path / "copy"
    seal_file(software.tpm, path, b"one", label="keys", counter="keys")
    with monkeypatch.context() as patch:
        patch.setattr(NvCounter, "increment", _kill)
        with pytest.raises(_KilledError):
            seal_file(software.tpm, path, b"two", label="keys", counter="keys")
    shutil.copy(path, copy)
    if reseal_first:
        seal_file(software.tpm, path, b"three", label="keys", counter="keys")
        with pytest.raises(PolicyRefused, match="not the newest copy"):
            unseal_file(software.tpm, copy, label="keys")
        assert unseal_file(software.tpm, path, label="keys") == b"three"
    else:
        assert unseal_file(software.tpm, path, label="keys") == b"two"
        assert unseal_file(software.tpm, path, label="keys") == b"two"


def test_killed_before_the_file(
    software: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.sealed"
    seal_file(software.tpm, path, b"one", label="keys", counter="keys")
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "write_atomic", _kill)
        with pytest.raises(_KilledError):
            seal_file(software.tpm, path, b"two", label="keys", counter="keys")
    assert unseal_file(software.tpm, path, label="keys") == b"one"


def test_a_disk_that_refuses_leaves_the_older_copy(software: SoftwareTpm, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises((StorageError, InputError)):
        seal_file(software.tpm, blocked / "keys", b"two", label="keys", counter="keys")


def test_a_counter_only_goes_up_also_when_it_is_deleted(software: SoftwareTpm, tmp_path: Path) -> None:
    counter = NvCounter(software.tpm, "keys")
    assert counter.read() == 0
    values = [counter.increment() for _ in range(3)]
    assert values == sorted(set(values))
    assert counter.read() == values[-1]
    with software.tpm.commands("delete a counter") as api:
        api.nv_undefine_space(api.tr_from_tpmpublic(software.tpm.tss.TPM2_HANDLE(counter.index)))
    assert not counter.exists()
    assert counter.increment() > values[-1]


def test_an_index_that_is_no_counter_of_ours_is_refused(software: SoftwareTpm) -> None:
    counter, tss = NvCounter(software.tpm, "keys"), software.tpm.tss
    attributes = tss.TPMA_NV.AUTHREAD | tss.TPMA_NV.AUTHWRITE | tss.TPMA_NV.OWNERREAD
    ordinary = tss.TPMS_NV_PUBLIC(
        nvIndex=counter.index, nameAlg=tss.TPM2_ALG.SHA256, attributes=attributes, dataSize=8
    )
    with software.tpm.commands("take an index") as api:
        handle = api.nv_define_space(b"", tss.TPM2B_NV_PUBLIC(nvPublic=ordinary))
        api.nv_write(handle, (99).to_bytes(8))
    with pytest.raises(InputError, match="in use by something else"):
        counter.increment()
    with pytest.raises(InputError, match="in use by something else"):
        counter.read()


def test_putting_back_a_software_tpms_folder_puts_its_counters_back(tmp_path: Path) -> None:
    """What a software TPM does not protect from, shown: this is why it says not hardware-protected."""
    needs_swtpm()
    with SoftwareTpm(tmp_path / "state") as one:
        old = seal(one.tpm, b"old", label="keys", counter="keys")
    shutil.copytree(tmp_path / "state", tmp_path / "kept")
    with SoftwareTpm(tmp_path / "state") as two:
        seal(two.tpm, b"new", label="keys", counter="keys")
    with SoftwareTpm(tmp_path / "kept") as rolled_back:
        assert unseal(rolled_back.tpm, old, label="keys") == b"old"


@pytest.mark.slow
def test_fuzzed_sealed_data_opens_as_what_it_was_or_not_at_all(software: SoftwareTpm) -> None:
    sealed = seal(software.tpm, DATA, label="keys", counter="keys")
    for each in mutations(sealed, float(fuzz_seconds()), 13):
        try:
            opened = unseal(software.tpm, each, label="keys")
        except CloisterError:
            continue
        assert (opened, each) == (DATA, sealed)
    assert unseal(software.tpm, sealed, label="keys") == DATA
