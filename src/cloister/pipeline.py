"""The seven stages in order, on real rows, in one process. Read it from top to bottom: it is the product.

    collect    each site's rows are checked against the declared schema
    encrypt    each site adds its rows to its own encrypted vault, under its own keys, and declares in its
               ledger what may ever be learned from them
    federate   every site countersigns plan and roster; the secure sum is set up
    train      local training, clipped and noised, masked updates, one sum a round
    infer      somebody asks the model: rows sealed to it, answers sealed back
    seal       a whole set of results is encrypted to its reader
    release    the model leaves through the gate, with certificate, log entry and cosignatures; then it is
               verified

The folder that comes of it is whole or not there at all. Identities and keystores live as long as the run:
what stays of the vaults is ciphertext that nobody can open any more.

    OUT/report.json, report.html    what happened
    OUT/release/                    model, certificate, proof, plan, manifests
    OUT/trust/                      public identities to verify it with
    OUT/vaults/SITE/                the encrypted datasets
    OUT/ledgers/SITE/               what each owner has spent, where the run is private
    OUT/audit.json                  what attacks on the claim of privacy showed, where the run is private
    OUT/predictions.sealed          results, readable by their reader alone
    OUT/brokers/SITE/               who was given data keys and who was refused, where the run has enclaves
    OUT/enclave-policy.toml         what the brokers accepted

It runs everybody in one process, which the report says: it shows the protocols, not the walls between
organisations.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import cloister
from cloister.cases import Case, CaseData, Progress
from cloister.cases.privacy import audit_facts, budget_of, privacy_of_case
from cloister.crypto import Identity, ScryptCost, TrustStore, open_bytes, seal_bytes
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.policyfile import policy_toml
from cloister.errors import VerificationError
from cloister.files import new_directory, write_atomic
from cloister.governance import TrainedStudy, TrustAnchors, in_words, release, verify_release
from cloister.governance.audit import AuditReport
from cloister.governance.auditrun import audit
from cloister.governance.certificate import moment
from cloister.inference import ModelArtifact, Predictor, answer, seal_request
from cloister.learning import (
    ClientRows,
    DataSection,
    EnclaveSection,
    HubEntry,
    Plan,
    SiteEntry,
    StudySection,
    build_model,
    centralised,
    each_alone,
    evaluate,
    pin_initial,
    plan_features,
    start_of,
)
from cloister.log import Cosigner, Log
from cloister.privacy.ledger import Cap, Ledger
from cloister.report import (
    Aggregation,
    Certificate,
    Enclave,
    Epoch,
    Language,
    Metrics,
    Participant,
    Report,
    RoundPoint,
    Stage,
    StageName,
    Testing,
    say,
    write_report,
)
from cloister.report import Study as StudyFacts
from cloister.runtime import Event, Party, RoundDone, SetupDone, Stalled, Study, StudyResult
from cloister.runtime.workers.proxy import SandboxedWorker
from cloister.vault import Schema, Vault, load_schema

if TYPE_CHECKING:
    from cloister.cases.keepers import Keepers  # which needs what `cloister[enclave]` installs

__all__ = ["run_case"]

_TRAIN, _TEST = "train", "held-out"
_POPULATION = "patients"
_HUB = "hub"
_BATCH_LINES = 25
_CANARIES = 200  # enough for a bound that is not empty, in a few seconds; `cloister audit` takes more
_CONFIDENCE = 0.999  # an unlucky attack calls a sound mechanism a violation: not in one demo out of a hundred
# The keystores' passphrases are 32 random bytes that nobody keeps; a costly scrypt would protect nothing
# more.
_COST = ScryptCost(n=2**14)


@dataclass(frozen=True)
class _Site:
    """One organisation of the run."""

    identity: Identity
    vault: Vault
    ledger: Ledger | None = None

    def party(self, keepers: Keepers | None) -> Party:
        broker = None if keepers is None else keepers.access(self.identity.name)
        return Party(self.identity, self.vault, held_out=_TEST, ledger=self.ledger, broker=broker)


class _Clock:
    """Runs stages: times them, counts their bytes, tells the progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.stages: list[Stage] = []
        self.moved = 0

    @contextmanager
    def stage(self, name: StageName) -> Iterator[None]:
        """Time one stage; the code inside adds to `moved` what it read, wrote or sent."""
        self.moved = 0
        started = time.perf_counter()
        with self._progress.stage(name):
            yield
        self.stages.append(Stage(name, time.perf_counter() - started, self.moved))


