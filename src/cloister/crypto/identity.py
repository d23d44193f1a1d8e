"""Who somebody is: three key pairs under one name.

- signing: Ed25519;
- agreement: X25519, for sessions;
- sealing: HPKE with ML-KEM-768 and X25519, for what is stored.

`PublicIdentity` is signed by its own signing key over all the rest, and cannot be constructed with a
signature that does not verify: who holds one holds keys that belong together and whose signing key's owner
vouches for the other two. It does not say that the owner is who the name claims: that is what `TrustStore`
and a comparison of fingerprints are for.

`Identity` adds the private keys. Its file holds them under AES-256-GCM with a key that scrypt makes of a
passphrase; the associated data is the public identity, so keys cannot be put under another name. The file is
written with mode 0600 and refused where group or others may read it: a key that has been readable must be
considered read.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import aead
from cloister.crypto._base import SECRET_ACCESS, Buffer, HoldsSecret
from cloister.crypto.agreement import AgreementKey
from cloister.crypto.canonical import canonical_bytes
from cloister.crypto.hashing import sha256
from cloister.crypto.hpke import HpkePrivateKey, HpkePublicKey, KemSuite
from cloister.crypto.kdf import SALT_BYTES, ScryptCost, scrypt
from cloister.crypto.signing import SignatureAlgorithm, SigningKey, VerifyKey
from cloister.errors import InputError, IntegrityError, PassphraseError
from cloister.files import write_atomic
from cloister.types import check_name

__all__ = ["MAX_IDENTITY_FILE", "Identity", "PublicIdentity", "keyring"]

MAX_IDENTITY_FILE: Final = 64 << 10
_PROOF_LABEL: Final = b"cloister identity proof v1\x00"
_FILE_LABEL: Final = b"cloister identity file v1\x00"

_Key32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Sealing = Annotated[bytes, msgspec.Meta(min_length=1216, max_length=1216)]
_Proof = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class PublicIdentity(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cloister/identity/v1", tag_field="type"
):
    """A name and the public keys that belong to it, signed by themselves.

    Raises:
        InputError: the name is not allowed, or a key is not one.
        IntegrityError: `proof` is not the signing key's signature over the rest.
    """

    name: str
    signing: _Key32
    agreement: _Key32
    sealing: _Sealing
    proof: _Proof

    def __post_init__(self) -> None:
        check_name(self.name, "an identity's name")
        HpkePublicKey(KemSuite.HYBRID, self.sealing)
        self.verify(
            self.proof, _PROOF_LABEL + _statement(self.name, self.signing, self.agreement, self.sealing)
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical name and keys, as 64 hexadecimal digits; this is what people compare."""
        return _fingerprint(self.name, self.signing, self.agreement, self.sealing)

    @property
    def verify_key(self) -> VerifyKey:
        """The Ed25519 key."""
        return _verify_key(self.signing)

    @property
    def sealing_key(self) -> HpkePublicKey:
        """The key to seal to."""
        return HpkePublicKey(KemSuite.HYBRID, self.sealing)

    def verify(self, signature: bytes, message: Buffer) -> None:
        """Return if `signature` is this identity's over `message`. Raises IntegrityError if it is not."""
        self.verify_key.verify(signature, message)

    def to_json(self) -> bytes:
        """Return the JSON that others import."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> PublicIdentity:
        """Return the identity in `data`, its signature checked.

        Raises:
            InputError: not an exported identity.
            IntegrityError: it was altered.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                f"this is not an exported identity: {error}", fix="Ask its owner to export it again"
            ) from None

    def __repr__(self) -> str:
        return f"<PublicIdentity {self.name} {self.fingerprint[:16]}>"


def _statement(name: str, signing: bytes, agreement: bytes, sealing: bytes) -> bytes:
    keys = {"agreement": agreement.hex(), "sealing": sealing.hex(), "signing": signing.hex()}
    return canonical_bytes({"type": "cloister/identity/v1", "name": name, **keys})


@functools.lru_cache(maxsize=1024)
def _fingerprint(name: str, signing: bytes, agreement: bytes, sealing: bytes) -> str:
    return sha256(_statement(name, signing, agreement, sealing)).hex()


@functools.lru_cache(maxsize=1024)
def _verify_key(signing: bytes) -> VerifyKey:
    return VerifyKey.from_bytes(SignatureAlgorithm.ED25519, signing)


def keyring(identities: Iterable[PublicIdentity]) -> dict[str, VerifyKey]:
    """Return fingerprint to verification key, as `open_envelope` takes it."""
    return {identity.fingerprint: identity.verify_key for identity in identities}


class _Secrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    signing: bytes  # PKCS#8
    agreement: bytes
    sealing: bytes


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["cloister/identity-file/v1"]
    public: PublicIdentity
    cost: ScryptCost
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=64)]
    sealed: bytes


