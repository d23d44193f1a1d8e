"""A service behind uvicorn: TLS, ports, and what happens when the worker is gone."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enclave.doubles import AttesterDouble
from tests.enclave.sandbox.inside import need_walls
from tests.inference.artifacts import make_artifact
from tests.inference.service.doubles import UnwalledThread

from cloister.errors import InputError, ProtocolError, StorageError
from cloister.inference.service import Service, TableModel, run, serving
from cloister.inference.webserver import listen
from cloister.learning.sections import ModelSection

SOURCE = TableModel(make_artifact("boolean", ModelSection(kind="logistic")))


def unwalled(tmp_path: Path) -> Service:
    return Service(
        SOURCE,
        attester=AttesterDouble(),
        clients=None,
        start=lambda extra: UnwalledThread(extra, tmp_path, {"memory locked": True}),
    )


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return chain, private


def test_tls(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=str(tls[0]))
    with unwalled(tmp_path) as service, serving(service, tls=tls) as url:
        assert url.startswith("https://")
        with httpx2.Client(verify=trusted, trust_env=False) as client:
            answer = client.get(url.replace("127.0.0.1", "localhost"))
            assert answer.json()["service"] == "cloister"


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("nothing")
    with unwalled(tmp_path) as service:
        for path in (tmp_path / "x", tmp_path / "absent"):
            with pytest.raises(InputError, match="certificate"), serving(service, tls=(path, path)):
                pass


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(StorageError, match="--port"):
        listen("127.0.0.1", first.getsockname()[1])


def test_small_frames_do_not_wait() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[1]
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_server_ends_with_its_worker() -> None:
    need_walls()
    with Service(SOURCE, attester=AttesterDouble(), clients=None, allow_swap=True) as service:
        guardian = service.pid
        worker = int(Path(f"/proc/{guardian}/task/{guardian}/children").read_text().split()[0])

        def kill() -> None:
            time.sleep(0.5)
            with httpx2.Client(trust_env=False) as client:
                client.get(f"http://127.0.0.1:{port}/")
            os.kill(worker, signal.SIGKILL)

        listening = listen("127.0.0.1", 0)
        port = listening.getsockname()[1]
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(ProtocolError, match=r"the worker is gone \(killed by SIGKILL\)"):
            run(service, listening)
        thread.join()
