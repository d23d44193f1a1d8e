"""The signed description of a sealed model: whose it is, which files it has, and the wrapped key to them.

    FOLDER/model.dsse.json    a DSSE envelope of this manifest, signed by the model's owner
    FOLDER/files/NNNN.enc     the files, encrypted, numbered in the manifest's order from 0000 on

A manifest is not secret. It shows the names and sizes of the files, and `digest`: whoever has the same model
from elsewhere recognises it by that. It shows no digest of a single file, for a small one could be guessed.

`open_manifest`, in this order:
1. the owner's signature verifies, over this payload type;
2. the payload parses strictly, within its bounds;
3. it says it is the owner's; its key's id is of its own name and id; its files have names that a model's
   files may have (`files.check_name`), in order, each once, and none that is another's folder.

What it does not do: it does not say which of two manifests by one owner is the newer. Whoever puts an older
folder in a newer one's place is noticed by the digest, which clients see, and by a key broker, whose grant
names one manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from cloister.crypto import TAG_BYTES, Identity, PublicIdentity, keyring, open_envelope, sha256, sign_envelope
from cloister.errors import InputError, IntegrityError
from cloister.learning.modelfiles.files import check_name as check_file_name
from cloister.types import check_name

__all__ = [
    "CHUNK",
    "FILES",
    "MANIFEST_NAME",
    "MAX_FILES",
    "MAX_MANIFEST",
    "PAYLOAD_TYPE",
    "TABLE_FILE",
    "Kind",
    "ModelManifest",
    "SealedFile",
    "check_files",
    "chunks_of",
    "encrypted_size",
    "manifest_digest",
    "model_kek",
    "open_manifest",
    "sign_manifest",
    "stored_name",
]

PAYLOAD_TYPE: Final = "application/vnd.cloister.model+json"
MANIFEST_NAME: Final = "model.dsse.json"
FILES: Final = "files"
CHUNK: Final = 1 << 20
"""Bytes of plaintext that are encrypted as one."""
TABLE_FILE: Final = "model.safetensors"
"""The one file of a model of kind "table" or "adapter": what `artifact_from_bytes` reads."""
MAX_MANIFEST: Final = 1 << 20
MAX_FILES: Final = 512
"""Each stays open while the model is: within the thousand descriptors that a process usually may have."""
_MAX_SIZE: Final = 1 << 42

Kind = Literal["language", "table", "adapter"]
_Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class SealedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file.

    Attributes:
        name: as the model has it, "/" between folders.
        size: bytes in the clear.
        sealed_sha256: of the encrypted file, hexadecimal, so that it can be checked without a key.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    size: Annotated[int, msgspec.Meta(ge=0, le=_MAX_SIZE)]
    sealed_sha256: _Hex32


class ModelManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sealed model's owner signs.

    Attributes:
        version: of this format.
        name: the model's, as clients ask for it.
        model_id: 16 random bytes in hexadecimal, new for each sealing.
        kind: what it is served by: a language engine; a predictor of rows; or, of what a study made of a
            public base, either of the two beside that base, which is not sealed with it.
        owner: fingerprint of the owner's identity.
        created: time of the sealing, in UTC, ISO 8601.
        kek_id: the key-encryption key of its data key.
        broker: the public identity (JSON) of the key broker that holds it; None: the owner's keystore does.
        wrapped: the data key under it.
        commitment: of the data key, so that no other one opens anything.
        chunk: bytes of plaintext that are encrypted as one.
        digest: of the files in the clear, as `files.set_digest` makes it.
        release: digest of the certificate of the release that the model came from; None for no release.
        files: by name.
    """

    version: Literal[1]
    name: str
    model_id: _Hex16
    kind: Kind
    owner: _Hex32
    created: Annotated[str, msgspec.Meta(max_length=40)]
    kek_id: Annotated[str, msgspec.Meta(max_length=128)]
    broker: Annotated[bytes, msgspec.Meta(max_length=16 << 10)] | None
    wrapped: Annotated[bytes, msgspec.Meta(min_length=32, max_length=4096)]
    commitment: _Bytes32
    chunk: Literal[1048576]
    digest: _Hex32
    release: _Hex32 | None
    files: Annotated[tuple[SealedFile, ...], msgspec.Meta(min_length=1, max_length=MAX_FILES)]

    @property
    def size(self) -> int:
        """Bytes of all files in the clear."""
        return sum(file.size for file in self.files)


def model_kek(name: str, model_id: str) -> str:
    """Return the id of a model's key-encryption key; a model sealed anew has another key."""
    return f"model.{name}.{model_id}"


def manifest_digest(envelope: bytes) -> str:
    """Return what a key broker's grant names a model by: SHA-256 of its signed manifest, hexadecimal."""
    return sha256(envelope).hex()


def stored_name(number: int) -> str:
    """Return where the file of this number lies in its folder."""
    return f"{FILES}/{number:04d}.enc"


def chunks_of(size: int) -> int:
    """Return the number of chunks that a file of so many bytes is encrypted in: 1 or more."""
    return max(1, -(-size // CHUNK))


def encrypted_size(size: int) -> int:
    """Return the bytes of an encrypted file that has `size` in the clear."""
    return size + chunks_of(size) * TAG_BYTES


def check_files(names: Sequence[str]) -> None:
    """Raise InputError unless these may be the names of a sealed model's files, in order."""
    if not 0 < len(names) <= MAX_FILES:
        raise InputError(f"a sealed model has 1 to {MAX_FILES} files", fix="Merge its shards")
    for name in names:
        check_file_name(name)
    folders = {name.split("/")[0] for name in names if "/" in name}
    if list(names) != sorted(set(names)) or not folders.isdisjoint(names):
        raise InputError("the files of a model are not in order, or two have one name", fix="Seal it again")


def sign_manifest(manifest: ModelManifest, owner: Identity) -> bytes:
    """Return the envelope. Raises InputError where the manifest names another owner."""
    if manifest.owner != owner.fingerprint:
        raise InputError("a manifest is signed by the owner it names", fix="Use the owner's identity")
    return sign_envelope(PAYLOAD_TYPE, msgspec.json.encode(manifest), [owner])


def open_manifest(envelope: bytes, owner: PublicIdentity) -> ModelManifest:
    """Return the manifest in an envelope.

    Args:
        envelope: the bytes of the file, or as another process read them.
        owner: whose model it must be.

    Raises:
        IntegrityError: one of the three steps fails.
    """
    problem = ""
    try:
        payload = open_envelope(envelope, PAYLOAD_TYPE, keyring([owner]))  # 1
        manifest = msgspec.json.decode(payload, type=ModelManifest)  # 2
        check_name(manifest.name)
        check_files([file.name for file in manifest.files])  # 3
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        problem = str(error) if isinstance(error, InputError | msgspec.DecodeError) else type(error).__name__
    if problem:
        raise IntegrityError(
            f"a sealed model's manifest is malformed: {problem}",
            fix="Check which version of Cloister wrote it",
        )
    if manifest.owner != owner.fingerprint or manifest.kek_id != model_kek(manifest.name, manifest.model_id):
        raise IntegrityError(
            "a sealed model's manifest contradicts itself", fix="Do not use the model; ask its owner"
        )
    return manifest
