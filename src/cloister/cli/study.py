"""`cloister study`: write a plan, see what it means, run it.

`run` holds a whole study in one process, over site homes on this machine: every message is signed, encrypted
and masked as between organisations, but nothing separates the parties, except that the rows of each are
worked on in a walled process of their own. It is for trying a plan out.
"""

from __future__ import annotations

import enum
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import common
from cloister.cli.baseoption import BaseOption, Device, DeviceOption, RanksOption, ShardOption
from cloister.cli.beforehand import require_grants, require_walls
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.eventwords import in_words
from cloister.cli.evidence import HomeEvidence
from cloister.cli.studyinit import (
    Kind,
    Proposed,
    Unit,
    classes,
    code_of,
    from_homes,
    from_trust,
    no_label,
    plan_of,
    private,
    widths,
)
from cloister.cli.studylanguage import Format, LanguageOptions, Method, Overlong, Precision, Quantised
from cloister.cli.studywatch import watch
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.learning import Plan
    from cloister.learning.privacy import PrivacyFacts
    from cloister.runtime import Event, Party, StudyResult

app = typer.Typer(no_args_is_help=True, help="Plan, check and run a study.")

PlanArgument = Annotated[Path, typer.Argument(help="The plan, as `study init` writes one.")]
SitesOption = Annotated[
    list[Path], typer.Option("--site", help="Home folder of a site on this machine; repeat for each.")
]
CodeOption = Annotated[
    Path | None,
    typer.Option(
        "--allow-user-code",
        metavar="FILE",
        help="Run this Python file, whose module the plan trains; it runs in the worker that sees the rows.",
    ),
]


