"""Governance: what may leave, the signed record of it, and the check that anybody can make offline.

`release` passes a finished study through its policies, signs the certificate, logs it, has the log's
head cosigned and writes the folder. `verify_release` checks such a folder against the identities that
the verifier trusts. `in_words` says a certificate in sentences.
"""

from cloister.governance.certificate import PREDICATE_TYPE, Certificate, Predicate, Statement
from cloister.governance.policy import DEFAULT_POLICY, ReleasePolicy, gate, plan_policy
from cloister.governance.release import HeadCosigner, Released, release
from cloister.governance.study import TrainedStudy
from cloister.governance.verify import Step, TrustAnchors, Verdict, verify_files, verify_release
from cloister.governance.words import Language, in_words

__all__ = [
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
]
