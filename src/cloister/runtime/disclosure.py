"""What would leave a site if it took part in a plan, before anything does: the answer to a dry run.

`disclosure_of` reads the plan and the signed manifest of the dataset that the plan names, and no row. Every
kind of thing that a site of `runtime` sends is one `Item`: what it is, who can read it, how large it is at
most, and what protects it. What is computed from rows and stays is listed too, so that nothing is left
unsaid.

A figure that is not known is None with a reason: sizes of a model of the user's own without its file, an
epsilon of a plan that claims none. Obstacles are what would end the study at this site: another schema, a
purpose that the rows were not added for, a start that is not pinned.

What it does not do: it cannot say what partners and readers do with what they get, and it does not see the
ledger; whether the budget suffices is asked when the roster is offered.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from cloister.errors import PlanError
from cloister.learning import Plan
from cloister.runtime.forecast import Forecast
from cloister.runtime.sitepolicy import Decision
from cloister.vault import Manifest

__all__ = ["Disclosure", "Item", "Reader", "disclosure_of"]

Reader = Literal["hub", "partners", "readers of the release"]

_EVERYBODY: Final[tuple[Reader, ...]] = ("hub", "partners", "readers of the release")
_METADATA: Final = (
    "the broker and everybody on the way see who sends, when and how much, and nothing of what is in it"
)


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of thing that would leave.

    Attributes:
        what: the thing, with its figure where it has one.
        readers: who can read it as described; others carry it encrypted.
        size: bytes at most in the whole study; None where it is not known.
        protection: what is done so that it says no more, or that it is public.
    """

    what: str
    readers: tuple[Reader, ...]
    size: int | None
    protection: str


