from __future__ import annotations

import json

import pytest
from benchmarks import dpsgd


def test_a_small_run_has_every_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dpsgd, "SIZES", {dpsgd.MAIN: (60, 10, 4)})
    monkeypatch.setattr(dpsgd.importlib.util, "find_spec", lambda name: None)  # as where torch is missing
    monkeypatch.setattr("sys.argv", ["dpsgd", "--quick"])
    dpsgd.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["cnn"] is None
    assert printed["lora"] is None
    assert "torch" in printed["reasons"]["cnn"]
    assert printed["logistic"]["ours"] > 0
    assert set(printed["logistic"]["sizes"][dpsgd.MAIN]) == {
        "ratio",
        "plain_ms",
        "private_ms",
        "distributed_ms",
    }
