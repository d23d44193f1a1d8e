"""A report with every field filled, for tests."""

from __future__ import annotations

from typing import Any

from cloister.report import (
    STAGES,
    Aggregation,
    Audit,
    Baselines,
    Budget,
    Certificate,
    EpsilonPoint,
    Metrics,
    Participant,
    Privacy,
    Report,
    RoundPoint,
    Source,
    Stage,
    Study,
    Subject,
    Testing,
)

SITES = ("harbour", "lakeside", "hillcrest", "meadow")


def sample(**changes: Any) -> Report:
    names = changes.pop("names", SITES)
    facts: dict[str, Any] = {
        "case": "diagnosis",
        "title": "Is a tumour malignant?",
        "question": "From the shape of nuclei: is it malignant?",
        "created": "2026-11-23T04:31:07Z",
        "stages": tuple(
            Stage(name, 0.25 * (place + 1), 10 ** (place + 1)) for place, name in enumerate(STAGES)
        ),
        "participants": tuple(Participant(name, 40 + place, 17) for place, name in enumerate(names)),
        "metrics": Metrics(0.965, 0.971, dict(zip(names, (0.947, 0.953, 0.924, 0.912), strict=True))),
        "testing": Testing(171, dict.fromkeys(names, 0.9), {"auc": 0.99, "log_loss": 0.11, "other": None}),
        "certificate": Certificate("release/certificate.dsse.json", "a3" * 32, "5f" * 32, 4, 2),
        "verify_command": "cloister verify out/release --trust out/trust",
        "subject": Subject("hospital", "hospitals", "patients", "malignant"),
        "source": Source("Some hospital, 1995", "CC BY 4.0", True, "A division made for a demonstration."),
        "study": Study("hub", 40, 41, 4, "7c" * 32),
        "aggregation": Aggregation(4, 1, 3, 3, 1, 32, "sum"),
        "certificate_in_words": ("One model was trained.", "No differential privacy was applied."),
        "curves": tuple(RoundPoint(number, 0.6 + 0.03 * number, 1 / number) for number in range(1, 11)),
        "software": {"cloister": "0.1.0"},
        "warnings": ("The clock was not checked.",),
    }
    return Report(**(facts | changes))


def claim(names: tuple[str, ...] = SITES, **changes: Any) -> Privacy:
    """A claim with every field filled, its audit included."""
    facts: dict[str, Any] = {
        "epsilon": 3.0,
        "epsilon_hub": 2.3554,
        "epsilon_colluders": 2.99947,
        "delta": 1e-4,
        "adversary": "colluders",
        "colluders": 1,
        "unit": "record",
        "mode": "distributed",
        "clip": 1.0,
        "rate": 0.5,
        "noise_multiplier": 4.967,
        "budgets": tuple(Budget(name, 6.0, 2e-4, 3.39415, 4.24064, 0.326) for name in names),
        "curve": (
            EpsilonPoint(0.2762, 0.836, 0.054, 10),
            EpsilonPoint(1.3301, 0.917, 0.02, 10),
            EpsilonPoint(2.99947, 0.947, 0.01, 10),
            EpsilonPoint(7.142, 0.951, 0.006, 10),
        ),
        "baselines": Baselines(0.949, dict(zip(names, (0.925, 0.921, 0.905, 0.712), strict=True)), 10),
        "audit": Audit(2.9995, 1.3705, 0.95, 1008, "consistent with the claim"),
    }
    return Privacy(**(facts | changes))


def private_sample(**changes: Any) -> Report:
    """The sample with that claim."""
    names = changes.get("names", SITES)
    return sample(**({"privacy": claim(names)} | changes))
