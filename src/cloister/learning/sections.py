"""The tables of a study plan: their fields, defaults and ranges. Frozen data; `Plan` puts them together."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloister.errors import PlanError
from cloister.learning.ranges import (
    check_between,
    check_digest,
    check_distinct,
    check_identifier,
    check_positive,
    check_python_name,
    check_text,
)

__all__ = [
    "AggregationSection",
    "DataSection",
    "EnclaveSection",
    "HubEntry",
    "LanguageSection",
    "ModelSection",
    "PrivacySection",
    "ReleaseSection",
    "Section",
    "SiteEntry",
    "StudySection",
    "TensorRange",
    "TrainingSection",
]


_LEAST_CLIP = 1e-9


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the plan."""


class StudySection(Section, frozen=True, kw_only=True):
    """`[study]`: what it is called, what for, and when it gives up waiting."""

    name: str
    purpose: str
    minimum_sites: int = 3
    spare_rounds: int | None = None
    deadline_seconds: float = 60.0
    # unset and not null: plans that leave it out keep their digest
    patience: int | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        check_identifier(self.name, "[study] name")
        check_text(self.purpose, "[study] purpose")
        check_between(self.minimum_sites, 2, 100_000, "[study] minimum_sites")
        if self.spare_rounds is not None:
            check_between(self.spare_rounds, 0, 1_000_000, "[study] spare_rounds")
        check_positive(self.deadline_seconds, 86_400.0, "[study] deadline_seconds")
        if isinstance(self.patience, int):
            check_between(self.patience, 1, 100_000, "[study] patience")


class HubEntry(Section, frozen=True, kw_only=True):
    """`[hub]`: who carries the messages and adds the sums."""

    name: str
    identity: str

    def __post_init__(self) -> None:
        check_identifier(self.name, "[hub] name")
        check_digest(self.identity, "[hub] identity")


class SiteEntry(Section, frozen=True, kw_only=True):
    """`[[sites]]`: an organisation, its identity's fingerprint, and its dataset's name in its own vault."""

    name: str
    identity: str
    dataset: str

    def __post_init__(self) -> None:
        check_identifier(self.name, "[[sites]] name")
        check_digest(self.identity, "[[sites]] identity")
        check_identifier(self.dataset, "[[sites]] dataset")


class DataSection(Section, frozen=True, kw_only=True):
    """`[data]`: the schema's digest, the columns in use, how they are scaled, whether rows are public."""

    schema: str
    features: tuple[str, ...]
    label: str
    scaling: Literal["bounds", "local"] = "bounds"
    public_rows: bool = False

    def __post_init__(self) -> None:
        check_digest(self.schema, "[data] schema")
        # none where a language model learns whole texts or conversations; the plan sees to it
        check_between(len(self.features), 0, 100_000, "the number of [data] features")
        for column in (*self.features, self.label):
            check_text(column, "a column in [data]")
        check_distinct(self.features, "[data] features")
        if self.label in self.features:
            raise PlanError(
                "the label is also a feature",
                where="[data] features",
                fix="Take the label out of the features",
            )


