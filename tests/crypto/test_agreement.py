from __future__ import annotations

import pytest
from tests.crypto.vectors import read

from cloister.crypto import SECRET_ACCESS, AgreementKey
from cloister.errors import InputError, ProtocolError


def test_published_vectors() -> None:
    for vector in read("x25519")["vectors"]:
        key = AgreementKey.from_bytes(bytes.fromhex(vector["scalar"]))
        assert key.exchange(bytes.fromhex(vector["point"])).hex() == vector["shared"]
        if "public" in vector:
            assert key.public.hex() == vector["public"]


@pytest.mark.parametrize("point", read("x25519")["small_order"])
def test_points_of_small_order_are_refused(point: str) -> None:
    with pytest.raises(ProtocolError, match="small order"):
        AgreementKey.generate().exchange(bytes.fromhex(point))


def test_both_sides_agree() -> None:
    one, two = AgreementKey.generate(), AgreementKey.generate()
    assert one.exchange(two.public) == two.exchange(one.public)


def test_generate_uses_the_given_randomness() -> None:
    key = AgreementKey.generate(lambda count: b"\x07" * count)
    assert key.to_bytes(SECRET_ACCESS) == b"\x07" * 32
    assert AgreementKey.generate().public != AgreementKey.generate().public


@pytest.mark.parametrize("length", [0, 31, 33])
def test_wrong_lengths_are_refused(length: int) -> None:
    with pytest.raises(InputError, match="32 bytes"):
        AgreementKey.from_bytes(bytes(length))
    with pytest.raises(InputError, match="32 bytes"):
        AgreementKey.generate().exchange(bytes(length))
