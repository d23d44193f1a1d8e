"""Evidence of TPMs: genuine quotes hold, altered ones do not, and software is called software."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from tests.enclave.fuzz import flips, fuzz_seconds, mutations
from tests.enclave.kinds import tpmparts as parts
from tests.enclave.samples import sample

from cloister.crypto import Identity, keyring
from cloister.enclave.appraise import judge
from cloister.enclave.claims import Claims
from cloister.enclave.eventlog import StartLog, tcg
from cloister.enclave.evidence import Evidence, report_data
from cloister.enclave.kinds import tpm
from cloister.enclave.kinds.activation import certify, key_digest
from cloister.enclave.kinds.protobuf import fields
from cloister.enclave.kinds.tpmquote import pack
from cloister.enclave.kinds.tpmroots import TpmTrust
from cloister.enclave.policy import EnclavePolicy, Policies, TpmRules
from cloister.errors import InputError

AT = datetime(2026, 6, 1, tzinfo=UTC)
NONCE, NO_NONCE = "tpm/gce_cos85_nonce9009.pb", "tpm/gce_cos85_no_nonce.pb"
ASKED = report_data("test", bytes(32), bytes(32))


def appraise(data: bytes, expected: bytes | None = b"\x90\x09", **rest) -> Claims:
    return tpm.verify(Evidence("tpm", data, **rest), at=AT, expected=expected)


def start_log(*names: str) -> StartLog:
    log = StartLog()
    for number, name in enumerate(names):
        log.extend(11 + number % 4, name, f"{number:02x}" * 32, "")
    return log


def ours(
    *, key=None, area: bytes | None = None, pcrs=None, extra: bytes = ASKED[:32], pss: bool = False, **attest
) -> tuple[bytes, dict[str, bytes]]:
    """Return a document and its endorsements, as our attester makes them."""
    key = key or parts.rsa_key()
    area = area or parts.public_area(key)
    pcrs = pcrs or {"sha256": {0: bytes(32), 7: b"\x07" * 32}}
    quote = parts.attest(area, pcrs, extra, **attest)
    return pack(quote, parts.sign(key, quote, pss=pss), pcrs), {"ak": area}


# ---- genuine samples ------------------------------------------------------------------------------------


def test_three_banks_verify_with_their_nonce_and_log():
    claims = appraise(sample(NONCE))
    assert (claims.signature, claims.bindings, claims.event_log, claims.freshness) == (True,) * 4
    assert claims.self_reported is False
    assert claims.hardware_rooted is None
    assert claims.chain is False  # the certificate's issuer is not in it
    assert claims.measurements["pcr0"].startswith("0f35c214")
    assert len(claims.measurements) == 24
    assert claims.properties["tpm_resets"] == "10"


def test_without_a_nonce_it_is_not_fresh():
    claims = appraise(sample(NO_NONCE))
    assert claims.freshness is False
    assert "qualifyingData" in claims.reasons["freshness"]
    assert (claims.signature, claims.bindings, claims.event_log) == (True, True, True)
    assert appraise(sample(NO_NONCE), b"").freshness is False
    assert appraise(sample(NO_NONCE), None).freshness is None


@pytest.mark.parametrize("asked", [b"\x90\x08", b"\x90", b"\x90\x09\x00", b"\x90\x09" + bytes(62), ASKED])
def test_another_nonce_is_refused(asked):
    assert appraise(sample(NONCE), asked).freshness is False


def test_another_event_log_does_not_replay():
    claims = appraise(sample(NONCE), event_log=sample("tpm/eventlog_ubuntu2404_amd_sevsnp.bin"))
    assert claims.event_log is False
    assert "register" in claims.reasons["event_log"]


def unauthenticated(data: bytes) -> set[int]:
    """What no signature covers: names and types in the event log, and the certificate without a chain."""
    start = data.index(bytes.fromhex("0000000003000000") + bytes(20))
    log = tcg.parse(data[start:], rest=True)
    spans = [(start + low, start + high) for low, high, _ in log.unauthenticated()]
    spans.append((start + log.end, len(data)))
    return {at for low, high in spans for at in range(low, high)}


def check_flips(data: bytes, positions: range) -> None:
    """Whatever is flipped is refused, makes a claim false that was true, or changes no claim and is listed."""
    before = appraise(data)
    listed = unauthenticated(data)
    held = [name for name in Claims.__struct_fields__ if getattr(before, name) is True]
    for at, changed in flips(data, positions):
        try:
            after = appraise(changed)
        except InputError:
            continue
        if all(getattr(after, name) is True for name in held):
            assert after == before, at
            assert at in listed, at


@pytest.mark.parametrize("name", [NONCE, NO_NONCE])
def test_every_29th_byte_counts_or_is_listed(name):
    data = sample(name)
    check_flips(data, range(0, len(data), 29))


@pytest.mark.slow
@pytest.mark.parametrize("name", [NONCE, NO_NONCE])
def test_every_byte_counts_or_is_listed(name):
    data = sample(name)
    check_flips(data, range(len(data)))


def fuzz(data: bytes, amount: float | int, seed: int, **rest) -> None:
    before = appraise(data, ASKED, **rest)
    for changed in mutations(data, amount, seed):
        try:
            after = appraise(changed, ASKED, **rest)
        except InputError:
            continue
        signed = after.signature and after.bindings
        assert not signed or (after.measurements, after.freshness) == (before.measurements, before.freshness)


def test_mutations_are_refused_or_judged():
    data, endorsements = ours()
    fuzz(data, 1500, 1, endorsements=endorsements)


@pytest.mark.slow
def test_fuzz_theirs():
    fuzz(sample(NONCE), fuzz_seconds(), 2)


@pytest.mark.slow
def test_fuzz_ours():
    data, endorsements = ours()
    fuzz(data, fuzz_seconds(), 3, endorsements=endorsements)


# ---- documents of our own -------------------------------------------------------------------------------


@pytest.mark.parametrize("pss", [False, True])
def test_rsa_quote(pss):
    data, endorsements = ours(pss=pss)
    claims = appraise(data, ASKED, endorsements=endorsements)
    assert (claims.signature, claims.bindings, claims.freshness) == (True, True, True)
    assert (claims.chain, claims.hardware_rooted, claims.event_log) == (None, None, None)
    assert claims.software_only


def test_ecdsa_quote_and_a_bare_key():
    key = parts.ec_key()
    data, endorsements = ours(key=key)
    assert appraise(data, ASKED, endorsements=endorsements).signature
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims = appraise(data, ASKED, endorsements={"ak": spki})
    assert (claims.signature, claims.bindings) == (True, True)
    other = parts.rsa_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert appraise(data, ASKED, endorsements={"ak": other}).signature is False


def test_a_software_tpm_is_called_that():
    data, endorsements = ours()
    claims = appraise(data, ASKED, endorsements={**endorsements, "software": b"swtpm 0.7"})
    assert claims.hardware_rooted is False
    assert claims.reasons["hardware_rooted"] == "a software TPM (swtpm)"
    assert claims.self_reported is True


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (parts.ATTRIBUTES & ~(1 << 16), "restricted"),  # would sign a quote that somebody made up
        (parts.ATTRIBUTES & ~(1 << 1), "restricted"),
        (parts.ATTRIBUTES & ~(1 << 5), "restricted"),
        (parts.ATTRIBUTES | 1 << 17, "restricted"),
    ],
)
def test_a_key_that_signs_anything_vouches_for_nothing(attributes, why):
    area = parts.public_area(parts.rsa_key(), attributes)
    data, endorsements = ours(area=area)
    claims = appraise(data, ASKED, endorsements=endorsements)
    assert claims.signature is True
    assert claims.bindings is False
    assert why in claims.reasons["bindings"]


def test_a_quote_that_names_another_key():
    data, endorsements = ours(hierarchy=0x40000007)  # the null hierarchy: keys that do not last
    claims = appraise(data, ASKED, endorsements=endorsements)
    assert claims.bindings is False
    assert claims.reasons["bindings"] == "the quote names another key"


def test_a_key_below_another_names_it():
    parent = parts.public_area(parts.ec_key(), 0x00030072)  # a storage key: restricted, decrypts
    data, endorsements = ours(parent=parent)
    assert appraise(data, ASKED, endorsements={**endorsements, "parent": parent}).bindings is True
    assert appraise(data, ASKED, endorsements=endorsements).bindings is False
    other = parts.public_area(parts.rsa_key(), 0x00030072)
    assert appraise(data, ASKED, endorsements={**endorsements, "parent": other}).bindings is False


def test_registers_that_were_not_signed():
    key = parts.rsa_key()
    area = parts.public_area(key)
    quote = parts.attest(area, {"sha256": {0: bytes(32)}}, ASKED[:32])
    data = pack(quote, parts.sign(key, quote), {"sha256": {0: b"\1" * 32}})
    claims = appraise(data, ASKED, endorsements={"ak": area})
    assert (claims.signature, claims.bindings) == (True, False)
    more = pack(quote, parts.sign(key, quote), {"sha256": {0: bytes(32), 1: bytes(32)}})
    with pytest.raises(InputError, match="not those that were quoted"):
        appraise(more, ASKED, endorsements={"ak": area})


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_freshness_by_length_of_the_nonce(length):
    data, endorsements = ours(extra=ASKED[:length])
    claims = appraise(data, ASKED, endorsements=endorsements)
    assert claims.freshness is (length >= 32)


def test_what_is_malformed_is_an_input_error():
    data, endorsements = ours()
    ak = endorsements["ak"]
    key = parts.rsa_key()
    certify_not_quote = parts.attest(ak, {"sha256": {0: bytes(32)}}, b"", kind=0x8017)
    bad = [
        (b"", {"ak": ak}),
        (b"{}", {"ak": ak}),
        (data[:-1], {"ak": ak}),
        (data + b"\n", {"ak": ak}),
        (data.replace(b'"7"', b'"07"'), {"ak": ak}),
        (data, {}),
        (data, {"ak": ak + b"\0"}),
        (data, {"ak": ak[:-1]}),
        (data, {"ak": ak, "aik": ak}),
        (data, {"ak": ak, "ek_cert": b"\x30\x00"}),
        (pack(certify_not_quote, parts.sign(key, certify_not_quote), {"sha256": {0: bytes(32)}}), {"ak": ak}),
    ]
    for document, given in bad:
        with pytest.raises(InputError):
            appraise(document, ASKED, endorsements=given)
    with pytest.raises(InputError):
        appraise(data, ASKED, endorsements=endorsements, runtime_data=b"")


def test_registers_of_sha_1_alone_are_refused():
    key = parts.rsa_key()
    area = parts.public_area(key)
    pcrs = {"sha1": {0: bytes(20)}}
    quote = parts.attest(area, pcrs, b"")
    inner = field(1, 4) + field(2, field(1, 0) + field(2, bytes(20)))
    data = field(1, area) + field(2, field(1, quote) + field(2, parts.sign(key, quote)) + field(3, inner))
    with pytest.raises(InputError, match="SHA-1"):
        appraise(data)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7]) if value >= 0x80 else bytes([value])  # up to 14 bits


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    return bytes([number << 3 | 2]) + varint(len(value)) + value


@pytest.mark.parametrize(
    "data",
    [
        field(2, 1) + field(1, 1),  # not in order
        b"\x08\x80\x00",  # not the shortest form
        b"\x08" + b"\xff" * 9 + b"\x02",  # more than 64 bits
        b"\x08",
        b"\x0d\0\0\0\0",  # 32 bits: nobody writes that here
        b"\x0b",
        field(3, 1),
        field(2, b"x") + b"x",
        b"\x12\x02x",
        b"\0\0",
    ],
)
def test_messages_have_one_form(data):
    with pytest.raises(InputError):
        fields(data, {1: int, 2: bytes})


def test_messages_are_read():
    assert fields(field(1, 300) + field(2, b"x") + field(2, b""), {1: int, 2: bytes}) == {
        1: [300],
        2: [b"x", b""],
    }


# ---- a measured start -----------------------------------------------------------------------------------


def test_a_start_log_is_measured_and_self_reported():
    log = start_log("interpreter", "package", "plan")
    data, endorsements = ours(pcrs={"sha256": {0: bytes(32), **log.replay()}})
    claims = appraise(data, ASKED, endorsements=endorsements, event_log=log.to_bytes())
    assert claims.event_log is True
    assert claims.self_reported is True
    assert claims.measurements["start:package"] == "01" * 32


def test_a_start_log_that_was_altered_measures_nothing():
    log = start_log("interpreter", "package")
    data, endorsements = ours(pcrs={"sha256": log.replay()})
    for other in (start_log("interpreter"), start_log("interpreter", "packages"), start_log("a", "b", "c")):
        claims = appraise(data, ASKED, endorsements=endorsements, event_log=other.to_bytes())
        if other.digests().keys() == {
            "interpreter"
        }:  # a part of the registers: it leaves the rest unexplained
            continue
        assert claims.event_log is False
        assert not [name for name in claims.measurements if name.startswith("start:")]
        assert claims.self_reported is True


def test_registers_of_a_start_log_must_be_quoted():
    log = start_log("interpreter", "package")
    data, endorsements = ours(pcrs={"sha256": {11: log.replay()[11]}})
    claims = appraise(data, ASKED, endorsements=endorsements, event_log=log.to_bytes())
    assert claims.event_log is False
    assert "was not quoted" in claims.reasons["event_log"]


def test_a_start_log_goes_on_after_the_firmwares():
    firmware = sample("tpm/eventlog_ubuntu2404_amd_sevsnp.bin")
    before = tcg.parse(firmware).replay("sha256")
    log = StartLog()
    log.extend(14, "package", "aa" * 32)  # shim measured into this register before
    after = {**before, **log.replay(before)}
    data, endorsements = ours(pcrs={"sha256": after})
    both = firmware + log.to_bytes()
    claims = appraise(data, ASKED, endorsements=endorsements, event_log=both)
    assert claims.event_log is True
    assert claims.measurements["start:package"] == "aa" * 32
    assert appraise(data, ASKED, endorsements=endorsements, event_log=firmware).event_log is False
    data, endorsements = ours(pcrs={"sha256": {**after, 3: b"\3" * 32}})
    assert appraise(data, ASKED, endorsements=endorsements, event_log=both).event_log is False


def test_a_firmware_log_may_leave_no_register_out():
    firmware = sample("tpm/eventlog_ubuntu2404_amd_sevsnp.bin")
    log = tcg.parse(firmware)
    without = b"".join(
        firmware[event.start : event.data_start + len(event.data)]
        for event in log.events
        if event.register != 7
    )
    data, endorsements = ours(pcrs={"sha256": log.replay("sha256")})
    claims = appraise(data, ASKED, endorsements=endorsements, event_log=firmware[: log.first] + without)
    assert claims.event_log is False
    assert claims.reasons["event_log"] == "the event log leaves out register 7"


# ---- who vouches for the TPM ----------------------------------------------------------------------------


def certificate(name: str, key, issuer: str, signer, *, ca: bool) -> x509.Certificate:
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def maker():
    """A TPM maker: root, endorsement key and its certificate."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    ek = rsa.generate_private_key(65537, 2048)
    root = certificate("maker", root_key, "maker", root_key, ca=True)
    leaf = certificate("tpm", ek, "maker", root_key, ca=False)
    pem = root.public_bytes(Encoding.PEM)
    return root, ek, {"ek_cert": leaf.public_bytes(Encoding.DER), "ek_ca": pem}


