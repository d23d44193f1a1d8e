"""`MODEL_CARD.md`: what a released language model is, for people who decide whether to use it.

It is made from the certificate's facts and the plan alone, and lies among the files that the certificate
covers; whoever verifies a release makes it again and compares. So it says nothing that nobody vouches for: no
accuracy, no praise, no advice that hangs on who released it. What a plan's author could choose (a purpose,
names of layers) stands in it as text: no heading, link or tag comes of it wherever the file is shown.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, UnsetType

from cloister.errors import VerificationError
from cloister.governance.certificate import AskedSecrets, LanguageFacts, Predicate, Statement
from cloister.governance.words import in_words
from cloister.learning import Plan
from cloister.learning.sections import LanguageSection

__all__ = ["language_of", "model_card"]

_NAMED: Final = 200
_TEXT: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*[]#|!~"}
)
_EDGES: Final = (
    "It is made for exactly this base and tokenizer. On any other it is refused, and would answer nonsense.",
    "It inherits what the base is: its licence, its language, its errors and its prejudices. The certificate "
    "says nothing about them.",
    "What it writes or decides may be wrong. Nobody measured here whether it is good enough for what it "
    "is to be used for.",
    "Whoever can ask it can learn from its answers. They are not charged to any site's budget.",
)
_OPEN: Final = (
    "No differential privacy was applied. A language model can repeat text that it was trained on, word for "
    "word, to whoever finds the right prompt. Give it only to readers who may see such text."
)
_BOUNDED: Final = (
    "The claim is about one {unit}. What stands in the rows of many of them, or what the base knew before, "
    "is not protected by it."
)


def language_of(
    plan: Plan, *, trained: int, tensors: int, audit: AskedSecrets | UnsetType = UNSET
) -> LanguageFacts | UnsetType:
    """Return what a certificate states of a plan's language model; nothing for other models.

    Args:
        plan: the plan.
        trained: numbers that were trained.
        tensors: numbers in the model's file.
        audit: what one found where nothing is claimed.
    """
    language = plan.language
    if language is None:
        return UNSET
    pinned = language.base, language.tokenizer, language.method, language.rank
    return LanguageFacts(*pinned, trained, tensors, audit)


def model_card(statement: Statement, plan: Plan) -> bytes:
    """Return the file. Statement and plan must be of one language model's study.

    Raises:
        VerificationError: they are not.
    """
    facts = statement.predicate
    if plan.language is None or isinstance(facts.language, UnsetType):
        raise VerificationError("a model card is for language models", fix="Leave it out")
    parts = [
        [f"# {facts.study}", "", _text(facts.purpose)],
        ["## What it is", "", *_table(_model(facts, facts.language, plan, plan.language))],
        ["## Who trained it", "", *_table(_training(facts, plan))],
        ["## Privacy", "", *_table(_privacy(facts, facts.language))],
        ["## The certificate in words", "", *(f"- {_text(line)}" for line in in_words(statement))],
        ["## Sharp edges", "", *(f"- {line}" for line in _edges(facts, plan.language))],
        ["## How to use it", "", *_usage(plan)],
    ]
    return ("\n\n".join("\n".join(part) for part in parts) + "\n").encode()


def _text(written: str) -> str:
    """Return one line of Markdown that shows these characters."""
    line = " ".join(written.split()).translate(_TEXT)
    return f"\\{line}" if line[:1] in ("-", "+", "=") else line


def _table(rows: dict[str, str]) -> list[str]:
    cells = [f"| {key} | {_text(value)} |" for key, value in rows.items()]
    return ["| | |", "|---|---|", *cells]


def _model(facts: Predicate, stated: LanguageFacts, plan: Plan, language: LanguageSection) -> dict[str, str]:
    rows = {
        "kind": "writes text (causal-lm)"
        if plan.model.kind == "causal-lm"
        else f"tells one of {plan.model.classes} classes (text-classifier)",
        "base": f"SHA-256 of its files {stated.base}",
        "tokenizer": f"SHA-256 of its files {stated.tokenizer}",
        "method": stated.method,
    }
    if stated.method != "full":
        rows["rank, scale"] = f"{stated.rank}, {language.alpha / language.rank:g}"
        rows["layers"] = ", ".join(language.targets) or "every linear layer but the output's"
    rows |= {
        "trained numbers": f"{stated.trained:,}",
        "numbers in the file": f"{stated.tensors:,} (float32, {4 * stated.tensors:,} bytes)",
        "a row is": _ROWS[language.format] if plan.model.kind == "causal-lm" else "a text and its class",
        "context": f"{language.context} tokens; a longer row was "
        + ("cut off" if language.overlong == "truncate" else "refused"),
        "precision of the base": language.precision
        + ("" if language.quantised == "no" else f", quantised to {language.quantised}"),
        "sealed to": ", ".join(each.name for each in facts.recipients) or "nobody",
    }
    return rows


_ROWS: Final = {
    "text": "a text, learnt whole",
    "pairs": "a prompt and the answer to it; the answer is learnt",
    "chat": "a conversation; the assistant's turns are learnt",
}


def _training(facts: Predicate, plan: Plan) -> dict[str, str]:
    sites = [f"{each.name} ({each.rows:,} rows)" for each in facts.participants[:_NAMED]]
    more = len(facts.participants) - len(sites)
    training = plan.training
    return {
        "sites": ", ".join(sites) + (f", {more} more" if more else ""),
        "rounds": f"{facts.training.rounds} of {training.algorithm}",
        "at a site": f"{training.local_steps} steps of {training.batch} rows, {training.optimiser}, "
        f"learning rate {training.learning_rate:g}",
        "what travelled": f"sums under masks, {facts.aggregation.bits} bits a number",
        "hub": "saw the sums and the model" if facts.aggregation.hub_view == "sum" else "saw neither",
        "plan": facts.plan,
        "software": ", ".join(f"{name} {each}" for name, each in sorted(facts.training.software.items())),
        "created": facts.created,
    }


def _privacy(facts: Predicate, stated: LanguageFacts) -> dict[str, str]:
    privacy = facts.privacy
    if privacy is None:
        return {"differential privacy": "none", "guarantee": "none is claimed", "audit": _asked(stated)}
    audit = privacy.audit
    return {
        "differential privacy": f"by {_unit(privacy.claim.unit)}, {privacy.claim.mode}",
        "epsilon": f"{privacy.epsilon_hub:g} against the hub and readers, {privacy.epsilon_colluders:g} with "
        "colluding sites",
        "delta": f"{privacy.claim.delta:g}",
        "audit": "none was run"
        if audit is None
        else f"{audit.verdict}: epsilon is above {audit.bound:g} with confidence {audit.confidence:g} "
        f"(report {audit.report})",
    }


def _asked(stated: LanguageFacts) -> str:
    found = stated.audit
    if isinstance(found, UnsetType):
        return "none is stated"
    return (
        f"found nothing: the planted secrets ({found.secrets}) were not told from others at confidence "
        f"{found.confidence:g} (report {found.report}). That guarantees nothing, and no guarantee is claimed"
    )


def _unit(unit: str) -> str:
    return "row" if unit == "record" else unit


def _edges(facts: Predicate, language: LanguageSection) -> list[str]:
    first = _OPEN if facts.privacy is None else _BOUNDED.format(unit=_unit(facts.privacy.claim.unit))
    merged = (
        "Served, it is added into the base and rounded to the base's own precision; a reader that keeps it "
        "apart may answer otherwise in the last digits."
    )
    return [first, *_EDGES, *([merged] if language.method != "full" else [])]


def _usage(plan: Plan) -> list[str]:
    ask = "cloister predict RELEASE ROWS.csv --base BASE --to NAME"
    whole = plan.language is not None and plan.language.method == "full"
    reader = "transformers" if whole else "peft"
    return [
        "BASE is the folder of the base model, as its digest above says; RELEASE is this folder.",
        "",
        "```sh",
        "cloister verify RELEASE",
        "cloister serve RELEASE --base BASE",
        ask,
        f"cloister model export RELEASE --base BASE --out DIR   # for {reader}",
        "```",
    ]