class ModelSection(Section, frozen=True, kw_only=True):
    """`[model]`: its kind and shape, the seed of its start, and that start's pinned digest.

    With kind "torch" the model is a module that `factory` returns in a Python file whose SHA-256 is `code`;
    every site decides for itself whether that file may run. "causal-lm" and "text-classifier" are language
    models; what they start from stands in `[language]`.
    """

    kind: Literal["linear", "logistic", "softmax", "mlp", "torch", "causal-lm", "text-classifier"]
    hidden: tuple[int, ...] = ()
    activation: Literal["relu", "tanh"] = "relu"
    classes: int = 0
    seed: int = 0
    initial: str = ""
    # unset and not null: cards of models that have none keep their canonical bytes
    code: str | msgspec.UnsetType = msgspec.UNSET
    factory: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        check_between(self.seed, 0, 2**53 - 1, "[model] seed")
        check_between(
            len(self.hidden), *((1, 8) if self.kind == "mlp" else (0, 0)), "the number of [model] hidden"
        )
        for width in self.hidden:
            check_between(width, 1, 65_536, "a width in [model] hidden")
        written = [isinstance(field, str) for field in (self.code, self.factory)]
        if not all(has is (self.kind == "torch") for has in written):
            raise PlanError(
                "code and factory belong to kind = 'torch', and it needs both",
                where="[model]",
                fix="Write the SHA-256 of the Python file as code, and the name of its function as factory",
            )
        if isinstance(self.code, str) and isinstance(self.factory, str):
            check_digest(self.code, "[model] code")
            check_python_name(self.factory, "[model] factory")
        several = range(2, 10_001)
        allowed = {
            "linear": (0,),
            "logistic": (0, 2),
            "softmax": several,
            "causal-lm": (0,),
            "text-classifier": several,
        }.get(self.kind, (0, *several))
        if self.classes not in allowed:
            number = self.kind in ("linear", "mlp", "torch", "causal-lm")
            meaning = "0 for a number" if number else "the number of the label's classes"
            raise PlanError(
                f"classes = {self.classes} does not fit kind = {self.kind!r}",
                where="[model] classes",
                fix=f"Write {meaning}"
                + (", or 2 or more for classes" if self.kind in ("mlp", "torch") else ""),
            )
        if self.initial:
            check_digest(self.initial, "[model] initial")

    @property
    def is_language(self) -> bool:
        """Whether it starts from a language model."""
        return self.kind in ("causal-lm", "text-classifier")


