"""From files to an engine: the same model as transformers loads, or a sentence that says why not."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.inference.language.models import make_tiny_model  # noqa: E402

from cloister.errors import InputError, IntegrityError  # noqa: E402
from cloister.inference.language.load import load_engine  # noqa: E402
from cloister.learning.modelfiles.files import PlainFolder  # noqa: E402
from cloister.learning.torch.weights import read_weights  # noqa: E402


def load(path: Path, scratch: Path, **options: Any) -> Any:
    files = PlainFolder(path)
    try:
        return load_engine(files, name="m", kv_tokens=512, threads=1, scratch=scratch, **options)
    finally:
        files.close()


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"tied": False},
        {"tied": False, "shards": 3},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"kind": "bert"},
    ],
)
def test_it_is_the_model_that_transformers_loads(tmp_path: Path, made: dict[str, Any]) -> None:
    path, scratch = make_tiny_model(tmp_path / "model", **made), tmp_path / "scratch"
    scratch.mkdir()
    engine = load(path, scratch)
    kind = transformers.AutoModel if made.get("kind") == "bert" else transformers.AutoModelForCausalLM
    other = kind.from_pretrained(path, dtype=torch.float32 if made.get("dtype") == "float16" else "auto")
    model = engine._loaded.model
    assert type(model) is type(other)
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if "pooler" not in key)
    assert model.dtype == other.dtype
    assert not model.training
    assert list(scratch.iterdir()) == []
    assert engine.context == 256
    assert engine.generates == (made.get("kind") != "bert")
    asyncio.run(engine.aclose())


def test_weights_are_not_copied_again(tiny: Path) -> None:
    """Memory for one model, not for two: the tensors read are the parameters."""
    import cloister.learning.torch.language.pretrained as loading
    from cloister.learning.modelfiles import check_language_model

    read: dict[str, Any] = {}
    files = PlainFolder(tiny)
    found = check_language_model(files)
    original = read_weights

    def remember(*args: Any) -> Any:
        read.update(original(*args))
        return read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloister.learning.torch.weights.read_weights", remember)
        model = loading.pretrained(files, found, loading.configuration(found))
    files.close()
    assert {p.data_ptr() for p in model.parameters()} == {t.data_ptr() for t in read.values()}


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def reweighted(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 are missing"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 are unknown"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "weights"),
    ],
)
def test_weights_of_another_model(
    copy: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    reweighted(copy, change)
    with pytest.raises(InputError, match=message):
        load(copy, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="nothing"), "does not know"),
        (lambda c: c.update(hidden_size="x"), "hold together|do not fit"),
        (lambda c: c.update(model_type="mamba", architectures=["MambaForCausalLM"]), "weights|attention"),
    ],
)
def test_configurations_that_do_not_work(
    copy: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewritten(copy, change)
    with pytest.raises(InputError, match=message):
        load(copy, tmp_path)


def test_a_model_that_cannot_be_batched(tmp_path: Path) -> None:
    """Falcon's own masks do not know pages: found by the trial, and not by a client."""
    from tests.inference.language.models import make_tokenizer

    tokenizer = make_tokenizer()
    config = transformers.FalconConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=None,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="many requests at once"):
        load(tmp_path / "model", tmp_path)


def test_a_model_that_answers_otherwise_beside_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the batch's mask is not heeded, requests read each other's prompts: such a model is not served."""
    from transformers.generation.continuous_batching import input_outputs

    def all_visible(attention_mask: Any, **_: object) -> None:
        attention_mask.zero_()

    monkeypatch.setattr(input_outputs, "build_attention_mask", all_visible)
    with pytest.raises(InputError, match="otherwise beside others"):
        load(tiny, tmp_path)


@pytest.mark.parametrize("kind", ["Gemma2", "GptOss", "Qwen3", "GPT2"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Eager attention, sinks, sliding windows, other names for the same things: the trial passes."""
    from tests.inference.language.models import make_tokenizer

    tokenizer = make_tokenizer()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
        **({} if kind == "GPT2" else {"head_dim": 16, "num_key_value_heads": 2, "intermediate_size": 128}),
        **({"num_local_experts": 4} if kind == "GptOss" else {}),
        **({"sliding_window": 16} if kind in ("Gemma2", "GptOss") else {}),
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    engine = load(tmp_path / "model", tmp_path)
    assert engine.context == 256
    assert engine.embeds == (kind in ("Qwen3", "GPT2"))
    asyncio.run(engine.aclose())


def test_a_broken_tokenizer(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(InputError, match="tokenizer"):
        load(copy, scratch)
    assert list(scratch.iterdir()) == []


def test_no_memory_for_the_cache(tiny: Path, tmp_path: Path) -> None:
    files = PlainFolder(tiny)
    with pytest.raises(InputError, match="kv-tokens"):
        load_engine(files, name="m", kv_tokens=1 << 44, threads=1, scratch=tmp_path)
    files.close()


def test_nothing_is_fetched(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    asyncio.run(load(tiny, tmp_path).aclose())


def written(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> PlainFolder:
    size = len(header) if length is None else length
    (path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + data)
    return PlainFolder(path)


def entry(start: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(end - start) // 4] if shape is None else shape,
        "data_offsets": [start, end],
    }


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 8)}, b"1234"),
        ({"a": entry(0, 8)}, b"123456789"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"x" * 12),
        ({"a": entry(4, 0)}, b"1234"),
        ({"a": entry(0, 4, shape=[2])}, b"1234"),
        ({"a": entry(0, 4, shape=[-1])}, b"1234"),
        ({"a": entry(0, 0, shape=[1 << 40, 1 << 40, 0])}, b"1"),
        ({"a": {"dtype": "F32"}}, b""),
        ({"a": entry(0, 4) | {"more": 1}}, b"1234"),
        ([], b""),
        ({"a": entry(0, 1 << 62, shape=[1 << 47])}, b""),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes) -> None:
    files = written(tmp_path, json.dumps(header).encode(), data)
    with pytest.raises(InputError, match="not safetensors"):
        read_weights(files, files.names)
    files.close()


@pytest.mark.parametrize(("header", "length"), [(b"", 0), (b"{}", 1 << 40), (b"{", 1), (b"[" * 99_999, None)])
def test_headers_that_are_none(tmp_path: Path, header: bytes, length: int | None) -> None:
    files = written(tmp_path, header, length=length)
    with pytest.raises(InputError, match="not safetensors"):
        read_weights(files, files.names)
    files.close()


def test_unknown_types_and_tensors_there_twice(tmp_path: Path) -> None:
    files = written(tmp_path, json.dumps({"a": entry(0, 4, "F8_E4M3", [4])}).encode(), b"1234")
    with pytest.raises(InputError, match="F8_E4M3"):
        read_weights(files, files.names)
    files.close()
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    files = PlainFolder(tmp_path)
    with pytest.raises(InputError, match="same tensor"):
        read_weights(files, files.names * 2)
    files.close()


def test_every_type_reads_as_safetensors_reads_it(tmp_path: Path) -> None:
    wanted = {
        "f32": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "i64": torch.arange(4),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "large": torch.randn(1 << 20),
    }
    save_file(wanted, tmp_path / "model.safetensors", {"format": "pt"})
    files = PlainFolder(tmp_path)
    found = read_weights(files, files.names)
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[key], wanted[key]) and found[key].dtype == wanted[key].dtype for key in wanted
    )
    files.close()


def test_weights_changed_while_they_are_read(copy: Path, tmp_path: Path) -> None:
    files = PlainFolder(copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(IntegrityError):
        load_engine(files, name="m", kv_tokens=512, threads=1, scratch=tmp_path)
    files.close()