class HubView(enum.StrEnum):
    """What the hub may see."""

    SUM = "sum"
    NONE = "none"


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The study's name: a-z, 0-9, '-' and '_'.")],
    purpose: Annotated[str, typer.Option(help="What for; the datasets must allow it.")],
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="Home folder of a site on this machine; repeat for each."),
    ] = None,
    partner: Annotated[
        list[str] | None,
        typer.Option(
            "--partner",
            metavar="NAME",
            help="Instead of --site: a site that this home trusts; repeat for each.",
        ),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="The dataset in every site's vault (rows); or repeat, one for each site in the same order.",
        ),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --partner: the schema of all datasets.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(help="With --partner and --epsilon: about how many rows there are in all.")
    ] = None,
    model: Annotated[Kind, typer.Option(help="Kind of model.")] = Kind.LOGISTIC,
    hidden: Annotated[
        list[int] | None, typer.Option(help="Width of a hidden layer of an mlp (16); repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of training.")] = 30,
    hub_view: Annotated[HubView, typer.Option(help="What the hub may see.")] = HubView.SUM,
    bits: Annotated[int, typer.Option(help="Ring width of the secure sum: 8, 16 or 32.")] = 32,
    epsilon: Annotated[
        float | None, typer.Option(help="Train under differential privacy with this epsilon.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="With --epsilon: delta; a tenth of 1 / rows by default.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="With --epsilon: the schema's unit column, whose rows enter together; or record."),
    ] = None,
    sites_per_unit: Annotated[
        int | None, typer.Option(help="With --unit: at how many sites one may have rows.")
    ] = None,
    units: Annotated[int | None, typer.Option(help="With --unit: about how many there are in all.")] = None,
    base: BaseOption = None,
    rank: Annotated[int | None, typer.Option(help="Of a language model's adapters; 8 by default.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a row at most; 512 by default, or what the base can.")
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="With --model causal-lm: what a row is, the text itself, an answer to a prompt, or a "
            "conversation; by default pairs where the schema has features of text, else text."
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(help="What is trained of a base: adapters (lora), both their halves in turn, or all."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="What a base computes in; adapters are float32.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Adapters are scaled by alpha / rank; twice the rank by default.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", metavar="LAYER", help="Linear layers with adapters (q_proj); repeat. All by default."
        ),
    ] = None,
    overlong: Annotated[
        Overlong | None, typer.Option(help="A row of more tokens: refuse the study, or cut the row.")
    ] = None,
    quantised: Annotated[
        Quantised | None, typer.Option(help="Keep the base in 4 bits (nf4), on GPUs alone.")
    ] = None,
    rows_per_pass: Annotated[
        int | None, typer.Option(min=1, help="Rows that go through the model at once; a batch by default.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations twice: less memory, more time.")
    ] = False,
    packing: Annotated[
        bool, typer.Option("--packing", help="Put several texts into one row; not with --epsilon.")
    ] = False,
    allow_user_code: CodeOption = None,
    factory: Annotated[
        str | None, typer.Option(help="With --model torch: the file's function that returns the module.")
    ] = None,
    worker: WorkerOption = Where.SANDBOXED,
    out: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("plan.toml"),
    as_json: JsonOption = False,
) -> None:
    """Write a plan for the sites' datasets, with this home as the hub and the initial model pinned.

    Sites on this machine are named with --site; other organisations, which this home trusts, with --partner.
    """
    from cloister.crypto import Identity
    from cloister.files import write_atomic
    from cloister.learning import parse_plan
    from cloister.learning.start import with_pin
    from cloister.runtime.workers.models import known_model

    if out.exists():
        raise InputError("the file exists", where=str(out), fix="Choose another name with --out")
    hub = Identity.read_public(common.identity_path())
    proposed = _proposed(site, partner, dataset or ["rows"], schema, rows, purpose)
    found = proposed.schema
    texts = LanguageOptions(
        base,
        format,
        method,
        rank,
        context,
        precision,
        alpha=alpha,
        target=target,
        overlong=overlong,
        quantised=quantised,
        rows_per_pass=rows_per_pass,
        checkpointing=checkpointing,
        packing=packing,
    ).tables(model, found)
    document: dict[str, Any] = {
        "study": {"name": name, "purpose": purpose, "minimum_sites": max(3, len(proposed.sites) - 1)},
        "hub": {"name": hub.name, "identity": hub.fingerprint},
        "sites": proposed.entries(),
        "data": {
            "schema": found.digest().hex(),
            "features": texts.get("features", list(found.features)),
            "label": found.label or no_label(),
        },
        "model": {"kind": model.value, "hidden": widths(model, hidden), "classes": classes(model, found)}
        | code_of(model, allow_user_code, factory),
        "training": {"rounds": rounds, "batch": 32, "local_steps": 20, "learning_rate": 0.1}
        | texts.get("training", {}),
        "aggregation": {"hub_view": hub_view.value, "bits": bits}
        | {key: texts[key] for key in ("value_range",) if key in texts},
    }
    if "language" in texts:
        document["language"] = texts["language"]
    if epsilon is not None:
        whose = Unit(unit, sites_per_unit, units)
        document |= private(document, found, proposed.counted(), epsilon, delta, whose)
    elif any(given is not None for given in (delta, unit, sites_per_unit, units, rows)):
        raise InputError("--delta, --rows and the options of a unit belong to --epsilon", fix="Give it too")
    sandboxed = is_sandboxed(worker, aloud=allow_user_code is not None)
    plan: Plan = plan_of(document)
    plan = with_pin(
        plan, known_model(plan, found, user_code=allow_user_code, base=base, sandboxed=sandboxed).pin
    )
    text = plan.to_toml()
    parse_plan(text.encode())
    write_atomic(out, text.encode())
    public = "SCHEMA" if schema is None else shlex.quote(str(schema))
    asks = "" if schema is None and epsilon is None else f" --schema {public}"
    asks += "" if base is None else f" --base {shlex.quote(str(base))}"
    emit(
        {"plan": str(out), "digest": plan.digest.hex(), "sites": [each.name for each, _ in proposed.sites]},
        as_json=as_json,
        text=f"Wrote {out}. Read it, then: cloister study check {shlex.quote(str(out))}"
        + asks
        + ("" if epsilon is None else ", which says both epsilons"),
    )
    if not proposed.seen:
        say(f"Whether its dataset has this schema and allows {purpose!r}, each partner finds out by itself.")


