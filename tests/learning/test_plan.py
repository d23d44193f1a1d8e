from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learning.plans import make_plan, plan_text

from cloister.errors import InputError, PlanError
from cloister.learning import Plan, load_plan, parse_plan
from cloister.learning.sections import LanguageSection, TensorRange

REFERENCE = Path(__file__).parents[2] / "docs" / "reference-plan.toml"


def test_the_reference_plan_is_read_and_names_every_field() -> None:
    plan = load_plan(REFERENCE)
    text = REFERENCE.read_text()
    assert plan.study.name == "heart-disease"
    assert [site.name for site in plan.sites] == ["cleveland", "hungary", "switzerland", "va"]
    language = LanguageSection(base="8" * 64, tokenizer="9" * 64)
    for table, fields in {**msgspec.to_builtins(plan), "language": msgspec.to_builtins(language)}.items():
        for field in fields[0] if isinstance(fields, tuple | list) else fields:
            shown = f"\n{field} = " in text or f"\n# {field} = " in text
            assert shown, f"{table}.{field} is not in the reference plan"


def test_the_reference_plan_shows_ranges_of_tensors() -> None:
    shown = "".join(line.removeprefix("# ") + "\n" for line in REFERENCE.read_text().splitlines())
    table = tomllib.loads(shown[shown.index("[[aggregation.ranges]]") : shown.index("\n[privacy]")])
    (entry,) = table["aggregation"]["ranges"]
    assert set(entry) == set(TensorRange.__struct_fields__)
    msgspec.convert(entry, TensorRange)


def test_the_reference_plan_states_the_defaults_it_claims() -> None:
    stated = load_plan(REFERENCE)
    assert stated.aggregation == msgspec.structs.replace(
        type(stated.aggregation)(), threshold=stated.params(4).threshold, colluders=stated.params(4).colluders
    )
    assert stated.release == type(stated.release)()
    assert stated.spare_rounds == make_plan({"training.rounds": "50"}).spare_rounds


def test_defaults() -> None:
    plan = make_plan()
    assert plan.study.minimum_sites == 3
    assert plan.data.scaling == "bounds"
    assert plan.data.public_rows is False
    assert plan.training.algorithm == "fedavg"
    assert plan.training.server_rate == 1.0
    assert plan.training.weights == "rows"
    assert plan.training.average_last == 0
    assert plan.aggregation.secure is True
    assert plan.aggregation.hub_view == "sum"
    assert plan.aggregation.bits == 32
    assert plan.model.initial == ""
    assert make_plan({"training.algorithm": '"fedadam"'}).training.server_rate == 0.01
    assert make_plan({"training.server_learning_rate": "3"}).training.server_rate == 3.0


@pytest.mark.parametrize(("rounds", "spares"), [(1, 3), (60, 3), (61, 4), (100, 5), (1001, 51)])
def test_spare_rounds_are_three_or_five_per_cent(rounds: int, spares: int) -> None:
    plan = make_plan({"training.rounds": str(rounds)})
    assert plan.spare_rounds == spares
    assert plan.attempts == rounds + spares
    assert make_plan({"training.rounds": str(rounds), "study.spare_rounds": "0"}).attempts == rounds


def test_the_digest_is_sha256_of_canonical_json_without_absent_fields() -> None:
    plan = make_plan()

    def present(value: object) -> object:
        if isinstance(value, dict):
            return {k: present(v) for k, v in value.items() if v is not None}
        return [present(v) for v in value] if isinstance(value, list | tuple) else value

    text = json.dumps(present(msgspec.to_builtins(plan)), sort_keys=True, separators=(",", ":"))
    # RFC 8785 writes 60.0 as 60
    text = text.replace(":60.0", ":60").replace(":8.0", ":8").replace(":0.0", ":0")
    assert plan.digest == hashlib.sha256(text.encode()).digest()


def test_the_digest_sees_values_and_not_layout() -> None:
    text = plan_text()
    same = parse_plan(b"# a comment\n" + text.replace(b'name = "demo"', b'name   =   "demo" # here'))
    assert same.digest == make_plan().digest
    assert make_plan({"training.batch": "3"}).digest != make_plan().digest
    assert make_plan({"training.weights": '"rows"'}).digest == make_plan().digest
    assert make_plan({"aggregation.threshold": "3"}).digest != make_plan().digest


