from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.enclave.fuzz import fuzz_seconds, mutations
from tests.enclave.kinds.nvidiaparts import MANIFEST, Publisher, tag
from tests.enclave.kinds.verdicts import flipped
from tests.enclave.pki import AT
from tests.enclave.samples import sample

from cloister.enclave.kinds.rim import Rim, compare, verify_rim
from cloister.errors import InputError

YEAR = datetime(2024, 9, 1, tzinfo=UTC)
GOLDEN = {0: [b"a" * 48], 7: [b"b" * 48, b"c" * 48]}


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Publisher:
    made = Publisher()
    made.pin(monkeypatch)
    return made


def refused(data: bytes, at: datetime = AT) -> bool:
    """Whether a manifest is refused: as malformed, or with a claim that is false and nothing to compare with."""
    try:
        found = verify_rim(data, at=at)
    except InputError:
        return True
    return not (found.signature and found.chain) and not found.golden


def test_the_genuine_manifest_holds_while_its_signer_is_in_force() -> None:
    found = verify_rim(sample(MANIFEST), at=YEAR)
    assert (found.signature, found.chain, found.product, found.version) == (True, True, "GH100", "545.00")
    assert (len(found.golden), min(found.golden), max(found.golden)) == (21, 7, 40)
    assert found.reasons == {}
    for at, why in (
        (datetime(2023, 6, 1, tzinfo=UTC), "is valid only from 2023-06-27"),
        (datetime(2025, 7, 1, tzinfo=UTC), "expired at 2025-06-26"),
    ):
        outside = verify_rim(sample(MANIFEST), at=at)
        assert (outside.signature, outside.chain, outside.golden) == (True, False, {})
        assert why in outside.reasons["chain"]


def test_a_manifest_of_our_own_holds_under_its_root_and_no_other(publisher: Publisher) -> None:
    document = publisher.sign(tag("1.2", GOLDEN))
    found = verify_rim(document, at=AT)
    assert (found.signature, found.chain, found.version) == (True, True, "1.2")
    assert found.golden == {index: frozenset(values) for index, values in GOLDEN.items()}
    stranger = verify_rim(Publisher().sign(tag("1.2", GOLDEN)), at=AT)
    assert (stranger.signature, stranger.chain, stranger.golden) == (True, False, {})


def test_a_stranger_cannot_borrow_the_signers_certificates(publisher: Publisher) -> None:
    forged = Publisher().sign(tag("1.2", GOLDEN), [publisher.signer.certificate, publisher.root.certificate])
    found = verify_rim(forged, at=AT)
    assert (found.signature, found.chain, found.golden, found.version) == (False, True, {}, "")


def test_the_strangers_certificate_before_the_signers_is_no_chain(publisher: Publisher) -> None:
    stranger = Publisher()
    chain = [stranger.signer.certificate, publisher.signer.certificate, publisher.root.certificate]
    found = verify_rim(stranger.sign(tag("1.2", GOLDEN), chain), at=AT)
    assert (found.signature, found.chain, found.golden) == (True, False, {})


def test_changed_values_are_not_what_was_signed(publisher: Publisher) -> None:
    document = publisher.sign(tag("1.2", GOLDEN))
    for before, after in (
        (b"61" * 48, b"62" * 48),
        (b'"1.2"', b'"1.3"'),
        (b'active="True"', b'active="False"'),
        (b'alternatives="2"', b'alternatives="1"'),
        (b'<s:Resource type="Measurement" index="0"', b'<s:Resource type="Measurement" index="1"'),
        (b"</s:Payload>", b"x</s:Payload>"),
    ):
        assert before in document
        found = verify_rim(document.replace(before, after, 1), at=AT)
        assert (found.signature, found.golden, found.version) == (False, {}, "")
        assert found.reasons["signature"] == "the manifest is not what its signer signed"


