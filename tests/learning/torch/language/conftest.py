from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny bases by name; nobody changes them."""
    pytest.importorskip("peft")
    from tests.learning.torch.language.bases import make_base

    root = tmp_path_factory.mktemp("bases")
    return {name: make_base(root / name, name) for name in ("llama", "untied", "bert", "gpt2")}