class LanguageSection(Section, frozen=True, kw_only=True):
    """`[language]`: the base of a language model, what of it is trained, and how texts become tokens.

    Attributes:
        base: digest of the base model's files (`learning.modelfiles.set_digest`); the base is public.
        tokenizer: digest of those of its files that its tokenizer is made of.
        format: "text" learns whole texts, "pairs" an answer to a prompt, "chat" the assistant's turns of a
            conversation; a text-classifier reads "text".
        context: tokens of a row at most.
        overlong: what becomes of a longer row: the site refuses the study; or a prompt loses its beginning,
            and what is learnt its end.
        method: "lora" trains B and leaves A as the seed drew it, so that averages are exact;
            "lora-alternating" trains B in even rounds and A in odd ones; "full" trains everything.
        rank: of the adapters; 0 with method "full".
        alpha: the adapters' scale is alpha / rank.
        targets: names of the linear layers that get adapters, as their last part ("q_proj"); empty for every
            linear layer but the output's.
        precision: what the base computes in; adapters are float32.
        quantised: "nf4" keeps the base in 4 bits, where the hardware can compute with it.
        rows_per_pass: rows that go through the model at once; a batch is that many passes. 0 for all.
        checkpointing: forget activations and compute them again: less memory, about a third more time.
        packing: put several texts into one row of `context` tokens; never under [privacy].
    """

    base: str
    tokenizer: str
    format: Literal["text", "pairs", "chat"] = "text"
    context: int = 512
    overlong: Literal["refuse", "truncate"] = "refuse"
    method: Literal["lora", "lora-alternating", "full"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    quantised: Literal["no", "nf4"] = "no"
    rows_per_pass: int = 0
    checkpointing: bool = False
    packing: bool = False

    def __post_init__(self) -> None:
        check_digest(self.base, "[language] base")
        check_digest(self.tokenizer, "[language] tokenizer")
        check_between(self.context, 8, 1 << 20, "[language] context")
        check_between(self.rank, *((0, 0) if self.method == "full" else (1, 1024)), "[language] rank")
        check_positive(self.alpha, 1e6, "[language] alpha")
        for target in self.targets:
            check_text(target, "[language] targets")
        check_distinct(self.targets, "[language] targets")
        check_between(self.rows_per_pass, 0, 1 << 20, "[language] rows_per_pass")
        if self.quantised != "no" and self.method == "full":
            raise PlanError(
                "a quantised base cannot be trained itself",
                where="[language] quantised",
                fix='Write method = "lora", or quantised = "no"',
            )


class TrainingSection(Section, frozen=True, kw_only=True):
    """`[training]`: the algorithm at the hub and the optimiser at the sites."""

    algorithm: Literal["fedavg", "fedadam"] = "fedavg"
    rounds: int
    batch: int
    local_steps: int
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float
    server_learning_rate: float | None = None
    l2: float = 0.0
    weights: Literal["rows", "equal"] = "rows"
    average_last: int = 0

    def __post_init__(self) -> None:
        check_between(self.rounds, 1, 1_000_000, "[training] rounds")
        check_between(self.batch, 1, 1 << 24, "[training] batch")
        check_between(self.local_steps, 1, 1_000_000, "[training] local_steps")
        check_positive(self.learning_rate, 1000.0, "[training] learning_rate")
        if self.server_learning_rate is not None:
            check_positive(self.server_learning_rate, 1000.0, "[training] server_learning_rate")
        if not 0.0 <= self.l2 <= 1000.0:
            raise PlanError("l2 is not between 0 and 1000", where="[training] l2", fix="Write 0 for none")
        check_between(self.average_last, 0, self.rounds, "[training] average_last")

    @property
    def server_rate(self) -> float:
        """The server's learning rate: as written, else 1 for fedavg and 0.01 for fedadam."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return 1.0 if self.algorithm == "fedavg" else 0.01


class TensorRange(Section, frozen=True, kw_only=True):
    """`[[aggregation.ranges]]`: a `value_range` of their own for tensors whose names fit a pattern.

    Attributes:
        tensor: the pattern, as of file names: * for any characters, ? for one, [ab] for one of them.
        value_range: a weighted update's coordinate beyond it is clamped.
    """

    tensor: str
    value_range: float

    def __post_init__(self) -> None:
        check_text(self.tensor, "[[aggregation.ranges]] tensor")
        check_positive(self.value_range, float(1 << 20), "[[aggregation.ranges]] value_range")


class AggregationSection(Section, frozen=True, kw_only=True):
    """`[aggregation]`: the secure sum's parameters.

    `ranges` names tensors of a language model; the first pattern that a tensor's name fits is its own.
    """

    secure: bool = True
    threshold: int | None = None
    colluders: int | None = None
    hub_view: Literal["sum", "none"] = "sum"
    bits: Literal[8, 16, 32] = 32
    value_range: float = 8.0
    # unset and not empty: plans that leave them out keep their digest
    ranges: tuple[TensorRange, ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if not self.secure:
            raise PlanError(
                "secure = false would show the hub each site's update",
                where="[aggregation] secure",
                fix="Leave it out, or write true",
            )
        if self.threshold is not None:
            check_between(self.threshold, 2, 100_000, "[aggregation] threshold")
        if self.colluders is not None:
            check_between(self.colluders, 0, 100_000, "[aggregation] colluders")
        check_positive(self.value_range, float(1 << 20), "[aggregation] value_range")
        if isinstance(self.ranges, tuple):
            check_between(len(self.ranges), 1, 1000, "the number of [[aggregation.ranges]]")
            check_distinct([entry.tensor for entry in self.ranges], "[[aggregation.ranges]] tensor")

    @property
    def tensor_ranges(self) -> tuple[TensorRange, ...]:
        """The ranges of their own, in the plan's order; () where there are none."""
        return self.ranges if isinstance(self.ranges, tuple) else ()


class ReleaseSection(Section, frozen=True, kw_only=True):
    """`[release]`: who may receive the model."""

    recipients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for recipient in self.recipients:
            check_text(recipient, "[release] recipients")
        check_distinct(self.recipients, "[release] recipients")


class EnclaveSection(Section, frozen=True, kw_only=True):
    """`[enclave]`: whether hub and sites show each other evidence of what runs there, before all else.

    Attributes:
        required: sites ask the hub's aggregator for evidence, and the hub the sites' workers; nobody works
            with one whose evidence it does not accept. Which evidence is accepted, every owner's own enclave
            policy says.
        reattest_seconds: evidence older than this counts no more; it is asked for again before. 60 seconds
            to 31 days.
    """

    required: bool
    reattest_seconds: int = 86_400

    def __post_init__(self) -> None:
        check_between(self.reattest_seconds, 60, 31 * 86_400, "[enclave] reattest_seconds")


class PrivacySection(Section, frozen=True, kw_only=True):
    """`[privacy]`: what the study claims, and the mechanism that keeps it.

    Attributes:
        mode: "distributed": the sum of all sites carries the noise; "local": each site's own update does.
        unit: "record", or the schema's unit column, whose rows then enter together and are clipped together.
        sites_per_unit: at how many sites rows of one unit may lie; for a unit column, and then required.
        expected_units: with a unit column, what a round's sum is divided by: rate times all units, a
            constant of the plan. (With records `[training] batch` is the divisor.)
        epsilon: what is claimed at `delta`; None where `noise_multiplier` alone is written.
        noise_multiplier: deviation of the counted noise over sensitivity; None to calibrate it from
            `epsilon`.
        delta: below 1 / rows of the study.
        clip: most that one unit adds to a sum, in the L2 norm of the gradient (or of the update).
        rate: chance of each unit to be in a step, on its own.
        sampler: "poisson"; the others are named so that they can be refused with the reason.
        adversary: whose view `epsilon` speaks of: the larger of both ("colluders"), or hub and outsiders.
        microbatch: rows of a site, by their position in its dataset, whose contributions are added up before
            they are rounded; a low rate leaves few of them in a step.
        noise_minimum: survivors whose noise shares are counted; None for the secure sum's own minimum.
        adaptive_quantile: share of units that the clip should leave whole; None for a fixed clip.
        block_attempts: attempts that the ledger debits at a time; None for a twentieth of the plan.
    """

    mode: Literal["distributed", "local"] = "distributed"
    unit: str = "record"
    sites_per_unit: int | None = None
    expected_units: int | None = None
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float
    clip: float
    rate: float
    sampler: Literal["poisson", "fixed", "shuffle"] = "poisson"
    adversary: Literal["colluders", "hub"] = "colluders"
    microbatch: int = 4096
    noise_minimum: int | None = None
    adaptive_quantile: float | None = None
    block_attempts: int | None = None

    def __post_init__(self) -> None:
        check_text(self.unit, "[privacy] unit")
        if self.epsilon is None and self.noise_multiplier is None:
            raise PlanError(
                "neither epsilon nor noise_multiplier is written",
                where="[privacy]",
                fix="Write epsilon, and the noise is calibrated; or noise_multiplier; or both",
            )
        if self.epsilon is not None:
            check_positive(self.epsilon, 50.0, "[privacy] epsilon")
        if self.noise_multiplier is not None:
            check_positive(self.noise_multiplier, 10_000.0, "[privacy] noise_multiplier")
        for value, where in ((self.delta, "delta"), (self.adaptive_quantile, "adaptive_quantile")):
            if value is not None and not 0.0 < value < 1.0:
                raise PlanError(
                    f"{value} is out of range", where=f"[privacy] {where}", fix="Choose between 0 and 1"
                )
        check_positive(self.clip, 1e6, "[privacy] clip")
        if self.clip < _LEAST_CLIP:  # else a site would find out after its ledger has paid
            raise PlanError(
                f"{self.clip:g} is out of range", where="[privacy] clip", fix=f"Write {_LEAST_CLIP:g} or more"
            )
        check_positive(self.rate, 1.0, "[privacy] rate")
        check_between(self.microbatch, 1, 1 << 20, "[privacy] microbatch")
        if self.sites_per_unit is not None:
            check_between(self.sites_per_unit, 1, 100, "[privacy] sites_per_unit")
        for count, where in (
            (self.expected_units, "expected_units"),
            (self.noise_minimum, "noise_minimum"),
            (self.block_attempts, "block_attempts"),
        ):
            if count is not None:
                check_between(count, 1, 100_000, f"[privacy] {where}")

    @property
    def by_record(self) -> bool:
        """Whether the unit is one row."""
        return self.unit == "record"
