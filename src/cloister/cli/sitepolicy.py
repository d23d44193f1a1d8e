"""What `cloister site` says before a site takes part: the site policy, approvals by hand, and a dry run.

    cloister site policy init|sign|show          which studies this organisation takes part in
    cloister site approvals ls|show|approve|refuse    plans that the policy asks about
    cloister site --dry-run PLAN                 what would leave the site (`dry_run`)

`show` and `dry_run` need no passphrase: they read public identities, signed manifests and plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.sitewords import in_words
from cloister.errors import CloisterError, InputError

if TYPE_CHECKING:
    from cloister.crypto import PublicIdentity
    from cloister.learning import Plan
    from cloister.learning.privacy import PrivacyFacts
    from cloister.runtime.approvals import Approvals, Asked
    from cloister.runtime.disclosure import Disclosure
    from cloister.runtime.forecast import Sizes
    from cloister.runtime.sitepolicy import Decision

__all__ = ["TEMPLATE", "approvals", "dry_run", "policy"]

policy = typer.Typer(no_args_is_help=True, help="Say which studies this organisation takes part in.")
approvals = typer.Typer(no_args_is_help=True, help="Decide on plans that the site policy asks about.")

DigestArgument = Annotated[
    str, typer.Argument(metavar="DIGEST", help="At least 8 digits of the plan's digest, as `ls` shows it.")
]
CodeOption = Annotated[
    Path | None,
    typer.Option(
        "--allow-user-code", metavar="FILE", help="Run this Python file, whose module the plan trains."
    ),
]

_REFUSED: Final = 3
_DOES_NOT_FIT: Final = 1

TEMPLATE: Final = """\
# Which studies this organisation takes part in. Every rule only refuses; what passes gets `decision`.
# Take away the # of a rule to have it. Sign the file after each change: cloister site policy sign

decision = "ask"          # or "accept", or "refuse": on what passes

# studies = ["credit-*"]  # names of studies, with * and ?
# purposes = ["credit scoring"]
# hubs = ["hub"]          # names under which you trust them, or fingerprints; without it, every hub you trust
# partners = ["south", "west"]    # nobody else may be in the plan
# minimum_partners = 2    # other sites in the plan
# minimum_sites = 3       # the least roster that the plan allows
# datasets = ["loans"]    # of your vault
# models = ["linear", "logistic", "softmax", "mlp", "causal-lm", "text-classifier"]
# bases = []              # digests of base models that language models may start from; without it, any
# max_rank = 16           # of adapters; with it, no plan may train a whole base
# user_code = []          # SHA-256 of Python files that may run here; without it, none
# hub_view = "none"       # the hub may see neither sum nor model
# public_rows = true      # a plan may declare your rows public; without it, none may
# enclave = "attested"    # hub and sites must show each other evidence; see policy/enclave.toml

