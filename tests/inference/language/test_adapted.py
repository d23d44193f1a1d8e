"""A released language model on its base: merged, apart, and in peft, it says the same."""

from __future__ import annotations

import asyncio
import csv
import inspect
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from tests.inference.adapters import CLASSES, text_schema
from tests.inference.language.models import _save, make_tiny_model, make_tokenizer
from tests.inference.language.released import language_plan, released, trained_vector
from tests.runtime.workers.walls import needs_walls
from tokenizers import Tokenizer, processors

from cloister.cli.predict import predict
from cloister.cli.predictfile import Asked, Format, predictor_inside
from cloister.crypto import Identity
from cloister.errors import InputError, IntegrityError, SchemaError
from cloister.inference.adapter import AdapterArtifact
from cloister.inference.application import Sampling
from cloister.inference.export import exported
from cloister.inference.language.adapted import check_base, learner_of, merge, released_adapter
from cloister.inference.language.answers import LanguagePredictor
from cloister.inference.language.load import load_engine
from cloister.inference.predictor import encoded
from cloister.inference.service import loading
from cloister.inference.service.boot import Adapter
from cloister.inference.walled import predict_walled, rows_of
from cloister.learning.language.texts import TextRows
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.modelfiles.folder import check_language_model
from cloister.learning.torch.language.pretrained import configuration, pretrained

METHODS: list[dict[str, Any]] = [
    {},
    {"method": "lora-alternating", "rank": 3},
    {"targets": ("q_proj", "down_proj"), "alpha": 5.0},
    {"quantised": "nf4", "checkpointing": True, "rows_per_pass": 2},
    {"method": "full", "rank": 0},
]


def whole_model(base: Path, dtype: torch.dtype | None = None) -> Any:
    files = PlainFolder(base)
    found = check_language_model(files)
    return pretrained(files, found, configuration(found), dtype=dtype)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("language", METHODS)
def test_a_merged_base_computes_what_was_trained(
    tiny: Path, tmp_path: Path, language: dict[str, Any]
) -> None:
    artifact = released(tiny, tmp_path, **language)
    learner, params = learner_of(artifact, PlainFolder(tiny), scratch=tmp_path)
    assert np.array_equal(params, trained_vector(language_plan(tiny, **language), tiny, tmp_path))
    learner.load(params)
    model = whole_model(tiny)
    before = logits(model, [5, 9, 40, 3])
    merge(model, artifact)
    merged, apart = logits(model, [5, 9, 40, 3]), logits(learner.module.base, [5, 9, 40, 3])
    assert torch.allclose(merged, apart, atol=1e-4)
    assert (merged - before).abs().max() > 0.05
    assert list(tmp_path.iterdir()) == []


def make_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    words = make_tokenizer(chat=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=128)
        )
    folder.mkdir()
    _save(model.eval(), words, folder, 1)
    return folder


def test_a_layer_that_is_stored_the_other_way_round_is_merged_so(tmp_path: Path) -> None:
    base = make_gpt2(tmp_path / "gpt2")
    artifact = released(base, tmp_path, targets=("c_attn", "c_proj"))
    learner, params = learner_of(artifact, PlainFolder(base), scratch=tmp_path)
    learner.load(params)
    model = whole_model(base)
    before = logits(model, [5, 9, 40, 3])
    merge(model, artifact)
    merged = logits(model, [5, 9, 40, 3])
    assert torch.allclose(merged, logits(learner.module.base, [5, 9, 40, 3]), atol=1e-4)
    assert (merged - before).abs().max() > 0.05


def test_a_base_in_half_precision_is_rounded_once(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", dtype="bfloat16")
    artifact = released(base, tmp_path)
    model, plain = whole_model(base), whole_model(base)
    merge(model, artifact)
    layer = "model.layers.1.mlp.up_proj"
    a, b = (torch.tensor(artifact.tensors[f"base_model.model.{layer}.lora_{p}.weight"]) for p in "AB")
    old, new = plain.get_submodule(layer).weight, model.get_submodule(layer).weight
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, (old.float() + 4.0 * (b @ a)).to(torch.bfloat16))
    assert torch.equal(plain.lm_head.weight, model.lm_head.weight)


def in_peft(base: Path, artifact: AdapterArtifact, folder: Path, *, headless: bool = False) -> Any:
    """The exported files, loaded as anybody loads them."""
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForCausalLM

    folder.mkdir()
    for name, content in exported(artifact, PlainFolder(base) if headless else None).items():
        (folder / name).write_bytes(content)
    model = (AutoModel if headless else AutoModelForCausalLM).from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("language", METHODS[:4])
