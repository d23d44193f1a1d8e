"""What a worker is there for still runs inside."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from tests.enclave.sandbox.inside import inside

KMS = """
import pyarrow as pa, pyarrow.parquet as pq, pyarrow.parquet.encryption as pe, pyarrow.dataset
import numpy as np
class Kms(pe.KmsClient):
    def __init__(self, _):
        super().__init__()
    def wrap_key(self, key, name):
        return key.hex()
    def unwrap_key(self, wrapped, name):
        return bytes.fromhex(wrapped)
factory = pe.CryptoFactory(Kms)
connection = pe.KmsConnectionConfig()
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    scope: dict[str, object] = {}
    exec(KMS, scope)  # noqa: S102 - the same few lines on both sides
    table = pa.table({f"c{i}": np.arange(20_000.0) + i for i in range(6)})
    how = pe.EncryptionConfiguration(footer_key="f", uniform_encryption=True)
    properties = scope["factory"].file_encryption_properties(scope["connection"], how)  # type: ignore[attr-defined]
    with pq.ParquetWriter(
        tmp_path / "part.parquet", table.schema, encryption_properties=properties
    ) as writer:
        writer.write_table(table, row_group_size=1000)
    return tmp_path


def test_an_encrypted_dataset_is_read_with_threads(dataset: Path) -> None:
    code = f"""
    properties = factory.file_decryption_properties(connection, pe.DecryptionConfiguration())
    table = pq.read_table({str(dataset / "part.parquet")!r}, decryption_properties=properties, use_threads=True)
    say("sum", float(np.sum(table.column("c1").to_numpy())))
    pa.set_cpu_count(4)
    say("threads", len(os.listdir("/proc/self/task")) > 1)
    """
    expected = float(np.sum(np.arange(20_000.0) + 1))
    assert inside(code, before=KMS, read=[dataset]).answers == {"sum": expected, "threads": True}


def test_libraries_are_loaded_late_and_temporary_files_written() -> None:
    code = """
    import tempfile, threading
    attempt("numpy", lambda: __import__("numpy").linalg.svd(__import__("numpy").eye(20)))
    attempt("standard library", lambda: __import__("xml.dom.minidom"))
    attempt("an extension", lambda: __import__("_bz2"))
    attempt("time zones", lambda: __import__("zoneinfo").ZoneInfo("Europe/Zurich").key)
    attempt("cloister", lambda: __import__("cloister.learning.plan"))
    def temporary():
        with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
            file.write(b"x")
            open(folder + "/y", "w").close()
    attempt("temporary files", temporary)
    def threads():
        work = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(8)]
        [t.start() for t in work]
        [t.join() for t in work]
    attempt("threads", threads)
    """
    answers = inside(code).answers
    zones = answers.pop("time zones")
    assert set(answers.values()) == {"done"}, answers
    assert zones in ("done", "ZoneInfoNotFoundError")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_trains_with_threads() -> None:
    code = """
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(4))
    x, y = torch.randn(64, 3, 16, 16), torch.randint(0, 4, (64,))
    optimiser = None
    for _ in range(10):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimiser = optimiser or torch.optim.Adam(model.parameters())
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    say("loss fell", loss.item() < 1.3)
    say("threads", torch.get_num_threads())
    """
    assert inside(code, before="import torch").answers == {"loss fell": True, "threads": 2}
