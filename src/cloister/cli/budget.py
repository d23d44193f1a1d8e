"""`cloister budget`: what may be released from your rows, what was, and what is left for what.

Showing reads the whole ledger and checks every row of it; it asks for a passphrase only to find the budget of
a dataset that was never used. Declaring a budget, lowering it, and setting an anchor need your identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit, home
from cloister.cli.ledgercounter import ANCHORED, NOT_PROTECTED, counters, software_counts
from cloister.errors import CloisterError, InputError, PolicyRefused
from cloister.types import check_name

if TYPE_CHECKING:
    from cloister.privacy.ledger import Cap, Counters, Entry, Ledger, LedgerView, Status
    from cloister.vault import Catalog, Manifest

__all__ = ["budget", "ledger_folder"]

_NONE: Final = "No budget is declared: `cloister budget DATASET --epsilon ... --delta ...` declares one."
_OPEN: Final = (
    "A study that is open runs, or was killed. Running a killed one's plan again is refused, and frees what "
    "it had reserved."
)
_NO_ANCHOR: Final = (
    "There is no anchor: a home put back whole from an older copy is not detected. `--anchor FILE` keeps the "
    "newest head elsewhere."
)


def ledger_folder() -> Path:
    """Return where this home's ledger is."""
    return home() / "ledger"