def _proposed(
    homes: list[Path] | None,
    partners: list[str] | None,
    datasets: list[str],
    schema: Path | None,
    rows: int | None,
    purpose: str,
) -> Proposed:
    """Return who is to take part, from whichever of the two ways was taken."""
    if bool(homes) == bool(partners):
        raise InputError(
            "both homes and partners are named" if homes else "nobody is named to take part",
            where="study init",
            fix="Give --site for homes on this machine, or --partner for other organisations",
        )
    if partners:
        return from_trust(partners, datasets, schema, rows)
    if schema is not None or rows is not None:
        raise InputError(
            "--schema and --rows belong to --partner", fix="Leave them out: the sites' manifests say both"
        )
    return from_homes(homes or [], datasets, purpose)


@app.command()
def check(
    plan: PlanArgument,
    schema: Annotated[Path | None, typer.Option(help="The schema, to predict sizes.")] = None,
    allow_user_code: CodeOption = None,
    base: BaseOption = None,
    link_mbit: Annotated[
        float, typer.Option(help="Speed of the hub's link each way, in Mbit/s, to predict times.")
    ] = 100.0,
    worker: WorkerOption = Where.SANDBOXED,
    as_json: JsonOption = False,
) -> None:
    """Say what a plan means: who can collude, who can drop out, what travels, what a row may give away."""
    from cloister.cli import studycheck
    from cloister.learning import load_plan
    from cloister.vault import load_schema

    agreed = load_plan(plan)
    known = None if schema is None else load_schema(schema)
    sandboxed = is_sandboxed(worker, aloud=allow_user_code is not None)
    result = studycheck.meaning(
        agreed, known, allow_user_code, base=base, link_mbit=link_mbit, sandboxed=sandboxed
    )
    emit(result, as_json=as_json, text=studycheck.in_words(agreed, result))


@app.command()
def run(
    plan: PlanArgument,
    site: SitesOption,
    held_out: Annotated[
        str | None, typer.Option(help="Dataset in every vault to evaluate on; shown only for public rows.")
    ] = None,
    allow_user_code: CodeOption = None,
    base: BaseOption = None,
    ranks: RanksOption = 1,
    shard: ShardOption = False,
    device: DeviceOption = Device.AUTO,
    worker: WorkerOption = Where.SANDBOXED,
    as_json: JsonOption = False,
) -> None:
    """Run a study over site homes on this machine, and keep its model encrypted in this home.

    Hub and sites share this process; each site's rows are read and trained on in a walled one of its own.
    """
    from cloister.learning import load_plan
    from cloister.runtime import Study, save_study

    agreed = load_plan(plan)
    studies = common.new_study(agreed.study.name)
    hub = common.load_identity()
    sandboxed = is_sandboxed(worker)
    require_walls(agreed, sandboxed=sandboxed)
    with ExitStack() as ledgers, _watching(agreed, shown=not as_json) as on_event:
        here: dict[str, Any] = {"base": base, "ranks": ranks, "shard": shard, "device": device.value}
        parties = [replace(_party(home, agreed, held_out, ledgers), **here) for home in site]
        for home, party in zip(site, parties, strict=True):
            require_grants(
                home, party.identity, agreed, sandboxed=sandboxed, held_out=held_out, plan_file=plan
            )
        attesting = HomeEvidence(common.home(), hub.public, ledgers, say).of_all(agreed)
        result = Study(
            agreed, hub, parties, user_code=allow_user_code, sandboxed=sandboxed, attesting=attesting
        ).run(on_event)
    folder = save_study(studies, result, hub)
    emit(_summary(result, folder), as_json=as_json, text=_ended(result, folder, site, base))


app.command()(watch)


# --- sites on this machine --------------------------------------------------------------------------------


