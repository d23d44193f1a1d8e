from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cloister.enclave.sandbox import SecretBytes, kernel, secretmem
from cloister.errors import InputError


@pytest.fixture(params=["as this machine has it", "none"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    def refuse() -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "none":
        monkeypatch.setattr(kernel, "memfd_secret", refuse)
        return False
    return secretmem.available()


def test_a_secret_is_kept_lent_copied_and_wiped(memory: bool) -> None:
    secret = SecretBytes(b"key material" * 1000)
    assert secret.protected is memory
    assert len(secret) == 12_000
    assert secret.get() == b"key material" * 1000
    with secret.view() as view:
        assert view.readonly
        assert view[:3] == b"key"
    with pytest.raises(ValueError):
        view[0]
    secret.wipe()
    secret.wipe()
    with pytest.raises(InputError, match="wiped"):
        secret.get()


def test_a_bytearray_is_taken_over(memory: bool) -> None:
    given = bytearray(b"key")
    with SecretBytes(given) as secret:
        assert given == bytes(3)
        assert secret.get() == b"key"
    with pytest.raises(InputError, match="wiped"), secret.view():
        pass


def test_it_never_shows_itself(memory: bool) -> None:
    assert repr(SecretBytes(b"key")) == "SecretBytes(3 bytes)"
    with pytest.raises(InputError, match="empty"):
        SecretBytes(b"")


def test_no_other_process_can_read_it() -> None:
    """Not even one that may read this process's memory: /proc/self/mem does not reach it, as it does others."""
    if not secretmem.available():
        pytest.skip("this kernel gives no memfd_secret")
    import ctypes

    def read(buffer: object) -> bytes:
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]
        with Path("/proc/self/mem").open("rb", buffering=0) as own:
            own.seek(address)
            return own.read(8)

    assert read(bytearray(b"ordinary")) == b"ordinary"
    secret = SecretBytes(b"protects")
    with pytest.raises(OSError):
        read(secret._memory)