def test_signatures_cannot_be_wrapped(publisher: Publisher) -> None:
    """XML signature wrapping: the genuine document hidden somewhere, another one where readers look."""
    good = publisher.sign(tag("1.2", GOLDEN))
    evil = tag("6.6.6", {0: [b"e" * 48]})
    start, end = good.index(b"<ds:Signature"), good.index(b"</s:SoftwareIdentity>")
    signature = good[start:end]
    opened = evil.removesuffix("</s:SoftwareIdentity>").encode()
    close = b"</s:SoftwareIdentity>"
    payload = good[good.index(b"<s:Payload") : good.index(b"</s:Payload>") + len(b"</s:Payload>")]
    attempts = {
        "the signature moved to another document": opened + signature + close,
        "the genuine document beside it": opened + good + signature + close,
        "the genuine document inside the signature": opened
        + signature.replace(b"</ds:Signature>", b"<ds:Object>" + good + b"</ds:Object></ds:Signature>")
        + close,
        "the genuine document around the evil one": good.replace(
            b"</s:Payload>", b"</s:Payload>" + evil.encode(), 1
        ),
        "two signatures": opened + signature + signature + close,
        "the signature below a child": opened + b"<s:Link>" + signature + b"</s:Link>" + close,
        "the signature before the payload": good.replace(signature, b"").replace(
            b"<s:Payload", signature + b"<s:Payload", 1
        ),
        "two payloads": good.replace(payload, payload + payload, 1),
        "a reference to a part": good.replace(b'URI=""', b'URI="#part"', 1),
        "a reference to nothing": good.replace(b' URI=""', b"", 1),
        "two references": good.replace(
            b"</ds:Reference>",
            b"</ds:Reference>"
            + signature[signature.index(b"<ds:Reference") : signature.index(b"</ds:SignedInfo>")],
            1,
        ),
        "an XPath transform": good.replace(
            b"http://www.w3.org/2000/09/xmldsig#enveloped-signature",
            b"http://www.w3.org/TR/1999/REC-xpath-19991116",
            1,
        ),
        "a weaker digest": good.replace(
            b"http://www.w3.org/2001/04/xmldsig-more#sha384", b"http://www.w3.org/2000/09/xmldsig#sha1", 1
        ),
        "a symmetric signature": good.replace(
            b"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
            b"http://www.w3.org/2001/04/xmldsig-more#hmac-sha384",
            1,
        ),
        "a key beside the certificates": good.replace(b"<ds:X509Data>", b"<ds:KeyValue/><ds:X509Data>", 1),
        "a method outside its reference": good.replace(b"</ds:Reference>", b"", 1).replace(
            b"<ds:DigestMethod", b"</ds:Reference><ds:DigestMethod", 1
        ),
        "elements in a certificate": good.replace(
            b"</ds:X509Certificate>", b"<s:Payload/></ds:X509Certificate>", 1
        ),
        "a certificate that is not Base64": good.replace(
            b"<ds:X509Certificate>", b"<ds:X509Certificate>!", 1
        ),
        "no signature": opened + close,
        "an empty signature": opened
        + b'<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"/>'
        + close,
    }
    accepted = [what for what, document in attempts.items() if not refused(document)]
    assert accepted == []
    assert not refused(good)


def test_a_document_type_is_refused_in_every_dress(publisher: Publisher, tmp_path: Path) -> None:
    """XXE: a file, another host, an expansion of billions, a parameter entity, another encoding."""
    secret = tmp_path / "secret"
    secret.write_text("THE SECRET")
    good = publisher.sign(tag("1.2", GOLDEN)).decode()
    types = [
        f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]>',
        '<!DOCTYPE x [<!ENTITY e SYSTEM "http://127.0.0.1:9/">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>',
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + '<!ENTITY e "&i;">]>',
        '<!DOCTYPE x [<!ATTLIST s:Resource active CDATA "False">]>',
    ]
    for kind in types:
        for document in (kind + good, kind + good.replace('"1.2"', '"&e;"')):
            with pytest.raises(InputError) as caught:
                verify_rim(document.encode(), at=AT)
            assert "SECRET" not in str(caught.value)
        for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-7"):
            declared = f'<?xml version="1.0" encoding="{encoding}"?>' + kind + good
            with pytest.raises(InputError):
                verify_rim(declared.encode(encoding), at=AT)


