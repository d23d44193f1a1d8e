from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from tests.enclave.kinds.intelparts import Maker, p256, sgx_report, td_report
from tests.enclave.kinds.verdicts import refused_or_same
from tests.enclave.pki import AT, constraints, usage
from tests.enclave.samples import sample

from cloister.enclave.kinds.intel import verify_quote
from cloister.errors import InputError

JUNE = datetime(2025, 6, 20, 10, 16, 3, tzinfo=UTC)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    made.pin(monkeypatch)
    return made


def test_collateral_that_holds_here_is_still_asked_of_dcap_qvl(maker: Maker) -> None:
    """It pins Intel's root itself, so that it refuses the twin's: the claim is false, never true."""
    claims = verify_quote(maker.quote(td_report()), {"collateral": maker.document()}, at=AT)
    assert (claims.chain, claims.collateral_fresh, claims.revocation_checked) == (True, True, True)
    assert (claims.tcb_consistent, claims.tcb_status, claims.advisories) == (False, None, None)
    assert claims.reasons["tcb_consistent"].startswith("dcap-qvl refuses: ")


def test_a_revoked_platform_and_a_revoked_authority_are_named(maker: Maker) -> None:
    quote = maker.quote(td_report())
    leaf, authority = maker.pck.certificate.serial_number, maker.authority.certificate.serial_number
    signer = maker.signer.certificate.serial_number
    cases = [
        (maker.document(revoked=(leaf,)), "'Twin PCK' is revoked"),
        (maker.document(root_revoked=(authority,)), "'Twin PCK CA' is revoked"),
        (maker.document(root_revoked=(signer,)), "'Intel SGX TCB Signing' is revoked"),
    ]
    for document, why in cases:
        claims = verify_quote(quote, {"collateral": document}, at=AT)
        assert (claims.revocation_checked, claims.tcb_status) == (False, None)
        assert claims.reasons["revocation_checked"] == why


def test_revocation_lists_of_another_authority_count_for_nothing(maker: Maker) -> None:
    document = json.loads(maker.document())
    document["pck_crl"] = Maker().authority.crl().hex()
    claims = verify_quote(maker.quote(td_report()), {"collateral": json.dumps(document).encode()}, at=AT)
    assert claims.revocation_checked is False
    assert "not signed by 'Twin PCK CA'" in claims.reasons["revocation_checked"]


def test_a_list_from_the_future_is_not_in_force(maker: Maker) -> None:
    document = json.loads(maker.document())
    document["root_ca_crl"] = maker.root.crl(start=AT + timedelta(days=1), end=AT + timedelta(days=9)).hex()
    claims = verify_quote(maker.quote(td_report()), {"collateral": json.dumps(document).encode()}, at=AT)
    assert (claims.collateral_fresh, claims.revocation_checked) == (False, False)
    assert "root revocation list is from the future" in claims.reasons["collateral_fresh"]


def test_dates_of_documents_are_kept_to_the_second(maker: Maker) -> None:
    quote = maker.quote(td_report())
    for issued, until, fresh in (
        (AT, AT + timedelta(days=1), True),
        (AT + timedelta(seconds=1), AT + timedelta(days=1), False),
        (AT - timedelta(days=1), AT, True),
        (AT - timedelta(days=1), AT - timedelta(seconds=1), False),
    ):
        document = maker.document(issued=issued, until=until)
        assert verify_quote(quote, {"collateral": document}, at=AT).collateral_fresh is fresh


def test_only_intels_signer_signs_collateral(maker: Maker) -> None:
    quote = maker.quote(td_report())
    other = maker.root.issue("Intel SGX PCK Certificate", constraints(False), usage(False), key=p256())
    cases = [
        (maker.document(signer=other, key=other.key), "signed by a certificate that may not sign it"),  # type: ignore[arg-type]
        (maker.document(key=p256()), "the signature of the TCB info does not verify"),
        (maker.document(signer=Maker().signer), "the signer of the TCB info: "),
    ]
    for document, why in cases:
        claims = verify_quote(quote, {"collateral": document}, at=AT)
        assert (claims.collateral_fresh, claims.tcb_status) == (False, None)
        assert why in claims.reasons["collateral_fresh"]


def test_collateral_is_for_one_platform_and_one_kind(maker: Maker) -> None:
    for quote, document in (
        (maker.quote(td_report()), maker.document(fmspc=bytes(6))),
        (maker.quote(td_report()), maker.document(tee="SGX")),
        (maker.quote(sgx_report()), maker.document(tee="TDX")),
    ):
        claims = verify_quote(quote, {"collateral": document}, at=AT)
        assert (claims.tcb_consistent, claims.tcb_status) == (False, None)
        assert claims.reasons["tcb_status"] == "the collateral is for another platform"