def _party(home: Path, plan: Plan, held_out: str | None, ledgers: ExitStack) -> Party:
    """Return a home as a site; a ledger that is not needed still says whether rows have a budget."""
    from cloister.cli.brokerkeys import vault_and_broker
    from cloister.crypto import Identity, TrustStore
    from cloister.privacy.ledger import ledger_exists
    from cloister.runtime import Party

    Identity.read_public(home / "identity.json")
    identity = Identity.load(home / "identity.json", common.passphrase())
    evidence = HomeEvidence(home, identity.public, ledgers, common.say)
    vault, broker = vault_and_broker(home, identity, common.passphrase(), evidence)
    if held_out is not None:
        with common.at_home(home):
            vault.manifest(held_out)
    ledger = None
    if plan.privacy is not None or ledger_exists(home / "ledger"):
        named = (each.dataset for each in plan.sites if each.identity == identity.fingerprint)
        ledger = ledgers.enter_context(common.open_ledger(home, identity, next(named, "DATASET")))
    trusted = tuple(TrustStore(home / "trust").list())
    return Party(identity, vault, held_out=held_out, trusted=trusted, ledger=ledger, broker=broker)


# --- run --------------------------------------------------------------------------------------------------


@contextmanager
def _watching(plan: Plan, *, shown: bool) -> Iterator[Callable[[Event], None]]:
    """Yield what takes a study's events: a progress bar on a terminal, lines elsewhere, nothing with
    --json. A language model's rounds take long, and have a line each where there is no bar."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cloister.runtime import Burnt, Refused, RosterAgreed, RoundDone, SetupDone, Stalled
    from cloister.runtime.events import EvidenceAccepted

    told = (
        EvidenceAccepted,
        RosterAgreed,
        SetupDone,
        Stalled,
        Burnt,
        Refused,
    )  # who connects is no news in one process
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("training", total=plan.training.rounds)
        rounds = plan.language is not None and not console.is_terminal

        def on_event(event: Event) -> None:
            if isinstance(event, RoundDone):
                bar.update(task, completed=event.round + 1)
            elif not isinstance(event, told):
                return
            if shown and (line := in_words(event, rounds=rounds)):
                say(line)

        yield on_event


def _summary(result: StudyResult, folder: Path) -> dict[str, Any]:
    return {
        "study": result.plan.study.name,
        "folder": str(folder),
        "rounds": len(result.rounds),
        "sites": [member.name for member in result.members],
        "clamped": dict(result.clamped),
        "metrics": None if result.final_metrics is None else result.final_metrics[0],
        "reasons": _reasons(result),
        "privacy": None if result.privacy is None else _claim(result.privacy.facts),
        "transport": result.transport,
        "protection": result.protection,
    }


def _reasons(result: StudyResult) -> dict[str, str]:
    """Say why a figure is null."""
    reasons = {}
    if result.final_metrics is None:
        reasons["metrics"] = (
            "no held-out rows were named: --held-out"
            if result.plan.data.public_rows
            else "the plan does not declare rows public, so nothing measured on them leaves a site"
        )
    if result.privacy is None:
        reasons["privacy"] = "the plan has no [privacy] table, so nothing is claimed"
    return reasons


def _claim(facts: PrivacyFacts) -> dict[str, Any]:
    return {
        "epsilon_hub": round(facts.epsilon_hub, 4),
        "epsilon_colluders": round(facts.epsilon_colluders, 4),
        "delta": facts.delta,
        "unit": facts.unit,
        "adversary": facts.adversary,
    }


def _ended(result: StudyResult, folder: Path, homes: Sequence[Path], base: Path | None) -> str:
    lines = [f"{len(result.rounds)} rounds over {len(result.members)} sites, all on this one machine."]
    if result.final_metrics is not None:
        lines += [f"{key}: {value:.4f}" for key, value in result.final_metrics[0].items()]
    if result.privacy is not None:
        claim = _claim(result.privacy.facts)
        lines.append(
            f"Privacy: epsilon {claim['epsilon_hub']:g} against hub and readers, "
            f"{claim['epsilon_colluders']:g} with colluding sites, at delta {claim['delta']:g}. "
            "Every site's ledger is debited; see `cloister budget`."
        )
    lost = {name: count for name, count in result.clamped.items() if count}
    if lost:
        lines.append(f"Values beyond value_range were clamped: {lost}. Raise [aggregation] value_range.")
    lines += [
        f"The model is kept encrypted in {folder}.",
        f"To let it out: cloister release {result.plan.study.name} --out release"
        + "".join(f" --site {shlex.quote(str(home))}" for home in homes)
        + ("" if base is None else f" --base {shlex.quote(str(base))}"),
    ]
    return "\n".join(lines)
