"""What a plan with differential privacy may not ask for, each with the reason.

The claim counts one clipped, noised vector for each step and unit. Whatever lets a unit act twice, or lets
something computed from rows out beside that vector, would make the claim false without a word; so it is
refused here, before a row is read.
"""

from __future__ import annotations

from cloister.errors import PlanError
from cloister.learning.sections import (
    AggregationSection,
    DataSection,
    LanguageSection,
    ModelSection,
    PrivacySection,
    TrainingSection,
)

__all__ = ["check_aggregation", "check_averaging", "check_delta", "check_language", "refuse_unsound"]


def refuse_unsound(
    privacy: PrivacySection, data: DataSection, model: ModelSection, training: TrainingSection
) -> None:
    """Raise PlanError for the first thing that the claim of `[privacy]` cannot cover."""
    _refuse(
        privacy.sampler != "poisson",
        f"sampler = {privacy.sampler!r}: batches of fixed size are not what is accounted for; "
        "counting them as Poisson would state about half of the true epsilon",
        "[privacy] sampler",
        'Write sampler = "poisson"',
    )
    _refuse(
        data.scaling == "local",
        "local scaling computes means and deviations from rows, and the model carries them out uncharged",
        "[data] scaling",
        'Write scaling = "bounds"; the schema declares them',
    )
    if privacy.by_record:
        _record_level(privacy, training)
    else:
        _unit_level(privacy, data, model)
    _refuse(
        privacy.mode == "local" and training.optimiser != "sgd",
        "local private steps are plain gradient steps",
        "[training] optimiser",
        'Write optimiser = "sgd"; the server may use algorithm = "fedadam"',
    )


def _record_level(privacy: PrivacySection, training: TrainingSection) -> None:
    distributed = privacy.mode == "distributed"
    _refuse(
        any(
            field is not None
            for field in (privacy.adaptive_quantile, privacy.sites_per_unit, privacy.expected_units)
        ),
        "adaptive_quantile, sites_per_unit and expected_units are for a unit column",
        "[privacy] unit",
        "Name the schema's unit column, or take them out",
    )
    _refuse(
        distributed and training.local_steps != 1,
        f"local_steps = {training.local_steps}: in distributed mode a sum is one step, since later local "
        "steps would depend on rows that the first one has not noised",
        "[training] local_steps",
        'Write local_steps = 1, or mode = "local", or a unit column',
    )
    _refuse(
        distributed and training.optimiser != "sgd",
        "in distributed mode a site sends a gradient, and takes no step of its own",
        "[training] optimiser",
        'Write optimiser = "sgd"; the server may use algorithm = "fedadam"',
    )
    _refuse(
        distributed and training.weights != "rows",
        "in distributed mode every row weighs the same",
        "[training] weights",
        'Write weights = "rows"',
    )


def _unit_level(privacy: PrivacySection, data: DataSection, model: ModelSection) -> None:
    _refuse(
        privacy.mode == "local",
        "local mode protects single records; its steps know no units",
        "[privacy] mode",
        'Write mode = "distributed", or unit = "record"',
    )
    _refuse(
        privacy.unit in (*data.features, data.label),
        "the unit column is also a feature or the label",
        "[privacy] unit",
        "A unit names whose row it is; take it out of the features",
    )
    _refuse(
        privacy.sites_per_unit is None,
        "nobody says at how many sites rows of one unit may lie",
        "[privacy] sites_per_unit",
        "Write 1 if no unit has rows at two sites, else the largest number of sites, at most all of them",
    )
    _refuse(
        privacy.expected_units is None,
        "nothing says what a round's sum is divided by; the number that was sampled must not",
        "[privacy] expected_units",
        "Write rate times the number of units of all sites, as far as it may be known",
    )
    _refuse(
        model.kind == "torch",
        "modules of one's own are clipped row by row, and know no units",
        "[model] kind",
        'Take a built-in model or a language model, or unit = "record"',
    )


def check_language(
    data: DataSection, model: ModelSection, language: LanguageSection | None, *, private: bool
) -> None:
    """Raise PlanError where `[language]` and the other tables do not belong together."""
    _refuse(
        model.is_language != (language is not None),
        f"[language] and kind = {model.kind!r} do not belong together",
        "[language]",
        'Name the base model in [language] for kind "causal-lm" or "text-classifier", and for no other',
    )
    prompted = language is None or language.format == "pairs" or model.kind == "text-classifier"
    _refuse(
        prompted != bool(data.features),
        "the model is given nothing" if prompted else "whole texts and conversations have no further columns",
        "[data] features",
        "Name at least one column" if prompted else "Leave features empty; the text's column is the label",
    )
    if language is None:
        return
    _refuse(
        data.scaling != "bounds",
        "texts are not scaled",
        "[data] scaling",
        "Leave scaling out",
    )
    _refuse(
        model.kind == "text-classifier" and language.format != "text",
        f"format = {language.format!r}: a text-classifier reads texts",
        "[language] format",
        'Write format = "text", or kind = "causal-lm"',
    )
    _refuse(
        language.packing and (private or model.kind != "causal-lm" or language.format != "text"),
        "packing puts rows of several owners of a text into one: none of them could be clipped by itself"
        if private
        else "only whole texts of a causal-lm can be packed",
        "[language] packing",
        "Write packing = false",
    )
    # all methods can be claimed: each round's sum is of one window, whose gradient (or update) is clipped
    _refuse(
        private and language.overlong == "refuse",
        "that one row is too long would show, to everybody, in a site that refuses the study; nothing is "
        "charged for it",
        "[language] overlong",
        'Write overlong = "truncate"',
    )


def check_aggregation(
    aggregation: AggregationSection, language: LanguageSection | None, privacy: PrivacySection | None
) -> None:
    """Raise PlanError where `[aggregation]` asks for what the other tables do not allow."""
    _refuse(
        aggregation.bits == 8 and privacy is not None,
        "a ring of 8 bits has no room for the noise of [privacy]",
        "[aggregation] bits",
        "Write bits = 16 or 32",
    )
    _refuse(
        bool(aggregation.tensor_ranges) and language is None,
        "ranges name tensors, and only a language model's have names",
        "[[aggregation.ranges]]",
        "Leave them out; value_range holds for every coordinate",
    )
    _refuse(
        bool(aggregation.tensor_ranges) and privacy is not None and privacy.mode == "distributed",
        "under distributed noise the clip bounds what a site sends, and no coordinate has a range",
        "[[aggregation.ranges]]",
        "Leave them out; see [privacy] clip",
    )


def check_averaging(training: TrainingSection, language: LanguageSection | None) -> None:
    """Raise PlanError where the released mean of the last models would be the mean of none of them."""
    # of two models one of A and B is the same in both, so that the mean of two is exact
    _refuse(
        language is not None and language.method == "lora-alternating" and training.average_last > 2,
        f"average_last = {training.average_last}: means of A and of B over rounds that move both multiply to "
        "another model than the mean of those rounds' models",
        "[training] average_last",
        'Write average_last = 0, or 2 at most, or method = "lora" in [language]',
    )


def check_delta(delta: float, rows: int) -> None:
    """Raise PlanError unless delta < 1 / rows: a larger one allows publishing a row outright."""
    if delta * rows >= 1.0:
        raise PlanError(
            f"delta = {delta:g} is not below 1 / {rows}, so publishing a whole row would satisfy it",
            where="[privacy] delta",
            fix=f"Write at most {0.1 / rows:.0e}",
        )


def _refuse(condition: bool, what: str, where: str, fix: str) -> None:
    if condition:
        raise PlanError(what, where=where, fix=fix)
