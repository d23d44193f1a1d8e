"""Cryptography: a thin, opinionated layer over the `cryptography` library, which holds every primitive.

To use: `Identity` (make, save, load), `seal_file` and `open_file`, `encrypt` and `decrypt`, `SigningKey` and
`VerifyKey`, `sha256`. What is broken cannot be asked for, contexts are mandatory, secrets leave their objects
only with `SECRET_ACCESS`, and every failure to open or to verify is one `IntegrityError` that does not say
which byte it was.
"""

from cloister.crypto._base import SECRET_ACCESS, Buffer, HoldsSecret, SecretAccess
from cloister.crypto.aead import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Opener, Sealer, decrypt, encrypt
from cloister.crypto.agreement import AgreementKey
from cloister.crypto.canonical import canonical_bytes
from cloister.crypto.dsse import (
    Signer,
    countersign,
    envelope_signers,
    open_envelope,
    pre_authentication_encoding,
    sign_envelope,
)
from cloister.crypto.filesignature import sign_file, verify_file
from cloister.crypto.hashing import (
    constant_time_equal,
    digest_file,
    framed,
    hash_named,
    hmac_sha256,
    refuse_weak,
    sha256,
    sha512,
)
from cloister.crypto.hpke import HpkePrivateKey, HpkePublicKey, KemSuite, hpke_open, hpke_seal
from cloister.crypto.identity import Identity, PublicIdentity, keyring
from cloister.crypto.kdf import ScryptCost, hkdf, scrypt
from cloister.crypto.prg import Keystream, StreamRandom, apply_masks
from cloister.crypto.rsa import RsaKey, RsaPublicKey
from cloister.crypto.sealedfile import (
    open_bytes,
    open_content_key,
    open_file,
    open_with_content_key,
    seal_bytes,
    seal_file,
    sealed_recipients,
)
from cloister.crypto.shamir import combine, split
from cloister.crypto.signing import SignatureAlgorithm, SigningKey, VerifyKey
from cloister.crypto.trust import TrustStore, declare_successor, export_identity, follows, read_export

__all__ = [
    "KEY_BYTES",
    "NONCE_BYTES",
    "SECRET_ACCESS",
    "TAG_BYTES",
    "AgreementKey",
    "Buffer",
    "HoldsSecret",
    "HpkePrivateKey",
    "HpkePublicKey",
    "Identity",
    "KemSuite",
    "Keystream",
    "Opener",
    "PublicIdentity",
    "RsaKey",
    "RsaPublicKey",
    "ScryptCost",
    "Sealer",
    "SecretAccess",
    "SignatureAlgorithm",
    "Signer",
    "SigningKey",
    "StreamRandom",
    "TrustStore",
    "VerifyKey",
    "apply_masks",
    "canonical_bytes",
    "combine",
    "constant_time_equal",
    "countersign",
    "declare_successor",
    "decrypt",
    "digest_file",
    "encrypt",
    "envelope_signers",
    "export_identity",
    "follows",
    "framed",
    "hash_named",
    "hkdf",
    "hmac_sha256",
    "hpke_open",
    "hpke_seal",
    "keyring",
    "open_bytes",
    "open_content_key",
    "open_envelope",
    "open_file",
    "open_with_content_key",
    "pre_authentication_encoding",
    "read_export",
    "refuse_weak",
    "scrypt",
    "seal_bytes",
    "seal_file",
    "sealed_recipients",
    "sha256",
    "sha512",
    "sign_envelope",
    "sign_file",
    "split",
    "verify_file",
]
