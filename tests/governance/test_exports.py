"""The room's contract is what it exports."""

from __future__ import annotations

import cloister.governance


def test_exports() -> None:
    assert set(cloister.governance.__all__) == {
        "DEFAULT_POLICY",
        "PREDICATE_TYPE",
        "Certificate",
        "HeadCosigner",
        "Language",
        "Predicate",
        "ReleasePolicy",
        "Released",
        "Statement",
        "Step",
        "TrainedStudy",
        "TrustAnchors",
        "Verdict",
        "gate",
        "in_words",
        "plan_policy",
        "release",
        "verify_files",
        "verify_release",
    }
    assert all(hasattr(cloister.governance, name) for name in cloister.governance.__all__)
