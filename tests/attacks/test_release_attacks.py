"""A release against those who would like another one to be believed.

Three attackers: somebody who changes a folder on its way; a stranger with keys of its own; and a hub that signs, logs and has cosigned
whatever it likes, but cannot sign for the sites. Each attack must fail at the step that is there to stop it.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.governance.releases import (
    World,
    failure,
    forge,
    identity,
    make_manifest,
    make_plan,
    make_study,
    make_world,
    payload_of,
    prove,
)

from cloister.crypto import Identity, canonical_bytes, countersign, sha256, sign_envelope
from cloister.governance import Released, TrustAnchors, verify_files
from cloister.governance.certificate import PAYLOAD_TYPE, Certificate
from cloister.governance.folder import (
    CERTIFICATE,
    MODEL,
    PLAN,
    PROOF,
    SEALED_MODEL,
    countersignature_path,
    manifest_path,
)
from cloister.governance.proof import Proof
from cloister.inference import ModelArtifact
from cloister.inference.tensors import read_vector, write_vector
from cloister.log import HEAD_TYPE
from cloister.runtime import COUNTERSIGNATURE_TYPE, Countersignature
from cloister.secagg import Roster

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("attacks"), lost={2: {"site1"}})


@pytest.fixture(scope="module")
def released(world: World) -> Released:
    return world.release()


@pytest.fixture
def files(released: Released) -> Files:
    return dict(released.files)


def model_bytes(world: World, parameters: Any) -> bytes:
    return ModelArtifact.of_plan(world.study.plan, world.study.schema, parameters).to_bytes()


# --- somebody on the way ----------------------------------------------------------------------------------


def test_the_forger_of_these_tests_forges_well(world: World, files: Files) -> None:
    """Without a change its work verifies: what fails below fails for the change."""
    assert world.verify(forge(world, files)).ok


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (MODEL, 4),
        (PLAN, 4),
        (manifest_path("site0"), 4),
        (countersignature_path(0, "site3"), 4),
        (CERTIFICATE, 2),
        (PROOF, 11),
    ],
)
def test_truncated_empty_or_lengthened_files(world: World, files: Files, name: str, step: int) -> None:
    whole = files[name]
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\n", whole + b"\0", b" " + whole):
        verdict = world.verify({**files, name: content})
        assert failure(verdict) is not None
        assert verdict.failed is not None
        # white space after the certificate's JSON leaves its signature whole; the log knows the bytes
        assert verdict.failed.number == step or (name == CERTIFICATE and verdict.failed.number == 11)


def test_another_model_is_refused(world: World, files: Files) -> None:
    swapped = model_bytes(world, world.study.parameters * 2)
    assert failure(world.verify({**files, MODEL: swapped})) == (4, "files")


def test_a_pickle_called_safetensors_is_refused_and_not_run(
    world: World, files: Files, tmp_path: Any
) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (open, (str(ran), "w"))

    payload = pickle.dumps(Payload())
    assert failure(world.verify({**files, MODEL: payload})) == (4, "files")
    signed_by_hub = forge(world, files, replace={MODEL: payload})
    assert failure(world.verify(signed_by_hub)) == (9, "model")
    assert not ran.exists()


def test_files_of_two_sites_exchanged(world: World, files: Files) -> None:
    for path in (manifest_path, partial(countersignature_path, 0)):
        one, two = path("site0"), path("site1")
        assert failure(world.verify({**files, one: files[two], two: files[one]})) == (4, "files")


def test_a_file_taken_away_or_added(world: World, files: Files) -> None:
    for name in (manifest_path("site2"), countersignature_path(0, "site2")):
        assert failure(world.verify({k: v for k, v in files.items() if k != name})) == (4, "files")
    assert failure(world.verify({**files, manifest_path("site9"): b"x"})) == (4, "files")
    assert failure(world.verify({**files, "notes.txt": b"x"})) == (1, "folder")


def test_certificate_and_proof_of_another_release(world: World, files: Files) -> None:
    other = dict(world.release("other", created="2026-05-05T05:05:05Z").files)
    assert failure(world.verify({**files, PROOF: other[PROOF]})) == (11, "log")
    assert failure(world.verify({**files, CERTIFICATE: other[CERTIFICATE]})) == (11, "log")


def test_certificate_of_another_study(world: World, files: Files, tmp_path: Any) -> None:
    other = dict(make_world(tmp_path, study={"name": "lungs"}).release().files)
    assert failure(world.verify({**files, CERTIFICATE: other[CERTIFICATE]})) == (4, "files")
    mixed = {**other, MODEL: files[MODEL]}
    assert failure(world.verify(mixed)) == (4, "files")


@pytest.mark.parametrize("name", sorted({CERTIFICATE, PROOF, PLAN, MODEL, "manifests/site0.dsse.json"}))
def test_every_byte_of_a_file_matters(world: World, files: Files, name: str) -> None:
    """One bit of each byte, or of each fifth of a longer file; the property below draws other bits and files."""
    whole = files[name]
    for position in range(0, len(whole), 1 if len(whole) < 1000 else 5):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert not world.verify({**files, name: bytes(changed)}).ok, position


@given(data=st.data(), change=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_no_changed_byte_of_any_file_verifies(
    world: World, released: Released, data: Any, change: int
) -> None:
    name = data.draw(st.sampled_from(sorted(released.files)))
    changed = bytearray(released.files[name])
    changed[data.draw(st.integers(0, 2**24)) % len(changed)] ^= change
    assert not verify_files({**released.files, name: bytes(changed)}, world.anchors).ok


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_file_cut_or_with_bytes_moved_verifies(world: World, released: Released, data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(released.files)))
    whole = released.files[name]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    kind = data.draw(st.sampled_from(["cut", "repeat", "reverse"]))
    middle = {"cut": b"", "repeat": whole[start:end] * 2, "reverse": whole[start:end][::-1]}[kind]
    changed = whole[:start] + middle + whole[end:]
    if changed != whole:
        assert not verify_files({**released.files, name: changed}, world.anchors).ok


def test_every_byte_of_a_sealed_release_matters(world: World) -> None:
    reader = identity("reader")
    files = dict(world.release("sealed", recipients=[reader.public]).files)
    assert world.verify(files, reader=reader).ok
    whole = files[SEALED_MODEL]
    for position in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[position] ^= 1
        assert failure(world.verify({**files, SEALED_MODEL: bytes(changed)})) == (4, "files")
    assert failure(world.verify({**files, MODEL: b"x"})) == (1, "folder")


# --- a stranger -------------------------------------------------------------------------------------------


def test_signed_again_by_a_stranger(world: World, files: Files) -> None:
    stranger = identity("stranger")
    assert failure(world.verify(forge(world, files, signer=stranger))) == (2, "signature")


def test_a_strangers_signature_beside_the_hubs(world: World, files: Files) -> None:
    both = countersign(files[CERTIFICATE], PAYLOAD_TYPE, identity("stranger"))
    assert failure(world.verify({**files, CERTIFICATE: both})) == (2, "signature")


def test_a_strangers_signature_under_the_hubs_name(world: World, files: Files) -> None:
    envelope = json.loads(files[CERTIFICATE])
    theirs = json.loads(
        sign_envelope(PAYLOAD_TYPE, base64.b64decode(envelope["payload"]), [identity("stranger")])
    )
    envelope["signatures"][0]["sig"] = theirs["signatures"][0]["sig"]
    forged = json.dumps(envelope, separators=(",", ":")).encode()
    assert failure(world.verify({**files, CERTIFICATE: forged})) == (2, "signature")


def test_a_hub_nobody_trusts_with_sites_of_its_own(world: World, tmp_path: Any) -> None:
    """A whole invented study, consistent in itself."""
    hub = Identity.generate("hub")
    sites = [Identity.generate(f"site{n}") for n in range(4)]
    study = make_study(make_plan(hub, sites), hub, sites)
    invented = make_world(tmp_path)
    invented.hub, invented.sites, invented.study = hub, sites, study
    from cloister.log import Cosigner, Log

    log = Log(tmp_path / "own", hub.fingerprint)
    cosigners = [Cosigner(tmp_path / s.name, s) for s in sites]
    files = dict(invented.release(signer=hub, log=log, cosigners=cosigners).files)
    assert verify_files(files, TrustAnchors.of([hub.public, *(s.public for s in sites)])).ok
    assert failure(world.verify(files)) == (2, "signature")
    with_hub = TrustAnchors.of([*world.anchors.identities, hub.public])
    assert failure(verify_files(files, with_hub)) == (6, "roster")


def test_a_trusted_site_that_plays_the_hub(world: World, files: Files) -> None:
    """It can name itself in the certificate, but not in the plan that the others countersigned."""
    site = world.sites[0]

    def name_itself(statement: dict[str, Any]) -> None:
        statement["predicate"]["signer"] = site.fingerprint

    forged = forge(world, files, name_itself, signer=site)
    assert failure(world.verify(forged)) == (5, "plan")
    without = forge(world, files, signer=site)
    assert failure(world.verify(without)) == (3, "statement")
    plan = make_plan(site, [world.hub, *world.sites[1:]])
    own_plan = forge(
        world,
        files,
        lambda s: (name_itself(s), s["predicate"].update(plan=plan.digest.hex())),
        replace={PLAN: plan.to_toml().encode()},
        signer=site,
    )
    assert failure(world.verify(own_plan)) == (6, "roster")


# --- a hub that signs what it likes -----------------------------------------------------------------------


def set_at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(statement: dict[str, Any]) -> None:
        place = statement["predicate"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


EPOCH = ("aggregation", "epochs", 0)


def replan(world: World, **changes: Any) -> tuple[Files, Callable[[dict[str, Any]], None]]:
    """Another plan file, with its digest in the certificate."""
    plan = make_plan(world.hub, world.sites, **changes)
    return {PLAN: plan.to_toml().encode()}, set_at("plan", value=plan.digest.hex())


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (set_at("study", value="lungs"), (5, "plan")),
        (set_at("purpose", value="advertising"), (5, "plan")),
        (set_at("plan", value="0" * 64), (5, "plan")),
        (set_at("training", "algorithm", value="fedadam"), (5, "plan")),
        (set_at("training", "model", value="mlp"), (5, "plan")),
        (set_at("aggregation", "bits", value=16), (5, "plan")),
        (set_at("aggregation", "hub_view", value="none"), (5, "plan")),
        (set_at("aggregation", "value_range", value=1.0), (5, "plan")),
        (set_at("signer", value="0" * 64), (3, "statement")),
        (set_at(*EPOCH, "roster", value="0" * 64), (6, "roster")),
        (set_at("participants", 0, "rows", value=1_000_000), (6, "roster")),
        (set_at("participants", 0, "name", value="site7"), (3, "statement")),
        (set_at("participants", 0, "fingerprint", value="0" * 64), (6, "roster")),
        (set_at("participants", 0, "manifest", value="0" * 64), (6, "roster")),
        (set_at(*EPOCH, "countersignatures", "site0", value="0" * 64), (6, "roster")),
        (set_at(*EPOCH, "number", value=1), (6, "roster")),
        (set_at(*EPOCH, "colluders", value=0), (8, "aggregation")),
        (set_at(*EPOCH, "threshold", value=2), (8, "aggregation")),
        (set_at(*EPOCH, "threshold", value=4), (8, "aggregation")),
        (set_at(*EPOCH, "minimum", value=2), (8, "aggregation")),
        (set_at(*EPOCH, "minimum", value=4), (8, "aggregation")),
        (set_at(*EPOCH, "rounds", 1, "dropped", value=["site0", "site1"]), (8, "aggregation")),
        (set_at(*EPOCH, "rounds", 2, "attempt", value=40), (8, "aggregation")),
        (set_at("privacy", value={"epsilon": 1.0}), (3, "statement")),
        (set_at("absent", "privacy", value="epsilon = 1 was applied"), (10, "privacy")),
        (set_at("absent", "enclave", value="attested"), (10, "privacy")),
        (set_at("training", "rounds", value=4), (3, "statement")),
        (set_at(*EPOCH, "parties", value=5), (3, "statement")),
    ],
)
def test_a_false_field_is_refused_at_its_step(
    world: World, files: Files, change: Callable[[dict[str, Any]], None], step: tuple[int, str]
) -> None:
    assert failure(world.verify(forge(world, files, change))) == step


def test_fields_that_only_the_signer_knows_are_its_word(world: World, files: Files) -> None:
    """Stated openly: these the sites have not signed, so a hub can state others. `Verdict.unchecked` names them."""
    for change in (
        set_at("created", value="2030-01-01T00:00:00Z"),
        set_at(*EPOCH, "setup", value="1" * 64),
        set_at(*EPOCH, "rounds", 1, "dropped", value=["site0"]),
        set_at("training", "software", value={"cloister": "9"}),
    ):
        assert world.verify(forge(world, files, change)).ok
    drifted = model_bytes(world, world.study.parameters + 1)
    assert world.verify(forge(world, files, replace={MODEL: drifted})).ok


def test_participants_in_another_order_or_number(world: World, files: Files) -> None:
    def reorder(statement: dict[str, Any]) -> None:
        statement["predicate"]["participants"].reverse()

    assert failure(world.verify(forge(world, files, reorder))) == (6, "roster")

    def leave_out(statement: dict[str, Any]) -> None:
        predicate = statement["predicate"]
        gone = predicate["participants"].pop()["name"]
        epoch = predicate["aggregation"]["epochs"][0]
        epoch["parties"] = 3
        epoch["members"].remove(gone)
        del epoch["countersignatures"][gone]
        for run in epoch["rounds"]:
            run["dropped"] = [name for name in run["dropped"] if name != gone]
        statement["subject"] = [s for s in statement["subject"] if gone not in s["name"]]

    fewer = {name: content for name, content in files.items() if "site3" not in name}
    assert failure(world.verify(forge(world, fewer, leave_out))) == (6, "roster")


def test_another_plan_than_the_sites_countersigned(world: World, files: Files) -> None:
    for changes in (
        {"training": {"learning_rate": 0.25}},
        {"training": {"l2": 0.5}},
        {"data": {"scaling": "local"}},
        {"study": {"spare_rounds": 50}},
    ):
        replace, change = replan(world, **changes)
        assert failure(world.verify(forge(world, files, change, replace=replace))) == (6, "roster")


def test_a_plan_this_version_cannot_honour(world: World, files: Files) -> None:
    text = files[PLAN] + b"\n[privacy]\nepsilon = 1.0\n"
    assert failure(world.verify(forge(world, files, replace={PLAN: text}))) == (5, "plan")


def test_comments_in_the_plan_are_not_the_plan(world: World, files: Files) -> None:
    """What sites signed is its content: a comment changes the file, which the certificate covers, and not the digest."""
    commented = files[PLAN] + b"\n# a comment\n"
    assert failure(world.verify({**files, PLAN: commented})) == (4, "files")
    assert world.verify(forge(world, files, replace={PLAN: commented})).ok


def test_a_recipient_that_the_plan_does_not_allow(tmp_path: Any) -> None:
    reader, stranger = identity("reader"), identity("stranger")
    world = make_world(tmp_path, release={"recipients": (reader.fingerprint,)})
    files = dict(world.release(recipients=[reader.public]).files)
    swap = [{"name": stranger.name, "fingerprint": stranger.fingerprint}]
    assert failure(world.verify(forge(world, files, set_at("recipients", value=swap)))) == (5, "plan")
    assert failure(world.verify(forge(world, files, set_at("recipients", value=[])))) == (5, "plan")


def test_a_model_sealed_to_others_than_stated(world: World) -> None:
    from cloister.crypto import seal_bytes

    reader, stranger = identity("reader"), identity("stranger")
    files = dict(world.release("to-reader", recipients=[reader.public]).files)
    model = model_bytes(world, world.study.parameters)
    both = seal_bytes(model, [reader.public, stranger.public])
    assert failure(world.verify(forge(world, files, replace={SEALED_MODEL: both}))) == (9, "model")
    other = seal_bytes(model_bytes(world, world.study.parameters * 3), [reader.public])
    forged = forge(world, files, replace={SEALED_MODEL: other})
    assert world.verify(forged).ok  # from outside one cannot look in, and the verdict says so
    assert any("sealed" in each for each in world.verify(forged).unchecked)
    assert failure(world.verify(forged, reader=reader)) == (9, "model")
    assert failure(world.verify(forge(world, files, replace={SEALED_MODEL: b"junk"}))) == (9, "model")


def countersigned(world: World, site: Identity, changes: dict[str, Any]) -> Files:
    study = world.study
    agreed = Countersignature(
        study.plan.digest.hex(),
        Roster(study.epochs[0].members).digest.hex(),
        0,
        site.name,
        sha256(study.manifests[site.name]).hex(),
        100,
    )
    payload = canonical_bytes(msgspec.structs.replace(agreed, **changes))
    return {countersignature_path(0, site.name): sign_envelope(COUNTERSIGNATURE_TYPE, payload, [site])}


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": "0" * 64},
        {"roster": "0" * 64},
        {"epoch": 3},
        {"site": "site2"},
        {"manifest": "0" * 64},
        {"rows": 7},
    ],
)
def test_a_countersignature_over_something_else(world: World, files: Files, changes: dict[str, Any]) -> None:
    replace = countersigned(world, world.sites[1], changes)
    assert failure(world.verify(forge(world, files, replace=replace))) == (6, "roster")


def test_a_countersignature_that_is_no_text(world: World, files: Files) -> None:
    site = world.sites[1]
    payload = base64.b64decode(json.loads(world.study.epochs[0].countersignatures[site.name])["payload"])
    for junk in (payload.replace(site.name.encode(), b"\xff\xff"), b"[" * 5000):
        replace = {countersignature_path(0, site.name): sign_envelope(COUNTERSIGNATURE_TYPE, junk, [site])}
        assert failure(world.verify(forge(world, files, replace=replace))) == (6, "roster")


def test_a_countersignature_by_somebody_else(world: World, files: Files) -> None:
    site, hub = world.sites[1], world.hub
    payload = base64.b64decode(json.loads(world.study.epochs[0].countersignatures[site.name])["payload"])
    for signer in (hub, world.sites[2], identity("stranger")):
        path = countersignature_path(0, site.name)
        replace = {path: sign_envelope(COUNTERSIGNATURE_TYPE, payload, [signer])}
        assert failure(world.verify(forge(world, files, replace=replace))) == (6, "roster")
    as_manifest = {countersignature_path(0, site.name): world.study.manifests[site.name]}
    assert failure(world.verify(forge(world, files, replace=as_manifest))) == (6, "roster")


@pytest.mark.parametrize(
    "changes", [{"rows": 99}, {"purposes": ("advertising",)}, {"owner": None}, {"schema": None}]
)
def test_a_manifest_that_does_not_fit(
    world: World, files: Files, changes: dict[str, Any], tmp_path: Any
) -> None:
    """Even where the site goes along and countersigns it."""
    site = world.sites[1]
    if "owner" in changes:
        own = make_manifest(world.sites[2])
    elif "schema" in changes:
        from cloister.vault import Column, Schema

        other = Schema({**world.study.schema.columns, "more": Column("boolean")})
        own = make_manifest(site, schema=other, schema_sha256=other.digest().hex())
    else:
        own = make_manifest(site, **changes)
    replace = {manifest_path(site.name): own, **countersigned(world, site, {"manifest": sha256(own).hex()})}
    assert failure(world.verify(forge(world, files, replace=replace))) == (7, "manifests")


def test_a_manifest_the_site_did_not_countersign(world: World, files: Files) -> None:
    replace = {manifest_path("site1"): make_manifest(world.sites[1], name="others")}
    assert failure(world.verify(forge(world, files, replace=replace))) == (6, "roster")


def test_a_model_of_another_plan_or_shape(world: World, files: Files) -> None:
    plan = make_plan(world.hub, world.sites, training={"rounds": 6})
    foreign = ModelArtifact.of_plan(plan, world.study.schema, world.study.parameters).to_bytes()
    assert failure(world.verify(forge(world, files, replace={MODEL: foreign}))) == (9, "model")
    artifact = ModelArtifact.from_bytes(files[MODEL])
    for change in ({"rounds": 4}, {"name": "lungs"}):
        card = msgspec.structs.replace(artifact.card, **change)
        other = ModelArtifact(card, artifact.parameters).to_bytes()
        assert failure(world.verify(forge(world, files, replace={MODEL: other}))) == (9, "model")


def test_columns_swapped_in_the_card(world: World, files: Files) -> None:
    """A model that reads other columns than the plan's gives other answers under the same name."""
    artifact = ModelArtifact.from_bytes(files[MODEL])
    assert artifact.card.order == world.study.plan.data.features
    card = msgspec.structs.replace(artifact.card, order=("pressure", "age", "pain"))
    data = ModelArtifact(card, artifact.parameters).to_bytes()
    assert failure(world.verify(forge(world, files, replace={MODEL: data}))) == (9, "model")


