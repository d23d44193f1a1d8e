"""Does a release hold? Offline, against the identities that the verifier trusts, naming the first thing
that does not.

    1.  folder        exactly the files of a release, each a plain file within its limit
    2.  signature     the certificate is signed by one identity, and the verifier trusts it
    3.  statement     it is a well-formed statement of this version and does not contradict itself
    4.  files         every file beside it is one of its subjects with that digest, and none is missing
    5.  plan          the plan parses, its digest is the certificate's, and what the certificate says of it
                      is so; whoever signed is its hub, or a site where the hub must not see the model
    6.  roster        every participant is trusted and in the plan; in every epoch the members are the
                      roster, at least the plan's minimum, and each has countersigned this plan, roster,
                      manifest and row count; where the plan asks for evidence, each has signed that it
                      accepted the hub's, and the hub's word on the workers' is there
    7.  manifests     each is signed by its site, with the plan's schema, its purpose, and the rows stated
    8.  aggregation   n, c, t and m of every epoch follow from the plan by the formula; every round has m
                      survivors or more, members of its epoch, and there were no more attempts than planned
    9.  model         it is a safetensors model of this plan and schema (sealed: when a recipient verifies)
    10. privacy       both epsilons recomputed from events that follow from the plan, alike in every epoch;
                      every site's debit
    11. log           the releaser has signed a tree head, and the certificate is under it
    12. cosignatures  at least c + 1 other members cosign that head

Steps are made in this order and stop at the first that fails; nothing is parsed before the step that
makes it trusted, but for what step 2 must read to know who signed. Everything is read once, before step
1 ends, so nothing can change under the check.

What it cannot tell stands in `Verdict.unchecked`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.crypto import Identity, PublicIdentity
from cloister.errors import CloisterError, VerificationError
from cloister.governance.case import Case
from cloister.governance.certificate import Certificate
from cloister.governance.checks import CHECKS
from cloister.governance.folder import read_release

__all__ = ["STEPS", "Step", "TrustAnchors", "Verdict", "verify_files", "verify_release"]

STEPS = (
    "folder",
    "signature",
    "statement",
    "files",
    "plan",
    "roster",
    "manifests",
    "aggregation",
    "model",
    "privacy",
    "log",
    "cosignatures",
)

UNCHECKED = (
    "revocation: whether a key that signed was withdrawn since; ask its owner",
    "time: when it was made is the signer's word",
    "honest execution: that the parties ran what they signed, that survivors and set-up were as listed, and "
    "that the model is what those rounds gave, is the signer's word",
    "rows: that a site's rows are what its manifest says is that site's word",
    "log: whether the log still shows this entry; those who cosigned vouch for the moment they did",
)


@dataclass(frozen=True)
class TrustAnchors:
    """The identities whose signatures count, chosen by the verifier and never by the release.

    Which of them is hub and which are sites stands in the plan that all participants countersigned.
    """

    identities: tuple[PublicIdentity, ...]

    @classmethod
    def of(cls, identities: Iterable[PublicIdentity]) -> TrustAnchors:
        """Trust these."""
        return cls(tuple(identities))

    def by_fingerprint(self) -> dict[str, PublicIdentity]:
        """Fingerprint -> identity."""
        return {identity.fingerprint: identity for identity in self.identities}


@dataclass(frozen=True)
class Step:
    """One step of the check.

    Attributes:
        number: 1 to 12, as in the module's docstring.
        name: likewise.
        ok: True, False, or None where an earlier step failed and this one was not made.
        detail: what was found, one sentence part.
    """

    number: int
    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What the check found.

    Attributes:
        steps: all twelve, in order.
        unchecked: what cannot be told offline.
        certificate: the certificate, where steps 1 to 3 hold; it is believed only if `ok`.
        files: the bytes that were checked; use these rather than reading the folder again.
    """

    steps: tuple[Step, ...]
    unchecked: tuple[str, ...]
    certificate: Certificate | None = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether every step holds."""
        return all(step.ok for step in self.steps)

    @property
    def failed(self) -> Step | None:
        """The first step that does not hold, or None."""
        return next((step for step in self.steps if step.ok is False), None)

    def require(self) -> None:
        """Raise VerificationError, naming the step, unless the release holds."""
        if self.failed is not None:
            raise VerificationError(
                f"the release does not verify: step {self.failed.number}, {self.failed.name}: "
                f"{self.failed.detail}",
                fix="Do not use it; ask whoever released it",
            )


def verify_release(
    folder: Path, anchors: TrustAnchors, *, reader: Identity | None = None, allow_two: bool = False
) -> Verdict:
    """Check a release folder.

    Args:
        folder: the release.
        anchors: whom the verifier trusts.
        reader: a recipient, where the model is sealed to one and shall be checked too.
        allow_two: accept a study of two sites, each of which can compute the other's update; for the
            tutorial.

    Returns:
        The verdict; a release that does not hold is a result and no exception.

    Raises:
        InputError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        read_release(folder)  # raises: there is nothing to have a verdict about
    try:
        files = read_release(folder)
    except VerificationError as error:
        return _verdict([Step(1, STEPS[0], False, _said(error))], None, {}, UNCHECKED)
    return verify_files(files, anchors, reader=reader, allow_two=allow_two)


def verify_files(
    files: Mapping[str, bytes],
    anchors: TrustAnchors,
    *,
    reader: Identity | None = None,
    allow_two: bool = False,
) -> Verdict:
    """Check a release that is already in memory: path in the folder -> content. Otherwise as
    `verify_release`."""
    case = Case(dict(files), anchors.by_fingerprint(), reader, allow_two, list(UNCHECKED))
    steps: list[Step] = []
    for number, (name, check) in enumerate(zip(STEPS, CHECKS, strict=True), start=1):
        try:
            steps.append(Step(number, name, True, check(case)))
        except CloisterError as error:
            steps.append(Step(number, name, False, _said(error)))
            break
    return _verdict(steps, case.certificate, case.files, tuple(case.unchecked))


def _verdict(
    made: list[Step], certificate: Certificate | None, files: Mapping[str, bytes], unchecked: tuple[str, ...]
) -> Verdict:
    rest = [
        Step(number, STEPS[number - 1], None, "not reached")
        for number in range(len(made) + 1, len(STEPS) + 1)
    ]
    return Verdict((*made, *rest), unchecked, certificate, files)


def _said(error: CloisterError) -> str:
    return f"{error.what} ({error.where})" if error.where else error.what
