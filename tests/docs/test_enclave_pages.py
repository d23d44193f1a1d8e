"""What the pages on enclaves state is what the code has: rules, ranges, kinds, claims, endorsements."""

from __future__ import annotations

import importlib
import re
import tomllib
from typing import get_args

import msgspec
import pytest
from tests.docs.markdown import ROOT, Page

from cloister.cli.enclavepolicy import TEMPLATE
from cloister.enclave import Claims, Kind
from cloister.enclave.policy import EnclavePolicy
from cloister.enclave.policyfile import read_enclave_policy

PAGE = Page(ROOT / "docs" / "enclave.md")
BROKER = Page(ROOT / "docs" / "enclave-broker.md")
MODULES = {
    "snp": ("snp",),
    "intel": ("tdx", "sgx"),
    "tpm": ("tpm",),
    "azure": ("azure-tdx-vtpm",),
    "nitro": ("nitro",),
    "nvidia": ("nvidia-gpu", "nvidia-switch"),
}
"""Modules that list unauthenticated bytes, and the row of the page that does."""


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = PAGE.text[PAGE.text.index(f"# {heading}\n") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table[2:]


def block_after(marker: str) -> str:
    """The text of the block whose fence is the line after a marker."""
    line = PAGE.text.splitlines().index(marker) + 2
    (text,) = [block.text for block in PAGE.blocks() if block.line == line]
    return text


def test_the_policy_with_every_rule_is_one_and_has_every_rule() -> None:
    text = block_after("<!-- policy: every rule -->")
    policy = read_enclave_policy(text.encode())
    written = tomllib.loads(text)
    assert set(written) == {field.name for field in msgspec.structs.fields(EnclavePolicy)}
    for name in ("gpu", "tpm"):
        assert set(written[name]) == {field.name for field in msgspec.structs.fields(getattr(policy, name))}


def test_each_rule_of_the_template_is_on_the_page() -> None:
    """And the template without its comment marks is a policy, up to values that stand for others."""
    names = set(re.findall(r"^# (\w+) =", TEMPLATE, re.MULTILINE)) | set(
        re.findall(r"^# \[+(\w+)\]", TEMPLATE, re.MULTILINE)
    )
    for name in names:
        assert re.search(rf"\b{name}\b", PAGE.text), name


@pytest.mark.parametrize("page", [PAGE, BROKER], ids=lambda page: page.name)
def test_every_policy_shown_is_one(page: Page) -> None:
    shown = [block for block in page.blocks() if block.language == "toml" and "kinds" in block.text]
    assert shown
    for block in shown:
        read_enclave_policy(block.text.encode())


def test_every_kind_has_its_rows() -> None:
    said = " ".join(row[0] for row in rows_below("What each kind protects"))
    ranges = " ".join(row[0] for row in rows_below("Bytes that nothing authenticates"))
    for kind in get_args(Kind):
        assert f"`{kind}`" in said
        assert f"`{kind}`" in ranges


@pytest.mark.parametrize(("module", "kinds"), MODULES.items())
def test_the_unauthenticated_ranges_are_those_of_the_code(module: str, kinds: tuple[str, ...]) -> None:
    ranges = importlib.import_module(f"cloister.enclave.kinds.{module}").UNAUTHENTICATED
    (cell,) = [row[1] for row in rows_below("Bytes that nothing authenticates") if f"`{kinds[0]}`" in row[0]]
    if not ranges:
        assert cell.startswith("none")
    for start, end, _ in ranges:
        assert f"{start} to {end}" in cell


def test_every_claim_is_explained() -> None:
    explained = {row[0].strip("`") for row in rows_below("Claims, and what null means")}
    facts = {
        "kind",
        "measurements",
        "signers",
        "tcb",
        "platform",
        "properties",
        "issued_at",
        "reasons",
        "devices",
    }
    assert explained == {field.name for field in msgspec.structs.fields(Claims)} - facts


def test_every_endorsement_named_is_known() -> None:
    """A name that no kind knows would be refused only when somebody needs it."""
    known = "\n".join(
        (ROOT / "src" / "cloister" / "enclave" / "kinds" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("snp", "intel", "collateral", "tpm", "azure", "nvidia")
    )
    lines = PAGE.text[PAGE.text.index("| kind | files |") :].splitlines()
    for line in lines[2 : lines.index("")]:
        for name in re.findall(r"`(\w+)`", line.split("|")[2]):
            assert f'"{name}"' in known, name


def test_the_gramine_manifest_is_the_file() -> None:
    shown = block_after("<!-- file: examples/gramine/worker.manifest.template -->")
    file = ROOT / "examples" / "gramine" / "worker.manifest.template"
    assert shown == file.read_text(encoding="utf-8")
    filled = re.sub(r"\{\{.*?\}\}", "x", shown)
    manifest = tomllib.loads(filled)
    assert manifest["sgx"]["debug"] is False
    assert manifest["sgx"]["remote_attestation"] == "dcap"
    allowed = manifest["sgx"]["allowed_files"]
    assert allowed == ["file:site-home/"]  # nothing that is code


def test_no_page_says_that_a_software_tpm_protects() -> None:
    for page in (PAGE, BROKER):
        assert "not hardware-protected" in page.text.lower()