def test_parameters_that_are_not_finite(world: World, files: Files) -> None:
    data = bytearray(files[MODEL])
    data[-8:] = np.array([np.nan]).tobytes()
    assert failure(world.verify(forge(world, files, replace={MODEL: bytes(data)}))) == (9, "model")


# --- the log ----------------------------------------------------------------------------------------------


def reprove(world: World, files: Files, **options: Any) -> Files:
    settings = {"keeper": world.hub, "cosigners": world.sites} | options
    return {**files, PROOF: prove(files[CERTIFICATE], **settings)}


def test_a_proof_by_the_hub_and_its_members_holds(world: World, files: Files) -> None:
    assert world.verify(reprove(world, files)).ok


def test_cosigners_dropped_below_the_need(world: World, files: Files) -> None:
    assert world.verify(reprove(world, files, cosigners=world.sites[:2])).ok
    for few in ([], world.sites[:1]):
        assert failure(world.verify(reprove(world, files, cosigners=few))) == (12, "cosignatures")


def test_strangers_do_not_count_as_cosigners(world: World, files: Files) -> None:
    for crowd in ([identity("stranger")], [*world.sites, identity("stranger")]):
        assert failure(world.verify(reprove(world, files, cosigners=crowd))) == (11, "log")


def test_the_hub_is_no_cosigner_of_its_own_log(world: World, files: Files) -> None:
    crowd = [world.hub, world.sites[0]]
    assert failure(world.verify(reprove(world, files, cosigners=crowd))) == (12, "cosignatures")


