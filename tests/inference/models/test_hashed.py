"""A sealed model's digest, found on the way: whatever is read how, it is the files' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.inference.modelworld import FILES, WEIGHTS, Keys, opened, sealed

from cloister.errors import IntegrityError
from cloister.inference.models.hashed import HashedModel, check_digest
from cloister.inference.models.sealedfile import EncryptedFile

READS = st.lists(
    st.tuples(st.sampled_from(sorted(FILES)), st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=6
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=READS)
def test_any_reading_comes_to_the_same_digest(tmp_path: Path, reads: list[Any]) -> None:
    keys = Keys()
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    with opened(sealed(folder, keys), keys) as model:
        files = HashedModel(model)
        assert (files.names, files.digest) == (model.names, model.digest)
        for name, first, share, into in reads:
            offset = int(first * len(FILES[name]))
            length = int(share * (len(FILES[name]) - offset))
            if into:
                room = bytearray(length)
                files.read_into(name, offset, memoryview(room))
            else:
                room = bytearray(files.read_at(name, offset, length))
            assert room == FILES[name][offset : offset + length]
        assert files.read(reads[0][0]) == FILES[reads[0][0]] if reads else True
        files.check()


def test_loading_and_telling_cost_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, chunks = Keys(), list[tuple[str, int]]()
    whole = EncryptedFile.chunk_into

    def counted(self: EncryptedFile, number: int, *room: memoryview) -> None:
        chunks.append((self.name, number))
        whole(self, number, *room)

    monkeypatch.setattr(EncryptedFile, "chunk_into", counted)
    with opened(sealed(tmp_path, keys), keys) as model:
        files = HashedModel(model)
        room = bytearray(len(WEIGHTS))
        files.read_into("model.safetensors", 0, memoryview(room)[:8])
        files.read_into("model.safetensors", 8, memoryview(room)[8:1000])
        files.read_into("model.safetensors", 1000, memoryview(room)[1000:])
        files.check()
    assert room == WEIGHTS
    assert len(chunks) == len(set(chunks))


def test_an_owner_who_signs_another_digest_is_noticed(tmp_path: Path) -> None:
    keys = Keys()
    folder = sealed(tmp_path, keys)
    with opened(folder, keys) as model:
        model.digest = "0" * 64  # type: ignore[misc]  # as if the owner had signed it
        with pytest.raises(IntegrityError, match="not what its digest says"):
            check_digest(model)
