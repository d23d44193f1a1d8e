"""`cloister query`: private statistics of a dataset, with error bars, paid from its owner's budget.

1. The queries are checked against the schema in the signed manifest: no passphrase, no row, no budget yet.
2. The dataset is opened for its purpose and bound to its population in the ledger.
3. The ledger is debited, durably. Exit code 3 where the budget refuses; nothing is shown then.
4. Noise is added, and the answers are printed.

With `--site` the same is asked of several homes on this machine, which add up under masks and noise shares;
this home is the hub, and each site pays from its own ledger.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, home
from cloister.cli.workeroption import Where, WorkerOption, is_sandboxed
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.privacy.ledger import Ledger
    from cloister.privacy.statistics import Query, QueryFile
    from cloister.runtime.query import QueryParty, QueryResult
    from cloister.vault import Manifest

__all__ = ["query"]


class StatisticName(enum.StrEnum):
    """What can be asked."""

    COUNT = "count"
    SUM = "sum"
    MEAN = "mean"
    VARIANCE = "variance"
    QUANTILES = "quantiles"
    HISTOGRAM = "histogram"
    CONTINGENCY = "contingency"


class AdversaryName(enum.StrEnum):
    """Against whom epsilon is."""

    COLLUDERS = "colluders"
    HUB = "hub"


def query(
    dataset: Annotated[str, typer.Argument(help="The dataset; with --site, its name in every site's vault.")],
    statistic: Annotated[
        StatisticName | None, typer.Argument(help="What is asked.", show_default=False)
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Argument(help="Of which column; a contingency table has several.", show_default=False),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="One answer for each declared value of this column; repeat.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="What it may cost.", show_default=False)] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Gaussian noise in the place of Laplace; below 1 / rows.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Many queries, as TOML.", show_default=False)
    ] = None,
    level: Annotated[
        list[float] | None,
        typer.Option(help="Of quantiles, 0.5 is the median; repeat. Default: quartiles."),
    ] = None,
    bins: Annotated[
        int | None, typer.Option(help="Equal bins of a histogram or of quantiles.", show_default=False)
    ] = None,
    rows_per_unit: Annotated[
        int, typer.Option(help="How many rows of a unit count, where the schema names one.")
    ] = 1,
    confidence: Annotated[float, typer.Option(help="Of each error bar.")] = 0.95,
    purpose: Annotated[
        str | None, typer.Option(help="What for; needed where the dataset has several purposes.")
    ] = None,
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="Home of a site on this machine; repeat, three or more."),
    ] = None,
    adversary: Annotated[
        AdversaryName, typer.Option(help="With --site: epsilon is against the hub with colluders, or alone.")
    ] = AdversaryName.COLLUDERS,
    colluders: Annotated[
        int | None, typer.Option(help="With --site: how many sites may tell the hub what they know.")
    ] = None,
    sites_per_unit: Annotated[
        int | None, typer.Option(help="With --site: at how many sites a unit may have rows.")
    ] = None,
    worker: WorkerOption = Where.SANDBOXED,
    as_json: JsonOption = False,
) -> None:
    """Ask a private statistic of a dataset, paid from its budget."""
    asked = _asked(
        file, statistic, columns or [], by or [], epsilon, delta, level or [], bins, rows_per_unit, confidence
    )
    if not site:
        if adversary is not AdversaryName.COLLUDERS or colluders is not None or sites_per_unit is not None:
            raise InputError(
                "--adversary, --colluders and --sites-per-unit are for several sites",
                fix="Name them with --site",
            )
        _ask_own(asked, dataset, purpose, as_json=as_json, sandboxed=is_sandboxed(worker))
    else:
        _ask_sites(
            asked,
            dataset,
            purpose,
            site,
            adversary,
            colluders,
            sites_per_unit,
            as_json=as_json,
            sandboxed=is_sandboxed(worker),
        )


# --- what is asked ----------------------------------------------------------------------------------------


def _asked(
    file: Path | None,
    statistic: StatisticName | None,
    columns: Sequence[str],
    by: Sequence[str],
    epsilon: float | None,
    delta: float | None,
    level: Sequence[float],
    bins: int | None,
    rows_per_unit: int,
    confidence: float,
) -> Query | QueryFile:
    from cloister.privacy.statistics import Query, load_queries

    if file is not None:
        others = (statistic, epsilon, delta, bins)
        if any(each is not None for each in others) or columns or by or level or rows_per_unit != 1:
            raise InputError("a file of queries says all of it", fix="Give --file alone, or no --file")
        return load_queries(file)
    if statistic is None:
        raise InputError(
            "nothing is asked", fix="As in `cloister query DATASET mean age --epsilon 0.1`, or give --file"
        )
    if epsilon is None:
        raise InputError("what it may cost is not said", fix="Give --epsilon, such as 0.1")
    table = statistic is StatisticName.CONTINGENCY
    if len(columns) > 1 and not table:
        raise InputError(f"{statistic} takes one column", fix="Group by the others with --by, or ask twice")
    return Query(
        statistic=statistic.value,
        column=columns[0] if columns and not table else "",
        columns=tuple(columns) if table else (),
        by=tuple(by),
        levels=tuple(level),
        bins=bins,
        rows_per_unit=rows_per_unit,
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
    )


def _purpose(wanted: str | None, manifests: Sequence[Manifest]) -> str:
    """Return what for: as said, or the one purpose that there is."""
    if wanted is not None:
        return wanted
    common_to_all = [
        each for each in manifests[0].purposes if all(each in other.purposes for other in manifests)
    ]
    if len(common_to_all) == 1:
        return common_to_all[0]
    named = ", ".join(map(repr, common_to_all))
    raise InputError(
        "what the answer is for is not said",
        fix=f"Give --purpose, one of {named}" if named else "The sites' datasets have no purpose in common",
    )


# --- one owner --------------------------------------------------------------------------------------------


def _ask_own(
    asked: Query | QueryFile, dataset: str, purpose: str | None, *, as_json: bool, sandboxed: bool
) -> None:
    from cloister.cli.querywords import in_words
    from cloister.crypto import Identity
    from cloister.privacy.statistics import Release
    from cloister.runtime.query import ask
    from cloister.runtime.queryplan import describe
    from cloister.vault import Catalog, Vault

    public = Identity.read_public(common.identity_path())
    manifest = Catalog(home() / "vault", public).manifest(dataset)
    wanted = _purpose(purpose, [manifest])
    Release.plan(
        asked, describe(manifest.schema, manifest.rows)
    )  # bad input ends before a passphrase is asked
    identity = common.load_identity()
    vault = Vault.unlock(home() / "vault", identity, common.passphrase())
    with common.open_ledger(home(), identity, dataset) as ledger:
        owner = identity if sandboxed else None
        result = ask(asked, vault, dataset, purpose=wanted, ledger=ledger, identity=owner)
        left = _left(ledger, result.populations)
    emit(
        {
            "dataset": dataset,
            "purpose": wanted,
            "answers": [answer.to_builtins() for answer in result.answers],
            "epsilon": result.epsilon,
            "delta": result.delta,
            "populations": left,
        },
        as_json=as_json,
        text=in_words(result.answers, result.epsilon, result.delta, left),
    )


def _left(ledger: Ledger, populations: Sequence[str]) -> list[dict[str, Any]]:
    """Return what each population has left, as figures to plan with."""
    found = []
    for name in populations:
        status = ledger.status(name)
        found.append(
            {
                "population": name,
                "share_left": status.left.rdp / status.cap.rdp,
                "queries_left": status.worth.queries,
            }
        )
    return found


# --- several sites ----------------------------------------------------------------------------------------


def _ask_sites(
    asked: Query | QueryFile,
    dataset: str,
    purpose: str | None,
    homes: Sequence[Path],
    adversary: AdversaryName,
    colluders: int | None,
    sites_per_unit: int | None,
    *,
    as_json: bool,
    sandboxed: bool,
) -> None:
    from cloister.cli.querywords import federated_in_words
    from cloister.crypto import Identity
    from cloister.runtime.query import FederatedQuery, plan_query

    hub = Identity.read_public(common.identity_path())
    members = [common.member(each, dataset) for each in homes]
    wanted = _purpose(purpose, [manifest for _, manifest in members])
    plan = plan_query(
        asked,
        hub,
        members,
        purpose=wanted,
        colluders=colluders,
        adversary=adversary.value,
        sites_per_unit=sites_per_unit,
    )
    plan.release(members[0][1].schema, len(members))  # bad input ends before a passphrase is asked for
    identity = common.load_identity()
    with ExitStack() as ledgers:
        parties = [_party(each, dataset, ledgers) for each in homes]
        result = FederatedQuery(plan, identity, parties, sandboxed=sandboxed).run()
    emit(_federated(dataset, result), as_json=as_json, text=federated_in_words(result))


def _party(folder: Path, dataset: str, ledgers: ExitStack) -> QueryParty:
    from cloister.crypto import Identity, TrustStore
    from cloister.runtime.query import QueryParty
    from cloister.vault import Vault

    identity = Identity.load(folder / "identity.json", common.passphrase())
    vault = Vault.unlock(folder / "vault", identity, common.passphrase())
    ledger = ledgers.enter_context(common.open_ledger(folder, identity, dataset))
    return QueryParty(identity, vault, ledger, tuple(TrustStore(folder / "trust").list()))


def _federated(dataset: str, result: QueryResult) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "purpose": result.plan.purpose,
        "answers": [answer.to_builtins() for answer in result.answers],
        "epsilon": result.epsilon,
        "epsilon_hub": result.epsilon_hub,
        "epsilon_colluders": result.epsilon_colluders,
        "delta": result.delta,
        "adversary": result.plan.adversary,
        "sites": list(result.survivors),
        "rows": result.rows,
        "attempts": result.attempts,
        "plan": result.plan.digest.hex(),
        "transport": result.transport,
    }