def hardware(maker, *, activation: bytes | None, at: datetime = AT, trusted=(), **more) -> Claims:
    root, _, given = maker
    data, endorsements = ours()
    given = {**endorsements, **given, **more, **({"activation": activation} if activation else {})}
    makers = {root.fingerprint(hashes.SHA256()).hex(): "maker"}
    trust = TpmTrust(makers, keyring(trusted))
    return tpm.verify(Evidence("tpm", data, endorsements=given), at=at, expected=ASKED, trust=trust)


def test_hardware_takes_a_chain_and_an_activation(maker):
    verifier, stranger = Identity.generate("verifier"), Identity.generate("stranger")
    ak = parts.name(parts.public_area(parts.rsa_key()))
    ek = maker[1].public_key()
    good = certify(verifier, ak_name=ak, ek=ek, at=AT)
    claims = hardware(maker, activation=good, trusted=[verifier.public])
    assert (claims.chain, claims.hardware_rooted) == (True, True)
    assert claims.platform == key_digest(ek)

    other_ak = certify(verifier, ak_name=ak[:-1] + b"\0", ek=ek, at=AT)
    other_ek = certify(verifier, ak_name=ak, ek=parts.rsa_key().public_key(), at=AT)
    old = certify(verifier, ak_name=ak, ek=ek, at=AT - timedelta(days=31))
    future = certify(verifier, ak_name=ak, ek=ek, at=AT + timedelta(days=1))
    for activation, trusted in (
        (good, []),
        (good, [stranger.public]),
        (other_ak, [verifier.public]),
        (other_ek, [verifier.public]),
        (old, [verifier.public]),
        (future, [verifier.public]),
        (b"{}", [verifier.public]),
    ):
        claims = hardware(maker, activation=activation, trusted=trusted)
        assert claims.hardware_rooted is False
        assert claims.chain is None
    assert hardware(maker, activation=None, trusted=[verifier.public]).hardware_rooted is None


