"""A finished study put together by hand, and releases of it, honest or forged by a hub that holds its own keys."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloister.crypto import Identity, canonical_bytes, countersign, sha256, sign_envelope
from cloister.governance import Released, TrainedStudy, TrustAnchors, Verdict, release, verify_files
from cloister.governance.certificate import PAYLOAD_TYPE, Certificate, Statement
from cloister.governance.folder import CERTIFICATE, PROOF, countersignature_path, manifest_path
from cloister.governance.proof import Proof, log_entry
from cloister.learning import Plan, pin_initial, plan_model
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    HubEntry,
    ModelSection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.log import HEAD_TYPE, Cosigner, Log, MerkleTree, TreeHead, sign_head
from cloister.runtime import Countersignature, EpochFacts, RoundEntry
from cloister.runtime import countersign as countersign_plan
from cloister.secagg import Roster
from cloister.vault import Manifest, Schema, load_schema
from cloister.vault.checkedfile import FileDigests
from cloister.vault.manifest import sign_manifest

Rosters = dict[int, tuple[int, tuple[int, ...]]]
PURPOSE = "heart disease research"
CREATED = "2026-03-01T12:00:00Z"
SCHEMA = b"""
[columns.age]
type = "integer"
bounds = [18, 100]
[columns.pressure]
type = "number"
bounds = [60.0, 240.0]
[columns.pain]
type = "category"
categories = ["none", "typical", "atypical"]
[columns.patient]
type = "text"
role = "id"
[columns.disease]
type = "boolean"
role = "label"
"""


@cache
def identity(name: str) -> Identity:
    return Identity.generate(name)


def schema() -> Schema:
    return load_schema(SCHEMA)


def make_plan(hub: Identity, sites: Sequence[Identity], **changes: Any) -> Plan:
    plan = Plan(
        study=StudySection(
            name="heart", purpose=PURPOSE, minimum_sites=min(len(sites), max(3, len(sites) // 3 + 2))
        ),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(SiteEntry(name=s.name, identity=s.fingerprint, dataset="rows") for s in sites),
        data=DataSection(
            schema=schema().digest().hex(), features=("age", "pressure", "pain"), label="disease"
        ),
        model=ModelSection(kind="logistic"),
        training=TrainingSection(rounds=5, batch=8, local_steps=2, learning_rate=0.5),
        aggregation=AggregationSection(),
    )
    sections = {
        name: msgspec.structs.replace(getattr(plan, name), **fields) for name, fields in changes.items()
    }
    return pin_initial(msgspec.structs.replace(plan, **sections), schema())


def make_manifest(site: Identity, **changes: Any) -> bytes:
    manifest = Manifest(
        version=1,
        name="rows",
        dataset_id="0" * 32,
        kek_id="kek",
        owner=site.fingerprint,
        created=CREATED,
        purposes=(PURPOSE,),
        consent="broad consent",
        schema=schema(),
        schema_sha256=schema().digest().hex(),
        rows=100,
        without_consent=0,
        quarantined=0,
        fingerprints_root="1" * 64,
        file=FileDigests(size=1000, sha256="2" * 64, footer_sha256="3" * 64, key_material_sha256="4" * 64),
    )
    return sign_manifest(msgspec.structs.replace(manifest, **changes), site)


def make_epoch(plan: Plan, number: int, sites: Sequence[Identity], **manifest: Any) -> EpochFacts:
    """An epoch that all these sites countersigned; `manifest` is what their manifests have otherwise."""
    roster = Roster(tuple(site.public for site in sites))
    manifests = {site.name: make_manifest(site, **manifest) for site in sites}
    agreed = {
        site.name: countersign_plan(
            site,
            Countersignature(
                plan.digest.hex(),
                roster.digest.hex(),
                number,
                site.name,
                sha256(manifests[site.name]).hex(),
                100,
            ),
        )
        for site in sites
    }
    rows = {site.name: 100 for site in sites}
    return EpochFacts(number, roster.members, rows, manifests, agreed, sha256(b"set-up %d" % number))


def make_study(
    plan: Plan,
    hub: Identity,
    sites: Sequence[Identity],
    *,
    lost: dict[int, set[str]] | None = None,
    rosters: Rosters | None = None,
) -> TrainedStudy:
    """`lost` maps a 0-based round to the sites that dropped out of it, `rosters` the first round of each epoch to
    its number and the places of its members among the sites; else there is one epoch over all of them."""
    began = rosters or {0: (0, tuple(range(len(sites))))}
    epochs = {first: make_epoch(plan, n, [sites[i] for i in who]) for first, (n, who) in began.items()}
    of_round = [epochs[max(f for f in epochs if f <= number)] for number in range(plan.training.rounds)]
    _, model = plan_model(plan, schema())
    return TrainedStudy(
        plan=plan,
        hub=hub.public,
        epochs=tuple(epochs.values()),
        rounds=tuple(
            RoundEntry(
                round=number,
                attempt=number,
                survivors=tuple(m.name for m in epoch.members if m.name not in (lost or {}).get(number, ())),
                epoch=epoch.number,
            )
            for number, epoch in enumerate(of_round)
        ),
        privacy=None,
        debits={},
        parameters=np.linspace(-1.0, 1.0, model.size),
    )


@dataclass
class World:
    """Hub, four sites (c = 1, t = m = 3), their study, the hub's log, and everybody as its cosigners."""

    root: Path
    hub: Identity
    sites: list[Identity]
    study: TrainedStudy
    log: Log
    cosigners: list[Cosigner]

    @property
    def anchors(self) -> TrustAnchors:
        return TrustAnchors.of([self.hub.public, *(site.public for site in self.sites)])

    def release(self, name: str = "release", **options: Any) -> Released:
        settings: dict[str, Any] = {
            "signer": self.hub,
            "log": self.log,
            "cosigners": self.cosigners,
            "created": CREATED,
        }
        return release(self.root / name, self.study, **(settings | options))

    def verify(self, files: dict[str, bytes], **options: Any) -> Verdict:
        return verify_files(files, self.anchors, **options)