def run_case(
    case: Case,
    *,
    data_dir: Path | None,
    out: Path,
    progress: Progress,
    lang: Language = "en",
    private: bool = True,
    enclave: bool = False,
    enclave_policy: EnclavePolicy | None = None,
) -> Report:
    """Run all seven stages of a case and write everything under `out`.

    Args:
        case: what to run.
        data_dir: folder with the case's files, where it needs them.
        out: the folder to make; an earlier run's folder is replaced as a whole, anything else is refused.
        progress: who is told.
        lang: language of the report.
        private: train under differential privacy, with the case's own settings.
        enclave: keep each site's data keys with a broker that releases them to attested, sandboxed workers
            alone, and have hub and sites show each other evidence.
        enclave_policy: what the brokers accept; None for the package that runs here.

    Returns:
        The report as written.

    Raises:
        CloisterError: whatever went wrong; `out` is as it was.
    """
    clock = _Clock(progress)
    with new_directory(out, replace=_is_earlier_run) as folder, ExitStack() as opened:
        keepers = _keepers(folder, opened, enclave_policy) if enclave else None
        with clock.stage("collect"):
            data = case.load(data_dir)
            schema = load_schema(case.schema_toml.encode())
            clock.moved = sum(rows.train.nbytes + rows.test.nbytes for rows in data.sites.values())
        with clock.stage("encrypt"):
            sites = _encrypt(case, schema, data, folder, opened if private else None, keepers)
            clock.moved = _size(folder / "vaults")
        hub = Identity.generate(_HUB)
        plan = _plan(case, schema, hub, sites, private, enclave)
        attempt = None if keepers is None else _guard(plan, sites, keepers, progress)
        result, walls = _federate_and_train(plan, hub, sites, clock, progress, keepers)
        predictor = Predictor.of(ModelArtifact.of_plan(plan, schema, result.model))
        questions = data.sites[case.sites[0]].test.slice(0, _BATCH_LINES).drop_columns([case.label])
        with clock.stage("infer"):
            clock.moved = _infer(predictor, questions)
        everything = pa.concat_tables([rows.test for rows in data.sites.values()])
        with clock.stage("seal"):
            clock.moved = _seal(predictor, everything.drop_columns([case.label]), folder)
        with clock.stage("release"):
            attacked = _audit(plan, schema, result, folder, progress) if private else None
            certificate, words = _release(result, hub, sites, folder, lang, attacked)
            clock.moved = _size(folder / "release")
        report = _report(case, plan, result, data, schema, clock.stages, certificate, words, out, lang)
        if result.privacy is not None:
            budgets = tuple(
                budget_of(site.identity.name, site.ledger, _POPULATION) for site in sites if site.ledger
            )
            privacy = privacy_of_case(plan, result, data, schema, budgets)
            if attacked is not None:
                privacy = msgspec.structs.replace(privacy, audit=audit_facts(attacked))
            report = msgspec.structs.replace(report, privacy=privacy)
        if keepers is not None:
            report = msgspec.structs.replace(
                report, enclave=_enclave_facts(keepers, case, attempt, walls, lang)
            )
        return write_report(folder, report)


# --- collect, encrypt -------------------------------------------------------------------------------------


