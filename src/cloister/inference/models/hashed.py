"""A sealed model's digest, found while its files are read to be loaded: each byte is decrypted once.

What is read in order, from a file's beginning on, is hashed on its way to whoever reads it; bytes that are
read again are not. Whatever nobody has read by then, `check` reads. So loading a model and telling by its
digest which it is costs one pass over it, and the answer is the same as of a pass for the digest alone.

Not for several threads.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes

from cloister.inference.models.manifest import CHUNK
from cloister.inference.models.sealed import SealedModel
from cloister.inference.models.sealedfile import altered
from cloister.learning.modelfiles.files import set_digest

__all__ = ["HashedModel", "check_digest"]


class HashedModel:
    """A `ModelFiles` over a sealed model.

    Args:
        model: the sealed model; nothing else reads it meanwhile.

    Attributes:
        digest: as the owner says, until `check` has returned.
        names: sorted.
    """

    def __init__(self, model: SealedModel) -> None:
        self._model = model
        self.names: Final = model.names
        self.digest: Final = model.digest
        self._states = {name: hashes.Hash(hashes.SHA256()) for name in model.names}
        self._reached = dict.fromkeys(model.names, 0)

    def size(self, name: str) -> int:
        """Return the bytes of a file. Raises InputError where there is none of that name."""
        return self._model.size(name)

    def read(self, name: str) -> bytes:
        """Return a whole file; raises as `read_at`."""
        return self.read_at(name, 0, self.size(name))

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; raises as `SealedModel.read_at`."""
        data = self._model.read_at(name, offset, length)
        self._seen(name, offset, memoryview(data))
        return data

    def read_into(self, name: str, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on; raises as `SealedModel.read_into`."""
        self._model.read_into(name, offset, out)
        self._seen(name, offset, out.cast("B"))

    def check(self) -> None:
        """Read what was not read yet; raise IntegrityError unless the files have the digest that was signed.

        Once: nothing that is read afterwards counts.
        """
        room, found = memoryview(bytearray(CHUNK)), []
        for name in self.names:
            size = self.size(name)
            while self._reached[name] < size:
                start = self._reached[name]
                self.read_into(name, start, room[: min(CHUNK - start % CHUNK, size - start)])
            if not size:
                self._model.check(name)
            found.append((name, size, self._states[name].finalize()))
        if set_digest(found) != self.digest:
            raise altered(self._model.manifest.name, "its content is not what its digest says")

    def _seen(self, name: str, offset: int, data: memoryview) -> None:
        new = data[max(0, self._reached[name] - offset) :] if offset <= self._reached[name] else data[:0]
        if new:
            self._states[name].update(new)
            self._reached[name] += len(new)


def check_digest(model: SealedModel) -> None:
    """Raise IntegrityError unless the files in clear have the digest that the owner signed."""
    HashedModel(model).check()
