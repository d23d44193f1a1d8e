"""`cloister demo [CASE]`: all seven stages on real rows, in one process, ending in a report.

The output folder appears whole or not at all: the pipeline builds it beside its place.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli import common
from cloister.cli.common import JsonOption, emit
from cloister.cli.language import Lang, LangOption

if TYPE_CHECKING:
    from cloister.enclave.policy import EnclavePolicy
    from cloister.report import Report

__all__ = ["demo"]

_MAX_POLICY = 1 << 20


def demo(
    case: Annotated[str, typer.Argument(help="Which case: diagnosis, or heart with --data.")] = "diagnosis",
    data: Annotated[Path | None, typer.Option("--data", help="Folder with the case's files.")] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder to make; the folder of an earlier demo is replaced.")
    ] = Path("cloister-demo"),
    privacy: Annotated[
        bool, typer.Option("--privacy/--no-privacy", help="Train under differential privacy, or without.")
    ] = True,
    enclave: Annotated[
        bool,
        typer.Option("--enclave", help="Release data keys to attested, sandboxed workers alone."),
    ] = False,
    enclave_policy: Annotated[
        Path | None,
        typer.Option(
            "--enclave-policy",
            metavar="P.toml",
            help="What the brokers accept, such as an earlier run's enclave-policy.toml.",
        ),
    ] = None,
    lang: LangOption = Lang.EN,
    as_json: JsonOption = False,
) -> None:
    """Run all seven stages on real rows and write a report."""
    from cloister.cases import find_case
    from cloister.cli.progress import StageProgress
    from cloister.pipeline import run_case

    chosen = find_case(case)
    if data is not None and not chosen.needs_files:
        common.say(f"Case {chosen.name} brings its own rows; --data is not used.")
    policy = _policy(enclave_policy)
    with StageProgress(lang=lang.value, plain=as_json, private=privacy) as progress:
        report = run_case(
            chosen,
            data_dir=data,
            out=out,
            progress=progress,
            lang=lang.value,
            private=privacy,
            enclave=enclave or policy is not None,
            enclave_policy=policy,
        )
    emit(_as_json(report, out), as_json=as_json, text=_in_words(report, out))


def _policy(path: Path | None) -> EnclavePolicy | None:
    from cloister.enclave.policyfile import read_enclave_policy
    from cloister.files import read_bytes

    return None if path is None else read_enclave_policy(read_bytes(path, limit=_MAX_POLICY, what="policy"))


def _as_json(report: Report, folder: Path) -> dict[str, Any]:
    """Return report.json's fields, and where the files are."""
    import msgspec

    return {**msgspec.to_builtins(report), "folder": str(folder), "report_html": str(folder / "report.html")}


def _in_words(report: Report, folder: Path) -> str:
    """Return a short table of results, what they gave away, where the report is and what verifies it."""
    from cloister.report import say
    from cloister.report.privacywords import told_privacy

    lang = report.lang
    lines = ["", report.headline, *_table(report), "", *told_privacy(report)]
    if report.privacy is not None:
        lines.append("")
    if report.enclave is not None:
        lines += [*_attested(report), ""]
    lines.append(f"{say(lang, 'report')}: {folder / 'report.html'}")
    lines.append(f"{say(lang, 'h_verify')}: {_runnable(report.verify_command)}")
    return "\n".join(lines)


def _attested(report: Report) -> list[str]:
    """Return who got data keys and who was refused; and that software alone vouched for it, where it did."""
    from cloister.report import say

    enclave, lang = report.enclave, report.lang
    if enclave is None:
        return []
    lines = [] if enclave.protection == "hardware" else [say(lang, "not_hardware_banner")]
    for each in enclave.attestations:
        who = say(lang, "enclave_changed", who=each.who, changed=each.changed) if each.changed else each.who
        verdict = (
            say(lang, "enclave_accepted", keys=each.keys) if each.accepted else say(lang, "enclave_refused")
        )
        lines.append(f"  {who}: {verdict}")
    return lines


def _table(report: Report) -> list[str]:
    """Return the accuracies, a line each; of a private study those at its epsilon, and those without any."""
    from cloister.report import say
    from cloister.report.words import percent

    lang, metrics, privacy = report.lang, report.metrics, report.privacy
    together, pooled = say(lang, "together"), say(lang, "centralised")
    bare = {say(lang, "alone_label", site=site): value for site, value in metrics.local.items()}
    if metrics.centralised is not None:
        bare[pooled] = metrics.centralised
    if privacy is None:
        found = {together: metrics.federated} | bare
        return [f"  {percent(value, lang):>8}  {name}" for name, value in found.items()]
    private = {together: metrics.federated}
    if privacy.baselines is not None:
        local = privacy.baselines.local
        private |= {say(lang, "alone_label", site=site): value for site, value in local.items()}
        private[pooled] = privacy.baselines.centralised
    names = list(dict.fromkeys([together, *private, *bare]))
    shown = [
        "  ".join(f"{percent(both[name], lang) if name in both else '':>8}" for both in (private, bare))
        for name in names
    ]
    heads = [say(lang, "with_privacy"), say(lang, "bare")]
    head = "  ".join(_right(text, 8) for text in heads)
    return [f"  {head}", *(f"  {figures}  {name}" for figures, name in zip(shown, names, strict=True))]


def _right(text: str, columns: int) -> str:
    """Return the text pushed right; a Chinese character takes two columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return " " * (columns - len(text) - wide) + text


def _runnable(command: str) -> str:
    """Return a `cloister ...` command as it can be copied: `make demo` puts no `cloister` on the PATH."""
    if shutil.which("cloister") or Path(sys.argv[0]).name != "cloister":
        return command
    return f"{shlex.quote(sys.argv[0])} {command.removeprefix('cloister ')}"
