"""`cloister audit MODEL|STUDY`: attack a study's mechanism and compare with what it claims.

MODEL is the folder of a release, verified first; STUDY a finished study of this home. The plan's mechanism
is run anew on synthetic canaries. Rows for membership inference and inversion are drawn from the schema, or,
with `--site HOME`, are the owner's own: what depends on them is written for their owner alone (mode 0600).

Of a language model the plan's training is run anew with planted secrets, on the base that `--base` names; or,
with `--planted FILE`, the finished model is asked for what its owner planted before (`cloister canaries`).

Exit code 0: consistent with the claim, or none was made. 1: the claim is violated, or a model remembers what
was planted. 2: bad input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cloister.cli import common
from cloister.cli.auditlanguage import LanguageAudit, Model
from cloister.cli.baseoption import BaseOption
from cloister.cli.common import JsonOption, emit, say
from cloister.cli.language import Lang, LangOption
from cloister.cli.verify import TrustOption, trust_anchors
from cloister.errors import InputError, PolicyRefused, ProtocolError

if TYPE_CHECKING:
    import pyarrow as pa

    from cloister.crypto import PublicIdentity
    from cloister.governance.audit import AuditReport
    from cloister.learning import Plan
    from cloister.vault import Schema

__all__ = ["audit"]

_JSON, _HTML = "audit.json", "audit.html"
_LEAST_CANARIES, _MOST_CANARIES, _MOST_COINS = 10, 1_000_000, 100_000


@dataclass(frozen=True)
class _Subject:
    """What is audited: the plan, its schema, the roster's row counts, in its order, and how to open the
    model."""

    plan: Plan
    schema: Schema
    rows: Mapping[str, int]
    model: Model


def audit(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STUDY",
            help="Folder of a release, or name of a finished study in this home.",
            show_default=False,
        ),
    ],
    site: Annotated[
        list[Path] | None,
        typer.Option(
            "--site",
            help="Home folder of a member on this machine: attack its own rows; repeat for each. "
            "The results stay with their owner.",
        ),
    ] = None,
    canaries: Annotated[
        int | None,
        typer.Option(
            help="Synthetic canaries in all runs together; by default up to 1000, in some seconds. Of a "
            "language model, in its one run: 40."
        ),
    ] = None,
    base: BaseOption = None,
    copies: Annotated[
        str | None,
        typer.Option(help="How often secrets are planted for a language model, such as 1,4,20."),
    ] = None,
    secrets: Annotated[
        int | None, typer.Option(help="Secrets of each number of copies; 5 by default.")
    ] = None,
    planted: Annotated[
        Path | None,
        typer.Option(
            "--planted",
            metavar="FILE",
            help="canaries.json of `cloister canaries`: ask the finished model for them.",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the bound.")] = 0.95,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page for people to this file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help=f"Folder to make, with {_JSON} and {_HTML}.")
    ] = None,
    trust: TrustOption = None,
    lang: LangOption = Lang.EN,
    as_json: JsonOption = False,
) -> None:
    """Attack a model or a study, and compare with its claim of privacy."""
    import json

    from cloister.governance.audit import MEMORISED, VIOLATES
    from cloister.report.audit import audit_summary

    if html is not None and html.exists():
        raise InputError("the file exists", where=str(html), fix="Choose another name with --html")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the target exists", where=str(out), fix="Choose another place with --out")
    if not 0.0 < confidence < 1.0:
        raise InputError("--confidence is not between 0 and 1", fix="Write 0.95, or leave it out")
    known = _release(Path(subject), trust) if _is_folder(subject) else _study(subject, site or [])
    tables = dict(_own_rows(home, known) for home in site or [])
    options = LanguageAudit(base, copies, secrets, canaries, planted)
    options.check(known.plan)
    language = known.plan.model.is_language
    _check_canaries(canaries, language=language)
    with _watching(_TEXT_STAGES if language else _TABLE_STAGES, shown=not as_json) as progress:
        report = (
            options.run(known.plan, known.schema, known.rows, tables, known.model, confidence, progress)
            if language
            else _of_a_table(known, tables, canaries, confidence, progress)
        )
    if tables:
        say(
            f"Rows of {', '.join(tables)} were attacked. What was found depends on them and is for their "
            "owner alone: files are written with mode 0600; do not pass them on."
        )
    _write(report, html, out, lang)
    emit(json.loads(report.to_json()), as_json=as_json, text=audit_summary(report, lang.value))
    if report.verdict in (VIOLATES, MEMORISED):
        raise typer.Exit(1)


def _check_canaries(canaries: int | None, *, language: bool) -> None:
    """Raise InputError where there are too few for a bound, or too many."""
    most, default = (_MOST_COINS, "40") if language else (_MOST_CANARIES, "as many as take some seconds")
    if canaries is not None and not _LEAST_CANARIES <= canaries <= most:
        raise InputError(
            f"{canaries} canaries are not between {_LEAST_CANARIES} and {most}",
            where="--canaries",
            fix=f"Give {_LEAST_CANARIES} or more, or leave it out for {default}",
        )


def _of_a_table(
    known: _Subject,
    tables: Mapping[str, pa.Table],
    canaries: int | None,
    confidence: float,
    progress: Callable[[str, int, int], None],
) -> AuditReport:
    from cloister.governance.auditrun import audit as run_audit
    from cloister.governance.certificate import moment

    return run_audit(
        known.plan,
        known.schema,
        len(known.rows),
        created=moment(),
        rows=known.rows,
        tables=tables,
        canaries=canaries,
        confidence=confidence,
        progress=progress,
    )


def _write(report: AuditReport, html: Path | None, out: Path | None, lang: Lang) -> None:
    from cloister.files import new_directory, write_atomic
    from cloister.report.audit import audit_html

    if html is None and out is None:
        return
    own = report.rows == "own"
    mode = 0o600 if own else 0o644
    page = audit_html(report, lang.value).encode()
    if html is not None:
        write_atomic(html, page, mode=mode, replace=False)
    if out is not None:
        with new_directory(out, mode=0o700 if own else 0o755) as folder:
            write_atomic(folder / _JSON, report.to_json(), mode=mode)
            write_atomic(folder / _HTML, page, mode=mode)


# --- what is audited --------------------------------------------------------------------------------------


def _is_folder(subject: str) -> bool:
    """Whether a release is meant: a study's name has neither dot nor slash, and goes before a folder's."""
    if "/" in subject or "." in subject:
        return True
    return Path(subject).is_dir() and not (common.home() / "studies" / subject).is_dir()


def _release(folder: Path, trust: list[Path] | None) -> _Subject:
    """Return what a release says of its study, once it verifies."""
    from cloister.governance import verify_release
    from cloister.governance.folder import PLAN, manifest_path
    from cloister.learning import parse_plan
    from cloister.vault import open_manifest

    anchors = trust_anchors(trust)
    verdict = verify_release(folder, anchors)
    verdict.require()
    if verdict.certificate is None:  # a release that verifies has one
        raise InputError("the release has no certificate", where=str(folder), fix="Get it again")
    facts = verdict.certificate.statement.predicate
    participants, last = facts.participants, facts.aggregation.epochs[-1]
    first = participants[0]
    member = anchors.by_fingerprint()[first.fingerprint]
    schema = open_manifest(verdict.files[manifest_path(first.name)], member).schema
    rows = {each.name: each.rows for each in participants if each.name in last.members}
    plan = parse_plan(verdict.files[PLAN], allow_two=True)
    return _Subject(plan, schema, rows, lambda: _released(verdict.files))


def _released(files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Return the tensors of a verified release, opened with this home's key where it is sealed."""
    from cloister.crypto import open_bytes
    from cloister.governance.folder import MODEL, SEALED_MODEL
    from cloister.inference.adapter import AdapterArtifact

    if MODEL in files:
        return AdapterArtifact.from_bytes(files[MODEL]).tensors
    return AdapterArtifact.from_bytes(open_bytes(files[SEALED_MODEL], common.load_identity())).tensors


