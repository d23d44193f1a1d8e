"""The one place that calls Microsoft SEAL, through `tenseal.sealapi`.

SEAL's own files are never on the wire. Objects go in and out through an anonymous file in memory, in SEAL's
format 4 uncompressed, whose every field but the residues is written here; on the way out each field is
compared with what it must be:

    header     magic, version, compression, length                                        16 bytes
    ciphertext parms_id 32 | NTT form 1 | polynomials 8 | N 8 | moduli 8 | scale 8 | correction 8 | array
    array      header | count 8 | residues 8 each
    seeded     the first polynomial alone as the array, then header | generator 1 | seed 64: the second one
               is expanded from the seed (Blake2xb), which halves what is sent

SEAL draws keys, errors and seeds from the operating system. Nothing here can inject them.

What this does not do: make SEAL's arithmetic constant in time, or wipe its memory; decryption is for the
client's own machine.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from cloister.errors import InputError, IntegrityError
from cloister.inference.encrypted.parameters import CIRCUITS, Circuit, Parameters
from cloister.inference.encrypted.residues import Polynomial

__all__ = ["SEED_BYTES", "Scheme", "Seeded", "library", "scheme_of"]

SEED_BYTES: Final = 64
_HEADER: Final = struct.Struct("<HBBBBHQ")
_MEMBERS: Final = struct.Struct("<32sBQQQdQ")
_MAGIC: Final = 0xA15E
_PLAIN, _ZSTD = 0, 2
_BLAKE2XB: Final = 1


class Seeded(NamedTuple):
    """A fresh ciphertext as it is sent: its first polynomial, and the seed of its second."""

    first: Polynomial
    seed: bytes


class Scheme:
    """SEAL under one set of parameters.

    Args:
        parameters: the set.
        scratch: a folder, in memory, for the one file through which objects go, where a process may make no
            anonymous ones: a walled worker.

    Attributes:
        parameters: the set.
        api: the module `tenseal.sealapi`.
        context: SEAL's context.
        parms_ids: SEAL's names of the levels; at index l - 1 that with l moduli.
    """

    def __init__(self, parameters: Parameters, scratch: Path | None = None) -> None:
        api = library()
        self._scratch = scratch
        self.parameters = parameters
        self.api = api
        wanted = api.EncryptionParameters(api.SCHEME_TYPE.CKKS)
        wanted.set_poly_modulus_degree(parameters.degree)
        wanted.set_coeff_modulus([api.Modulus(prime) for prime in parameters.primes])
        self.context = api.SEALContext(wanted, True, api.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise InputError(
                f"SEAL refuses the parameters: {self.context.parameters_error_name()}",
                fix="Install the version of tenseal that Cloister names",
            )
        self.encoder = api.CKKSEncoder(self.context)
        self.evaluator = api.Evaluator(self.context)
        level, found = self.context.first_context_data(), []
        while level is not None:
            found.append(tuple(level.parms_id()))
            level = level.next_context_data()
        self.parms_ids = tuple(reversed(found))
        self._version = self._written(api.Ciphertext())[3:5]
        if self._version[:1] != b"\x04":
            raise InputError(
                "this tenseal has another SEAL than version 4", fix="Install the version that Cloister names"
            )

    def encode(self, values: Any, level: int, scale: float) -> Any:
        """Return the plaintext of a number, or of up to N / 2 of them, for ciphertexts of `level` moduli."""
        plain = self.api.Plaintext()
        self.encoder.encode(values, self.parms_ids[level - 1], scale, plain)
        return plain

    def level(self, ciphertext: Any) -> int:
        """Return how many moduli a ciphertext has."""
        return int(ciphertext.coeff_modulus_size())

    # ciphertexts, out and in

    def seeded(self, fresh: Any) -> Seeded:
        """Return a fresh ciphertext (SEAL's serializable one) as it is sent."""
        parameters = self.parameters
        return self._seeded(self._contents(fresh, self._seeded_size(parameters.data)), parameters.data)

    def from_seeded(self, sent: Seeded) -> Any:
        """Return the ciphertext that was sent."""
        ciphertext = self.api.Ciphertext()
        raw = self._seeded_raw(sent, self.parms_ids[-1], self.parameters.scales[-1])
        self._load(ciphertext, raw)
        return ciphertext

    def polynomials(self, ciphertext: Any) -> Polynomial:
        """Return the two polynomials of an answer, uint64[2, 1, N]; it has one modulus."""
        count = 2 * self.parameters.degree
        raw = self._contents(ciphertext, _MEMBERS.size + _HEADER.size + 8 + 8 * count)
        members = self._members(raw, 2, 1)
        if members[0] != _id_bytes(self.parms_ids[0]):
            raise IntegrityError("an answer is not at the last level", fix="Report this")
        return np.frombuffer(raw, "<u8", count, len(raw) - 8 * count).reshape(2, 1, -1).astype(np.uint64)

    def from_polynomials(self, polynomials: Polynomial) -> Any:
        """Return the ciphertext of one modulus with these two polynomials."""
        ciphertext = self.api.Ciphertext()
        scale, parms_id = self.parameters.scales[0], self.parms_ids[0]
        self._load(ciphertext, self._raw(2, polynomials, parms_id, scale))
        return ciphertext

    # keys, out and in

    def secret(self, key: Any) -> Polynomial:
        """Return a secret key's polynomial, uint64[moduli, N]."""
        count = len(self.parameters.primes) * self.parameters.degree
        raw = self._contents(key, 32 + 8 + 8 + _HEADER.size + 8 + 8 * count)
        return np.frombuffer(raw, "<u8", count, len(raw) - 8 * count).reshape(-1, self.parameters.degree)

    def from_secret(self, polynomial: Polynomial) -> Any:
        """Return the secret key with this polynomial."""
        key = self.api.SecretKey()
        array = self._array(polynomial)
        name = _id_bytes(self.context.key_parms_id())
        self._load(key, name + struct.pack("<Qd", polynomial.size, 1.0) + array)
        return key

    def relinearisation(self, keys: Any) -> list[Seeded]:
        """Return SEAL's serializable relinearisation keys as they are sent: one for each modulus of data."""
        primes = self.parameters.primes
        one, count = _HEADER.size + self._seeded_size(primes), len(self.parameters.data)
        raw = self._contents(keys, 48 + count * one)
        parts = [raw[48 + one * at + _HEADER.size : 48 + one * (at + 1)] for at in range(count)]
        return [self._seeded(part, primes) for part in parts]

    def from_relinearisation(self, sent: list[Seeded]) -> Any:
        """Return the relinearisation keys that were sent."""
        name = self.context.key_parms_id()
        each = [self._seeded_raw(one, name, 1.0) for one in sent]
        parts = [self._head(len(raw)) + raw for raw in each]
        keys = self.api.RelinKeys()
        self._load(keys, _id_bytes(name) + struct.pack("<QQ", 1, len(sent)) + b"".join(parts))
        return keys

    # SEAL's layout

    def _head(self, length: int) -> bytes:
        major, minor = self._version
        return _HEADER.pack(_MAGIC, _HEADER.size, major, minor, _PLAIN, 0, _HEADER.size + length)

    def _array(self, polynomials: Polynomial) -> bytes:
        content = struct.pack("<Q", polynomials.size) + polynomials.astype("<u8").tobytes()
        return self._head(len(content)) + content

    def _raw(self, size: int, array: Polynomial, parms_id: Any, scale: float) -> bytes:
        moduli = array.shape[-2]
        members = (_id_bytes(parms_id), 1, size, self.parameters.degree, moduli, scale, 1)
        return _MEMBERS.pack(*members) + self._array(array)

    def _seeded_raw(self, sent: Seeded, parms_id: Any, scale: float) -> bytes:
        info = bytes([_BLAKE2XB]) + sent.seed
        return self._raw(2, sent.first, parms_id, scale) + self._head(len(info)) + info

    def _seeded_size(self, primes: tuple[int, ...]) -> int:
        array = _HEADER.size + 8 + 8 * len(primes) * self.parameters.degree
        return _MEMBERS.size + array + _HEADER.size + 1 + SEED_BYTES

    def _seeded(self, raw: bytes, primes: tuple[int, ...]) -> Seeded:
        self._members(raw, 2, len(primes))
        if len(raw) != self._seeded_size(primes) or raw[-SEED_BYTES - 1] != _BLAKE2XB:
            raise InputError("SEAL wrote a ciphertext in an unknown layout", fix="Report this")
        count, start = len(primes) * self.parameters.degree, _MEMBERS.size + _HEADER.size + 8
        first = np.frombuffer(raw, "<u8", count, start).reshape(len(primes), -1).astype(np.uint64)
        return Seeded(first, raw[-SEED_BYTES:])

    def _members(self, raw: bytes, size: int, moduli: int) -> tuple[Any, ...]:
        members = _MEMBERS.unpack_from(raw)
        if members[1:5] != (1, size, self.parameters.degree, moduli) or members[6] != 1:
            raise InputError("SEAL wrote a ciphertext in an unknown layout", fix="Report this")
        return members

    def _written(self, thing: Any) -> bytes:
        return self._through_file(thing.save)

    def _contents(self, thing: Any, size: int) -> bytes:
        """Return what SEAL writes of an object after the header, uncompressed; it must be `size` bytes."""
        data = self._written(thing)
        magic, header, _, _, compression, _, length = _HEADER.unpack_from(data)
        if (magic, header, length) != (_MAGIC, _HEADER.size, len(data)):
            raise InputError("SEAL wrote an unknown layout", fix="Report this")
        content = data[_HEADER.size :]
        if compression == _ZSTD:
            content = pa.decompress(content, decompressed_size=size, codec="zstd", asbytes=True)
        if len(content) != size:
            raise InputError("SEAL wrote an unknown layout", fix="Report this")
        return content

    def _load(self, thing: Any, raw: bytes) -> None:
        try:
            self._through_file(lambda path: thing.load(self.context, path), self._head(len(raw)) + raw)
        except (RuntimeError, ValueError) as error:  # SEAL checks what it is given, too
            raise IntegrityError("SEAL refuses a ciphertext or a key", fix="Get the file again") from error

    def _through_file(self, action: Callable[[str], None], data: bytes = b"") -> bytes:
        """Call `action` with the path of a file that holds `data`; return what it holds afterwards."""
        if self._scratch is not None:
            path = self._scratch / "seal"
            path.write_bytes(data)
            action(str(path))
            return path.read_bytes()
        descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w+b", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            action(f"/proc/self/fd/{descriptor}")
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return file.read(size)


@functools.cache
def scheme_of(circuit: Circuit) -> Scheme:
    """Return the scheme of a circuit, made once a process: it holds no key.

    Raises:
        InputError: tenseal is not installed.
    """
    return Scheme(CIRCUITS[circuit])


def library() -> Any:
    """Return the module `tenseal.sealapi`. Raises InputError where it is not installed."""
    try:
        from tenseal import sealapi
    except ImportError:
        raise InputError(
            "scoring under encryption needs a package that is not installed: tenseal",
            fix="Install cloister[he]",
        ) from None
    return sealapi


def _id_bytes(parms_id: Any) -> bytes:
    return struct.pack("<4Q", *parms_id)