def make_world(
    root: Path,
    *,
    sites: int = 4,
    lost: dict[int, set[str]] | None = None,
    rosters: Rosters | None = None,
    **changes: Any,
) -> World:
    hub, members = identity("hub"), [identity(f"site{number}") for number in range(sites)]
    study = make_study(make_plan(hub, members, **changes), hub, members, lost=lost, rosters=rosters)
    log = Log(root / "log" / "releases.log", hub.fingerprint)
    cosigners = [Cosigner(root / "heads" / site.name, site) for site in members]
    return World(root, hub, members, study, log, cosigners)


def payload_of(files: dict[str, bytes]) -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(b64decode(json.loads(files[CERTIFICATE])["payload"]))
    return statement


def prove(envelope: bytes, keeper: Identity, cosigners: Sequence[Identity], *, log_id: str = "") -> bytes:
    """Log an envelope in a fresh log, in which it is the second entry, and have the head signed by whom one likes."""
    certificate = Certificate(_ANY, envelope)
    tree = MerkleTree()
    tree.append(b"an earlier entry")
    tree.append(log_entry(certificate))
    signed = sign_head(TreeHead(log_id or keeper.fingerprint, 2, tree.root()), keeper)
    for cosigner in cosigners:
        signed = countersign(signed, HEAD_TYPE, cosigner)
    return Proof(1, tuple(n.hex() for n in tree.inclusion_proof(1)), signed.decode()).to_bytes()


_ANY: Statement = None  # type: ignore[assignment]  # the log records the envelope alone


def forge(
    world: World,
    files: dict[str, bytes],
    change: Callable[[dict[str, Any]], None] = lambda statement: None,
    *,
    replace: dict[str, bytes] | None = None,
    signer: Identity | None = None,
) -> dict[str, bytes]:
    """Do all that a malicious hub can do with its own key and c + 1 willing cosigners.

    Files are replaced, their digests entered, the statement changed, signed again, logged and cosigned. What still does not verify is
    refused for the change alone.
    """
    forged, key = {**files, **(replace or {})}, signer or world.hub
    statement = payload_of(files)
    for subject in statement["subject"]:
        if subject["name"] in (replace or {}):
            subject["digest"]["sha256"] = sha256(forged[subject["name"]]).hex()
    for person in statement["predicate"]["participants"]:
        path = manifest_path(person["name"])
        if path in forged:
            person["manifest"] = sha256(forged[path]).hex()
    for epoch in statement["predicate"]["aggregation"]["epochs"]:
        for name in epoch["members"]:
            path = countersignature_path(epoch["number"], name)
            if path in forged:
                epoch["countersignatures"][name] = sha256(forged[path]).hex()
    change(statement)
    forged[CERTIFICATE] = sign_envelope(PAYLOAD_TYPE, canonical_bytes(statement), [key])
    forged[PROOF] = prove(forged[CERTIFICATE], key, world.sites)
    return forged


def failure(verdict: Verdict) -> tuple[int, str] | None:
    """(number, name) of the first step that does not hold."""
    return None if verdict.failed is None else (verdict.failed.number, verdict.failed.name)