# [privacy]
# required = true
# maximum_epsilon = 1.0   # of one study, the larger of both; the ledger bounds them together
# maximum_delta = 1e-5
# adversary = "colluders" # epsilon must hold against a hub with colluding sites
# unit = "patient"        # or "record"
"""


# --- policy -----------------------------------------------------------------------------------------------


def _policy_path() -> Path:
    from cloister.runtime.sitepolicy import site_policy_path

    return site_policy_path(common.home())


@policy.command("init")
def policy_init() -> None:
    """Write a site policy that asks about everything, with every rule explained, to be edited and signed."""
    from cloister.files import write_atomic

    path = _policy_path()
    if path.exists():
        raise InputError("there is a site policy", where=str(path), fix="Edit it, then sign it")
    write_atomic(path, TEMPLATE.encode(), replace=False)
    say(f"Wrote {path}. Edit it, then: cloister site policy sign")


@policy.command("sign")
def policy_sign() -> None:
    """Sign the site policy, after checking that it is one."""
    from cloister.policy import sign_toml
    from cloister.runtime.sitepolicy import SITE_POLICY, SitePolicy

    say(f"Signed: {sign_toml(_policy_path(), SitePolicy, SITE_POLICY, [common.load_identity()])}")


@policy.command("show")
def policy_show(as_json: JsonOption = False) -> None:
    """Show the site policy in force, its signature checked."""
    import msgspec

    from cloister.crypto import Identity
    from cloister.runtime.sitepolicy import SitePolicy, load_site_policy

    found = load_site_policy(common.home(), Identity.read_public(common.identity_path()))
    rules: dict[str, Any] = msgspec.to_builtins(found or SitePolicy())
    text = "There is no site policy, so every study is asked about. Write one: cloister site policy init"
    if found is not None:
        text = "\n".join(f"{key}: {value}" for key, value in _written(rules).items())
    emit(
        {"path": str(_policy_path()), "signed": found is not None, "policy": rules},
        as_json=as_json,
        text=text,
    )


def _written(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the rules that refuse something, by name; those of a table with its name before theirs."""
    flat = {key: value for key, value in rules.items() if key != "privacy"}
    flat |= {f"privacy {key}": value for key, value in rules["privacy"].items()}
    asking = {key: value for key, value in flat.items() if value not in (None, (), [], 0)}
    unless = {"public_rows": "may be declared" if flat["public_rows"] else "may not be declared"}
    unless["user_code"] = ", ".join(flat["user_code"]) or "none"  # both refuse where they are left out
    return {
        key: ", ".join(value) if isinstance(value, list | tuple) else value
        for key, value in (asking | unless).items()
    }


# --- approvals --------------------------------------------------------------------------------------------


def _approvals() -> Approvals:
    from cloister.crypto import Identity
    from cloister.runtime.approvals import Approvals

    return Approvals(common.home() / "approvals", Identity.read_public(common.identity_path()))


def _row(asked: Asked) -> dict[str, Any]:
    return {
        "digest": asked.digest,
        "state": asked.state,
        "study": asked.plan.study.name,
        "purpose": asked.plan.study.purpose,
        "hub": asked.plan.hub.name,
        "reasons": list(asked.reasons),
    }


@approvals.command("ls")
def approvals_ls(as_json: JsonOption = False) -> None:
    """List the plans that were asked about, those that wait first."""
    rows = [_row(asked) for asked in _approvals().list()]
    lines = [f"{row['digest'][:16]}  {row['state']:8}  {row['study']}  from {row['hub']}" for row in rows]
    emit({"approvals": rows}, as_json=as_json, text="\n".join(lines) or "No plan was asked about.")


@approvals.command("show")
def approvals_show(digest: DigestArgument, as_json: JsonOption = False) -> None:
    """Show a plan that was asked about, and what would leave the site."""
    asked = _approvals().get(digest)
    disclosure = _disclose(asked.plan, None, sandboxed=True)
    plan = asked.plan.to_toml()
    result = _row(asked) | {"plan": plan, "disclosure": _builtins(disclosure)}
    text = "\n".join([f"Decided by hand: {asked.state}.", *in_words(disclosure), "", "The plan:", "", plan])
    emit(result, as_json=as_json, text=text)


@approvals.command("approve")
def approvals_approve(digest: DigestArgument, as_json: JsonOption = False) -> None:
    """Approve one plan, signed with your identity; it says nothing about any other plan."""
    store = _approvals()
    store.get(digest)  # a wrong digest is told before a passphrase is asked for
    asked = store.approve(digest, common.load_identity())
    _decided(asked, "Approved", as_json=as_json)
    decision = _decision(asked.plan, None)
    if decision.verdict == "refuse":
        say(f"It is refused all the same: {'; '.join(decision.reasons)}.")


@approvals.command("refuse")
def approvals_refuse(digest: DigestArgument, as_json: JsonOption = False) -> None:
    """Refuse one plan, whatever the policy says of it."""
    store = _approvals()
    store.get(digest)
    _decided(store.refuse(digest, common.load_identity()), "Refused", as_json=as_json)