def test_a_log_kept_by_somebody_else(world: World, files: Files) -> None:
    for keeper in (world.sites[0], identity("stranger")):
        assert failure(world.verify(reprove(world, files, keeper=keeper))) == (11, "log")
    renamed = reprove(world, files, log_id=world.sites[0].fingerprint)
    assert failure(world.verify(renamed)) == (11, "log")


def edit_proof(files: Files, **changes: Any) -> Files:
    proof = msgspec.json.decode(files[PROOF], type=Proof)
    return {**files, PROOF: msgspec.structs.replace(proof, **changes).to_bytes()}


def test_another_index_or_path(world: World, files: Files) -> None:
    logged = reprove(world, files)
    proof = msgspec.json.decode(logged[PROOF], type=Proof)
    for changes in (
        {"index": 0},
        {"index": 2},
        {"index": 2**53},
        {"path": ()},
        {"path": (*proof.path, "0" * 64)},
        {"path": ("0" * 64,)},
        {"path": proof.path * 3},
    ):
        assert failure(world.verify(edit_proof(logged, **changes))) == (11, "log")


def edit_head(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    proof = msgspec.json.decode(files[PROOF], type=Proof)
    envelope = json.loads(proof.head)
    change(envelope)
    return edit_proof(files, head=json.dumps(envelope, separators=(",", ":")))


def test_signatures_of_the_head_edited(world: World, files: Files) -> None:
    def swap(envelope: dict[str, Any]) -> None:
        one, two = envelope["signatures"][1:3]
        one["sig"], two["sig"] = two["sig"], one["sig"]

    def twice(envelope: dict[str, Any]) -> None:
        envelope["signatures"].append(envelope["signatures"][1])

    def rename(envelope: dict[str, Any]) -> None:
        envelope["signatures"][4]["keyid"] = "0" * 64

    def no_keeper(envelope: dict[str, Any]) -> None:
        del envelope["signatures"][0]

    def one_wrong_among_enough(envelope: dict[str, Any]) -> None:
        envelope["signatures"][4]["sig"] = base64.b64encode(bytes(64)).decode()

    def other_type(envelope: dict[str, Any]) -> None:
        envelope["payloadType"] = "text/plain"

    for change in (swap, twice, rename, no_keeper, one_wrong_among_enough, other_type):
        assert failure(world.verify(edit_head(files, change))) == (11, "log"), change.__name__


def test_another_spelling_of_the_head(world: World, files: Files) -> None:
    """White space, order, or the unused bits at the end of base64: the same head in other bytes is refused."""
    proof = msgspec.json.decode(files[PROOF], type=Proof)
    envelope = json.loads(proof.head)
    sloppy = json.loads(proof.head)
    sig = sloppy["signatures"][1]["sig"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    sloppy["signatures"][1]["sig"] = sig[:-3] + alphabet[alphabet.index(sig[-3]) ^ 1] + "=="
    compact = {"separators": (",", ":")}
    for head in (
        json.dumps(envelope),
        json.dumps(envelope, sort_keys=True, separators=(",", ": ")),
        json.dumps(sloppy, **compact),  # type: ignore[arg-type]
        proof.head + " ",
    ):
        assert failure(world.verify(edit_proof(files, head=head))) == (11, "log")


def test_another_spelling_of_the_proof(world: World, files: Files) -> None:
    text = files[PROOF].decode()
    loaded = json.loads(text)
    for spelling in (
        json.dumps(loaded),
        text + "\n",
        text.replace("{", "{ ", 1),
        "[]",
        "",
        "{}",
        "[" * 99_999,
    ):
        assert failure(world.verify({**files, PROOF: spelling.encode()})) == (11, "log")
    logged = reprove(world, files)
    upper = json.loads(logged[PROOF])
    upper["path"] = [node.upper() for node in upper["path"]]
    assert failure(world.verify({**logged, PROOF: canonical_bytes(upper)})) == (11, "log")


def test_the_certificate_in_another_spelling_is_not_the_one_logged(world: World, files: Files) -> None:
    envelope = json.loads(files[CERTIFICATE])
    for spelling in (
        json.dumps(envelope),
        json.dumps(envelope, indent=2),
        files[CERTIFICATE].decode() + "\n",
    ):
        assert failure(world.verify({**files, CERTIFICATE: spelling.encode()})) == (11, "log")


def test_a_statement_in_another_spelling_is_refused(world: World, files: Files) -> None:
    payload = json.dumps(payload_of(files)).encode()
    signed = sign_envelope(PAYLOAD_TYPE, payload, [world.hub])
    proven = {**files, CERTIFICATE: signed, PROOF: prove(signed, world.hub, world.sites)}
    assert failure(world.verify(proven)) == (3, "statement")
    manifest_typed = sign_envelope("application/vnd.cloister.manifest+json", payload, [world.hub])
    assert failure(world.verify({**files, CERTIFICATE: manifest_typed})) == (2, "signature")


def test_heads_are_not_certificates(world: World, files: Files) -> None:
    head = msgspec.json.decode(files[PROOF], type=Proof).head.encode()
    assert failure(world.verify({**files, CERTIFICATE: head})) == (2, "signature")
    assert HEAD_TYPE != PAYLOAD_TYPE
    assert Certificate.__doc__


# --- whatever is signed, verification answers -------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["0" * 64, "site0", "site1", "1.5", "", "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in items for place in places(each, (*path, key)))]


def put(root: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        root = root[key]
    root[path[-1]] = value


@given(data=st.data(), value=values)
@settings(max_examples=200, deadline=None)
def test_any_signed_statement_gets_a_verdict(world: World, released: Released, data: Any, value: Any) -> None:
    """A hub may sign what it likes; the verifier never falls over it, and never takes it for the original."""
    files = dict(released.files)
    path = data.draw(st.sampled_from([place for place in places(payload_of(files)) if place]))
    verdict = world.verify(forge(world, files, lambda statement: put(statement, path, value)))
    assert verdict.ok == (verdict.failed is None)
    assert len(verdict.steps) == 12


@given(data=st.data(), value=values)
@settings(max_examples=200, deadline=None)
def test_any_card_and_any_proof_get_a_verdict(
    world: World, released: Released, data: Any, value: Any
) -> None:
    files = dict(released.files)
    parameters, text = read_vector(files[MODEL])
    card = json.loads(text)
    path = data.draw(st.sampled_from([place for place in places(card) if place]))
    put(card, path, value)
    model = write_vector(parameters, canonical_bytes(card).decode())
    if model != files[MODEL]:
        assert failure(world.verify(forge(world, files, replace={MODEL: model}))) == (9, "model")
    proof = json.loads(files[PROOF])
    path = data.draw(st.sampled_from([place for place in places(proof) if place]))
    put(proof, path, value)
    if proof != json.loads(files[PROOF]):
        assert failure(world.verify({**files, PROOF: canonical_bytes(proof)})) == (11, "log")


@given(text=st.text(max_size=60), where=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_any_plan_gets_a_verdict(world: World, released: Released, text: str, where: int) -> None:
    files = dict(released.files)
    whole = files[PLAN].decode()
    cut = where % (len(whole) + 1)
    plan = (whole[:cut] + text + whole[cut:]).encode("utf-8", "surrogatepass")
    assert len(world.verify(forge(world, files, replace={PLAN: plan})).steps) == 12