def _encrypt(
    case: Case,
    schema: Schema,
    data: CaseData,
    folder: Path,
    ledgers: ExitStack | None,
    keepers: Keepers | None,
) -> list[_Site]:
    sites = []
    for name, rows in data.sites.items():
        identity = Identity.generate(name)
        if keepers is None:
            vault = Vault.unlock(folder / "vaults" / name, identity, secrets.token_hex(32), cost=_COST)
        else:
            vault = keepers.vault(name, identity)
        for dataset, table in ((_TRAIN, rows.train), (_TEST, rows.test)):
            vault.add_table(table, name=dataset, schema=schema, purposes=[case.purpose])
        ledger = None
        if ledgers is not None:
            ledger = ledgers.enter_context(Ledger.open(folder / "ledgers" / name, identity))
            ledger.declare(_POPULATION, Cap.of(*case.private.cap))
            ledger.bind(_POPULATION, vault.manifest(_TRAIN).dataset_id, vault.fingerprints(_TRAIN))
        sites.append(_Site(identity, vault, ledger))
    return sites


# --- enclave ----------------------------------------------------------------------------------------------


def _keepers(folder: Path, opened: ExitStack, policy: EnclavePolicy | None) -> Keepers:
    """Return the sites' key brokers, and write down what they accept."""
    from cloister.cases.keepers import Keepers

    state = Path(opened.enter_context(TemporaryDirectory(prefix="cloister-")))
    keepers = Keepers(folder, opened, state, cost=_COST, policy=policy)
    write_atomic(folder / "enclave-policy.toml", policy_toml(keepers.policy))
    return keepers


def _guard(plan: Plan, sites: Sequence[_Site], keepers: Keepers, progress: Progress) -> str:
    """Grant the datasets to the plan, then try them with a changed package; return which file was changed."""
    keepers.allow(plan, {site.identity.name: site.vault for site in sites}, (_TRAIN, _TEST))
    first = sites[0]
    progress.note(f"asking {first.identity.name}'s broker with a package in which one byte was changed")
    return keepers.try_changed(plan, first.identity.name, first.vault, _TRAIN)


def _enclave_facts(
    keepers: Keepers, case: Case, changed: str | None, walls: Mapping[str, bool | None], lang: Language
) -> Enclave:
    stand = {True: "wall_stands", False: "wall_missing", None: "wall_missing"}
    return keepers.facts(
        worker_of={name: say(lang, "worker_of", site=name) for name in case.sites},
        changed=say(lang, "one_changed_byte", file=changed),
        walls={name: say(lang, stand[state]) for name, state in walls.items()},
    )


# --- federate, train --------------------------------------------------------------------------------------


def _plan(
    case: Case, schema: Schema, hub: Identity, sites: Sequence[_Site], private: bool, enclave: bool
) -> Plan:
    plan = Plan(
        study=StudySection(name=case.name, purpose=case.purpose),
        hub=HubEntry(name=hub.name, identity=hub.fingerprint),
        sites=tuple(
            SiteEntry(name=site.identity.name, identity=site.identity.fingerprint, dataset=_TRAIN)
            for site in sites
        ),
        data=DataSection(
            schema=schema.digest().hex(),
            features=schema.features,
            label=case.label,
            scaling=case.scaling,
            public_rows=case.public_rows,
        ),
        model=case.model,
        training=case.private.training if private else case.training,
        aggregation=case.aggregation,
        privacy=case.private.privacy if private else None,
        enclave=EnclaveSection(required=True) if enclave else None,
    )
    return pin_initial(plan, schema)


def _federate_and_train(
    plan: Plan,
    hub: Identity,
    sites: Sequence[_Site],
    clock: _Clock,
    progress: Progress,
    keepers: Keepers | None,
) -> tuple[StudyResult, Mapping[str, bool | None]]:
    """Run the study; its set-up counts as `federate`, its rounds as `train`. Return the walls around workers,
    too, where there are some."""
    rounds = plan.training.rounds
    with ExitStack() as stage:
        stage.enter_context(clock.stage("federate"))
        study = Study(
            plan,
            hub,
            [site.party(keepers) for site in sites],
            sandboxed=keepers is not None,
            attesting=None if keepers is None else keepers.attesting,
        )
        at_setup = 0

        def on_event(event: Event) -> None:
            nonlocal at_setup
            if isinstance(event, SetupDone):
                clock.moved = at_setup = study.bytes_sent
                stage.close()
                stage.enter_context(clock.stage("train"))
            elif isinstance(event, RoundDone):
                progress.round(event.round + 1, rounds, (event.metrics or {}).get("accuracy"))
            elif isinstance(event, Stalled):
                progress.note(f"round {event.round + 1} waits for {', '.join(event.missing)}")

        result = study.run(on_event)
        clock.moved = study.bytes_sent - at_setup
    worker = next(iter(study.sites.values())).worker
    return result, worker.walls if isinstance(worker, SandboxedWorker) else {}