class Identity(HoldsSecret):
    """A public identity with its private keys."""

    __slots__ = ("_signing", "agreement", "public", "sealing")

    def __init__(
        self, name: str, signing: SigningKey, agreement: AgreementKey, sealing: HpkePrivateKey
    ) -> None:
        keys = (signing.verify_key.to_bytes(), agreement.public, sealing.public_key.to_bytes())
        proof = signing.sign(_PROOF_LABEL + _statement(name, *keys))
        self._signing = signing
        self.agreement: Final = agreement
        self.sealing: Final = sealing
        self.public: Final = PublicIdentity(name, *keys, proof)

    @classmethod
    def generate(cls, name: str) -> Identity:
        """Return a new identity, in memory only. Raises InputError for a name that is not allowed."""
        check_name(name, "an identity's name")
        return cls(
            name, SigningKey.generate(), AgreementKey.generate(), HpkePrivateKey.generate(KemSuite.HYBRID)
        )

    @property
    def name(self) -> str:
        """The public identity's name."""
        return self.public.name

    @property
    def fingerprint(self) -> str:
        """The public identity's fingerprint."""
        return self.public.fingerprint

    def sign(self, message: Buffer) -> bytes:
        """Return the 64-byte Ed25519 signature over `message`, which must begin by saying what it is."""
        return self._signing.sign(message)

    def save(
        self, path: Path, passphrase: str, *, cost: ScryptCost | None = None, replace: bool = False
    ) -> None:
        """Write the identity's file, mode 0600, as one step.

        Args:
            path: the file.
            passphrase: at least one character.
            cost: of a guess; None for the default.
            replace: whether an existing file may go; its keys are lost with it.

        Raises:
            InputError: the file exists.
            PassphraseError: an empty or overlong passphrase.
            StorageError: it cannot be written.
        """
        if path.exists() and not replace:
            raise InputError(
                "an identity exists here", where=str(path), fix="Use `cloister keys rotate` for new keys"
            )
        chosen, salt = cost or ScryptCost(), os.urandom(SALT_BYTES)
        secrets = _Secrets(
            self._signing.to_bytes(SECRET_ACCESS),
            self.agreement.to_bytes(SECRET_ACCESS),
            self.sealing.to_bytes(SECRET_ACCESS),
        )
        key = scrypt(passphrase, salt, chosen)
        sealed = aead.encrypt(key, msgspec.msgpack.encode(secrets), _binding(self.public))
        file = _File("cloister/identity-file/v1", self.public, chosen, salt, sealed)
        text = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
        write_atomic(path, text, mode=0o600, replace=replace)

    @classmethod
    def load(cls, path: Path, passphrase: str) -> Identity:
        """Return the identity in a file.

        1. The file is readable by its owner alone.
        2. It parses, and its public identity's signature verifies.
        3. The private keys open under the passphrase, bound to that public identity.
        4. They are the private halves of its public keys.

        Raises:
            InputError: missing, not an identity's file, or readable by others.
            PassphraseError: the passphrase is wrong (or the file was altered: the two cannot be told apart).
            IntegrityError: step 2 or 4 fails.
        """
        file = _read(path)  # 1, 2
        key = scrypt(passphrase, file.salt, file.cost)
        try:
            opened = aead.decrypt(key, file.sealed, _binding(file.public))  # 3
        except IntegrityError:
            raise PassphraseError(
                "the identity does not open", where=str(path), fix="Check the passphrase"
            ) from None
        secrets = msgspec.msgpack.decode(opened, type=_Secrets)
        identity = cls(
            file.public.name,
            SigningKey.from_bytes(secrets.signing),
            AgreementKey.from_bytes(secrets.agreement),
            HpkePrivateKey.from_bytes(KemSuite.HYBRID, secrets.sealing),
        )
        if identity.fingerprint != file.public.fingerprint:  # 4
            raise IntegrityError(
                "private and public keys do not belong together", where=str(path), fix="Restore the file"
            )
        return identity

    @staticmethod
    def read_public(path: Path) -> PublicIdentity:
        """Return the public half of an identity's file, without a passphrase. Raises as `load`."""
        return _read(path).public

    def __repr__(self) -> str:
        return f"<Identity {self.name} {self.fingerprint[:16]}: secret>"


def _binding(public: PublicIdentity) -> bytes:
    return _FILE_LABEL + canonical_bytes(public)


def _read(path: Path) -> _File:
    """Read an identity's file; permissions are checked on the open descriptor."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_IDENTITY_FILE + 1)
    except OSError as error:
        raise InputError(
            f"cannot read the identity: {error.strerror}",
            where=str(path),
            fix="Make one with `cloister keys init`",
        ) from error
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(
            "the identity may be read or changed by others",
            where=str(path),
            fix="Run `chmod 600` on it, and rotate the keys if others use this machine",
        )
    if len(data) > MAX_IDENTITY_FILE:
        raise InputError(
            "the file is too large to be an identity", where=str(path), fix="Check which file it is"
        )
    try:
        return msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"this is not an identity's file: {error}", where=str(path), fix="Restore it"
        ) from None