def test_served_answers_are_those_of_transformers_and_peft(
    tiny: Path, tmp_path: Path, language: dict[str, Any]
) -> None:
    artifact, prompts = released(tiny, tmp_path, **language), [[17, 30, 99, 120, 7], [8, 300], [44] * 9]
    peft = in_peft(tiny, artifact, tmp_path / "exported")

    async def served() -> list[str]:
        engine = load_engine(
            PlainFolder(tiny), name="m", kv_tokens=512, threads=1, scratch=tmp_path, adapter=artifact
        )
        greedy, answers = Sampling(max_tokens=12, temperature=0), list[str]()
        for prompt in prompts:
            answers += ["".join([piece.text async for piece in engine.generate(prompt, greedy)])]
        await engine.aclose()  # type: ignore[misc]
        return answers

    learner, params = learner_of(artifact, PlainFolder(tiny), scratch=tmp_path)
    apart = learner.generate(params, prompts, 12)
    for prompt, answer, tokens in zip(prompts, asyncio.run(served()), apart, strict=True):
        with torch.no_grad():
            ids = torch.tensor([prompt])
            generated = peft.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected = [token for token in generated[0, len(prompt) :].tolist() if token != learner.words.end]
        assert tokens == expected
        assert answer == learner.words.decode(expected)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_classifier_in_peft_and_its_head_beside_it_say_the_same(tiny: Path, tmp_path: Path) -> None:
    artifact = released(tiny, tmp_path, "text-classifier")
    peft = in_peft(tiny, artifact, tmp_path / "exported", headless=True)
    head = load_file(tmp_path / "exported" / "head.safetensors")
    assert json.loads((tmp_path / "exported" / "classes.json").read_bytes())["classes"] == list(CLASSES)
    predictor = LanguagePredictor.of(artifact, PlainFolder(tiny), scratch=tmp_path, device="cpu")
    ids = predictor._learner.words.prompt("Where is my card?", format="text")
    with torch.no_grad():
        pooled = peft(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    scores = (head["weight"] @ pooled + head["bias"]).softmax(-1)
    answers = predictor.predict(table(question=["Where is my card?"], hint=[None]))
    assert np.allclose([answers.column(n)[0].as_py() for n in artifact.columns[1:]], scores, atol=1e-5)


def test_a_full_model_is_exported_as_transformers_has_it(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    artifact = released(tiny, tmp_path, method="full", rank=0)
    for made in (artifact, released(tiny, tmp_path, "text-classifier")):
        with pytest.raises(InputError, match="which is not given"):
            exported(made)
    folder = tmp_path / "exported"
    folder.mkdir()
    for name, content in exported(artifact, PlainFolder(tiny)).items():
        (folder / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(folder)
    learner, params = learner_of(artifact, PlainFolder(tiny), scratch=tmp_path)
    learner.load(params)
    assert torch.allclose(logits(model, [5, 9]), logits(learner.module.base, [5, 9]), atol=1e-5)


def test_what_does_not_fit_a_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    artifact = released(tiny, tmp_path)
    with pytest.raises(IntegrityError, match="base model here is not the one"):
        check_base(artifact, PlainFolder(other))
    language = msgspec.structs.replace(artifact.card.language, tokenizer="d" * 64)
    changed = AdapterArtifact(msgspec.structs.replace(artifact.card, language=language), artifact.tensors)
    with pytest.raises(IntegrityError, match="tokenizer here is not the one"):
        check_base(changed, PlainFolder(tiny))
    with pytest.raises(IntegrityError, match="tokenizer here is not the one"):
        load_engine(PlainFolder(tiny), name="m", kv_tokens=256, threads=1, scratch=tmp_path, adapter=changed)


@pytest.mark.parametrize("way", ["missing", "more", "shape"])
def test_tensors_of_other_layers_are_refused(tiny: Path, tmp_path: Path, way: str) -> None:
    artifact = released(tiny, tmp_path, method="lora-alternating")
    tensors = dict(artifact.tensors)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    if way == "missing":
        del tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
    elif way == "more":
        for part in "AB":
            tensors[f"{layer}_more.lora_{part}.weight"] = tensors[f"{layer}.lora_{part}.weight"]
    else:
        tensors[f"{layer}.lora_B.weight"] = tensors[f"{layer}.lora_B.weight"][:-1]
    broken = AdapterArtifact(artifact.card, tensors)
    with pytest.raises(IntegrityError, match="does not fit this base"):
        learner_of(broken, PlainFolder(tiny), scratch=tmp_path)
    with pytest.raises(IntegrityError, match="does not fit this base"):
        merge(whole_model(tiny), broken)


def test_a_full_model_of_other_parameters_is_refused(tiny: Path, tmp_path: Path) -> None:
    artifact = released(tiny, tmp_path, method="full", rank=0)
    some = dict(artifact.tensors)
    some["model.norm.weight"] = some["model.norm.weight"][:-1]
    with pytest.raises(IntegrityError, match=r"model\.norm\.weight is of another shape"):
        merge(whole_model(tiny), AdapterArtifact(artifact.card, some))


def table(**columns: list[str | None]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def test_a_classifier_answers_rows_as_a_table_does(bert: Path, tiny: Path, tmp_path: Path) -> None:
    rows = table(question=["Where is my card?", "I want a loan.", "Hello"], hint=[None, "now", None])
    for base in (bert, tiny):
        artifact = released(base, tmp_path, "text-classifier")
        predictor = LanguagePredictor.of(artifact, PlainFolder(base), scratch=tmp_path, device="cpu")
        answers = predictor.predict(rows)
        assert tuple(answers.column_names) == artifact.columns == predictor.columns
        chances = np.column_stack([answers.column(f"probability={name}") for name in CLASSES])
        assert np.allclose(chances.sum(axis=1), 1.0)
        named = [CLASSES[each] for each in chances.argmax(axis=1)]
        assert answers.column("prediction").to_pylist() == named
        alone = predictor.predict(rows.slice(1, 1))
        assert np.allclose(
            [alone.column(name)[0].as_py() for name in artifact.columns[1:]], chances[1], atol=1e-6
        )
        assert predictor.predict(rows.slice(0, 0)).num_rows == 0


def test_prompts_are_answered_together_as_alone(tiny: Path, tmp_path: Path) -> None:
    artifact = released(tiny, tmp_path)
    predictor = LanguagePredictor.of(artifact, PlainFolder(tiny), most=8, scratch=tmp_path, device="cpu")
    rows = table(question=["Hello.", "The quick brown fox jumps", "a"], hint=[None, "b c", None])
    answers = predictor.predict(rows)
    assert answers.column_names == ["answer"]
    alone = [predictor.predict(rows.slice(n, 1)).column("answer")[0].as_py() for n in range(3)]
    assert answers.column("answer").to_pylist() == alone
    words, learner = predictor._learner.words, predictor._learner
    tokens = learner.generate(predictor._params, [words.prompt("The quick brown fox jumps\nb c")], 8)[0]
    assert alone[1] == words.decode(tokens)
    assert predictor.predict(rows.slice(0, 0)).num_rows == 0


def test_rows_that_cannot_be_answered_are_named(tiny: Path, tmp_path: Path) -> None:
    artifact = released(tiny, tmp_path)
    predictor = LanguagePredictor.of(artifact, PlainFolder(tiny), most=8, scratch=tmp_path, device="cpu")
    with pytest.raises(SchemaError, match="column is absent"):
        predictor.predict(table(question=["Hello."]))
    with pytest.raises(SchemaError, match="1 prompt is longer than the context of 64 tokens") as caught:
        predictor.predict(table(question=["Hello.", "zq" * 200], hint=[None, None]))
    assert "zq" not in str(caught.value)
    with pytest.raises(SchemaError, match="missing"):
        predictor.predict(table(question=["Hello.", None], hint=["x", "y"]))
    with pytest.raises(InputError, match="scales nothing"):
        predictor.fit_file(tmp_path / "rows.csv")
    long = LanguagePredictor.of(artifact, PlainFolder(tiny), most=250, scratch=tmp_path, device="cpu")
    with pytest.raises(InputError, match="256 that the base was made for"):
        long.predict(table(question=["Hello there."], hint=[None]))
    cut = released(tiny, tmp_path, overlong="truncate")
    truncating = LanguagePredictor.of(cut, PlainFolder(tiny), most=2, scratch=tmp_path, device="cpu")
    assert truncating.predict(table(question=["zq" * 200], hint=[None])).num_rows == 1


def test_a_prompt_that_is_cut_keeps_what_opens_every_row(tmp_path: Path, monkeypatch: Any) -> None:
    base = make_tiny_model(tmp_path / "base")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(str(base / "tokenizer.json"))
    artifact = released(base, tmp_path, overlong="truncate")
    predictor = LanguagePredictor.of(artifact, PlainFolder(base), most=2, scratch=tmp_path, device="cpu")
    learner, asked = predictor._learner, list[list[int]]()
    generate = learner.generate
    monkeypatch.setattr(
        learner, "generate", lambda p, each, most: asked.extend(each) or generate(p, each, most)
    )
    predictor.predict(table(question=["zq" * 200], hint=[None]))
    prompt = learner.words.prompt("zq" * 200)
    rows = TextRows(["zq" * 200], answers=["a"], columns=("question",), label_name="answer")
    roomy = msgspec.structs.replace(artifact.card.language, context=66)  # for the answer, and its end
    assert asked == [[1, *prompt[-63:]]] == [learner.words.encode(rows, roomy, "causal-lm").ids[:64].tolist()]


def test_conversations_are_answered(tiny: Path, tmp_path: Path) -> None:
    artifact = released(tiny, tmp_path, format="chat", context=128)
    predictor = LanguagePredictor.of(artifact, PlainFolder(tiny), most=4, scratch=tmp_path, device="cpu")
    chat = '[{"role": "user", "content": "Good morning!"}]'
    assert list(artifact.inputs) == ["answer"]
    assert predictor.predict(table(answer=[chat])).num_rows == 1
    with pytest.raises(SchemaError):
        predictor.predict(table(answer=["no chat"]))


def test_a_classifier_is_not_merged(bert: Path, tmp_path: Path) -> None:
    artifact = released(bert, tmp_path, "text-classifier")
    with pytest.raises(InputError, match="answers rows"):
        merge(None, artifact)


CSV = b"question,hint,extra\nWhere is it?,now,1\nHello there.,,2\n"


def held(folder: Path) -> int:
    """How many files of a folder this process holds open."""
    links = [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return sum(link.parent == folder.resolve() for link in links)


def test_no_file_of_a_base_is_held_open(tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    plan = language_plan(tiny)
    artifact = released_adapter(
        plan, text_schema("causal-lm"), trained_vector(plan, tiny, tmp_path), base, scratch=tmp_path
    )
    assert held(base) == 0
    asked = Asked(artifact, None, Format.CSV, None, None, base, 3)
    with predictor_inside(asked) as predictor:
        assert held(base) == 0
        assert predictor.predict(pa.table({"question": ["one"], "hint": ["two"]})).num_rows == 1
    classes = released(tiny, tmp_path, "text-classifier").to_bytes()
    boot = SimpleNamespace(model=Adapter(memoryview(classes), str(base), 4096), name="m", threads=1)
    assert loading._load(boot, None, tmp_path).kind == "table"  # type: ignore[arg-type]
    assert held(base) == 0


@pytest.mark.parametrize(
    "begins", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "=cmd|' /C calc'!A0\",\"x", "=1\n=2\r=3"]
)
def test_a_text_that_a_spreadsheet_would_compute_is_one_cell_as_it_was_written(begins: str) -> None:
    """Nothing is put before it, as its readers expect what the model wrote; the help says what to do."""
    content = encoded(pa.table({"answer": [begins, "b"]}), "csv")
    assert [row["answer"] for row in csv.DictReader(io.StringIO(content.decode(), newline=""))] == [
        begins,
        "b",
    ]
    option = inspect.signature(predict, eval_str=True).parameters["output_format"]
    assert "spreadsheet" in option.annotation.__metadata__[0].help


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal-lm", "text-classifier"])
def test_a_worker_behind_walls_answers_a_file(tiny: Path, tmp_path: Path, kind: str) -> None:
    needs_walls()
    artifact = released(tiny, tmp_path, kind)
    (tmp_path / "rows.csv").write_bytes(CSV)
    predictor = LanguagePredictor.of(artifact, PlainFolder(tiny), most=6, scratch=tmp_path, device="cpu")
    expected = predictor.predict_file(tmp_path / "rows.csv")
    rows = rows_of(tmp_path / "rows.csv", lambda: Identity.generate("nobody"))
    ask: dict[str, Any] = {"output_format": "parquet", "readers": None, "tokens": 6}
    answer = predict_walled(artifact, rows, base=tiny, **ask)
    found = pyarrow.parquet.read_table(io.BytesIO(answer.content))
    assert found.column_names == list(artifact.columns) == answer.columns
    assert found.column(0).equals(expected.column(0))
    assert all(np.allclose(found.column(n), expected.column(n), atol=1e-6) for n in artifact.columns[1:])
    with pytest.raises(InputError, match="no release carries"):
        predict_walled(artifact, rows, **ask)
    with pytest.raises(InputError, match="scales nothing"):
        predict_walled(artifact, rows, base=tiny, reference=rows, **ask)
    with pytest.raises(InputError, match="no code of a user's own"):
        predict_walled(artifact, rows, base=tiny, code=b"", **ask)
