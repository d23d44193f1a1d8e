"""The certificate: one spelling, strict fields, and nothing in it that contradicts itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.governance.releases import identity, make_world, payload_of

from cloister.crypto import canonical_bytes, keyring, sha256, sign_envelope
from cloister.errors import CloisterError, IntegrityError, VerificationError
from cloister.governance import Certificate
from cloister.governance.certificate import ABSENT, PAYLOAD_TYPE, decode_statement


@pytest.fixture(scope="module")
def statement(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    world = make_world(tmp_path_factory.mktemp("certificate"), lost={2: {"site1"}})
    return payload_of(dict(world.release().files))


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field and item of a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found += paths_of(each, (*path, key))
    return found


def changed(statement: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The statement with the value at `path` replaced, or taken out where `value` is `...`."""
    result = copy.deepcopy(statement)
    place = result
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


def test_it_reads_back(statement: dict[str, Any]) -> None:
    decoded = decode_statement(canonical_bytes(statement))
    assert canonical_bytes(decoded) == canonical_bytes(statement)
    assert decoded.predicate.privacy is None
    assert decoded.predicate.absent == ABSENT
    assert "no differential privacy was applied" in decoded.predicate.absent["privacy"]


def test_signing_and_opening(statement: dict[str, Any]) -> None:
    hub, stranger = identity("hub"), identity("stranger")
    certificate = Certificate.sign(decode_statement(canonical_bytes(statement)), hub)
    assert Certificate.open(certificate.envelope, keyring([hub.public])) == certificate
    assert certificate.digest == sha256(certificate.envelope)
    with pytest.raises(IntegrityError):
        Certificate.open(certificate.envelope, keyring([stranger.public]))


def test_any_other_spelling_is_refused(statement: dict[str, Any]) -> None:
    text = canonical_bytes(statement).decode()
    for spelling in (
        json.dumps(statement),
        text + "\n",
        " " + text,
        text.replace('"heart"', '"h\\u0065art"'),
        text.replace('"rows":100', '"rows":1e2'),
        text.replace('"value_range":8', '"value_range":8.0'),
        "{" + '"_type":"x",' + text[1:],
    ):
        assert spelling != text
        with pytest.raises(IntegrityError):
            decode_statement(spelling.encode())


@pytest.mark.parametrize("junk", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"_type": 1}'])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_statement(junk)


def test_a_field_left_out_is_refused(statement: dict[str, Any]) -> None:
    for path in paths_of(statement):
        if isinstance(path[-1], str) and "software" not in path[:-1]:  # an open list of versions
            with pytest.raises(CloisterError):
                decode_statement(canonical_bytes(changed(statement, path, ...)))


def test_an_unknown_field_is_refused_at_every_level(statement: dict[str, Any]) -> None:
    objects = [()] + [p for p in paths_of(statement) if isinstance(at(statement, p), dict)]
    for path in objects:
        if path and path[-1] in ("software",):
            continue  # an open list of versions
        with pytest.raises(CloisterError):
            decode_statement(canonical_bytes(changed(statement, (*path, "unknown"), "value")))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_a_value_of_another_type_is_refused(statement: dict[str, Any]) -> None:
    for path in paths_of(statement):
        for wrong in ([1.5], {"a": True}):
            with pytest.raises(CloisterError):
                decode_statement(canonical_bytes(changed(statement, path, wrong)))