def test_a_policy_says_whom_to_believe_about_tpms(maker):
    verifier = Identity.generate("verifier")
    root, ek, given = maker
    data, endorsements = ours()
    stated = certify(
        verifier, ak_name=parts.name(parts.public_area(parts.rsa_key())), ek=ek.public_key(), at=AT
    )
    evidence = Evidence("tpm", data, endorsements={**endorsements, **given, "activation": stated})
    pinned = {root.fingerprint(hashes.SHA256()).hex(): "maker"}
    keys = {verifier.public.fingerprint: verifier.public.signing.hex()}

    def hardware_under(*rules: TpmRules) -> bool | None:
        policies = Policies(tuple(EnclavePolicy(tpm=each) for each in rules))
        return judge(evidence, policies, at=AT, expected=ASKED).claims.hardware_rooted

    assert hardware_under(TpmRules(pinned, keys)) is True
    for rules in (TpmRules(), TpmRules(pinned), TpmRules({}, keys)):
        assert hardware_under(rules) is not True
        assert hardware_under(TpmRules(pinned, keys), rules) is not True


def test_hardware_takes_a_pinned_root_in_force(maker):
    verifier = Identity.generate("verifier")
    ak = parts.name(parts.public_area(parts.rsa_key()))
    good = certify(verifier, ak_name=ak, ek=maker[1].public_key(), at=AT)
    late = hardware(maker, activation=good, trusted=[verifier.public], at=AT + timedelta(days=2))
    assert (late.chain, late.hardware_rooted) == (False, False)
    data, endorsements = ours()
    given = {**endorsements, **maker[2], "activation": good}
    unpinned = appraise(data, ASKED, endorsements=given)
    assert (unpinned.chain, unpinned.hardware_rooted, unpinned.platform) == (False, False, None)
    software = hardware(maker, activation=good, trusted=[verifier.public], software=b"swtpm")
    assert software.hardware_rooted is False


