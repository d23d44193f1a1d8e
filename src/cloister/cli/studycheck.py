"""What `cloister study check` says of a plan, before anything runs.

Under `[privacy]` it prints both epsilons, what the plan costs a ledger, the noise that epsilon needs or the
epsilon that noise gives, and how many rounds fit; and it names everything that is computed from rows: what is
charged, what is public by declaration, and what stays with its owner.

Bytes, memory and minutes are estimates from sizes; the formulas are in `cloister.runtime.forecast`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from cloister.learning import Plan
    from cloister.learning.privacy import PrivacyTerms
    from cloister.vault import Schema

__all__ = ["in_words", "meaning"]


def meaning(
    plan: Plan,
    schema: Schema | None,
    user_code: Path | None = None,
    *,
    base: Path | None = None,
    link_mbit: float = 100.0,
    sandboxed: bool = True,
) -> dict[str, Any]:
    """Return what there is to say, JSON types only; sizes, times and epsilons need the schema.

    Args:
        plan: the plan.
        schema: of the rows.
        user_code: the Python file of a plan with kind "torch", which is run.
        base: folder of the base that a language model starts from; without it its sizes are not known.
        sandboxed: whether it runs in a walled worker, or in this process.
        link_mbit: speed of the hub's link each way, in 10^6 bits a second.
    """
    params, encoding = plan.params(len(plan.sites)), plan.encoding(len(plan.sites))
    result: dict[str, Any] = {
        "study": plan.study.name,
        "digest": plan.digest.hex(),
        "sites": params.parties,
        "colluders": params.colluders,
        "threshold": params.threshold,
        "minimum": params.minimum,
        "tolerated_dropouts": params.tolerated_dropouts,
        "attempts": plan.attempts,
        "hub_view": plan.aggregation.hub_view,
        "bits": encoding.bits,
        "values_each_side": None if plan.privacy is not None else encoding.largest,
        "value_step": None if plan.privacy is not None else encoding.unit,
        "pinned": bool(plan.model.initial),
        "privacy": None,
        "parameters": None,
        "upload_bytes": None,
        "hub_memory_bytes": None,
        "site_memory_bytes": None,
        "round_seconds": None,
        "study_minutes": None,
    }
    if schema is None or (plan.model.is_language and base is None):
        return result
    from cloister.runtime.forecast import forecast, sizes_of

    sizes = sizes_of(plan, schema, user_code, base=base, sandboxed=sandboxed)
    expected = forecast(plan, sizes, link_mbit=link_mbit)
    if sizes.terms is not None:
        result["privacy"] = _privacy(plan, sizes.terms)
    units = [name for name, column in schema.columns.items() if column.role == "unit"]
    if plan.privacy is not None and plan.privacy.by_record and units:
        result["unit_not_protected"] = units[0]
    return result | {
        "parameters": sizes.parameters,
        "upload_bytes": expected.upload_bytes,
        "study_upload_bytes": expected.upload_bytes * plan.training.rounds,
        "hub_memory_bytes": expected.hub_memory_bytes,
        "site_memory_bytes": expected.site_memory_bytes,
        "link_mbit": link_mbit,
        "round_seconds": expected.round_seconds,
        "study_minutes": expected.study_minutes,
    }


def _privacy(plan: Plan, terms: PrivacyTerms) -> dict[str, Any]:
    from cloister.privacy.ledger import Cap

    section, facts = terms.section, terms.facts
    # a cap at which one such plan and nothing else would fit, to compare with one's own
    cap = next(
        (
            each
            for tenths in range(1, 200)
            if (each := Cap.of(tenths / 10, min(2 * section.delta, 0.5))).rdp
            >= terms.blocks * terms.block_cost(each.order).rdp
        ),
        None,
    )
    return {
        "epsilon_claimed": section.epsilon,
        "epsilon_hub": round(facts.epsilon_hub, 4),
        "epsilon_colluders": round(facts.epsilon_colluders, 4),
        "delta": section.delta,
        "adversary": section.adversary,
        "unit": section.unit,
        "mode": section.mode,
        "noise_multiplier": terms.noise_multiplier,
        "noise_calibrated": section.noise_multiplier is None,
        "clip_units": terms.grid.clip_units,
        "sensitivity_units": round(terms.sensitivity, 2),
        "rounds_that_fit": terms.rounds_that_fit(plan),
        "ledger_blocks": terms.blocks,
        "ledger_cap_needed": None if cap is None else {"epsilon": cap.epsilon, "delta": cap.delta},
        "charged": _charged(plan),
        "public": _public(plan),
        "kept": _kept(plan),
    }


def _charged(plan: Plan) -> list[str]:
    section = plan.privacy
    unit = "row" if section is None or section.by_record else section.unit
    charged = [f"every sum of clipped contributions, one a {unit}, in all {plan.attempts} attempts"]
    if section is not None and section.mode == "local":
        charged = [f"every local step of every site, in all {plan.attempts} attempts"]
    if section is not None and section.adaptive_quantile is not None:
        charged.append("how many units lie within the clip, as a coordinate of the same noisy sum")
    return charged


def _public(plan: Plan) -> list[str]:
    public = [
        "the number of rows of each site, and of those left out for their consent or the schema",
        "the schema with its bounds and categories, and the plan",
        "who takes part, and who drops out of a round",
    ]
    if plan.data.public_rows:
        public.append("the rows themselves, as the plan declares: so accuracy by round and site is shown")
    return public


def _kept(plan: Plan) -> list[str]:
    kept = ["which units a step sampled", "norms, and how many were clipped", "losses"]
    if not plan.data.public_rows:
        kept.append("accuracy on held-out rows")
    if plan.privacy is not None and plan.privacy.mode == "local":
        kept.append("how many coordinates were clamped")
    return kept


def in_words(plan: Plan, result: dict[str, Any]) -> str:
    """Return the same as text."""
    lines = [
        f"Study {plan.study.name}, for {plan.study.purpose}.",
        f"{result['sites']} sites. Up to {result['colluders']} of them with the hub learn no other update.",
        f"A round needs {result['minimum']} sites, so {result['tolerated_dropouts']} may drop out of it.",
        "The hub sees the sum of updates and the model."
        if plan.aggregation.hub_view == "sum"
        else "The hub sees neither updates, nor their sum, nor the model.",
        f"{plan.training.rounds} rounds, {plan.attempts} attempts.",
    ]
    if result["bits"] == 8:
        lines.append(
            f"A ring of 8 bits: a coordinate of an update is rounded at random, to one of "
            f"{result['values_each_side']} values on either side of zero, {result['value_step']:g} apart."
        )
    if result["parameters"] is not None:
        lines.append(
            f"{result['parameters']} parameters; a site sends {result['upload_bytes']} bytes a round, "
            f"{result['study_upload_bytes']} in all."
        )
        lines += _resources_in_words(result)
    else:
        asked = "--schema and --base" if plan.model.is_language else "--schema"
        lines.append(f"Sizes: give {asked} to predict them.")
    lines += _privacy_in_words(plan, result["privacy"])
    if result.get("unit_not_protected"):
        lines.append(
            f"Warning: the schema says whose row it is ({result['unit_not_protected']}), and this plan "
            "protects single rows: who has many is protected less. Write [privacy] unit to change that."
        )
    if not result["tolerated_dropouts"]:
        lines.append("Warning: no site may drop out. One that is lost stalls the study until it returns.")
    if not result["pinned"]:
        lines.append(
            "Warning: the initial model is not pinned; sites will refuse the plan. Use `study init`."
        )
    return "\n".join(lines)


def _resources_in_words(result: dict[str, Any]) -> list[str]:
    hub, site = (-(-result[key] // 1_000_000) for key in ("hub_memory_bytes", "site_memory_bytes"))
    return [
        f"Memory: about {hub} MB at the hub, {site} MB at a site and its rows on top.",
        f"Time: about {result['round_seconds']:.2g} s a round at {result['link_mbit']:g} Mbit/s, "
        f"{result['study_minutes']:.2g} minutes in all, and local training on top.",
    ]


def _privacy_in_words(plan: Plan, privacy: dict[str, Any] | None) -> list[str]:
    if plan.privacy is None:
        return ["Privacy: none. The model may reveal something about single rows; choose its readers."]
    if privacy is None:
        asked = "--schema and --base" if plan.model.is_language else "--schema"
        return [f"Privacy: give {asked} to calculate both epsilons."]
    unit = "row" if plan.privacy.by_record else f"{privacy['unit']} (all its rows together)"
    lines = [
        f"Privacy of one {unit}: epsilon {privacy['epsilon_hub']:g} against the hub and every reader, "
        f"{privacy['epsilon_colluders']:g} against a hub with colluding sites, "
        f"at delta {privacy['delta']:g}.",
        f"Noise multiplier {privacy['noise_multiplier']:g}, "
        + ("calibrated to epsilon." if privacy["noise_calibrated"] else "as the plan writes it."),
    ]
    if privacy["rounds_that_fit"] is not None:
        lines.append(f"With this noise and epsilon {privacy['rounds_that_fit']} rounds fit.")
    cap = privacy["ledger_cap_needed"]
    if cap is not None:
        lines.append(
            f"A ledger admits it once within a cap of epsilon {cap['epsilon']:g} at delta {cap['delta']:g}: "
            "a filter over studies that are chosen one after another costs more than one plan by itself."
        )
    named = [f"{key.capitalize()}: {'; '.join(privacy[key])}." for key in ("charged", "public", "kept")]
    return [*lines, *named]
