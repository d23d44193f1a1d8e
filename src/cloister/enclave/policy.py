"""Enclave policy: which evidence an owner accepts, decided on its claims and the time.

A policy without a file refuses debug, stale and unbound evidence, and everything that is not rooted in
hardware or that only says itself what it is. A file names what is accepted. Some fields widen that default,
and their names say so (`allow_...`); all others only refuse more. Policies combine by `Policies`, which
refuses what any of them refuses: adding one never lets more through.

`EnclavePolicy.check`, in this order; every reason is named, not the first alone:

1. the kind is one of `kinds`;
2. signature and chain are true (a software TPM that is allowed has no chain); what was checked beside them
   (bindings, event log, versions against the certificate, revocation, collateral) is not false;
3. the machine is not debuggable, not software alone, not its own judge, unless that is allowed;
4. freshness: the evidence carries what the verifier asked for;
5. the maker's verdict on firmware, the floor under its versions, advisories, age of collateral;
6. measurements and signers are among the reference values, the platform among the platforms; what matches
   is not the judged software's own word (`launch`), unless that is allowed;
7. devices: each must pass 2 and 4, and be as `[gpu]` asks.

A claim that is null passes only where the rule asks for "not false"; where a rule needs the claim, null
refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from cloister.crypto import canonical_bytes
from cloister.enclave.claims import Claims
from cloister.enclave.evidence import KINDS, Kind
from cloister.enclave.launch import unanchored
from cloister.errors import InputError

__all__ = [
    "ENCLAVE_POLICY",
    "EnclavePolicy",
    "GpuRules",
    "Policies",
    "Reference",
    "TpmRules",
]

ENCLAVE_POLICY: Final = "enclave policy"
"""The kind that is signed with the file, so that it is taken for no other policy."""

_SOFTWARE_KINDS: Final = frozenset({"tpm"})
_DEVICE_KINDS: Final = frozenset({"nvidia-gpu", "nvidia-switch"})
_VERDICT_KINDS: Final = frozenset({"tdx", "sgx", "azure-tdx-vtpm"})
"""Kinds whose maker publishes a verdict on firmware; without its collateral nothing is known."""
_CHECKED_BESIDE: Final = ("bindings", "event_log", "tcb_consistent", "revocation_checked", "collateral_fresh")

Hex = Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{2}){1,128}\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_:./-]{0,127}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
Days = Annotated[int, Meta(ge=0, le=3650)]
Version = Annotated[int, Meta(ge=0, le=2**32)]


class Reference(Struct, frozen=True, forbid_unknown_fields=True):
    """One image that is accepted: all of `values` must be what was measured.

    Attributes:
        name: of the image, for messages.
        values: hexadecimal by the name of a measurement or signer.
    """

    name: Text
    values: Annotated[Mapping[Name, Hex], Meta(min_length=1, max_length=64)]

    def matches(self, claims: Claims) -> bool:
        """Tell whether every value is among what `claims` measured or who signed it."""
        found = {**claims.signers, **claims.measurements}
        return all(found.get(name) == value for name, value in self.values.items())


class GpuRules(Struct, frozen=True, forbid_unknown_fields=True):
    """`[gpu]`: what attached devices must be.

    Attributes:
        count: GPUs whose evidence must be there.
        switches: the same for NVSwitches.
        drivers: accepted driver versions; empty for any.
        vbios: accepted VBIOS versions; empty for any.
        measured: whether each must match a signed reference manifest.
    """

    count: Annotated[int, Meta(ge=0, le=64)] = 0
    switches: Annotated[int, Meta(ge=0, le=64)] = 0
    drivers: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    vbios: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    measured: bool = False

    def check(self, devices: Sequence[Claims]) -> list[str]:
        """Return the reasons to refuse these devices."""
        reasons = []
        for kind, least, what in (
            ("nvidia-gpu", self.count, "count"),
            ("nvidia-switch", self.switches, "switches"),
        ):
            names = [each.platform for each in devices if each.kind == kind]
            if len(set(names)) != len(names):
                reasons.append(f"[gpu] {what}: two pieces of evidence are of one device")
            if len(set(names)) < least:
                reasons.append(f"[gpu] {what}: {len(set(names))} where {least} must be")
        for index, device in enumerate(devices):
            if device.kind == "nvidia-gpu":
                reasons += [f"device {index}: {reason}" for reason in self._check_versions(device)]
        return reasons

    def _check_versions(self, device: Claims) -> list[str]:
        reasons = []
        for rule, allowed, key in (
            ("drivers", self.drivers, "driver_version"),
            ("vbios", self.vbios, "vbios_version"),
        ):
            found = device.properties.get(key)
            if allowed and found not in allowed:
                reasons.append(f"[gpu] {rule}: {found or 'no version'} is not accepted")
        if self.measured and device.measurement_match is not True:
            reasons.append("[gpu] measured: it does not match a signed reference manifest")
        return reasons


class TpmRules(Struct, frozen=True, forbid_unknown_fields=True):
    """`[tpm]`: whom to believe about TPMs. Without both a TPM's evidence is not rooted in hardware.

    Attributes:
        makers: names of TPM makers, by the SHA-256 of their root certificate's DER.
        verifiers: Ed25519 keys, hexadecimal, by the fingerprint of the identity: whose word counts that a
            quoting key and a maker's key are in one TPM.
    """

    makers: Annotated[Mapping[Digest, Text], Meta(max_length=100)] = {}
    verifiers: Annotated[Mapping[Digest, Digest], Meta(max_length=100)] = {}


class EnclavePolicy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one owner accepts; see the module's docstring.

    Attributes:
        kinds: of the machine's evidence; devices are judged by `gpu`.
        allow_software_tee: accept what nothing but software vouches for (swtpm). It protects from nobody who
            runs the machine.
        allow_self_reported: accept measurements that the measured software made of itself.
        allow_debug: accept machines whose owner may look inside.
        allow_unbound: accept evidence that does not carry this verifier's nonce: for samples and archives.
        tcb_statuses: accepted verdicts of makers that publish one.
        grace_days: how long an "OutOfDate" verdict is accepted after the newer firmware was published.
        tcb_floor: least versions by component; a component that evidence lacks refuses.
        rejected_advisories: none of these may apply.
        collateral_max_age_days: how old collateral may be; None for as long as it is in force.
        require_revocation: revocation lists must have been checked.
        require_measurement: a reference value must match; without it, references are asked for only where
            there are some.
        measurements: accepted images; one must match where there are any.
        signers: accepted values by signer's name; each name must have one of its values.
        platforms: identifiers of accepted machines; empty for any.
        gpu: what attached devices must be.
        tpm: whom to believe about TPMs.
    """

    kinds: Annotated[tuple[Kind, ...], Meta(min_length=1)] = tuple(
        kind for kind in KINDS if kind not in _DEVICE_KINDS
    )
    allow_software_tee: bool = False
    allow_self_reported: bool = False
    allow_debug: bool = False
    allow_unbound: bool = False
    tcb_statuses: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=20)] = ("UpToDate",)
    grace_days: Days = 0
    tcb_floor: Annotated[Mapping[Name, Version], Meta(max_length=64)] = {}
    rejected_advisories: Annotated[tuple[Text, ...], Meta(max_length=1000)] = ()
    collateral_max_age_days: Days | None = None
    require_revocation: bool = False
    require_measurement: bool = False
    measurements: Annotated[tuple[Reference, ...], Meta(max_length=1000)] = ()
    signers: Annotated[
        Mapping[Name, Annotated[tuple[Hex, ...], Meta(min_length=1, max_length=100)]], Meta(max_length=32)
    ] = {}
    platforms: Annotated[tuple[Hex, ...], Meta(max_length=10_000)] = ()
    gpu: GpuRules = GpuRules()
    tpm: TpmRules = TpmRules()

    def __post_init__(self) -> None:
        _refuse_contradictions(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's canonical form, as hexadecimal: what tokens and records name."""
        return hashlib.sha256(canonical_bytes(msgspec.to_builtins(self))).hexdigest()

    def check(self, claims: Claims, at: datetime) -> list[str]:
        """Return every reason to refuse, a sentence part each; empty where the evidence is accepted."""
        return [
            *([] if claims.kind in self.kinds else [f"kinds: {claims.kind} is not accepted"]),  # 1
            *_unsound(claims, chained=not self._stands_alone(claims)),  # 2
            *self._posture(claims),  # 3
            *self._freshness(claims),  # 4
            *self._firmware(claims, at),  # 5
            *self._identity(claims),  # 6
            *self._devices(claims),  # 7
        ]

    def _stands_alone(self, claims: Claims) -> bool:
        """Tell whether no chain is asked for: a software TPM has none, and is accepted for what it is."""
        software = claims.kind in _SOFTWARE_KINDS and claims.software_only
        return self.allow_software_tee and software and claims.chain is None

    def _posture(self, claims: Claims) -> list[str]:
        reasons = []
        if claims.hardware_rooted is not True and not self.allow_software_tee:
            reasons.append(
                f"hardware_rooted: {claims.reasons.get('hardware_rooted', 'not rooted in hardware')}; "
                "it is not hardware-protected"
            )
        if claims.self_reported is not False and not self.allow_self_reported:
            why = claims.reasons.get("self_reported", "the software that is judged measured itself")
            reasons.append(f"self_reported: {why}")
        if claims.debug is not False and not self.allow_debug and claims.kind not in _SOFTWARE_KINDS:
            reasons.append("debug: the machine's owner may look inside" if claims.debug else "debug: unknown")
        elif claims.debug and not self.allow_debug:
            reasons.append("debug: the machine's owner may look inside")
        return reasons

    def _freshness(self, claims: Claims) -> list[str]:
        if claims.freshness is True or (claims.freshness is None and self.allow_unbound):
            return []
        if claims.freshness is None:
            return ["freshness: nobody asked for a nonce, so this may be old or somebody else's"]
        return [f"freshness: {claims.reasons.get('freshness', 'it carries another nonce')}"]

    def _firmware(self, claims: Claims, at: datetime) -> list[str]:
        reasons = []
        status = claims.tcb_status
        if status is None:
            if claims.kind in _VERDICT_KINDS:
                why = claims.reasons.get("tcb_status", "no collateral was given")
                reasons.append(f"tcb_statuses: the maker's verdict is unknown: {why}")
        elif status not in self.tcb_statuses and not self._in_grace(claims, at):
            reasons.append(f"tcb_statuses: the firmware is {status}")
        for component, least in self.tcb_floor.items():
            found = claims.tcb.get(component)
            if found is None or found < least:
                reasons.append(f"tcb_floor: {component} is {found}, {least} must be")
        bad = sorted({*self.rejected_advisories}.intersection(claims.advisories or ()))
        if bad:
            reasons.append(f"rejected_advisories: {', '.join(bad)}")
        elif self.rejected_advisories and claims.advisories is None and claims.kind in _VERDICT_KINDS:
            reasons.append("rejected_advisories: nobody said which apply")
        if self.collateral_max_age_days is not None and claims.collateral_fresh is not None:
            reasons += self._collateral_age(claims, at)
        if self.require_revocation and claims.revocation_checked is not True:
            reasons.append("require_revocation: no revocation list was checked")
        return reasons

    def _in_grace(self, claims: Claims, at: datetime) -> bool:
        since = _moment(claims.properties.get("tcb_date"))
        late = claims.tcb_status in ("OutOfDate", "OutOfDateConfigurationNeeded")
        return late and since is not None and at - since <= timedelta(days=self.grace_days)

    def _collateral_age(self, claims: Claims, at: datetime) -> list[str]:
        issued = _moment(claims.properties.get("collateral_issued"))
        if issued is None:
            return ["collateral_max_age_days: the collateral does not say when it was issued"]
        if at - issued > timedelta(days=self.collateral_max_age_days or 0):
            return [f"collateral_max_age_days: issued {issued.date()}, which is too long ago"]
        return []

    def _identity(self, claims: Claims) -> list[str]:
        reasons = []
        asked = bool(self.measurements) or self.require_measurement
        matching = [reference for reference in self.measurements if reference.matches(claims)]
        if asked and not matching:
            known = ", ".join(reference.name for reference in self.measurements[:5])
            reasons.append(f"measurements: it is none of the accepted images ({known})")
        weak = [(each, unanchored(claims, each.values, self.signers)) for each in matching]
        if weak and all(why for _, why in weak) and not self.allow_self_reported:
            reasons.append(f"measurements: {weak[0][0].name!r} names {weak[0][1]}")
        for name, accepted in self.signers.items():
            if claims.signers.get(name) not in accepted:
                reasons.append(f"signers: {name} is not an accepted one")
        if self.platforms and claims.platform not in self.platforms:
            reasons.append("platforms: it runs on a machine that is not an accepted one")
        return reasons

    def _devices(self, claims: Claims) -> list[str]:
        reasons = []
        for index, device in enumerate(claims.devices):
            if device.kind not in _DEVICE_KINDS:
                reasons.append(f"device {index}: {device.kind} is no kind of device")
            reasons += [f"device {index}: {reason}" for reason in _unsound(device) + self._freshness(device)]
        return reasons + self.gpu.check(claims.devices)


@dataclass(frozen=True)
class Policies:
    """Several policies at once: what any of them refuses is refused. Of none, everything is.

    Attributes:
        parts: the policies.
    """

    parts: tuple[EnclavePolicy, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """The reference values of all of them."""
        return tuple(reference for part in self.parts for reference in part.measurements)

    @property
    def tpm(self) -> TpmRules:
        """Whom all of them believe about TPMs."""
        first, *others = [part.tpm for part in self.parts] or [TpmRules()]
        makers = {key: name for key, name in first.makers.items() if all(key in o.makers for o in others)}
        verifiers = {
            name: key
            for name, key in first.verifiers.items()
            if all(o.verifiers.get(name) == key for o in others)
        }
        return TpmRules(makers, verifiers)

    @property
    def digest(self) -> str:
        """Digests of the parts as one, hexadecimal."""
        return hashlib.sha256("".join(part.digest for part in self.parts).encode()).hexdigest()

    def check(self, claims: Claims, at: datetime) -> list[str]:
        """Return the reasons of all parts, each once."""
        if not self.parts:
            return ["there is no enclave policy, and none accepts nothing"]
        return list(dict.fromkeys(reason for part in self.parts for reason in part.check(claims, at)))


def _unsound(claims: Claims, *, chained: bool = True) -> list[str]:
    """Return what is wrong with the evidence itself, whoever looks at it."""
    needed, checked = ("signature", "chain") if chained else ("signature",), _CHECKED_BESIDE
    missing = [claim for claim in needed if getattr(claims, claim) is not True]
    broken = [claim for claim in checked if getattr(claims, claim) is False]
    default = {**dict.fromkeys(needed, "was not checked"), **dict.fromkeys(checked, "does not hold")}
    return [f"{claim}: {claims.reasons.get(claim, default[claim])}" for claim in (*missing, *broken)]


def _refuse_contradictions(policy: EnclavePolicy) -> None:
    """Raise InputError for a policy that can accept nothing, or says one thing twice."""
    kinds = set(policy.kinds)
    if devices := kinds & _DEVICE_KINDS:
        raise InputError(
            f"{', '.join(sorted(devices))}: evidence of a device alone vouches for no machine",
            where=f"{ENCLAVE_POLICY}, kinds",
            fix="Ask for devices in [gpu]",
        )
    if policy.allow_software_tee and not kinds & _SOFTWARE_KINDS:
        raise InputError(
            "software is allowed, and no kind that software makes is accepted",
            where=f"{ENCLAVE_POLICY}, allow_software_tee",
            fix='Add "tpm" to kinds, or take allow_software_tee away',
        )
    if policy.require_measurement and not policy.measurements:
        raise InputError(
            "a measurement must match, and none is given",
            where=f"{ENCLAVE_POLICY}, require_measurement",
            fix="Add [[measurements]]",
        )
    if policy.grace_days and "OutOfDate" in policy.tcb_statuses:
        raise InputError(
            '"OutOfDate" is accepted for ever, and for a while',
            where=f"{ENCLAVE_POLICY}, grace_days",
            fix="Keep one of the two",
        )
    gpu = policy.gpu
    if not gpu.count and (gpu.drivers or gpu.vbios or gpu.measured):
        raise InputError(
            "versions of GPUs are asked for, and no GPU",
            where=f"{ENCLAVE_POLICY}, [gpu] count",
            fix="Write how many there must be",
        )
    names = [reference.name for reference in policy.measurements]
    if len(set(names)) != len(names):
        raise InputError(
            "two images have one name", where=f"{ENCLAVE_POLICY}, measurements", fix="Name each differently"
        )


def _moment(text: str | None) -> datetime | None:
    """Return an RFC 3339 moment with its zone, None for anything else."""
    try:
        found = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None
