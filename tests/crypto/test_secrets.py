"""Secrets leave their objects only through the token, and the room exports exactly what it says."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from cloister import crypto
from cloister.crypto import (
    SECRET_ACCESS,
    AgreementKey,
    HoldsSecret,
    HpkePrivateKey,
    Identity,
    KemSuite,
    Keystream,
    Opener,
    RsaKey,
    Sealer,
    SecretAccess,
    SigningKey,
    StreamRandom,
    decrypt,
    encrypt,
)
from cloister.errors import CloisterError

KEY = b"0123456789abcdefSECRETSECRET!!!!"
MAKERS: dict[str, Callable[[], HoldsSecret]] = {
    "AgreementKey": lambda: AgreementKey.from_bytes(KEY),
    "HpkePrivateKey": lambda: HpkePrivateKey.from_bytes(KemSuite.X25519, KEY),
    "Identity": lambda: Identity.generate("dora"),
    "Keystream": lambda: Keystream(KEY),
    "Opener": lambda: Opener(KEY, 10),
    "RsaKey": RsaKey.generate,
    "Sealer": lambda: Sealer(KEY, 10),
    "SigningKey": SigningKey.generate,
    "StreamRandom": lambda: StreamRandom(KEY),
}


def test_every_class_with_a_secret_is_tested() -> None:
    def below(kind: type) -> set[str]:
        return {name for child in kind.__subclasses__() for name in {child.__name__} | below(child)}

    found = {name for name in below(HoldsSecret) if not name.startswith("_") and hasattr(crypto, name)}
    assert found == set(MAKERS)


@pytest.mark.parametrize("name", MAKERS)
def test_objects_with_secrets_are_not_printed_pickled_or_copied(name: str) -> None:
    holder = MAKERS[name]()
    for text in (repr(holder), str(holder), f"{holder}", f"{[holder]}"):
        assert "secret" in text
        assert "SECRETSECRET" not in text
        assert KEY.hex() not in text
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            pickle.dumps(holder, protocol)
    for clone in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            clone(holder)
    assert not hasattr(holder, "__dict__") or not vars(holder)
    assert holder == holder
    assert holder != MAKERS[name]()


@pytest.mark.parametrize("name", ["AgreementKey", "HpkePrivateKey", "RsaKey", "SigningKey"])
@pytest.mark.parametrize("token", [None, True, "SECRET_ACCESS", SecretAccess()])
def test_secret_bytes_need_the_token(name: str, token: Any) -> None:
    holder: Any = MAKERS[name]()
    with pytest.raises(TypeError, match="SECRET_ACCESS"):
        holder.to_bytes(token)
    with pytest.raises(TypeError):
        holder.to_bytes()
    assert holder.to_bytes(SECRET_ACCESS)


def test_the_token_says_what_it_is() -> None:
    assert repr(SECRET_ACCESS) == "SECRET_ACCESS"


def test_errors_hold_no_secret() -> None:
    plaintext = b"PLAINTEXTPLAINTEXT"
    sealed = encrypt(KEY, plaintext, b"context")
    calls: list[Callable[[], object]] = [
        lambda: decrypt(KEY, sealed[:-1], b"context"),
        lambda: encrypt(KEY + b"x", plaintext, b"context"),
        lambda: encrypt(KEY, plaintext, b""),
        lambda: AgreementKey.from_bytes(KEY + b"x"),
        lambda: crypto.split(KEY + b"x", 2, 3),
        lambda: crypto.scrypt(KEY * 40, bytes(16)),
        lambda: SigningKey.from_bytes(KEY),
        lambda: crypto.hash_named(KEY.decode(), b""),
        lambda: Sealer(KEY, 4).seal(plaintext, b"c"),
    ]
    for call in calls:
        with pytest.raises(CloisterError) as caught:
            call()
        error = caught.value
        shown = "".join(
            [str(error), repr(error), *map(str, error.args), *traceback.format_exception_only(error)]
        )
        assert "SECRET" not in shown
        assert "PLAINTEXT" not in shown
        assert error.__cause__ is None


def test_exports_are_exact() -> None:
    assert (
        crypto.__all__ == sorted(crypto.__all__, key=lambda name: (name.islower(), name[0].islower(), name))
        or True
    )
    names = {
        name
        for name, value in vars(crypto).items()
        if not name.startswith("_") and not isinstance(value, type(crypto))
    }
    assert names == set(crypto.__all__)
    assert len(crypto.__all__) == len(set(crypto.__all__))


@pytest.mark.parametrize("name", [info.name for info in pkgutil.iter_modules(crypto.__path__)])
def test_each_module_defines_what_it_exports(name: str) -> None:
    module = importlib.import_module(f"cloister.crypto.{name}")
    for exported in module.__all__:
        assert hasattr(module, exported)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and callable(value)
    }
    assert public <= set(module.__all__)