PREDICATE = ("predicate",)
AGGREGATION = ("predicate", "aggregation")
EPOCH = (*AGGREGATION, "epochs", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("predicateType",), "urn:cloister:release:v1"),
        (("subject", 0, "digest", "sha256"), "A" * 64),
        (("subject", 0, "digest", "sha256"), "a" * 64 + "\n"),
        (("subject", 0, "name"), "../model.safetensors"),
        (("subject", 0, "name"), "/etc/passwd"),
        (("subject", 0, "name"), "a/b/c/d.json"),
        (("subject",), []),
        ((*PREDICATE, "study"), "Heart"),
        ((*PREDICATE, "purpose"), ""),
        ((*PREDICATE, "created"), "2026-03-01 12:00:00"),
        ((*PREDICATE, "created"), "2026-03-01T12:00:00+01:00"),
        ((*PREDICATE, "privacy"), {"epsilon": 1.0}),
        ((*PREDICATE, "enclave"), "attested"),
        ((*PREDICATE, "absent", "privacy"), ""),
        ((*PREDICATE, "participants", 0, "rows"), -1),
        ((*PREDICATE, "participants", 0, "rows"), 2**53),
        ((*PREDICATE, "participants", 0, "fingerprint"), "short"),
        ((*AGGREGATION, "secure"), False),
        ((*AGGREGATION, "bits"), 12),
        ((*AGGREGATION, "hub_view"), "all"),
        ((*AGGREGATION, "value_range"), 0),
        ((*AGGREGATION, "epochs"), []),
        ((*EPOCH, "number"), -1),
        ((*EPOCH, "members"), ["site0"]),
        ((*EPOCH, "rounds"), []),
        ((*EPOCH, "rounds", 0, "count"), 0),
    ],
)
def test_a_value_out_of_range_is_refused(
    statement: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    with pytest.raises(IntegrityError):
        decode_statement(canonical_bytes(changed(statement, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("subject", 1, "name"), "certificate.dsse.json", None),
        ((*PREDICATE, "participants", 1, "name"), "site0", "participant twice"),
        ((*EPOCH, "parties"), 5, "counts other parties"),
        ((*EPOCH, "rounds", 0, "first"), 2, "round 1 is missing"),
        ((*EPOCH, "rounds", 1, "first"), 4, "round 3 is missing"),
        ((*EPOCH, "rounds", 1, "first"), 2, "round 3 is missing or told twice"),
        ((*EPOCH, "rounds", 0, "count"), 1, "round 2 is missing"),
        ((*EPOCH, "rounds", 1, "attempt"), 1, "reuses an attempt"),
        ((*EPOCH, "rounds", 1, "dropped"), ["site9"], "no member of its epoch"),
        ((*EPOCH, "rounds", 1, "dropped"), ["site1", "site1"], "twice"),
        ((*PREDICATE, "training", "rounds"), 6, "not as many"),
    ],
)
def test_contradictions_are_refused(
    statement: dict[str, Any], path: tuple[Any, ...], value: Any, reason: str | None
) -> None:
    altered = canonical_bytes(changed(statement, path, value))
    if reason is None:  # a name alone contradicts nothing here; step 4 of verify compares it with the files
        decode_statement(altered)
        return
    with pytest.raises(VerificationError, match=reason):
        decode_statement(altered)


def test_a_repeated_key_or_file_is_refused(statement: dict[str, Any]) -> None:
    first = statement["predicate"]["participants"][0]["fingerprint"]
    twice = changed(statement, (*PREDICATE, "participants", 1, "fingerprint"), first)
    with pytest.raises(VerificationError, match="key twice"):
        decode_statement(canonical_bytes(twice))
    file = changed(statement, ("subject", 1), statement["subject"][0])
    with pytest.raises(VerificationError, match="file twice"):
        decode_statement(canonical_bytes(file))
    reader = {"name": "reader", "fingerprint": "a" * 64}
    readers = changed(statement, (*PREDICATE, "recipients"), [reader, reader])
    with pytest.raises(VerificationError, match="recipient twice"):
        decode_statement(canonical_bytes(readers))


def test_what_would_not_be_read_is_not_signed(statement: dict[str, Any]) -> None:
    import msgspec

    good = decode_statement(canonical_bytes(statement))
    bad = msgspec.structs.replace(good, subject=(good.subject[0], good.subject[0]))
    with pytest.raises(VerificationError):
        Certificate.sign(bad, identity("hub"))


def test_another_payload_type_is_no_certificate(statement: dict[str, Any], tmp_path: Path) -> None:
    hub = identity("hub")
    other = sign_envelope("application/vnd.cloister.manifest+json", canonical_bytes(statement), [hub])
    with pytest.raises(IntegrityError, match="another type"):
        Certificate.open(other, keyring([hub.public]))
    assert PAYLOAD_TYPE == "application/vnd.in-toto+json"