def _decided(asked: Asked, word: str, *, as_json: bool) -> None:
    emit(_row(asked), as_json=as_json, text=f"{word}: study {asked.plan.study.name}, plan {asked.digest}")


# --- what would leave -------------------------------------------------------------------------------------


def dry_run(
    plan_path: Path,
    *,
    as_json: bool,
    user_code: Path | None = None,
    bases: Sequence[Path] = (),
    sandboxed: bool = True,
) -> None:
    """Say what the site policy decides on a plan and what would leave the site; send nothing.

    Raises:
        typer.Exit: 3 where it would be refused, 1 where it could not run here.
    """
    from cloister.learning import load_plan

    disclosure = _disclose(load_plan(plan_path), user_code, sandboxed, bases)
    emit(_builtins(disclosure), as_json=as_json, text="\n".join(in_words(disclosure)))
    if disclosure.verdict == "refuse":
        raise typer.Exit(_REFUSED)
    if disclosure.obstacles:
        raise typer.Exit(_DOES_NOT_FIT)


def _builtins(disclosure: Disclosure) -> dict[str, Any]:
    import msgspec

    result: dict[str, Any] = msgspec.to_builtins(disclosure)
    return result


def _decision(plan: Plan, claim: PrivacyFacts | None) -> Decision:
    """Return what policy and hand say of a plan that came from the hub it names."""
    from cloister.crypto import Identity
    from cloister.runtime.approvals import settle
    from cloister.runtime.sitepolicy import Decision, decide, load_site_policy

    own = Identity.read_public(common.identity_path())
    trusted: dict[str, PublicIdentity] = {each.fingerprint: each for each in common.trust_store().list()}
    hub = trusted.get(plan.hub.identity)
    if hub is None:
        return Decision("refuse", (f"the hub {plan.hub.name} is not trusted; `cloister keys trust` it",))
    rules = load_site_policy(common.home(), own)
    decision = decide(plan, hub, rules, trusted, own=own.fingerprint, claim=claim)
    return settle(decision, _approvals().state(plan.digest))


def _disclose(plan: Plan, user_code: Path | None, sandboxed: bool, bases: Sequence[Path] = ()) -> Disclosure:
    from cloister.cli.baseoption import Bases
    from cloister.crypto import Identity
    from cloister.runtime.disclosure import disclosure_of
    from cloister.runtime.forecast import forecast
    from cloister.vault import Catalog

    own = Identity.read_public(common.identity_path())
    entry = next((each for each in plan.sites if each.identity == own.fingerprint), None)
    if entry is None:
        raise InputError(
            "the plan does not name this site's identity",
            where=f"study {plan.study.name}",
            fix="Ask its author to enter the fingerprint that `cloister keys show` prints",
        )
    catalog = Catalog(common.home() / "vault", own)
    envelope = catalog.envelope(entry.dataset)
    manifest = catalog.read(entry.dataset, envelope)
    sizes, obstacle = None, None
    try:
        sizes = _sizes(plan, manifest.schema, user_code, Bases(bases).of(plan), sandboxed)
    except CloisterError as error:  # what is not known is said to be so; the rest is worth knowing
        obstacle = f"{error.what} ({error.where})" if error.where else error.what
    facts = None if sizes is None or sizes.terms is None else sizes.terms.facts
    columns = len(plan.data.features) + 1
    return disclosure_of(
        plan,
        manifest,
        _decision(plan, facts),
        own=own.fingerprint,
        manifest_bytes=len(envelope),
        epsilons=None if facts is None else (facts.epsilon_hub, facts.epsilon_colluders),
        forecast=None if sizes is None else forecast(plan, sizes, rows=manifest.rows, columns=columns),
        obstacle=obstacle,
    )


def _sizes(plan: Plan, schema: Any, user_code: Path | None, base: Path | None, sandboxed: bool) -> Sizes:
    from cloister.runtime.forecast import sizes_of

    if schema.digest().hex() != plan.data.schema:
        raise InputError("the dataset has another schema than the plan")
    return sizes_of(plan, schema, user_code, base=base, sandboxed=sandboxed)