# --- infer, seal ------------------------------------------------------------------------------------------


def _infer(predictor: Predictor, questions: pa.Table) -> int:
    """Ask the model over sealed rows; return the bytes that travelled."""
    server, asker = Identity.generate("model-server"), Identity.generate("asker")
    request = seal_request(questions, server.public, asker.public)
    reply = answer(request.message, server, predictor)
    _require_same(request.open_answer(reply, asker), predictor.predict(questions))
    return len(request.message) + len(reply)


def _seal(predictor: Predictor, rows: pa.Table, folder: Path) -> int:
    """Encrypt the predictions for all held-out rows to their reader; return the size of the file."""
    reader = Identity.generate("reader")
    predictions = predictor.predict(rows)
    sink = pa.BufferOutputStream()
    pq.write_table(predictions, sink)
    sealed = seal_bytes(sink.getvalue().to_pybytes(), [reader.public])
    write_atomic(folder / "predictions.sealed", sealed)
    _require_same(pq.read_table(pa.BufferReader(open_bytes(sealed, reader))), predictions)
    return len(sealed)


def _require_same(received: pa.Table, expected: pa.Table) -> None:
    if received.to_pydict() != expected.to_pydict():
        raise VerificationError(
            "what was sealed is not what its reader opened", fix="Report this: it must not happen"
        )


# --- release ----------------------------------------------------------------------------------------------


def _audit(plan: Plan, schema: Schema, result: StudyResult, folder: Path, progress: Progress) -> AuditReport:
    """Attack the plan's mechanism with synthetic canaries, and write what came of it."""
    progress.note(f"attacking the claim with {_CANARIES} canaries")
    report = audit(
        plan,
        schema,
        len(result.members),
        created=moment(),
        rows=result.rows,
        canaries=_CANARIES,
        confidence=_CONFIDENCE,
    )
    write_atomic(folder / "audit.json", report.to_json())
    return report


def _release(
    result: StudyResult,
    hub: Identity,
    sites: Sequence[_Site],
    folder: Path,
    lang: Language,
    audit: AuditReport | None,
) -> tuple[Certificate, tuple[str, ...]]:
    """Let the model out through the gate, and verify what came out as a reader would."""
    identities = [hub, *(site.identity for site in sites)]
    trust = TrustStore(folder / "trust")
    for identity in identities:
        trust.add(identity.public)
    watching = folder / "log" / "cosigners"
    released = release(
        folder / "release",
        TrainedStudy.of_result(result),
        signer=hub,
        log=Log(folder / "log" / "entries", hub.fingerprint),
        cosigners=[Cosigner(watching / site.identity.name, site.identity) for site in sites],
        created=moment(),
        audit=audit,
    )
    anchors = TrustAnchors.of(identity.public for identity in identities)
    verify_release(folder / "release", anchors).require()
    statement = released.certificate.statement
    facts = Certificate(
        path="release/certificate.dsse.json",
        sha256=released.certificate.digest.hex(),
        model_sha256=statement.subjects()["model.safetensors"],
        cosignatures=released.cosignatures,
        cosignatures_required=max(epoch.colluders for epoch in statement.predicate.aggregation.epochs) + 1,
        log_entries=released.log_size,
    )
    return facts, tuple(in_words(statement, lang))


# --- report -----------------------------------------------------------------------------------------------


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_earlier_run(folder: Path) -> bool:
    """True for a folder that a run of a case wrote: only such a one is ever replaced."""
    return all((folder / name).exists() for name in ("report.json", "report.html", "release", "vaults"))