def budget(
    dataset: Annotated[str | None, typer.Argument(help="Only what this dataset is charged to.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Declare that all releases together stay within this; or lower it.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="With --epsilon; below 1 / rows.")] = None,
    population: Annotated[
        str | None,
        typer.Option(help="Whose rows they are: datasets with the same people. Default: the dataset's name."),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(help="Keep the newest head in this file too, on another disk; required from then on."),
    ] = None,
    tpm_counter: Annotated[
        bool,
        typer.Option(
            "--tpm-counter",
            help="Anchor it by a counter in this machine's TPM; required from then on.",
        ),
    ] = False,
    allow_software_tpm: Annotated[
        bool,
        typer.Option("--allow-software-tpm", help="With --tpm-counter: for trials, no protection."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is spent and left of your privacy budgets; declare or lower one."""
    if (epsilon is None) != (delta is None):
        raise InputError("a budget is an epsilon and a delta", fix="Give both --epsilon and --delta")
    if dataset is None and population is not None and epsilon is None:
        raise InputError("which dataset belongs to the population is not said", fix="Name the dataset")
    if epsilon is not None and dataset is None and population is None:
        raise InputError("whose budget it is, is not said", fix="Name a dataset, or use --population")
    if population is not None:
        check_name(population, "a population's name")
    catalog = _catalog()
    manifest = None if dataset is None else catalog.manifest(dataset)
    counted = counters(home(), begin=tpm_counter, software_allowed=allow_software_tpm)
    if anchor is not None or epsilon is not None or population is not None or tpm_counter:
        _change(manifest, epsilon, delta, population, anchor, counted)
    elif manifest is not None and not _is_bound(manifest):
        _change(manifest, None, None, None, None, counted)
    view = _view()
    chosen = view.populations() if view else ()
    if view and manifest is not None:
        chosen = view.bound(manifest.dataset_id)
    elif population is not None:
        chosen = (population,)
    names = _dataset_names(catalog)
    statuses = [view.status(name) for name in chosen] if view else []
    _show(view, statuses, names, as_json=as_json)


def _catalog() -> Catalog:
    from cloister.crypto import Identity
    from cloister.vault import Catalog

    return Catalog(home() / "vault", Identity.read_public(common.identity_path()))


def _dataset_names(catalog: Catalog) -> dict[str, str]:
    """Return the name of each dataset of the vault by its id; a damaged one is left out."""
    found: dict[str, str] = {}
    for name in catalog.names():
        try:
            found[catalog.manifest(name).dataset_id] = name
        except CloisterError:  # `cloister vault ls` tells
            continue
    return found


def _view() -> LedgerView | None:
    """Return the ledger, read and checked whole; None where none was begun."""
    from cloister.crypto import Identity
    from cloister.privacy.ledger import ledger_exists, read_ledger

    if not ledger_exists(ledger_folder()):
        return None
    owner = Identity.read_public(common.identity_path())
    return read_ledger(ledger_folder(), owner, successions=common.successions())


def _is_bound(manifest: Manifest) -> bool:
    view = _view()
    return view is not None and bool(view.bound(manifest.dataset_id))


def _change(
    manifest: Manifest | None,
    epsilon: float | None,
    delta: float | None,
    population: str | None,
    anchor: Path | None,
    counted: Counters,
) -> None:
    """Declare or lower a budget, bind a dataset, set an anchor, take a counter into use."""
    from cloister.privacy.ledger import Cap, Ledger, ledger_exists

    if epsilon is not None and delta is not None:
        Cap.of(epsilon, delta)
        if manifest is not None and delta * manifest.rows >= 1:
            raise InputError(
                f"delta is 1 / n or more for the n = {manifest.rows} rows of {manifest.name!r}, which allows "
                "to publish one of them",
                fix="Choose a smaller delta; 1 / (10 n) or less is usual",
            )
    elif not ledger_exists(ledger_folder()):
        raise PolicyRefused(
            "there is no budget yet",
            fix="Declare one with "
            f"`cloister budget {manifest.name if manifest else 'DATASET'} --epsilon ... --delta ...`",
        )
    identity = common.load_identity()
    rows = None if manifest is None else _fingerprints(manifest.name)
    with Ledger.open(
        ledger_folder(), identity, anchor=anchor, successions=common.successions(), counters=counted
    ) as ledger:
        target = population
        if epsilon is not None and delta is not None:
            target = population or _target(ledger, manifest, rows)
            ledger.declare(target, _cap(ledger, target, epsilon, delta))
        if manifest is not None and rows is not None:
            ledger.bind(target, manifest.dataset_id, rows)


def _fingerprints(name: str) -> bytes:
    from cloister.vault import Vault

    return Vault.unlock(home() / "vault", common.load_identity(), common.passphrase()).fingerprints(name)


def _target(ledger: Ledger, manifest: Manifest | None, rows: bytes | None) -> str:
    """Return whose budget is meant by a dataset: the one population that its rows are in, or a new one."""
    if manifest is None or rows is None:
        raise InputError("whose budget it is, is not said", fix="Name a dataset, or use --population")
    known = ledger.bound(manifest.dataset_id) or ledger.overlap(rows)
    if len(known) > 1:
        raise InputError(
            f"rows of {manifest.name!r} are in the populations {', '.join(known)}",
            fix="Say with --population whose budget to lower",
        )
    return known[0] if known else manifest.name


def _cap(ledger: Ledger, population: str, epsilon: float, delta: float) -> Cap:
    """Return the cap to declare; one that exists keeps its order."""
    from cloister.privacy.ledger import Cap

    order = ledger.order(population) if population in ledger.populations() else None
    return Cap.of(epsilon, delta, order)


def _show(
    view: LedgerView | None, statuses: Sequence[Status], names: dict[str, str], *, as_json: bool
) -> None:
    from cloister.privacy.ledger import NOT_DETECTABLE

    result = {
        "ledger": None
        if view is None
        else {"id": view.ledger, "rows": view.size, "anchor": view.anchor, "tpm_counter": view.counted},
        "rollback_detected": f"against {view.anchor}" if view is not None and view.anchor else NOT_DETECTABLE,
        "populations": [_as_json(status, names) for status in statuses],
    }
    if as_json:
        emit(result, as_json=True)
        return
    from rich.console import Console

    console = Console()
    if console.is_terminal and statuses:
        for status in statuses:
            console.print(_table(status, names))
    else:
        print("\n".join([line for status in statuses for line in _plain(status, names)] or [_NONE]))
    if any(entry.state == "open" for status in statuses for entry in status.entries):
        print(_OPEN)
    if view is not None:
        print(_anchors(view))


def _anchors(view: LedgerView) -> str:
    """Say what would notice an older copy."""
    lines = [f"Its newest head is kept in {view.anchor} too."] if view.anchor else []
    if view.counted:
        lines += [ANCHORED, *([NOT_PROTECTED] if software_counts(home()) else [])]
    return "\n".join(lines) or _NO_ANCHOR


def _as_json(status: Status, names: dict[str, str]) -> dict[str, Any]:
    cap, worth = status.cap, status.worth
    return {
        "population": status.population,
        "tag": status.tag,
        "epsilon": cap.epsilon,
        "delta": cap.delta,
        "order": cap.order,
        "rdp": cap.rdp,
        "datasets": [{"id": each, "name": names.get(each)} for each in status.datasets],
        "spent": {
            "share": status.share_spent,
            "epsilon": status.epsilon_spent,
            "rdp": status.spent.rdp,
            "delta": status.spent.delta,
        },
        "reserved": {
            "share": status.reserved.rdp / cap.rdp,
            "rdp": status.reserved.rdp,
            "delta": status.reserved.delta,
        },
        "left": {
            "share": status.left.rdp / cap.rdp,
            "rdp": status.left.rdp,
            "delta": status.left.delta,
            "epsilon": worth.epsilon,
            "noise_multiplier": worth.noise_multiplier,
            "queries": worth.queries,
        },
        "entries": [
            {
                "kind": entry.kind,
                "name": entry.name,
                "study": entry.study,
                "state": entry.state,
                "count": entry.count,
                "blocks": entry.blocks,
                "committed": entry.committed,
                "rdp": entry.spent.rdp,
                "delta": entry.spent.delta,
                "share": entry.spent.rdp / cap.rdp,
                "reserved_rdp": entry.held.rdp,
            }
            for entry in status.entries
        ],
    }


def _plain(status: Status, names: dict[str, str]) -> list[str]:
    lines = [f"{status.population}: {_promise(status)}"]
    lines += [f"  {title:<9} {text}" for title, text in _facts(status, names)]
    rows = [_row(entry, status) for entry in status.entries]
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    for row in rows:
        lines.append(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return lines


def _table(status: Status, names: dict[str, str]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    for title, text in _facts(status, names):
        facts.add_row(Text(title, style="dim"), Text(text))
    parts: list[Any] = [Text(f"{status.population}: {_promise(status)}", style="bold"), facts]
    if status.entries:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("", "what", "how much", "of the budget"):
            table.add_column(title, justify="right" if title == "of the budget" else "left")
        for entry in status.entries:
            table.add_row(*map(Text, _row(entry, status)))
        parts.append(table)
    return Group(*parts, Text())


def _promise(status: Status) -> str:
    cap = status.cap
    return f"at most epsilon {cap.epsilon:g} at delta {cap.delta:g}, kept at Renyi order {cap.order}"


def _facts(status: Status, names: dict[str, str]) -> list[tuple[str, str]]:
    worth, cap = status.worth, status.cap
    left = f"{_percent(status.left.rdp, cap)} of it"
    if worth.noise_multiplier is not None:
        left += (
            f": one more study of epsilon about {worth.epsilon:.2g} (noise multiplier "
            f"{worth.noise_multiplier:.3g} over all), or {worth.queries} queries of epsilon 0.1"
        )
    facts = [
        ("datasets", ", ".join(sorted(names.get(each, each[:8]) for each in status.datasets)) or "none"),
        (
            "spent",
            f"{_percent(status.spent.rdp, cap)} of it: epsilon {status.epsilon_spent:.3g} or less",
        ),
        ("left", left),
    ]
    if status.reserved.rdp:
        facts.insert(2, ("reserved", f"{_percent(status.reserved.rdp, cap)} of it"))
    return facts


def _row(entry: Entry, status: Status) -> tuple[str, str, str, str]:
    if entry.kind == "study":
        amount = f"{entry.count} of {entry.blocks} blocks, {entry.state}"
    else:
        amount = "once" if entry.count == 1 else f"{entry.count} times"
    return entry.kind, entry.name, amount, _percent(entry.spent.rdp, status.cap)


def _percent(rdp: float, cap: Cap) -> str:
    return f"{rdp / cap.rdp:.1%}"