@settings(deadline=None, max_examples=60)
@given(
    purpose=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30),
    rate=st.floats(1e-12, 1000.0),
    l2=st.floats(0.0, 1000.0),
    rounds=st.integers(1, 60_000),
    features=st.lists(
        st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    threshold=st.none() | st.just(3),
    hidden=st.lists(st.integers(1, 99), min_size=1, max_size=3),
)
def test_a_plan_survives_being_written(
    purpose: str,
    rate: float,
    l2: float,
    rounds: int,
    features: list[str],
    threshold: int | None,
    hidden: list[int],
) -> None:
    plan = make_plan()
    plan = msgspec.structs.replace(
        plan,
        study=msgspec.structs.replace(plan.study, purpose=purpose),
        data=msgspec.structs.replace(plan.data, features=tuple(features), label="the label"),
        training=msgspec.structs.replace(plan.training, learning_rate=rate, l2=l2, rounds=rounds),
        aggregation=msgspec.structs.replace(plan.aggregation, threshold=threshold),
        model=msgspec.structs.replace(plan.model, kind="mlp", hidden=tuple(hidden), classes=3),
    )
    again = parse_plan(plan.to_toml().encode())
    assert again == plan
    assert again.digest == plan.digest


BAD = {
    "study.name": '"Demo"',
    "study.purpose": '""',
    "study.minimum_sites": "4",
    "study.spare_rounds": "-1",
    "study.deadline_seconds": "0",
    "hub.name": '"a"',
    "hub.identity": '"beef"',
    "data.schema": f'"{"G" * 64}"',
    "data.features": '["x1", "x1"]',
    "data.label": '"x1"',
    "data.scaling": '"zscore"',
    "model.kind": '"forest"',
    "model.hidden": "[3]",
    "model.activation": '"gelu"',
    "model.classes": "3",
    "model.seed": "-1",
    "model.initial": '"abc"',
    "training.algorithm": '"fedsgd"',
    "training.rounds": "0",
    "training.batch": "0",
    "training.local_steps": "0",
    "training.optimiser": '"lbfgs"',
    "training.learning_rate": "nan",
    "training.server_learning_rate": "inf",
    "training.l2": "-0.1",
    "training.weights": '"loss"',
    "training.average_last": "5",
    "aggregation.secure": "false",
    "aggregation.threshold": "1",
    "aggregation.colluders": "-1",
    "aggregation.hub_view": '"all"',
    "aggregation.bits": "24",
    "aggregation.value_range": "0.0",
    "release.recipients": '["a", "a"]',
}