def test_malformed_collateral_is_refused(maker: Maker) -> None:
    quote, good = maker.quote(td_report()), json.loads(maker.document())
    bad = [b"", b"{}", b"[" * 100_000, b'"text"', b"\xff\xfe", json.dumps({**good, "more": 1}).encode()]
    for name in good:
        bad.append(json.dumps({k: v for k, v in good.items() if k != name}).encode())
        garbage = "x" * 9 if name.endswith("chain") else "x" + good[name][1:]
        bad.append(json.dumps({**good, name: garbage}).encode())
        bad.append(json.dumps({**good, name: 7}).encode())
    for name in ("tcb_info", "qe_identity"):
        stated = json.loads(good[name])
        wrong = [(field, "soon") for field in ("issueDate", "nextUpdate", "tcbEvaluationDataNumber")]
        for field, value in [*wrong, ("issueDate", "2025-01-01T00:00:00")]:
            bad.append(json.dumps({**good, name: json.dumps({**stated, field: value})}).encode())
    for document in bad:
        with pytest.raises(InputError):
            verify_quote(quote, {"collateral": document}, at=AT)


def pieces() -> dict[str, bytes]:
    document = json.loads(sample("tdx/phala_tdx_quote_collateral.json"))
    return {
        "tcb_info": f'{{"tcbInfo":{document["tcb_info"]},"signature":"{document["tcb_info_signature"]}"}}'.encode(),
        "qe_identity": f'{{"enclaveIdentity":{document["qe_identity"]},"signature":"{document["qe_identity_signature"]}"}}'.encode(),
        "tcb_chain": document["tcb_info_issuer_chain"].encode(),
        "pck_crl": bytes.fromhex(document["pck_crl"]),
        "root_crl": bytes.fromhex(document["root_ca_crl"]),
    }


def test_collateral_in_pieces_says_the_same_as_the_document() -> None:
    quote = sample("tdx/phala_tdx_quote")
    whole = verify_quote(quote, {"collateral": sample("tdx/phala_tdx_quote_collateral.json")}, at=JUNE)
    assert verify_quote(quote, pieces(), at=JUNE) == whole


def test_pieces_must_be_whole_and_not_beside_a_document() -> None:
    quote, given = sample("tdx/phala_tdx_quote"), pieces()
    for name in given:
        with pytest.raises(InputError, match=f"lacks {name}"):
            verify_quote(quote, {k: v for k, v in given.items() if k != name}, at=JUNE)
    with pytest.raises(InputError, match="not both"):
        verify_quote(quote, {**given, "collateral": sample("tdx/phala_tdx_quote_collateral.json")}, at=JUNE)


def test_old_pieces_of_another_platform_do_not_hold() -> None:
    """Collateral of 2023 for a platform of another kind: expired in 2025, and its signer too young in 2023."""
    given = {
        "tcb_info": sample("tdx/google_tcbinfo.json"),
        "qe_identity": sample("tdx/google_qeidentity.json"),
        "pck_crl": sample("tdx/google_pckcrl.der"),
        "root_crl": sample("tdx/google_rootcrl.der"),
        "tcb_chain": pieces()["tcb_chain"],
    }
    quote = sample("tdx/google_cos113_quote.dat")
    late = verify_quote(quote, given, at=JUNE)
    assert late.reasons["collateral_fresh"] == "the TCB info expired at 2023-07-18T08:42:58Z"
    early = verify_quote(quote, given, at=datetime(2023, 6, 20, tzinfo=UTC))
    assert (early.chain, early.collateral_fresh) == (False, False)
    assert "Intel SGX TCB Signing' is valid only from" in early.reasons["collateral_fresh"]


def altered(document: dict[str, str], chance: random.Random) -> bytes:
    """Return collateral with one bit changed in one of its parts, as decoded from JSON and hexadecimal."""
    name = chance.choice(list(document))
    value = document[name]
    binary = name.endswith(("crl", "signature"))
    data = bytearray(bytes.fromhex(value) if binary else value.encode())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(7 if not binary else 8)
    return json.dumps({**document, name: data.hex() if binary else data.decode()}).encode()


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tdx", "sgx"])
def test_one_bit_of_collateral_changes_nothing_unnoticed(kind: str, count: int) -> None:
    quote = sample(f"{kind}/phala_{kind}_quote")
    given = sample(f"{kind}/phala_{kind}_quote_collateral.json")
    chance = random.Random(5)  # noqa: S311 - what is chosen is no secret
    before = verify_quote(quote, {"collateral": given}, at=JUNE)
    for _ in range(count):
        changed = altered(json.loads(given), chance)
        assert (
            refused_or_same(lambda data: verify_quote(quote, {"collateral": data}, at=JUNE), before, changed)
            is not False
        )
