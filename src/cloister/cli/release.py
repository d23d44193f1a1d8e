"""`cloister release STUDY --out DIR`: let a study's model out, through the gate.

The hub signs, or the first `--site` where the plan hides the model from the hub. The homes of members on
this machine cosign the head of the releaser's log; c + 1 of them must. The releaser's log is
HOME/log/releases, what a member has cosigned is in HOME/log/heads.

A language model is released beside its base (`--base`): the release holds what was trained, by the names of
the base's layers, and a MODEL_CARD.md. The base itself stays where it is.

Policies that must agree: the built-in one, the plan's recipients, HOME/policy/release.toml where there is one
(signed by this home), and each `--policy` (signed by this home or by somebody it trusts).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit, resolve_identity, say
from cloister.cli.language import Lang, LangOption
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.crypto import Identity
    from cloister.governance import ReleasePolicy, TrainedStudy

__all__ = ["release"]


def release(
    study: Annotated[str, typer.Argument(help="Name of a finished study in this home.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.", show_default=False)],
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="Home folder of a member on this machine, to cosign; repeat for each."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to", help="Seal the model to this trusted name or exported identity; may be repeated."
        ),
    ] = None,
    policy: Annotated[
        list[Path] | None, typer.Option("--policy", help="Signed release policy; all must agree.")
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option("--audit", help="audit.json of this study, from `cloister audit STUDY --out DIR`."),
    ] = None,
    base: BaseOption = None,
    lang: LangOption = Lang.EN,
    as_json: JsonOption = False,
) -> None:
    """Release a study's model through its policy."""
    from cloister.governance import in_words
    from cloister.governance import release as release_model
    from cloister.governance.audit import read_report
    from cloister.governance.certificate import moment
    from cloister.log import Cosigner, Log

    policies = _policies(policy or [])
    attacked = None if audit is None else read_report(audit)
    recipients = [resolve_identity(name) for name in to or []]
    own = common.load_identity()
    homes = {home: common.load_identity(home) for home in site or []}
    trained = _trained(study, own, list(homes.values()))
    places = {common.home(): own} | homes
    keeper, signer = next((home, each) for home, each in places.items() if _may_sign(trained, each))
    _require_cosigners(trained, [each for each in homes.values() if each is not signer])
    released = release_model(
        out,
        trained,
        signer=signer,
        log=Log(keeper / "log" / "releases", signer.fingerprint),
        cosigners=[Cosigner(home / "log" / "heads", each) for home, each in homes.items()],
        created=moment(),
        recipients=recipients,
        policies=policies,
        audit=attacked,
        base=base,
    )
    for reason in released.missing:
        say(f"A member did not cosign: {reason}")
    words = in_words(released.certificate.statement, lang.value)
    result = {
        "release": str(out),
        "certificate": released.certificate.digest.hex(),
        "signer": signer.fingerprint,
        "sealed_to": [reader.fingerprint for reader in recipients],
        "cosignatures": released.cosignatures,
        "log_entries": released.log_size,
        "in_words": words,
    }
    emit(result, as_json=as_json, text="\n".join([*words, "", f"{out}: cloister verify {out}"]))


def _policies(files: list[Path]) -> list[ReleasePolicy]:
    """Return every policy that must agree, the built-in one first."""
    from cloister.crypto import Identity, keyring
    from cloister.governance import DEFAULT_POLICY, ReleasePolicy
    from cloister.policy import load_signed_toml

    own = keyring([Identity.read_public(common.identity_path())])
    trusted = own | keyring(common.trust_store().list())
    at_home = common.home() / "policy" / "release.toml"
    there = any(at_home.parent.glob("release.toml*"))  # a signature alone says that a policy was lost
    found = [load_signed_toml(at_home, ReleasePolicy, "release policy", own)] if there else []
    found += [load_signed_toml(file, ReleasePolicy, "release policy", trusted) for file in files]
    return [DEFAULT_POLICY, *found]


def _trained(name: str, own: Identity, sites: list[Identity]) -> TrainedStudy:
    """Read the study back with the key of somebody here who may."""
    from cloister.errors import ProtocolError
    from cloister.governance import TrainedStudy
    from cloister.runtime import load_study

    refusal: ProtocolError | None = None
    for reader in (own, *sites):
        try:
            state = load_study(common.home() / "studies", name, keeper=own.public, reader=reader)
        except ProtocolError as error:  # the study key is not sealed to this reader
            refusal = error
            continue
        trained = TrainedStudy.of_state(state)
        members = {member.fingerprint for member in trained.members}
        for each in sites:
            if each.fingerprint not in members:
                raise InputError(
                    f"{each.name} is no member of the study", fix="Give homes of members with --site"
                )
        return trained
    raise InputError(
        "the study's model does not open with the keys that are here",
        where=f"study {name}",
        fix="Where the plan hides it from the hub, give the home of a site with --site; that site signs then",
    ) from refusal


def _require_cosigners(trained: TrainedStudy, cosigners: list[Identity]) -> None:
    """Refuse before anything is signed or logged what its readers would refuse."""
    count = len({each.fingerprint for each in cosigners})
    colluders = (trained.plan.params(len(epoch.members)).colluders for epoch in trained.epochs)
    needed = max(colluders) + 1
    if count < needed:
        raise InputError(
            f"{needed} members other than the signer must cosign the log, {count} can with the homes given",
            fix="Give the homes of more members with --site",
        )


def _may_sign(trained: TrainedStudy, who: Identity) -> bool:
    """Whether this is the hub of a study whose model it may see, or a site of one whose model it must not."""
    hidden = trained.plan.aggregation.hub_view == "none"
    return (who.fingerprint == trained.hub.fingerprint) != hidden
