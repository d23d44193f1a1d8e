"""Small real studies of language models for tests: a tiny base made here, texts in real vaults. Not collected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
from tests.inference.language.models import make_tiny_model
from tests.runtime.parties import CHEAP, PURPOSE

from cloister.crypto import Identity, StreamRandom
from cloister.learning import Plan
from cloister.learning.language.tokenizer import tokenizer_digest
from cloister.learning.modelfiles import PlainFolder, check_language_model
from cloister.learning.sections import (
    DataSection,
    HubEntry,
    LanguageSection,
    ModelSection,
    PrivacySection,
    SiteEntry,
    StudySection,
    TrainingSection,
)
from cloister.learning.start import with_pin
from cloister.runtime import Party
from cloister.runtime.worker import model_facts
from cloister.vault import LocalKeystore, Schema, Vault, load_schema

Kind = Literal["causal-lm", "text-classifier"]

_CLASSES = """
[columns.text]
type = "text"
[columns.y]
type = "category"
role = "label"
categories = ["bill", "card", "loan"]
"""
_PAIRS = """
[columns.question]
type = "text"
[columns.answer]
type = "text"
role = "label"
"""
_PERSON = """
[columns.person]
type = "text"
role = "unit"
"""
_SAID = {"bill": "my bill is wrong", "card": "the card is lost", "loan": "a loan for a house"}


def schema(kind: Kind, *, persons: bool = False) -> Schema:
    written = (_CLASSES if kind == "text-classifier" else _PAIRS) + (_PERSON if persons else "")
    return load_schema(written.encode())


def table(kind: Kind, rows: int, seed: int, *, persons: bool = False) -> pa.Table:
    random = StreamRandom.from_seed(seed, "test texts")
    names = sorted(_SAID)
    classes = [names[int(3 * draw)] for draw in random.uniform((rows,))]
    texts = [f"{_SAID[name]}, {'please ' * int(draw)}help" for name, draw in zip(
        classes, 4 * random.uniform((rows,)), strict=True)]  # fmt: skip
    columns: dict[str, list[str]] = (
        {"text": texts, "y": classes}
        if kind == "text-classifier"
        else {"question": texts, "answer": [f"This is about a {name}." for name in classes]}
    )
    if persons:
        columns["person"] = [f"p{row // 3}" for row in range(rows)]
    return pa.table(columns)


def base(root: Path, **options: Any) -> Path:
    """Return the folder of a tiny base; made once for each root."""
    folder = root / "base"
    if not folder.exists():
        make_tiny_model(folder, **{"hidden": 32, "layers": 2} | options)
    return folder


@cache
def digests(folder: Path) -> tuple[str, str]:
    files = PlainFolder(folder)
    try:
        return files.digest, tokenizer_digest(files, check_language_model(files))
    finally:
        files.close()


def parties(
    root: Path, kind: Kind, sizes: Sequence[int], folder: Path, *, persons: bool = False
) -> list[Party]:
    return [
        party(root, kind, f"site{index}", table(kind, rows, index, persons=persons), folder, persons=persons)
        for index, rows in enumerate(sizes)
    ]


def party(root: Path, kind: Kind, name: str, rows: pa.Table, folder: Path, *, persons: bool = False) -> Party:
    identity = Identity.generate(name)
    keys = LocalKeystore.initialise(root / name / "keystore.json", "x", cost=CHEAP)
    vault = Vault(root / name, identity, keys)
    own = schema(kind, persons=persons)
    vault.add_table(rows, name="train", schema=own, purposes=[PURPOSE])
    vault.add_table(table(kind, 6, 99, persons=persons), name="test", schema=own, purposes=[PURPOSE])
    return Party(identity, vault, held_out="test", base=folder)


def plan_for(hub: Identity, members: Sequence[Party], kind: Kind, folder: Path, **changes: Any) -> Plan:
    """Return a pinned plan; `changes` maps section name to field changes; `privacy` is a whole section."""
    plan = unpinned(hub, members, kind, folder, **changes)
    own = schema(kind, persons=plan.privacy is not None and not plan.privacy.by_record)
    return with_pin(plan, model_facts(plan, own, base=folder).pin)


def unpinned(hub: Identity, members: Sequence[Party], kind: Kind, folder: Path, **changes: Any) -> Plan:
    privacy = changes.pop("privacy", None)
    section = None if privacy is None else PrivacySection(**privacy)
    own = schema(kind, persons=section is not None and not section.by_record)
    base_digest, tokenizer = digests(folder)
    plan = Plan(
        study=StudySection(name="test", purpose=PURPOSE, deadline_seconds=30.0),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(
            SiteEntry(name=each.identity.name, identity=each.identity.fingerprint, dataset="train")
            for each in members
        ),
        data=DataSection(
            schema=own.digest().hex(),
            features=("text",) if kind == "text-classifier" else ("question",),
            label="y" if kind == "text-classifier" else "answer",
            public_rows=section is None,
        ),
        model=ModelSection(kind=kind, classes=3 if kind == "text-classifier" else 0),
        language=LanguageSection(
            base=base_digest,
            tokenizer=tokenizer,
            format="text" if kind == "text-classifier" else "pairs",
            context=64,
            overlong="refuse" if section is None else "truncate",
            rank=2,
            alpha=4.0,
        ),
        training=TrainingSection(rounds=2, batch=4, local_steps=3, optimiser="adam", learning_rate=0.01)
        if section is None
        else TrainingSection(rounds=2, batch=8, local_steps=1, learning_rate=0.1),
    )
    sections = {
        name: msgspec.structs.replace(getattr(plan, name), **fields) for name, fields in changes.items()
    }
    return msgspec.structs.replace(plan, **sections, privacy=section)
