"""`cloister vault release-local` and `estimate-local`: rows with noise on each, and what they say together.

`release-local`, in this order:
1. Target, columns, mechanism and person are settled from the signed manifest; no row is read, no key opened.
2. The dataset is opened for its purpose and the rows are read.
3. Each person's budget pays, and that is on the disk.
4. Noise is drawn, and the record (FILE.json) and the file appear, each whole.
Whatever fails before step 3 costs nothing; whatever fails after it stays paid.

Budgets lie in HOME/local, under a key that is derived from the vault owner's secret. That the store exists
is noted in the keystore, so that a store that is lost is not taken for none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common, localfile
from cloister.cli.common import JsonOption, emit
from cloister.cli.localcolumns import Choice, MechanismName, choose, person_column, shown, values_of
from cloister.errors import InputError, IntegrityError, PolicyRefused

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from cloister.privacy.local import Charge, ColumnRecord, LocalRecord, PersonalBudget, Summary
    from cloister.vault import LocalKeystore, Manifest, Vault

__all__ = ["estimate_local", "release_local"]

_MARK: Final = "local.budget"
_INFO: Final = b"cloister personal budgets v1"
_SHOWN: Final = 20


def release_local(
    name: Annotated[str, typer.Argument(help="The dataset.")],
    column: Annotated[
        list[str], typer.Option(help="A column to release; repeat for several, or for the two of a position.")
    ],
    epsilon: Annotated[float, typer.Option(help="Of each column; for planar noise, of each metre.")],
    out: Annotated[Path, typer.Option(help="The file to write, .csv or .parquet.")],
    mechanism: Annotated[
        MechanismName | None,
        typer.Option(help="laplace for numbers and response for categories, where it is not given."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of each column, for gaussian noise.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="What the rows are released for; needed where they have several.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="The column that says whose a row is; the unit, else the id.")
    ] = None,
    keep_id: Annotated[
        bool, typer.Option("--keep-id", help="Write that column too, as it is stored.")
    ] = False,
    step: Annotated[
        float | None,
        typer.Option(help="Of the grid that values are on, in their unit; metres for positions."),
    ] = None,
    missing: Annotated[float | None, typer.Option(help="The number that stands for a missing one.")] = None,
    metres: Annotated[
        bool, typer.Option("--metres", help="Positions are in metres, not latitude and longitude.")
    ] = False,
    beyond: Annotated[
        bool,
        typer.Option("--beyond", help="Let noisy positions lie outside the bounds; they then have a mean."),
    ] = False,
    budget: Annotated[
        float | None, typer.Option(help="Declare each person's epsilon in all; later it is only lowered.")
    ] = None,
    budget_delta: Annotated[
        float | None, typer.Option(help="Likewise delta; 1e-9 if never declared.")
    ] = None,
    budget_metre: Annotated[float | None, typer.Option(help="Likewise epsilon for each metre.")] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out people with too little left, instead of refusing.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what the released values tell of all together.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Release columns row by row, with noise on each value, within each person's budget.

    Whoever gets the file learns little about any one person, and the average about all. Each row costs its
    person epsilon, each time; when a person's budget is spent, nothing more is released about them.
    """
    from cloister.privacy.local import Charge, LocalRecord, summarise

    target, beside = localfile.target(out)  # 1
    keystore_path, manifest = _manifest(name)
    wanted = _purpose(manifest, purpose)
    choice = Choice(mechanism, epsilon, delta, step, missing, metres, beyond)
    records = choose(manifest.schema, column, choice)
    person = person_column(manifest.schema, id_column)
    price = sum((record.mechanism.cost for record in records), Charge())
    keys, vault = _unlock(keystore_path)
    with vault.open(name, purpose=wanted) as dataset:  # 2
        table = dataset.table([person, *column])
    values = [values_of(table, record) for record in records]
    people = [str(each) for each in table.column(person).to_pylist()]
    with _budget(keystore_path.parent, keys) as purse:  # 3
        purse.declare(epsilon=budget, delta=budget_delta, per_metre=budget_metre)
        _require_declared(purse, price)
        paid = purse.charge(people, price, leave_out=leave_out)
        cap, left = purse.cap, purse.least_left()
    released = _released(table, records, values, paid, person if keep_id else None, manifest)  # 4
    content = localfile.encode(released, target)
    record = LocalRecord(
        "cloister-local-v1",
        name,
        wanted,
        released.num_rows,
        records,
        person if keep_id else None,
        price,
        tuple(record.event for record in records if record.event is not None),
        localfile.digest(content),
    )
    localfile.write(target, beside, content, record)
    summaries = summarise(record, released.to_pydict()) if estimate else ()
    left_out = table.num_rows - released.num_rows
    emit(
        {**_as_json(record), "out": str(target), "record": str(beside), "left_out": left_out}
        | {"budget": {"cap": _as_json(cap), "least_left": _as_json(left)}}
        | ({"estimates": [_as_json(each) for each in summaries]} if estimate else {}),
        as_json=as_json,
        text="\n".join([*_told(record, target, beside, left_out, left), *map(_summary_text, summaries)]),
    )