def _report(
    case: Case,
    plan: Plan,
    result: StudyResult,
    data: CaseData,
    schema: Schema,
    stages: Sequence[Stage],
    certificate: Certificate,
    words: tuple[str, ...],
    out: Path,
    lang: Language,
) -> Report:
    params = plan.params(len(result.members))
    rows = {name: count for epoch in result.epochs for name, count in epoch.rows.items()}
    aggregation = plan.aggregation
    metrics, testing = _metrics(plan, result, data, schema)
    return Report(
        lang=lang,
        case=case.name,
        title=case.title.to(lang),
        question=case.question.to(lang),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        stages=tuple(stages),
        participants=tuple(
            Participant(name, rows[name], data.sites[name].test.num_rows)
            for name in case.sites
            if name in rows
        ),
        metrics=metrics,
        certificate=certificate,
        verify_command=f"cloister verify {out / 'release'} --trust {out / 'trust'}",
        subject=case.subject(lang),
        source=case.source(lang),
        study=StudyFacts(
            hub=result.hub.name,
            rounds=len(result.rounds),
            attempts=result.rounds[-1].attempt + 1,
            fewest_sites=min(len(done.survivors) for done in result.rounds),
            plan_sha256=plan.digest.hex(),
            average_last=plan.training.average_last,
            epochs=_epochs(result),
        ),
        aggregation=Aggregation(
            parties=params.parties,
            colluders=params.colluders,
            threshold=params.threshold,
            minimum=params.minimum,
            tolerated_dropouts=params.tolerated_dropouts,
            bits=aggregation.bits,
            hub_view=aggregation.hub_view,
        ),
        testing=testing,
        curves=_curves(result),
        software={
            name: metadata.version(name) for name in ("cryptography", "numpy", "pyarrow", "scikit-learn")
        }
        | {"cloister": cloister.__version__},
        certificate_in_words=words,
    )


def _epochs(result: StudyResult) -> tuple[Epoch, ...]:
    """Return who took part in which rounds."""
    ran = [
        (epoch, [done.round + 1 for done in result.rounds if done.epoch == epoch.number])
        for epoch in result.epochs
    ]
    return tuple(
        Epoch(rounds[0], rounds[-1], tuple(member.name for member in epoch.members))
        for epoch, rounds in ran
        if rounds
    )


def _metrics(plan: Plan, result: StudyResult, data: CaseData, schema: Schema) -> tuple[Metrics, Testing]:
    """Compare the released model with all rows in one place and with each site alone.

    Possible because the case declares its rows public: no process of a real study holds them all.
    """
    features = plan_features(plan, schema)
    model = build_model(plan.model, features.width)  # no case has code of its own
    parts = {name: features.transform(rows.train) for name, rows in data.sites.items()}
    held_out = {name: features.transform(rows.test) for name, rows in data.sites.items()}
    X, y = (np.concatenate(arrays) for arrays in zip(*held_out.values(), strict=True))
    start, rows = start_of(plan, model), ClientRows.stack(list(parts.values()))
    alone = each_alone(model, start, rows, plan.training)
    together = centralised(model, start, rows, plan.training)

    def accuracy(params: np.ndarray, X: np.ndarray = X, y: np.ndarray = y) -> float:
        return evaluate(model, params, X, y)["accuracy"]

    more: dict[str, float | None] = {
        key: value for key, value in evaluate(model, result.model, X, y).items() if key != "accuracy"
    }
    return (
        Metrics(
            federated=accuracy(result.model),
            centralised=accuracy(together),
            local={name: accuracy(params) for name, params in zip(parts, alone, strict=True)},
        ),
        Testing(
            rows=len(y),
            federated_by_site={name: accuracy(result.model, *own) for name, own in held_out.items()},
            more=more,
        ),
    )


def _curves(result: StudyResult) -> tuple[RoundPoint, ...]:
    """Return the global model after each round; a round's own record evaluates the model it started from."""
    after = [done.metrics for done in result.rounds[1:]]
    after.append(None if result.final_metrics is None else result.final_metrics[0])
    return tuple(
        RoundPoint(number, (metrics or {}).get("accuracy"), (metrics or {}).get("log_loss"))
        for number, metrics in enumerate(after, start=1)
    )
