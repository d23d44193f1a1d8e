"""A report with every field filled, for tests."""

from __future__ import annotations

from typing import Any

from cloister.report import (
    STAGES,
    Aggregation,
    Certificate,
    Metrics,
    Participant,
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