def test_nothing_but_elements_and_text_is_read(publisher: Publisher) -> None:
    good = publisher.sign(tag("1.2", GOLDEN))
    for document in (
        b"<!-- x -->" + good,
        good.replace(b"<s:Payload>", b"<s:Payload><!-- x -->", 1),
        good.replace(b"<s:Payload>", b"<s:Payload><?run x?>", 1),
        good.replace(b"<s:Payload>", b"<s:Payload><![CDATA[x]]>", 1),
        b'<?xml-stylesheet href="x"?>' + good,
        b'<?xml version="1.0"?><?run x?>' + good,
        good + b"<x/>",
        good[:-1],
        good[: len(good) // 2],
        b"",
        b"\xff\xfe",
        b"<a>" * 100_000,
        b"x" * ((1 << 20) + 1),
        good.replace(b"48", b"\xff8", 1),
        good.replace(b'size="48"', b'size="48" size="48"', 1),
    ):
        with pytest.raises(InputError):
            verify_rim(document, at=AT)
    assert not refused(b'<?xml version="1.0" encoding="UTF-8"?>\n' + good + b"\n")


def test_signed_nonsense_is_still_malformed(publisher: Publisher) -> None:
    good = tag("1.2", GOLDEN)
    for before, after in (
        ('index="0"', 'index="-1"'),
        ('index="0"', 'index="256"'),
        ('index="0"', 'index="\u0663"'),
        ('index="0"', 'index="7"'),
        ('alternatives="2"', 'alternatives="3"'),
        ('alternatives="1"', 'alternatives="0"'),
        ('alternatives="1"', 'alternatives="9999"'),
        ('size="48"', 'size="32"'),
        ('active="True"', 'active="maybe"'),
        ('type="Measurement"', 'type="Other"'),
        ("61" * 48, "61" * 47),
        ("61" * 48, "6 " * 48),
        (' colloquialVersion="1.2"', ""),
        ('product="GH100"', 'product=""'),
        ("<s:Payload>", "<s:Payload/><s:Payload>"),
        ("<s:Payload>", "<s:Payload><s:File/>"),
    ):
        assert before in good
        with pytest.raises(InputError):
            verify_rim(publisher.sign(good.replace(before, after, 1)), at=AT)


def test_without_the_libraries_manifests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "signxml", None)
    with pytest.raises(InputError, match=r"Install cloister\[enclave\]"):
        verify_rim(b"<x/>", at=AT)


def test_comparing_with_no_manifest_matches_nothing() -> None:
    assert compare({1: b"x" * 48}, []) == (None, "no manifest was given")
    empty = Rim(signature=True, chain=True, version="1")
    assert compare({1: b"x" * 48}, [empty])[0] is None


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_one_bit_of_a_manifest_is_refused_or_changes_nothing(count: int) -> None:
    document = sample(MANIFEST)
    before = verify_rim(document, at=YEAR)
    unchanged = set()
    for position, altered in flipped(document, count):
        if refused(altered, YEAR):
            continue
        assert verify_rim(altered, at=YEAR) == before
        unchanged.add(document[position : position + 1])
    assert unchanged <= {b" ", b"\n"}  # white space that no XML signature covers


@pytest.mark.slow
def test_fuzz_no_bytes_make_a_manifest_raise_but_input_errors() -> None:
    for altered in mutations(sample(MANIFEST), fuzz_seconds(), seed=11):
        with contextlib.suppress(InputError):
            verify_rim(altered, at=YEAR)
