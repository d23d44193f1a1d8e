"""What every `KeyService` must do, inherited by the tests of each implementation."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from cloister.errors import CloisterError, InputError, IntegrityError
from cloister.types import KeyService


class KeyServiceContract(ABC):
    """Subclass it and say how to make a fresh service."""

    @abstractmethod
    def make(self, folder: Path) -> KeyService:
        """Return an empty key service that may keep files in `folder`."""

    @pytest.fixture
    def service(self, tmp_path: Path) -> KeyService:
        return self.make(tmp_path)

    @pytest.mark.parametrize("length", [16, 32, 64])
    def test_what_was_wrapped_unwraps(self, service: KeyService, length: int) -> None:
        service.create("dataset.a.1")
        data_key = os.urandom(length)
        wrapped = service.wrap("dataset.a.1", data_key)
        assert data_key not in wrapped
        assert service.unwrap("dataset.a.1", wrapped) == data_key

    def test_wrapping_twice_gives_different_bytes(self, service: KeyService) -> None:
        service.create("a")
        assert service.wrap("a", bytes(32)) != service.wrap("a", bytes(32))

    @pytest.mark.parametrize("length", [0, 15, 65])
    def test_only_keys_are_wrapped(self, service: KeyService, length: int) -> None:
        service.create("a")
        with pytest.raises(InputError):
            service.wrap("a", bytes(length))

    def test_an_id_is_taken_once(self, service: KeyService) -> None:
        service.create("a")
        wrapped = service.wrap("a", b"k" * 32)
        with pytest.raises(InputError):
            service.create("a")
        assert service.unwrap("a", wrapped) == b"k" * 32

    @pytest.mark.parametrize("kek_id", ["", "A", "a:b", "a/b", "../a", "a" * 200, "a\n"])
    def test_odd_ids_are_refused(self, service: KeyService, kek_id: str) -> None:
        with pytest.raises(InputError):
            service.create(kek_id)

    def test_unknown_ids_are_refused(self, service: KeyService) -> None:
        service.create("a")
        wrapped = service.wrap("a", bytes(32))
        for act in (
            lambda: service.wrap("b", bytes(32)),
            lambda: service.unwrap("b", wrapped),
            lambda: service.destroy("b"),
        ):
            with pytest.raises(InputError):
                act()

    def test_a_key_of_another_kek_does_not_unwrap(self, service: KeyService) -> None:
        service.create("a")
        service.create("b")
        with pytest.raises(IntegrityError):
            service.unwrap("b", service.wrap("a", bytes(32)))

    def test_every_altered_bit_is_noticed(self, service: KeyService) -> None:
        service.create("a")
        wrapped = service.wrap("a", os.urandom(32))
        for position in range(len(wrapped) * 8):
            bad = bytearray(wrapped)
            bad[position // 8] ^= 1 << position % 8
            with pytest.raises(IntegrityError):
                service.unwrap("a", bytes(bad))

    @pytest.mark.parametrize("wrapped", [b"", b"x", bytes(27), bytes(60), bytes(100_000)])
    def test_nonsense_does_not_unwrap(self, service: KeyService, wrapped: bytes) -> None:
        service.create("a")
        with pytest.raises(IntegrityError):
            service.unwrap("a", wrapped)

    def test_a_destroyed_kek_opens_nothing_and_the_others_stay(self, service: KeyService) -> None:
        service.create("a")
        service.create("b")
        wrapped_a, wrapped_b = service.wrap("a", bytes(32)), service.wrap("b", bytes(32))
        sentence = service.destroy("a")
        assert sentence.endswith(".")
        with pytest.raises(InputError):
            service.unwrap("a", wrapped_a)
        assert service.unwrap("b", wrapped_b) == bytes(32)

    def test_a_kek_made_again_under_the_same_id_is_another_one(self, service: KeyService) -> None:
        service.create("a")
        wrapped = service.wrap("a", bytes(32))
        service.destroy("a")
        service.create("a")
        with pytest.raises(IntegrityError):
            service.unwrap("a", wrapped)

    def test_it_is_neither_shown_nor_pickled(self, service: KeyService) -> None:
        service.create("a")
        data_key = b"0123456789abcdef" * 2
        service.wrap("a", data_key)
        assert data_key.decode() not in repr(service)
        with pytest.raises(TypeError):
            pickle.dumps(service)

    def test_messages_hold_no_keys(self, service: KeyService) -> None:
        service.create("a")
        with pytest.raises(CloisterError) as caught:
            service.wrap("a", b"canary-key")
        assert "canary-key" not in str(caught.value)
