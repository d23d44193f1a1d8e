"""The file of an enclave policy, in the home and signed by its owner; and policies written as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloister.crypto import PublicIdentity, keyring
from cloister.enclave.policy import ENCLAVE_POLICY, EnclavePolicy
from cloister.errors import InputError
from cloister.policy import decode_toml, load_signed_toml

__all__ = ["enclave_policy_path", "load_enclave_policy", "policy_toml", "read_enclave_policy", "toml_value"]


def enclave_policy_path(home: Path) -> Path:
    """Return where a home's enclave policy is."""
    return home / "policy" / "enclave.toml"


def read_enclave_policy(data: bytes) -> EnclavePolicy:
    """Return the policy in TOML text. Raises InputError as `decode_toml`, or where it contradicts itself."""
    return decode_toml(data, EnclavePolicy, ENCLAVE_POLICY)


def load_enclave_policy(home: Path, owner: PublicIdentity) -> EnclavePolicy:
    """Return a home's enclave policy; the default, which accepts hardware alone, where there is none.

    Raises:
        IntegrityError: it is not as its owner signed it, or only its signature is left.
        InputError: it is not signed, does not decode, or contradicts itself.
    """
    path = enclave_policy_path(home)
    signature = path.with_name(path.name + ".dsse")
    if not path.exists() and not signature.exists():
        return EnclavePolicy()
    if not signature.exists():
        raise InputError(
            "the enclave policy is not signed", where=str(path), fix="Run `cloister enclave policy sign`"
        )
    return load_signed_toml(path, EnclavePolicy, ENCLAVE_POLICY, keyring([owner]))


def policy_toml(policy: EnclavePolicy) -> bytes:
    """Return TOML that `read_enclave_policy` reads back as an equal policy; what is as usual is left out."""
    usual, rules = (msgspec.to_builtins(each) for each in (EnclavePolicy(), policy))
    lines = [f"{name} = {toml_value(value)}" for name, value in rules.items() if value != usual[name]]
    return "".join(f"{line}\n" for line in lines).encode()


def toml_value(value: object) -> str:
    """Return a value as inline TOML; JSON's text is TOML's but for DEL."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_value(key)} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(each) for each in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
