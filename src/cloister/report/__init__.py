"""The report of a study: report.json for programs, report.html for people; the same facts in both.

    write_report(folder, report)     both files, each replaced as one step

Charts need matplotlib, which is imported when a report is written and not before.
"""

from __future__ import annotations

from cloister.report.enclave import Attestation, Enclave
from cloister.report.model import (
    STAGES,
    Aggregation,
    Certificate,
    Epoch,
    Metrics,
    Participant,
    Report,
    RoundPoint,
    Sight,
    Source,
    Stage,
    StageName,
    Study,
    Subject,
    Testing,
)
from cloister.report.privacy import Audit, Baselines, Budget, EpsilonPoint, Privacy
from cloister.report.texts import Language, Text, say
from cloister.report.words import with_words
from cloister.report.write import load_report, report_json, write_report

__all__ = [
    "STAGES",
    "Aggregation",
    "Attestation",
    "Audit",
    "Baselines",
    "Budget",
    "Certificate",
    "Enclave",
    "Epoch",
    "EpsilonPoint",
    "Language",
    "Metrics",
    "Participant",
    "Privacy",
    "Report",
    "RoundPoint",
    "Sight",
    "Source",
    "Stage",
    "StageName",
    "Study",
    "Subject",
    "Testing",
    "Text",
    "load_report",
    "report_json",
    "say",
    "with_words",
    "write_report",
]