@pytest.mark.parametrize("path", BAD)
def test_a_value_out_of_range_is_one_sentence_that_names_the_field(path: str) -> None:
    _table, _, field = path.partition(".")
    with pytest.raises(PlanError) as caught:
        parse_plan(plan_text({path: BAD[path]}))
    assert "\n" not in str(caught.value)
    named = caught.value.where + " " + caught.value.what
    assert (
        field in named
        or "names of [hub]" in named
        or field == "minimum_sites"
        or field in ("hidden", "label")
    ), named
    assert caught.value.fix


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.kind": '"softmax"'}, "classes"),
        ({"model.kind": '"mlp"'}, "hidden"),
        ({"model.kind": '"linear"', "model.classes": "2"}, "classes"),
        ({"model.kind": '"mlp"', "model.hidden": "[4]", "model.classes": "1"}, "classes"),
        ({"model.kind": '"mlp"', "model.hidden": "[0]"}, "hidden"),
        ({"aggregation.threshold": "2"}, "threshold"),
        ({"aggregation.colluders": "2"}, "colluders"),
        ({"training.rounds": "true"}, "rounds"),
        ({"training.rounds": "4.0"}, "rounds"),
        ({"training.rounds": None}, "rounds"),
        ({"data.features": "[]"}, "features"),
        ({"study.purpose": '" padded "'}, "purpose"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(plan_text(changes))


@pytest.mark.parametrize("table", ["simulation"])
@pytest.mark.parametrize("content", ["", "epsilon = 1.0\n"])
def test_what_this_version_cannot_honour_is_never_ignored(table: str, content: str) -> None:
    with pytest.raises(PlanError, match="cannot honour"):
        parse_plan(plan_text(extra=f"[{table}]\n{content}"))


def test_a_plan_without_an_enclave_table_keeps_its_digest_and_asks_for_no_evidence() -> None:
    plan = make_plan()
    assert plan.enclave is None
    assert plan.reattest_seconds is None
    assert b"enclave" not in plan.to_toml().encode()
    asking = parse_plan(plan_text(extra="[enclave]\nrequired = true\n"))
    assert asking.reattest_seconds == 86_400
    assert asking.digest != plan.digest
    assert parse_plan(asking.to_toml().encode()) == asking
    assert parse_plan(plan_text(extra="[enclave]\nrequired = false\n")).reattest_seconds is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "required"),
        ("reattest_seconds = 3600\n", "required"),
        ("required = 1\n", "required"),
        ("required = true\nreattest_seconds = 59\n", "reattest_seconds"),
        ("required = true\nreattest_seconds = 2678401\n", "reattest_seconds"),
        ("required = true\nreatest_seconds = 60\n", "reattest_seconds"),
    ],
)
def test_an_enclave_table_says_whether_evidence_is_required(content: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(plan_text(extra=f"[enclave]\n{content}"))


@pytest.mark.parametrize(
    ("extra", "nearest"),
    [("[trianing]\nrounds = 1\n", "training"), ("[[sites]]\nname='d'\nidentiy='x'\n", "identity")],
)
def test_an_unknown_key_names_the_nearest_known_one(extra: str, nearest: str) -> None:
    with pytest.raises(PlanError, match=nearest):
        parse_plan(plan_text(extra=extra))


@pytest.mark.parametrize(
    "data", [b"", b"[study", b"\xff\xfe", b"study = 3", b"a = " + b"[" * 5000, b"sites = []"]
)
def test_what_is_not_a_plan_is_an_error_of_the_plan(data: bytes) -> None:
    with pytest.raises(PlanError):
        parse_plan(data)


def test_a_huge_plan_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(PlanError, match="larger"):
        parse_plan(b"#" * ((4 << 20) + 1))


@pytest.mark.parametrize("text", [b"a = " + b"9" * 5000, b"a = " + b"[" * 3000, b"\xff"])
def test_what_is_no_toml_is_bad_input(text: bytes) -> None:
    with pytest.raises(InputError, match=r"not TOML|not UTF-8"):
        parse_plan(text)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_plan(tmp_path / "none.toml")


def test_two_sites_are_for_the_tutorial() -> None:
    text = plan_text({"study.minimum_sites": "2"}, sites=("a", "b"))
    with pytest.raises(PlanError, match="each can compute"):
        parse_plan(text)
    plan = parse_plan(text, allow_two=True)
    params = plan.params(2)
    assert (params.colluders, params.threshold, params.minimum) == (0, 2, 2)
    # three named sites, of which two would do, are not a tutorial
    with pytest.raises(PlanError):
        parse_plan(plan_text({"study.minimum_sites": "2"}), allow_two=True)


def test_parties_must_differ() -> None:
    twice = plan_text().replace(b"0" * 63 + b"2", b"0" * 63 + b"1")
    with pytest.raises(PlanError, match="twice"):
        parse_plan(twice)
    with pytest.raises(PlanError, match="twice"):
        parse_plan(plan_text(sites=("a", "a", "c")))


def test_secure_sum_parameters_come_from_the_plan() -> None:
    plan = make_plan(
        {"aggregation.colluders": "1", "aggregation.value_range": "2.5", "aggregation.bits": "16"}
    )
    assert plan.params(3).threshold == 3
    encoding = plan.encoding(3)
    assert (encoding.bits, encoding.parties, encoding.value_range) == (16, 3, 2.5)


def test_a_plan_is_frozen_and_complete() -> None:
    plan = make_plan()
    with pytest.raises(AttributeError):
        plan.study = None  # type: ignore[misc,assignment]
    with pytest.raises(TypeError):
        Plan()  # type: ignore[call-arg]
    assert hash(plan) == hash(make_plan())


def test_a_small_roster_of_a_large_plan_withstands_as_many_colluders() -> None:
    sites = tuple(f"s{number}" for number in range(10))
    plan = make_plan({"study.minimum_sites": "6"}, sites=sites)
    assert [plan.params(parties).colluders for parties in (6, 8, 10)] == [3, 3, 3]
    with pytest.raises(PlanError, match="colluders"):
        plan.params(3)
    with pytest.raises(PlanError, match="minimum_sites"):
        make_plan({"study.minimum_sites": "4"}, sites=sites)


def test_more_attempts_than_an_epoch_can_have_are_refused() -> None:
    with pytest.raises(PlanError, match="rounds"):
        make_plan({"training.rounds": "65536", "study.spare_rounds": "0"})