def estimate_local(
    file: Annotated[
        Path, typer.Argument(help="A file that `release-local` wrote; its record lies beside it.")
    ],
    confidence: Annotated[float, typer.Option(help="Of each interval, 0.5 or more and below 1.")] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Say what released rows tell of all people together: means and counts with error bars.

    It needs no key and costs nothing. The error bars hold the noise alone: the estimate is of the people in
    the file.
    """
    from cloister.privacy.local import summarise

    record, columns = localfile.read(file)
    summaries = summarise(record, columns, confidence=confidence)
    emit(
        {"rows": record.rows, "price": _as_json(record.price), "estimates": [_as_json(s) for s in summaries]},
        as_json=as_json,
        text="\n".join(map(_summary_text, summaries)),
    )


def _manifest(name: str) -> tuple[Path, Manifest]:
    from cloister.crypto import Identity
    from cloister.vault import Catalog

    root = common.home() / "vault"
    return root / "keystore.json", Catalog(root, Identity.read_public(common.identity_path())).manifest(name)


def _purpose(manifest: Manifest, named: str | None) -> str:
    if named is not None:
        return named
    if len(manifest.purposes) == 1:
        return manifest.purposes[0]
    raise InputError(
        "the dataset has several purposes",
        fix=f"Give --purpose, one of {', '.join(map(repr, manifest.purposes))}",
    )


def _unlock(keystore: Path) -> tuple[LocalKeystore, Vault]:
    from cloister.vault import LocalKeystore, Vault

    identity = common.load_identity()
    keys = LocalKeystore.open(keystore, common.passphrase())
    return keys, Vault(keystore.parent, identity, keys)


def _budget(root: Path, keys: LocalKeystore) -> PersonalBudget:
    """Return the home's personal budgets, made where there have never been any."""
    from cloister.crypto import Identity, hkdf
    from cloister.privacy.local import PersonalBudget
    from cloister.vault import Catalog
    from cloister.vault.ownersecret import OwnerSecret

    owner = Identity.read_public(common.identity_path())
    key = hkdf(OwnerSecret(root, Catalog(root, owner), keys).get(), info=_INFO)
    path = common.home() / "local" / "budget.sqlite"
    known, there = _MARK in keys.ids(), path.exists() and path.stat().st_size > 0
    if known and not there:
        raise IntegrityError(
            "the store of personal budgets is lost",
            where=str(path),
            fix="Restore it from a backup, the newest",
        )
    purse = PersonalBudget.open(path, key) if there else PersonalBudget.create(path, key)
    if not known:
        try:
            keys.create(_MARK)
        except BaseException:
            purse.close()
            raise
    return purse


def _require_declared(purse: PersonalBudget, price: Charge) -> None:
    cap = purse.cap
    if (price.epsilon and not cap.epsilon) or (price.per_metre and not cap.per_metre):
        option = "--budget 4" if price.epsilon else "--budget-metre 0.1"
        raise PolicyRefused(
            "what each person may spend in all has not been declared",
            fix=f"Decide it once and add it to this command, such as {option}",
        )


def _released(
    table: pa.Table,
    records: tuple[ColumnRecord, ...],
    values: list[NDArray[Any]],
    paid: NDArray[np.bool_],
    person: str | None,
    manifest: Manifest,
) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    if person is not None:
        columns[person] = table.column(person).filter(pa.array(paid))
    for record, true in zip(records, values, strict=True):
        columns |= shown(record, record.mechanism.perturb(true[paid]), manifest.schema)
    return pa.table(columns)


def _as_json(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _told(record: LocalRecord, target: Path, beside: Path, left_out: int, left: Charge) -> list[str]:
    kinds = ", ".join(
        f"{' and '.join(each.columns)} by {_as_json(each.mechanism)['type']}" for each in record.columns
    )
    lines = [f"{record.rows} rows are in {target}: {kinds} noise. What was done is in {beside}."]
    if left_out:
        lines.append(f"{left_out} rows were left out: their people have too little left.")
    for kind, cost, rest in (
        ("epsilon", record.price.epsilon, left.epsilon),
        ("epsilon for each metre", record.price.per_metre, left.per_metre),
    ):
        if cost:
            lines.append(
                f"Each row cost its person {kind} {cost:.6g}; whoever has least has {rest:.6g} left."
            )
    return lines


def _summary_text(summary: Summary) -> str:
    names = " and ".join(summary.columns)
    if summary.kind is None:
        return f"{names}: no estimate, since {summary.reason}."
    lines = [
        f"{names}, {summary.kind}: {label or 'missing'} {each.value:.6g} "
        f"({each.low:.6g} to {each.high:.6g} at {each.confidence:.0%})"
        for label, each in summary.estimates.items()
    ]
    more = [f"and {len(lines) - _SHOWN} more; --json lists all"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *more])