def _study(name: str, homes: list[Path]) -> _Subject:
    """Return a finished study of this home, opened by whoever of those here may."""
    from cloister.governance import TrainedStudy
    from cloister.runtime import load_study

    own = common.load_identity()
    refusal: ProtocolError | None = None
    for reader in (own, *(common.load_identity(home) for home in homes)):
        try:
            state = load_study(common.home() / "studies", name, keeper=own.public, reader=reader)
        except ProtocolError as error:  # the study key is not sealed to this reader
            refusal = error
            continue
        trained = TrainedStudy.of_state(state)
        last = trained.epochs[-1]
        rows = {member.name: last.rows[member.name] for member in last.members}
        return _Subject(trained.plan, trained.schema, rows, partial(getattr, trained, "parameters"))
    raise InputError(
        "the study does not open with the keys that are here",
        where=f"study {name}",
        fix="Where the plan hides the model from the hub, give the home of a site with --site",
    ) from refusal


def _own_rows(home: Path, known: _Subject) -> tuple[str, pa.Table]:
    """Return a member's name and its rows, opened for the study's purpose."""
    from cloister.runtime.worker import columns_of
    from cloister.vault import Vault

    identity = common.load_identity(home)
    entry = _entry(known.plan, identity.public)
    vault = Vault.unlock(home / "vault", identity, common.passphrase())
    manifest = vault.manifest(entry.dataset)
    if manifest.schema.digest() != known.schema.digest():
        raise PolicyRefused(
            f"the dataset {entry.dataset!r} is not of the study's schema",
            where=str(home),
            fix="Give the home with the rows that the study was trained on",
        )
    with vault.open(entry.dataset, purpose=known.plan.study.purpose) as dataset:
        return identity.name, dataset.table(columns_of(known.plan))


def _entry(plan: Plan, identity: PublicIdentity) -> Any:
    for entry in plan.sites:
        if entry.identity == identity.fingerprint:
            return entry
    raise InputError(f"{identity.name} is no member of the study", fix="Give homes of members with --site")


# --- progress ---------------------------------------------------------------------------------------------

_TABLE_STAGES: Final = {"checks": 1, "canaries": 10, "membership": 4, "inversion": 1}
_TEXT_STAGES: Final = {"checks": 1, "training": 12, "asking": 3}
"""About how long each stage takes, of one bar's length."""


@contextmanager
def _watching(work: Mapping[str, int], *, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what takes an audit's progress: a bar on a terminal, a line a quarter of each stage elsewhere."""
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("audit", total=sum(work.values()))
        shares: dict[str, float] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            before = shares.get(stage, 0.0)
            shares[stage] = max(before, done / total)
            completed = sum(work[name] * share for name, share in shares.items())
            bar.update(task, description=stage, completed=completed)
            quarter = int(4 * shares[stage])
            if quarter > int(4 * before) and shown and not console.is_terminal:
                say(f"{stage}: done" if quarter == 4 else f"{stage}: {25 * quarter} %")

        yield on_progress
