"""What a report says of trusted execution: keys for who was accepted, reasons for who was not, no hardware
where there is none."""

from __future__ import annotations

from typing import Literal

import pytest
from tests.report.sample import sample

from cloister.report import Attestation, Enclave, report_json, with_words
from cloister.report.html import report_html
from cloister.report.texts import say

PACKAGE = "4d" * 32
GOOD = Attestation("Worker of harbour", "harbour", "tpm", "not hardware-protected", (), 12, PACKAGE)
BAD = Attestation(
    "Worker of harbour",
    "harbour",
    "tpm",
    "not hardware-protected",
    ("measurements: it is none of the accepted images (<b>this package</b>)",),
    0,
    "5e" * 32,
    "one byte of secagg/masks.py changed",
)
SOFT = Enclave("not hardware-protected", (GOOD, BAD), "6f" * 32, {"seccomp": "in force"}, 2)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_software_tpm_is_called_so_on_every_sheet(lang: Literal["en", "zh"]) -> None:
    page = report_html(sample(enclave=SOFT, lang=lang))
    assert f'<p class="unprotected">{say(lang, "not_hardware")}</p>' in page
    assert say(lang, "not_hardware_banner") in page
    assert "position: fixed" in page.split(".unprotected {")[1].split("}")[0]
    assert say(lang, "limit_enclave") in with_words(sample(enclave=SOFT, lang=lang)).not_protected
    assert b'"not hardware-protected"' in report_json(sample(enclave=SOFT, lang=lang))


def test_the_refusal_is_shown_with_its_reason_as_text() -> None:
    page = report_html(sample(enclave=SOFT))
    assert "one byte of secagg/masks.py changed" in page
    assert "measurements: it is none of the accepted images (&lt;b&gt;this package&lt;/b&gt;)" in page
    assert "accepted, 12 keys released" in page
    assert "refused, no key released" in page


def test_a_run_without_evidence_says_nothing_of_it() -> None:
    page = report_html(sample())
    assert 'class="unprotected"' not in page
    assert 'id="h-enclave"' not in page


def test_hardware_is_claimed_where_all_of_it_is() -> None:
    hard = Attestation("Worker of harbour", "harbour", "snp", "hardware", (), 3, PACKAGE)
    page = report_html(sample(enclave=Enclave("hardware", (hard, BAD), "6f" * 32)))
    assert 'class="unprotected"' not in page
    for attestations in ((hard, GOOD), ()):
        with pytest.raises(ValueError, match="not hardware-protected"):
            Enclave("hardware", attestations, "6f" * 32)


def test_nobody_who_was_refused_got_a_key() -> None:
    with pytest.raises(ValueError, match="refused"):
        Enclave(
            "not hardware-protected",
            (Attestation("x", "y", "tpm", "not hardware-protected", ("no",), 1),),
            "6f" * 32,
        )