class Disclosure(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring.

    Attributes:
        study, purpose, digest, hub, partners: of the plan.
        dataset: own dataset that it names.
        verdict, reasons: what the site policy decides.
        obstacles: why it could not run at this site as it is.
        rows: of the dataset; public to all parties once the site joins.
        columns: those that training reads.
        not_read: stored columns that it does not decrypt.
        items: what leaves.
        stays: what is computed from rows and does not leave.
        recipients: who may receive the model by the plan; empty for whoever the release policies allow.
        epsilon_hub, epsilon_colluders, delta, unit: the claim, None where there is none.
        sent_bytes, received_bytes: by this site, in the whole study at most.
        unknown: why a figure is None.
    """

    study: str
    purpose: str
    digest: str
    hub: str
    partners: tuple[str, ...]
    dataset: str
    verdict: Literal["accept", "ask", "refuse"]
    reasons: tuple[str, ...]
    obstacles: tuple[str, ...]
    rows: int
    columns: tuple[str, ...]
    not_read: tuple[str, ...]
    items: tuple[Item, ...]
    stays: tuple[str, ...]
    recipients: tuple[str, ...]
    epsilon_hub: float | None
    epsilon_colluders: float | None
    delta: float | None
    unit: str | None
    sent_bytes: int | None
    received_bytes: int | None
    unknown: tuple[str, ...]


def disclosure_of(
    plan: Plan,
    manifest: Manifest,
    decision: Decision,
    *,
    own: str,
    manifest_bytes: int,
    epsilons: tuple[float, float] | None = None,
    forecast: Forecast | None = None,
    obstacle: str | None = None,
) -> Disclosure:
    """Return what would leave a site.

    Args:
        plan: the plan.
        manifest: of the dataset that the plan names at this site.
        decision: of the site policy.
        own: fingerprint of the site's own identity.
        manifest_bytes: size of the signed manifest.
        epsilons: against the hub, and with colluding sites; None where nothing is claimed or known.
        forecast: of the plan; None where the model's size is not known.
        obstacle: why sizes or epsilons could not be had, where that is so.

    Raises:
        PlanError: the plan does not name this site.
    """
    entry = next((each for each in plan.sites if each.identity == own), None)
    if entry is None:
        raise PlanError(
            "the plan does not name this site",
            where="[[sites]]",
            fix="Ask its author to enter your fingerprint",
        )
    columns = _columns(plan)
    stored = [name for name, column in manifest.schema.columns.items() if column.stored]
    hub_epsilon, colluders_epsilon = epsilons or (None, None)
    unknown = [] if obstacle is None else [f"sizes and epsilons: {obstacle}"]
    if plan.privacy is None:
        unknown.append("epsilons: the plan claims no privacy")
    if plan.reattest_seconds is not None:
        unknown.append("bytes of evidence, which come on top: they depend on the machines")
    return Disclosure(
        study=plan.study.name,
        purpose=plan.study.purpose,
        digest=plan.digest.hex(),
        hub=plan.hub.name,
        partners=tuple(each.name for each in plan.sites if each.identity != own),
        dataset=entry.dataset,
        verdict=decision.verdict,
        reasons=decision.reasons,
        obstacles=_obstacles(plan, manifest, entry.dataset),
        rows=manifest.rows,
        columns=columns,
        not_read=tuple(name for name in stored if name not in columns),
        items=_items(plan, manifest, manifest_bytes, forecast),
        stays=_stays(plan),
        recipients=plan.release.recipients,
        epsilon_hub=hub_epsilon,
        epsilon_colluders=colluders_epsilon,
        delta=None if plan.privacy is None else plan.privacy.delta,
        unit=None if plan.privacy is None else plan.privacy.unit,
        sent_bytes=None if forecast is None else forecast.study_sent_bytes + manifest_bytes,
        received_bytes=None if forecast is None else forecast.study_received_bytes,
        unknown=tuple(unknown),
    )


def _columns(plan: Plan) -> tuple[str, ...]:
    unit = () if plan.privacy is None or plan.privacy.by_record else (plan.privacy.unit,)
    return (*plan.data.features, plan.data.label, *unit)


def _obstacles(plan: Plan, manifest: Manifest, dataset: str) -> tuple[str, ...]:
    found = []
    if manifest.name != dataset:
        found.append(f"the plan names the dataset {dataset!r}, this is {manifest.name!r}")
    if manifest.schema_sha256 != plan.data.schema:
        found.append("the dataset has another schema than the plan")
    if plan.study.purpose not in manifest.purposes:
        found.append("the dataset was not added for the plan's purpose")
    if not plan.model.initial:
        found.append("the plan does not pin its initial model")
    return tuple(found)


def _items(
    plan: Plan, manifest: Manifest, manifest_bytes: int, forecast: Forecast | None
) -> tuple[Item, ...]:
    privacy = plan.privacy
    items = [
        Item(
            what="the name and public keys of this site, and its signature under plan and roster",
            readers=_EVERYBODY,
            size=None,
            protection="public",
        ),
        Item(
            what=f"the number of rows: {manifest.rows}",
            readers=_EVERYBODY,
            size=8,
            protection="public: it weighs the update, and no noise is added to it",
        ),
        Item(
            what=_manifest(manifest),
            readers=("hub", "readers of the release"),
            size=manifest_bytes,
            protection="public, signed by this site; partners get its digest until there is a release",
        ),
        Item(
            what="keys, commitments and shares of the secure sum",
            readers=("hub", "partners"),
            size=None if forecast is None else forecast.setup_bytes,
            protection="fresh for the epoch; shares are encrypted to their holders",
        ),
        _update(plan, forecast),
        Item(
            what="in which rounds this site took part",
            readers=_EVERYBODY,
            size=None,
            protection=f"public; {_METADATA}",
        ),
    ]
    if plan.data.public_rows:
        items.append(
            Item(
                what="how well each round's model fits this site's held-out rows, if it names any, as sums",
                readers=_EVERYBODY,
                size=None,
                protection="none: the plan declares the rows public",
            )
        )
    if privacy is not None:
        items.append(
            Item(
                what="what the study costs the ledger of these rows, signed; no names of populations",
                readers=("hub", "readers of the release"),
                size=None,
                protection="public",
            )
        )
    if plan.reattest_seconds is not None:
        items += _evidence()
    items.append(_model(plan))
    return tuple(items)


def _evidence() -> list[Item]:
    return [
        Item(
            what="evidence of the worker's machine: make, firmware, measurements, its identifier if any",
            readers=("hub",),
            size=None,
            protection="encrypted to the hub, after the hub's own evidence was accepted",
        ),
        Item(
            what="verdicts on evidence of worker and hub, with kinds; no measurements, no identifiers",
            readers=("hub", "readers of the release"),
            size=None,
            protection="public, the one on the hub signed by this site",
        ),
    ]


def _manifest(manifest: Manifest) -> str:
    consent = ", the words on consent" if manifest.consent else ""
    return (
        f"the manifest of dataset {manifest.name}: {len(manifest.schema.columns)} columns with types, bounds "
        f"and categories, {len(manifest.purposes)} purposes{consent}, {manifest.without_consent} rows left "
        f"out for consent and {manifest.quarantined} for the schema, time of ingest, digests of the file"
    )


def _update(plan: Plan, forecast: Forecast | None) -> Item:
    params = plan.params(len(plan.sites))
    section = plan.aggregation
    what = f"a masked update of {_trained(plan)}, in at most {plan.attempts} attempts"
    if forecast is not None:
        what += f" of {forecast.upload_bytes} bytes"
    masked = (
        f"masked: up to {params.colluders} colluding sites with the hub learn no single update, only the sum "
        f"of at least {params.minimum} sites"
    )
    if section.hub_view == "none":
        masked += "; the hub learns no sum either"
    if plan.privacy is not None:
        masked += "; clipped, with noise"
    else:
        masked += "; no noise, so the sums may say something about single rows"
    readers: tuple[Reader, ...] = ("hub", "partners") if section.hub_view == "sum" else ("partners",)
    size = None if forecast is None else plan.attempts * forecast.upload_bytes
    return Item(what=what, readers=readers, size=size, protection=masked)


def _model(plan: Plan) -> Item:
    readers = _EVERYBODY if plan.aggregation.hub_view == "sum" else _EVERYBODY[1:]
    protection = "the noise of the claim"
    if plan.privacy is None:
        protection = "none: it may say something about single rows"
        if plan.model.is_language:
            protection += ", and a language model may repeat words of theirs"
    return Item(
        what=f"{_trained(plan)}, after every round and at the end",
        readers=readers,
        size=None,
        protection=protection,
    )


def _trained(plan: Plan) -> str:
    """Return what is trained, in words."""
    if plan.language is None:
        return "the model"
    base = f"base {plan.language.base[:16]}, which is public"
    if plan.language.method == "full":
        return f"the whole model, which starts from {base}"
    return f"the adapters of rank {plan.language.rank} to {base}"


def _stays(plan: Plan) -> tuple[str, ...]:
    stays = ["rows, and updates before they are masked", "losses", "how many coordinates were clamped"]
    if plan.model.is_language:
        stays.append("texts, the tokens made of them, and how many of those there are")
    if plan.privacy is not None:
        stays += ["which units a step sampled", "norms, and how many were clipped"]
    if not plan.data.public_rows:
        stays.append("how well models fit held-out rows")
    if plan.data.scaling == "local":
        stays.append("means and deviations of columns, with which this site scales its own rows")
    return tuple(stays)
