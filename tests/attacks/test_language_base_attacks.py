"""A base that somebody made to learn from rows, or to bring a site down: under privacy no row is told of by a
refusal, whatever the tokenizer does with it; and a small file asks for no more than it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.runtime.languageparties import Kind, base, plan_for, schema, table, unpinned

from cloister.crypto import Identity, StreamRandom
from cloister.errors import CloisterError, InputError, SchemaError
from cloister.learning import Plan
from cloister.learning.privacy import PrivacyTerms
from cloister.learning.torch.language.words import Words
from cloister.runtime import Party
from cloister.runtime.languageworker import LanguageWorker, facts_of_base

SECRET = "zebra"
RECORD = {"noise_multiplier": 1.0, "delta": 1e-4, "clip": 1.0, "rate": 1.0, "microbatch": 16}
PERSON = RECORD | {"unit": "person", "sites_per_unit": 1, "expected_units": 12}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("plain"))


def beyond(folder: Path) -> None:
    """The tokenizer has one word more than the model has vectors for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([SECRET])
    tokenizer.save_pretrained(folder)


def bomb(folder: Path) -> None:
    """The tokenizer panics over one word: its pattern tries more ways than the library allows."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text())
    pattern = {"Regex": rf"(?={SECRET}(a+)+c)a"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    written["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, written["pre_tokenizer"]]}
    path.write_text(json.dumps(written))


@pytest.fixture
def made(plain: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    def make(spoil: Callable[[Path], None]) -> Path:
        folder = tmp_path / "hostile"
        shutil.copytree(plain, folder)
        spoil(folder)
        return folder

    return make


def members() -> list[Party]:
    return [Party(Identity.generate(f"site{number}"), None) for number in range(3)]  # type: ignore[arg-type]


def rows_with(kind: Kind, said: str, *, persons: bool) -> pa.Table:
    """Ten rows, of which the fourth is what somebody waits for; its person has no other."""
    rows = table(kind, 10, 7, persons=persons)
    name = "text" if kind == "text-classifier" else "answer"
    texts = rows.column(name).to_pylist()
    texts[3] = said
    rows = rows.set_column(rows.column_names.index(name), name, pa.array(texts))
    if persons:
        whose = ["p0"] * 3 + ["alone"] + ["p1"] * 6
        rows = rows.set_column(rows.column_names.index("person"), "person", pa.array(whose))
    return rows


def worker_of(plan: Plan, kind: Kind, rows: pa.Table, folder: Path, **options: Any) -> LanguageWorker:
    own = schema(kind, persons="person" in rows.column_names)
    random = StreamRandom.from_seed(1, "attack")
    return LanguageWorker(plan, own, lambda: rows, folder, insecure_test_random=random, **options)


def private_sum(plan: Plan, worker: LanguageWorker) -> np.ndarray:
    terms = PrivacyTerms.of(plan, plan.params(3), worker.facts)
    found: np.ndarray = worker.private_sum(worker.initial, 1.0, terms, worker.facts.windows[0])
    return found


@pytest.mark.parametrize("spoil", [beyond, bomb])
@pytest.mark.parametrize(
    ("kind", "privacy"),
    [("text-classifier", RECORD), ("causal-lm", RECORD), ("causal-lm", PERSON)],
    ids=["class", "answer", "answer of a person"],
)
def test_a_row_that_the_base_cannot_take_is_not_told_of_under_privacy(
    made: Any, spoil: Any, kind: Kind, privacy: dict[str, Any]
) -> None:
    """It counts as a row of nothing does; the site neither leaves nor says a word."""
    folder, persons = made(spoil), privacy is PERSON
    plan = plan_for(Identity.generate("hub"), members(), kind, folder, privacy=privacy)
    told = SECRET + "a" * 40
    found = []
    for said in (told, " \n"):
        worker = worker_of(plan, kind, rows_with(kind, said, persons=persons), folder)
        found.append(private_sum(plan, worker))
        worker.close()
    np.testing.assert_array_equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("spoil", [beyond, bomb])
def test_without_privacy_such_rows_are_refused_without_a_word_of_theirs(made: Any, spoil: Any) -> None:
    folder = made(spoil)
    plan = plan_for(Identity.generate("hub"), members(), "causal-lm", folder)
    worker = worker_of(plan, "causal-lm", rows_with("causal-lm", SECRET + "a" * 40, persons=False), folder)
    with pytest.raises(CloisterError) as refused:
        worker.train(worker.initial)
    assert SECRET not in str(refused.value)
    worker.close()


def test_a_conversation_that_the_tokenizer_fails_on_costs_no_other_its_tokens(made: Any) -> None:
    from cloister.learning.language.texts import TextRows
    from cloister.learning.modelfiles import PlainFolder, check_language_model
    from cloister.learning.sections import LanguageSection

    folder = made(bomb)
    files = PlainFolder(folder)
    words = Words(files, check_language_model(files), folder.parent)
    chats = [
        [{"role": "user", "content": said}, {"role": "assistant", "content": "yes"}]
        for said in ("hello", SECRET + "a" * 40, "again")
    ]
    rows = TextRows([""] * 3, chats=chats, label_name="chat")
    section = LanguageSection(base="0" * 64, tokenizer="0" * 64, format="chat", context=64)
    found = words.encode(rows, section, "causal-lm", forgiving=True)
    assert (found.counts > 0).tolist() == [True, False, True]
    with pytest.raises(SchemaError, match="1 row is"):
        words.encode(rows, section, "causal-lm")
    assert words.prompts(TextRows(["hello", SECRET + "a" * 40]))[1] == []


def test_rows_to_evaluate_on_are_not_looked_at_where_nothing_of_them_may_leave(plain: Path) -> None:
    plan = plan_for(Identity.generate("hub"), members(), "causal-lm", plain, privacy=RECORD)
    rows = rows_with("causal-lm", "hello", persons=False)
    held_out = rows_with("causal-lm", " ", persons=False)  # a refusal would tell of it
    worker = worker_of(plan, "causal-lm", rows, plain, evaluation=lambda: held_out)
    assert private_sum(plan, worker).any()
    worker.close()


def test_a_client_cannot_make_the_tokenizer_of_a_served_base_panic(made: Any) -> None:
    from transformers import AutoTokenizer

    from cloister.inference.language.words import Words as Served

    words = Served(AutoTokenizer.from_pretrained(made(bomb)))
    told = SECRET + "a" * 40
    for ask in (
        lambda: words.text(told),
        lambda: words.conversation([{"role": "user", "content": told}], []),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert SECRET not in str(refused.value)
    assert words.text("hello")


@pytest.mark.parametrize(
    "asked",
    [{"intermediate_size": 1 << 26}, {"vocab_size": 1 << 26}, {"num_hidden_layers": 1 << 20}],
    ids=lambda asked: next(iter(asked)),
)
def test_a_configuration_that_asks_for_more_than_the_files_hold_is_refused_before_memory_is_taken(
    made: Any, asked: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | asked))

    folder = made(spoil)
    plan = unpinned(Identity.generate("hub"), members(), "causal-lm", folder)
    from cloister.learning.torch.language import parameters

    def drawn(seed: int, name: str, shape: tuple[int, ...]) -> Any:
        raise AssertionError(f"A of {shape} was drawn")

    monkeypatch.setattr(parameters, "draw_a", drawn)
    with pytest.raises(CloisterError, match="not those of the configuration"):
        facts_of_base(plan, schema("causal-lm"), folder)


def short_of_places(folder: Path) -> None:
    """An encoder that counts its places from behind its padding, and so has fewer than it says."""
    from tests.inference.language.models import make_tokenizer
    from transformers import RobertaConfig, RobertaModel
    from transformers.utils import logging

    shutil.rmtree(folder)
    config = RobertaConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    logging.disable_progress_bar()
    try:
        RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    make_tokenizer("bert").save_pretrained(folder)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    del written["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(written))


@pytest.mark.parametrize("said", ["short", "long " * 60])
def test_a_base_of_too_few_places_is_refused_whatever_rows_there_are(made: Any, said: str) -> None:
    folder = made(short_of_places)
    plan = plan_for(Identity.generate("hub"), members(), "text-classifier", folder, privacy=RECORD)
    worker = worker_of(plan, "text-classifier", rows_with("text-classifier", said, persons=False), folder)
    with pytest.raises(InputError, match="cannot read rows of 64 tokens"):
        private_sum(plan, worker)
    worker.close()


def test_a_length_that_the_base_fails_at_is_told_by_no_refusal(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows between the shortest and the longest: whoever waits for one of 33 to 48 tokens learns nothing."""
    from cloister.learning.torch.language.private import LanguagePrivate

    whole = LanguagePrivate._form

    def failing(private: LanguagePrivate, length: Any) -> Any:
        if length.tokens == 48:
            raise InputError("the gradient of one example is not what autograd finds for it alone")
        return whole(private, length)

    monkeypatch.setattr(LanguagePrivate, "_form", failing)
    plan = plan_for(Identity.generate("hub"), members(), "text-classifier", plain, privacy=RECORD)
    found, said = [], ["help"] * 5
    for last in ("z " * 20, " "):  # 40 tokens, and none
        rows = pa.table({"text": [*said, last], "y": ["bill", "card", "loan", "bill", "card", "loan"]})
        worker = worker_of(plan, "text-classifier", rows, plain)
        found.append(private_sum(plan, worker))
        worker.close()
    np.testing.assert_array_equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_a_control_token_that_is_none_is_no_traceback(made: Any, token: str) -> None:
    def spoil(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {token: ""}))

    folder = made(spoil)
    plan = unpinned(Identity.generate("hub"), members(), "text-classifier", folder)
    assert facts_of_base(plan, schema("text-classifier"), folder).size
