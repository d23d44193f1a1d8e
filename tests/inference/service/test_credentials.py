from __future__ import annotations

from pathlib import Path

import pytest

from cloister.crypto import sha256
from cloister.errors import InputError
from cloister.inference.service import Client, Register, add_client, list_clients, remove_client

HASH = "a" * 64


def test_a_token_is_shown_once_and_proves_its_client(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    tokens = {name: add_client(path, name) for name in ("ward", "lab")}
    register = Register(list_clients(path))
    assert {name: register.name_of(token) for name, token in tokens.items()} == {"ward": "ward", "lab": "lab"}
    for wrong in ("", "clst-", tokens["ward"][:-1], tokens["ward"] + "=", tokens["ward"].upper()):
        assert register.name_of(wrong) is None
    assert not any(token in path.read_text() for token in tokens.values())
    remove_client(path, "ward")
    assert Register(list_clients(path)).name_of(tokens["ward"]) is None


def test_the_bytes_of_a_token(tmp_path: Path) -> None:
    token = add_client(tmp_path / "c", "ward", insecure_test_random=lambda count: b"\xfb" * count)
    assert token == "clst-" + "-_v7" * 10 + "-_s"
    assert list_clients(tmp_path / "c") == [Client("ward", sha256(token.encode()).hex())]


def test_anybody_has_no_name() -> None:
    assert Register(None).name_of("whatever") == ""
    assert Register([]).name_of("") is None


@pytest.mark.parametrize(
    "text",
    [
        "clients = 1",
        "[[clients]]\nname = 'a'",
        f"[[clients]]\nname = 'a'\ntoken_sha256 = '{HASH}'\nadmin = true",
        f"[[clients]]\nname = 'A b'\ntoken_sha256 = '{HASH}'",
        "[[clients]]\nname = 'a'\ntoken_sha256 = 'short'",
        f"[[clients]]\nname = 'a'\ntoken_sha256 = '{HASH.upper()}'",
        f"[[clients]]\nname = 'a'\ntoken_sha256 = '{HASH}'\n[[clients]]\nname = 'b'\ntoken_sha256 = '{HASH}'",
        f"[[clients]]\nname='a'\ntoken_sha256='{HASH}'\n[[clients]]\nname='a'\ntoken_sha256='{'b' * 64}'",
        "\x00",
        "[[",
    ],
)
def test_a_file_that_is_not_as_it_should_be_lets_nobody_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    with pytest.raises(InputError):
        list_clients(path)


def test_names_and_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    with pytest.raises(InputError):
        add_client(path, "A b")
    with pytest.raises(InputError, match="cannot read"):
        list_clients(path)
    add_client(path, "ward")
    with pytest.raises(InputError, match="already"):
        add_client(path, "ward")
    with pytest.raises(InputError, match="no client"):
        remove_client(path, "lab")
