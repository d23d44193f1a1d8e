"""A certificate in plain sentences, English or Chinese, for people who sign things and do not read JSON.

The sentences say what the signer states and what was not done. They claim nothing that the fields do not
hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType

from cloister.errors import InputError
from cloister.governance.certificate import Epoch, LanguageFacts, Predicate, Statement

__all__ = ["Language", "in_words"]

Language = Literal["en", "zh"]

_NAMED: Final = 50

_ENGLISH: Final = {
    "study": "Study {study} trained one {model} model with {algorithm} in {rounds} rounds.",
    "language lora": "It is an adapter of rank {rank} to a public language model ({base}, tokenizer "
    "{tokenizer}): {trained} numbers were trained, one matrix of each pair, and the other stayed as a public "
    "seed drew it. The language model itself was not changed.",
    "language lora-alternating": "It is an adapter of rank {rank} to a public language model ({base}, "
    "tokenizer {tokenizer}): {trained} numbers were trained, the two matrices of each pair in turn. The "
    "language model itself was not changed.",
    "language full": "It started from a public language model ({base}, tokenizer {tokenizer}), all of whose "
    "{trained} numbers were trained.",
    "purpose": "Its purpose, as every site agreed to it: {purpose}.",
    "sites": "{sites} sites took part with {total} rows: {list}. Each signed the manifest of its own data "
    "set and its consent to the plan.",
    "row": "{name} ({rows} rows)",
    "more": "{count} more",
    "epochs": "The secure sum was set up {epochs} times, each time over the sites that countersigned it: "
    "{when}.",
    "when": "rounds {first} to {last} by {list}",
    "more epochs": "{count} more times",
    "semicolon": "; ",
    "masks": "Updates were added under masks: what one site sent cannot be read as long as at most "
    "{colluders} of {parties} sites work together with the hub.",
    "hub_view sum": "The hub saw the sum of each round and the model, and never one site's update.",
    "hub_view none": "The hub carried a model that it could not read, as long as no site works with it.",
    "no drops": "No site dropped out of a round; every round needed at least {minimum} sites.",
    "drops": "In {lossy} of {rounds} rounds a site dropped out. The smallest sum had {fewest} sites; every "
    "round needed at least {minimum}.",
    "privacy claimed": "Differential privacy: had one {unit} been left out, the hub and every reader would "
    "have learned the same within epsilon {epsilon_hub:g}, a hub with {colluding} colluding site(s) within "
    "{epsilon_colluders:g}, at delta {delta:g}. Every site's ledger signed its debit.",
    "record": "row",
    "audited": "An attack that was run on the claim shows at least epsilon {bound:g} at {confidence:g} "
    "confidence, which is consistent with the claim.",
    "unaudited": "No attack was run against this claim.",
    "asked rehearsed": "An attack that ran the training anew found nothing: the secrets that it had "
    "planted ({secrets}) were not told from others ({sure:g} confidence). No guarantee is claimed, and none "
    "follows from that: other rows may be remembered.",
    "asked planted": "An attack on the model found nothing: the secrets that its signer says were "
    "planted among its rows ({secrets}) were not told from others ({sure:g} confidence). No guarantee is "
    "claimed, and none follows from that: other rows may be remembered.",
    "privacy": "No differential privacy was applied: nothing bounds what sums and model may reveal about a "
    "single row. Give the model only to readers who may be trusted with that.",
    "enclave": "No hardware evidence was collected: the study was not hardware-protected. This is a signed "
    "record of what the parties state, not a proof that they ran it honestly.",
    "enclave software": "Hub and sites showed each other evidence of what runs there, but no hardware "
    "vouches for that of {software}: the study was not hardware-protected. This is a signed record of what "
    "the parties state, not a proof that they ran it honestly.",
    "enclave hardware": "Hub and sites showed each other evidence rooted in hardware ({kinds}) before they "
    "worked together, at most {age} hours old: every site signed that it accepted the hub's, the hub states "
    "that it accepted the workers'. Each decides by its own policy which evidence it accepts.",
    "sealed": "The model is sealed to: {readers}.",
    "open": "The model is not sealed to a reader: whoever has the folder has the model.",
    "created": "Created {created}, a time that the signer states.",
    "hub": "the hub",
    "comma": ", ",
}

_CHINESE: Final = {
    "study": "研究 {study} 用 {algorithm} 训练了一个 {model} 模型，共 {rounds} 轮。",
    "language lora": "模型是公开语言模型（{base}，分词器 {tokenizer}）的秩为 {rank} 的适配器："
    "共训练 {trained} 个数，每对矩阵中只训练一个，另一个由公开种子生成且保持不变。语言模型本身没有改动。",
    "language lora-alternating": "模型是公开语言模型（{base}，分词器 {tokenizer}）的秩为 {rank} 的适配器："
    "共训练 {trained} 个数，每对矩阵轮流训练。语言模型本身没有改动。",
    "language full": "训练从公开语言模型（{base}，分词器 {tokenizer}）开始，"
    "其全部 {trained} 个数都参与了训练。",
    "purpose": "各方同意的用途：{purpose}。",
    "sites": "共 {sites} 方、{total} 行数据参与：{list}。各方分别签署了自己的数据清单和对方案的同意书。",
    "row": "{name}（{rows} 行）",
    "more": "另有 {count} 方",
    "epochs": "安全求和先后建立 {epochs} 次，每次由签署同意书的各方组成：{when}。",
    "when": "第 {first} 至 {last} 轮：{list}",
    "more epochs": "另有 {count} 次",
    "semicolon": "；",
    "masks": "更新在掩码之下相加：只要 {parties} 方中与中心串通的不超过 {colluders} 方，"
    "任何一方发出的内容都无法读出。",
    "hub_view sum": "中心看到每轮更新之和以及模型，看不到任何一方的单独更新。",
    "hub_view none": "中心转运的模型自己读不懂，前提是没有任何一方与其串通。",
    "no drops": "没有任何一轮有参与方掉线；每轮至少需要 {minimum} 方。",
    "drops": "有 {lossy} 轮出现掉线，最少一轮有 {fewest} 方参与求和，每轮至少需要 {minimum} 方。",
    "privacy claimed": "差分隐私：若去掉一个{unit}，中心和所有读者所得信息的差异不超过 epsilon "
    "{epsilon_hub:g}，"
    "与 {colluding} 方串通的中心不超过 {epsilon_colluders:g}，delta 为 {delta:g}。"
    "各方账本均已签署扣减。",
    "record": "行",
    "audited": "针对该声明的攻击测得 epsilon 至少为 {bound:g}（置信度 {confidence:g}），与声明一致。",
    "unaudited": "尚未针对该声明运行攻击测试。",
    "asked rehearsed": "攻击测试重新运行训练，没有发现问题：植入的 {secrets} 个秘密无法与其他秘密区分"
    "（置信度 {sure:g}）。本研究没有声明任何保证，这一结果也不构成保证：其他数据行仍可能被记住。",
    "asked planted": "对模型的攻击测试没有发现问题：签署者声明植入数据行中的 {secrets} 个秘密"
    "无法与其他秘密区分（置信度 {sure:g}）。本研究没有声明任何保证，这一结果也不构成保证："
    "其他数据行仍可能被记住。",
    "privacy": "没有采用差分隐私：求和结果与模型可能透露多少单行数据的信息，没有上限保证。"
    "模型只应交给在这一点上可以信任的读者。",
    "enclave": "没有硬件证据：本研究没有硬件保护。本证书是各方陈述的签名记录，不能证明各方确实照此执行。",
    "enclave software": "中心与各方互相出示了运行环境的证据，但 {software} 的证据没有硬件担保："
    "本研究没有硬件保护。本证书是各方陈述的签名记录，不能证明各方确实照此执行。",
    "enclave hardware": "协作之前，中心与各方互相出示了以硬件为根的证据（{kinds}），最多 {age} 小时前取得："
    "每一方都签名确认接受中心的证据，中心声明接受各方工作进程的证据。接受哪些证据由各自的策略决定。",
    "sealed": "模型已加密给：{readers}。",
    "open": "模型没有加密给特定读者：拿到文件夹就拿到模型。",
    "created": "签发时间 {created}（由签发方陈述）。",
    "hub": "中心",
    "comma": "、",
}

_TEXTS: Final = {"en": _ENGLISH, "zh": _CHINESE}


def _facts(facts: Predicate, texts: dict[str, str]) -> dict[str, Any]:
    """Return what the sentences speak of."""
    named = [texts["row"].format(name=p.name, rows=p.rows) for p in facts.participants[:_NAMED]]
    if len(facts.participants) > _NAMED:
        named.append(texts["more"].format(count=len(facts.participants) - _NAMED))
    epochs, runs = facts.aggregation.epochs, facts.aggregation.runs()
    weakest = min(epochs, key=lambda epoch: (epoch.colluders, epoch.parties))
    return {
        "study": facts.study,
        "purpose": facts.purpose,
        "model": facts.training.model,
        "algorithm": facts.training.algorithm,
        "rounds": facts.training.rounds,
        "sites": len(facts.participants),
        "total": sum(participant.rows for participant in facts.participants),
        "list": texts["comma"].join(named),
        "epochs": len(epochs),
        "when": texts["semicolon"].join(_when(epochs, texts)),
        "colluders": weakest.colluders,
        "parties": weakest.parties,
        "minimum": min(epoch.minimum for epoch in epochs),
        "lossy": sum(run.count for _, run in runs if run.dropped),
        "fewest": min(epoch.survivors(run) for epoch, run in runs),
        "readers": texts["comma"].join(recipient.name for recipient in facts.recipients),
        "created": facts.created,
    }


def _when(epochs: Sequence[Epoch], texts: dict[str, str]) -> list[str]:
    """Return who took part in which rounds, an entry for each epoch."""
    entries = []
    for epoch in epochs[:_NAMED]:
        names, more = list(epoch.members[:_NAMED]), len(epoch.members) - _NAMED
        if more > 0:
            names.append(texts["more"].format(count=more))
        first, last = epoch.rounds[0].first, epoch.rounds[-1].first + epoch.rounds[-1].count - 1
        entries.append(texts["when"].format(first=first, last=last, list=texts["comma"].join(names)))
    if len(epochs) > _NAMED:
        entries.append(texts["more epochs"].format(count=len(epochs) - _NAMED))
    return entries


def _privacy(facts: Predicate, texts: dict[str, str]) -> dict[str, Any]:
    """Return what the sentences on differential privacy speak of, nothing where none is claimed."""
    privacy = facts.privacy
    if privacy is None:
        return {}
    unit, audit = privacy.claim.unit, privacy.audit
    return {
        "unit": texts["record"] if unit == "record" else unit,
        "epsilon_hub": privacy.epsilon_hub,
        "epsilon_colluders": privacy.epsilon_colluders,
        "delta": privacy.claim.delta,
        "colluding": max(1, *(epoch.colluders for epoch in facts.aggregation.epochs)),
        "bound": 0.0 if audit is None else audit.bound,
        "confidence": 0.0 if audit is None else audit.confidence,
    }


def _enclave(facts: Predicate, texts: dict[str, str]) -> dict[str, Any]:
    """Return what the sentence on evidence speaks of, nothing where none was shown."""
    shown = facts.enclave
    if shown is None:
        return {}
    soft = [name for name, worker in shown.workers.items() if not worker.hardware][:_NAMED]
    return {
        "software": texts["comma"].join(soft) or texts["hub"],
        "kinds": texts["comma"].join(sorted({worker.kind for worker in shown.workers.values()})),
        "age": f"{shown.reattest_seconds / 3600:g}",
    }


def _language(facts: Predicate) -> dict[str, Any]:
    """Return what the sentence on a language model speaks of, nothing for other models."""
    stated = facts.language
    if isinstance(stated, UnsetType):
        return {}
    return {
        "base": stated.base[:16],
        "tokenizer": stated.tokenizer[:16],
        "rank": stated.rank,
        "trained": f"{stated.trained:,}",
    } | _asked(stated)


def _asked(stated: LanguageFacts) -> dict[str, Any]:
    found = stated.audit
    return {} if isinstance(found, UnsetType) else {"secrets": found.secrets, "sure": found.confidence}


def _language_keys(facts: Predicate) -> list[str]:
    return [] if isinstance(facts.language, UnsetType) else [f"language {facts.language.method}"]


def _enclave_key(facts: Predicate) -> str:
    if facts.enclave is None:
        return "enclave"
    return "enclave hardware" if facts.enclave.hardware else "enclave software"


def _privacy_keys(facts: Predicate) -> list[str]:
    if facts.privacy is None:
        found = UNSET if isinstance(facts.language, UnsetType) else facts.language.audit
        return ["privacy", *([] if isinstance(found, UnsetType) else [f"asked {found.source}"])]
    return ["privacy claimed", "unaudited" if facts.privacy.audit is None else "audited"]


def in_words(statement: Statement, lang: Language = "en") -> list[str]:
    """Return the certificate as sentences, in reading order.

    Args:
        statement: a decoded certificate.
        lang: "en" or "zh".

    Raises:
        InputError: another language.
    """
    if lang not in _TEXTS:
        raise InputError(f"there is no text in language {lang[:20]!r}", fix="Use en or zh")
    texts, predicate = _TEXTS[lang], statement.predicate
    facts = _facts(predicate, texts) | _privacy(predicate, texts) | _enclave(predicate, texts)
    facts |= _language(predicate)
    order = [
        "study",
        *_language_keys(predicate),
        "purpose",
        "sites",
        *(["epochs"] if len(predicate.aggregation.epochs) > 1 else []),
        "masks",
        f"hub_view {predicate.aggregation.hub_view}",
        "drops" if facts["lossy"] else "no drops",
        *_privacy_keys(predicate),
        _enclave_key(predicate),
        "sealed" if predicate.recipients else "open",
        "created",
    ]
    return [texts[key].format(**facts) for key in order]
