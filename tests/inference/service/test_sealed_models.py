"""Sealed models served for real: the key lent by the home, or released by a broker to the walled worker alone."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.broker.world import Home, InsecureAttesterDouble, identity, permission
from tests.enclave.sandbox.inside import need_walls
from tests.inference.artifacts import make_artifact
from tests.inference.modelworld import Keys, person
from tests.inference.service.real import running

from cloister.enclave.broker import BrokerKeys
from cloister.errors import IntegrityError, PolicyRefused, ProtocolError
from cloister.inference.models.keys import PURPOSE, ModelHandover, lender
from cloister.inference.models.manifest import TABLE_FILE
from cloister.inference.models.sealing import MemoryFiles, seal_model
from cloister.inference.service import SealedFolder, Service
from cloister.learning.modelfiles.files import PlainFolder
from cloister.learning.sections import ModelSection
from cloister.runtime.workers.brokered import BrokerAccess

ARTIFACT = make_artifact("boolean", ModelSection(kind="logistic"))
ROW = {"age": 54, "pain": "typical", "fluid": 1.5}


def sealed_table(root: Path, keys: Keys) -> ModelHandover:
    files = MemoryFiles({TABLE_FILE: ARTIFACT.to_bytes()})
    seal_model(files, root / "heart", person("ann"), name="heart", kind="table", keys=keys)
    return ModelHandover.of(root / "heart", person("ann").public)


def test_a_table_model_whose_key_the_home_lends(tmp_path: Path) -> None:
    keys = Keys()
    handed = sealed_table(tmp_path, keys)
    with running(SealedFolder(handed, lender(handed, keys=keys))) as here:
        status, body = here.ask("/v1/score", {"rows": [ROW]})
        assert status == 200, body
        assert json.loads(body)["model"] == "heart"
        assert here.keys().model_digest == handed.manifest.digest
        assert here.service.ready is not None
        assert here.service.ready.kind == "table"


def test_a_model_that_was_altered_is_not_served(tmp_path: Path) -> None:
    need_walls()
    keys = Keys()
    handed = sealed_table(tmp_path, keys)
    path = next((handed.folder / "files").iterdir())
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="altered"):
        Service(
            SealedFolder(handed, lender(handed, keys=keys)),
            attester=InsecureAttesterDouble(),
            clients=None,
            allow_swap=True,
        ).start()


class Stingy:
    """Lends nothing."""

    def lend(self, wrapped: bytes) -> bytes:
        raise ProtocolError("no key today")

    carry = attest = lend  # type: ignore[assignment]


def test_without_its_key_nothing_is_served(tmp_path: Path) -> None:
    need_walls()
    handed = sealed_table(tmp_path, Keys())
    with pytest.raises(ProtocolError, match="no key today"):
        Service(
            SealedFolder(handed, Stingy()),  # type: ignore[arg-type]
            attester=InsecureAttesterDouble(),
            clients=None,
            allow_swap=True,
        ).start()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "broker")
    yield made
    made.close()


def test_a_model_whose_key_a_broker_releases(home: Home, tmp_path: Path) -> None:
    """Without a grant there is no service; with one of a single use there is one, and no second."""
    need_walls()
    owner, broker = identity("alice"), identity("broker").public
    keys = BrokerKeys(home.connect, broker, owner=owner)
    files = MemoryFiles({TABLE_FILE: ARTIFACT.to_bytes()})
    seal_model(files, tmp_path / "heart", owner, name="heart", kind="table", keys=keys, broker=broker)
    handed = ModelHandover.of(tmp_path / "heart", owner.public)
    access = BrokerAccess(home.connect, broker, InsecureAttesterDouble(), holds=lambda _: True)

    def source() -> SealedFolder:
        return SealedFolder(handed, lender(handed, access=access))

    def service() -> Service:
        return Service(source(), attester=InsecureAttesterDouble(), clients=None, allow_swap=True)

    with pytest.raises(PolicyRefused, match="granted nothing"):
        service().start()
    wanted = handed.wanted
    keys.allow(permission(kek_id=wanted.kek_id, manifest=wanted.manifest, plan=None, purpose=PURPOSE))
    with running(source()) as here:
        assert here.ask("/v1/score", {"rows": [ROW]})[0] == 200
    with pytest.raises(PolicyRefused):
        service().start()


@pytest.mark.slow
def test_a_sealed_language_model(tmp_path: Path) -> None:
    from tests.inference.language.models import make_tiny_model

    make_tiny_model(tmp_path / "plain")
    keys, files = Keys(), PlainFolder(tmp_path / "plain")
    seal_model(files, tmp_path / "tiny", person("ann"), name="tiny", kind="language", keys=keys)
    files.close()
    handed = ModelHandover.of(tmp_path / "tiny", person("ann").public)
    source = SealedFolder(handed, lender(handed, keys=keys), kv_tokens=2048)
    with running(source, threads=1) as here:
        asked = {"model": "tiny", "prompt": "Good morning", "max_tokens": 8, "temperature": 0}
        status, body = here.ask("/v1/completions", asked)
        assert status == 200, body
        assert here.keys().model_digest == handed.manifest.digest


class Mislabelled(MemoryFiles):
    """Says of its files that they are others."""

    digest = "ab" * 32  # type: ignore[misc]

    def __init__(self) -> None:
        self._contents = {TABLE_FILE: ARTIFACT.to_bytes()}
        self.names = (TABLE_FILE,)  # type: ignore[misc]


def test_an_owner_who_signs_another_models_digest_is_not_served(tmp_path: Path) -> None:
    """Clients pin the digest: the worker has to find it in the files, and not in what their owner says."""
    need_walls()
    keys = Keys()
    seal_model(Mislabelled(), tmp_path / "heart", person("ann"), name="heart", kind="table", keys=keys)
    handed = ModelHandover.of(tmp_path / "heart", person("ann").public)
    with pytest.raises(IntegrityError, match="not what its digest says"):
        Service(
            SealedFolder(handed, lender(handed, keys=keys)),
            attester=InsecureAttesterDouble(),
            clients=None,
            allow_swap=True,
        ).start()


class Lending:
    """Lends as another does, and can be watched."""

    def __init__(self, handed: ModelHandover, keys: Keys) -> None:
        self.inner = lender(handed, keys=keys)

    def lend(self, wrapped: bytes) -> bytes:
        return self.inner.lend(wrapped)

    carry = attest = lend  # type: ignore[assignment]


def test_what_lent_the_key_is_let_go(tmp_path: Path) -> None:
    """A front reads what strangers send for days; an open keystore has no business beside it."""
    keys = Keys()
    handed = sealed_table(tmp_path, keys)
    lending = Lending(handed, keys)
    watched = weakref.ref(lending)
    source = SealedFolder(handed, lending)  # type: ignore[arg-type]
    service = Service(source, attester=InsecureAttesterDouble(), clients=None, allow_swap=True)
    need_walls()
    with service:
        del lending, source
        gc.collect()
        assert watched() is None
