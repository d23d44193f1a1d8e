"""`cloister verify FOLDER`: does a release hold, step by step, offline. Exit code 0 for yes, 1 for no."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.common import JsonOption, emit, home, identity_path, load_identity, say
from cloister.cli.language import Lang, LangOption
from cloister.errors import InputError
from cloister.files import read_bytes

if TYPE_CHECKING:
    from cloister.governance import TrustAnchors, Verdict

__all__ = ["TrustOption", "trust_anchors", "verdict_as_json", "verify"]

_MAX_EXPORT = 8 << 20

TrustOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        help="Exported identity, or folder of such, that you trust; may be repeated. "
        "Default: this home's own and trusted identities.",
    ),
]


def trust_anchors(paths: list[Path] | None) -> TrustAnchors:
    """Return the identities whose signatures count: those in `paths`, or else this home's own and
    trusted ones.

    Raises:
        InputError: a path holds no identity, or nobody is trusted at all.
    """
    from cloister.crypto import Identity, read_export
    from cloister.governance import TrustAnchors

    found = [path for place in paths or [home() / "trust"] for path in _exports(place, named=bool(paths))]
    identities = [
        read_export(read_bytes(path, limit=_MAX_EXPORT, what="trusted identity"))[0] for path in found
    ]
    if not paths and identity_path().exists():
        identities.append(Identity.read_public(identity_path()))
    if not identities:
        raise InputError(
            "nobody is trusted, so no signature can count",
            fix="Trust the study's members with `cloister keys trust`, or give their identities with --trust",
        )
    return TrustAnchors.of(identities)


def _exports(place: Path, *, named: bool) -> list[Path]:
    if not place.is_dir():
        return [place] if named else []
    found = sorted(place.glob("*.json"))
    if named and not found:
        raise InputError(
            "the folder holds no exported identity",
            where=str(place),
            fix="Give the folder of NAME.json files",
        )
    return found


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain data."""
    failed = verdict.failed
    return {
        "verified": verdict.ok,
        "failed": None
        if failed is None
        else {"step": failed.number, "name": failed.name, "detail": failed.detail},
        "steps": [
            {"number": step.number, "name": step.name, "ok": step.ok, "detail": step.detail}
            for step in verdict.steps
        ],
        "unchecked": list(verdict.unchecked),
        "certificate": verdict.certificate.digest.hex() if verdict.certificate and verdict.ok else None,
    }


def verify(
    folder: Annotated[Path, typer.Argument(help="The release.", show_default=False)],
    trust: TrustOption = None,
    open_model: Annotated[
        bool, typer.Option("--open", help="The model is sealed to you: open it in memory and check it too.")
    ] = False,
    two_sites: Annotated[
        bool, typer.Option("--two-sites", help="Accept a study of two sites, as in the tutorial.")
    ] = False,
    lang: LangOption = Lang.EN,
    as_json: JsonOption = False,
) -> None:
    """Verify a release offline, against your own trust anchors."""
    from cloister.governance import in_words, verify_release

    reader = load_identity() if open_model else None
    verdict = verify_release(folder, trust_anchors(trust), reader=reader, allow_two=two_sites)
    words = in_words(verdict.certificate.statement, lang.value) if verdict.ok and verdict.certificate else []
    emit({**verdict_as_json(verdict), "in_words": words}, as_json=as_json, text=_text(verdict, words, lang))
    if not verdict.ok:
        if as_json and verdict.failed:
            say(f"The release does not verify: step {verdict.failed.number}, {verdict.failed.name}.")
        raise typer.Exit(1)
    if reader is not None and any(each.startswith("model:") for each in verdict.unchecked):
        raise InputError(
            f"the model is not sealed to {reader.name}, so it was not opened; the rest verifies",
            fix="Leave --open out, or verify in a recipient's home",
        )


_WORDS = {
    Lang.EN: (
        "holds",
        "FAILS",
        "not reached",
        "The release verifies.",
        "The release does not verify",
        "Not checked",
    ),
    Lang.ZH: ("成立", "不成立", "未执行", "发布内容通过验证。", "发布内容未通过验证", "未检查"),
}


def _text(verdict: Verdict, words: list[str], lang: Lang) -> str:
    holds, fails, skipped, yes, no, unchecked = _WORDS[lang]
    mark = {True: holds, False: fails, None: skipped}
    details = ("" if step.ok is None else step.detail for step in verdict.steps)
    lines = [
        f"{step.number:>3}  {step.name:<13} {mark[step.ok]:<12} {detail}".rstrip()
        for step, detail in zip(verdict.steps, details, strict=True)
    ]
    if verdict.failed:
        result = [f"{no}: {verdict.failed.number}, {verdict.failed.name}: {verdict.failed.detail}."]
    else:
        result = [yes, "", *words]
    return "\n".join([*lines, "", *result, "", f"{unchecked}:", *(f"  {each}" for each in verdict.unchecked)])