def test_a_key_that_signs_anything_is_not_rooted_whatever_is_stated(maker):
    root, ek, given = maker
    verifier = Identity.generate("verifier")
    area = parts.public_area(parts.rsa_key(), parts.ATTRIBUTES & ~(1 << 16))
    data, endorsements = ours(area=area)
    stated = certify(verifier, ak_name=parts.name(area), ek=ek.public_key(), at=AT)
    evidence = Evidence("tpm", data, endorsements={**endorsements, **given, "activation": stated})
    trust = TpmTrust({root.fingerprint(hashes.SHA256()).hex(): "maker"}, keyring([verifier.public]))
    claims = tpm.verify(evidence, at=AT, expected=ASKED, trust=trust)
    assert (claims.signature, claims.bindings, claims.hardware_rooted) == (True, False, False)


def test_a_certificate_of_another_key_vouches_for_nothing(maker):
    root, _, given = maker
    data, endorsements = ours()
    evidence = Evidence(
        "tpm", data, endorsements={**endorsements, "ak_cert": given["ek_cert"], "ak_ca": given["ek_ca"]}
    )
    trust = TpmTrust({root.fingerprint(hashes.SHA256()).hex(): "maker"})
    claims = tpm.verify(evidence, at=AT, expected=ASKED, trust=trust)
    assert claims.chain is False
    assert "another key" in claims.reasons["chain"]


def test_claims_are_plain_data():
    data, endorsements = ours()
    claims = appraise(data, ASKED, endorsements=endorsements)
    assert msgspec.json.decode(msgspec.json.encode(claims), type=Claims) == claims
