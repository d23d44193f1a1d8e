"""A certificate in plain sentences, English or Chinese, for people who sign things and do not read JSON.

The sentences say what the signer states and what was not done. They claim nothing that the fields do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cloister.errors import InputError
from cloister.governance.certificate import Predicate, Statement

__all__ = ["Language", "in_words"]

Language = Literal["en", "zh"]


def _lost(predicate: Predicate) -> tuple[int, int]:
    """Rounds that lost at least one site; the smallest number of sites in the sum of a round."""
    lossy = sum(run.count for run in predicate.aggregation.rounds if run.dropped)
    return lossy, len(predicate.participants) - max(len(run.dropped) for run in predicate.aggregation.rounds)


def _english(statement: Statement) -> list[str]:
    facts = statement.predicate
    summed = facts.aggregation
    lossy, fewest = _lost(facts)
    rows = ", ".join(f"{p.name} ({p.rows} rows)" for p in facts.participants[:50])
    more = f" and {len(facts.participants) - 50} more" if len(facts.participants) > 50 else ""
    total = sum(participant.rows for participant in facts.participants)
    view = (
        "The hub saw the sum of the updates of each round and the model, never one site's update."
        if facts.aggregation.hub_view == "sum"
        else "The hub carried a model it could not read; only the sites saw it."
    )
    drops = "No site dropped out of a round." if not lossy else f"Sites dropped out of {lossy} rounds; the smallest sum had {fewest} sites."
    readers = ", ".join(recipient.name for recipient in facts.recipients)
    return [
        f"Study {facts.study} trained one {facts.training.model} model with {facts.training.algorithm} in {facts.training.rounds} rounds.",
        f"Its purpose, as every site agreed to it: {facts.purpose}.",
        f"{len(facts.participants)} sites took part with {total} rows: {rows}{more}. Each signed its own data set's manifest and its consent to the plan.",
        f"Updates were added under masks. One site's update stays hidden as long as at most {summed.colluders} of "
        f"{summed.parties} sites work together with the hub.",
        view,
        f"{drops} Every round needed at least {summed.minimum} sites.",
        "No differential privacy was applied. Nothing bounds what a reader of the model may learn about a single row; "
        "give the model only to readers who could be trusted with that.",
        "No hardware evidence was collected. This is a signed record of what the parties state, not a proof that they ran it honestly.",
        f"The model is sealed to: {readers}." if readers else "The model is not sealed to a reader: whoever has the folder has the model.",
        f"Created {facts.created}, a time the signer states.",
    ]


def _chinese(statement: Statement) -> list[str]:
    facts = statement.predicate
    summed = facts.aggregation
    lossy, fewest = _lost(facts)
    rows = "、".join(f"{p.name}（{p.rows} 行）" for p in facts.participants[:50])
    more = f"，另有 {len(facts.participants) - 50} 方" if len(facts.participants) > 50 else ""
    total = sum(participant.rows for participant in facts.participants)
    view = (
        "协调方只看到每轮更新之和以及模型，看不到任何一方的单独更新。"
        if facts.aggregation.hub_view == "sum"
        else "协调方只转运它读不懂的模型；只有参与方能看到模型。"
    )
    drops = "没有任何一轮有参与方掉线。" if not lossy else f"有 {lossy} 轮出现掉线，最少一轮有 {fewest} 方参与求和。"
    readers = "、".join(recipient.name for recipient in facts.recipients)
    return [
        f"研究 {facts.study} 用 {facts.training.algorithm} 训练了一个 {facts.training.model} 模型，共 {facts.training.rounds} 轮。",
        f"各方同意的用途：{facts.purpose}。",
        f"共 {len(facts.participants)} 方、{total} 行数据参与：{rows}{more}。各方分别签署了自己的数据清单和对方案的同意书。",
        f"更新在掩码之下相加。只要 {summed.parties} 方中与协调方串通的不超过 {summed.colluders} 方，任何一方的单独更新都不会暴露。",
        view,
        f"{drops}每轮至少需要 {summed.minimum} 方。",
        "没有采用差分隐私。模型的读者可能从中得知多少单行数据的信息，没有上限保证；只应交给在这一点上可以信任的读者。",
        "没有硬件证据。本证书是各方陈述的签名记录，不能证明各方确实照此执行。",
        f"模型已加密给：{readers}。" if readers else "模型没有加密给特定读者：拿到文件夹就拿到模型。",
        f"签发时间 {facts.created}（由签发方陈述）。",
    ]


_LANGUAGES: dict[str, Callable[[Statement], list[str]]] = {"en": _english, "zh": _chinese}


def in_words(statement: Statement, lang: Language = "en") -> list[str]:
    """Return the certificate as sentences, in reading order.

    Args:
        statement: a decoded certificate.
        lang: "en" or "zh".

    Raises:
        InputError: another language.
    """
    if lang not in _LANGUAGES:
        raise InputError(f"there is no text in language {lang[:20]!r}", fix="Use en or zh")
    return _LANGUAGES[lang](statement)
