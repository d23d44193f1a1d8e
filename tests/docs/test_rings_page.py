"""The figures on the page about rings are those of the code."""

from __future__ import annotations

import math
import tomllib

import pytest
from tests.docs.markdown import ROOT

from cloister.errors import PlanError
from cloister.secagg import Encoding

PAGE = (ROOT / "docs" / "concepts" / "rings.md").read_text(encoding="utf-8")


def row(head: str, after: str = "") -> list[str]:
    """The cells of the first table row that begins so, behind `after`."""
    lines = PAGE[PAGE.index(after) :].splitlines()
    found = next(line for line in lines if line.startswith(f"| {head} |"))
    return [cell.strip() for cell in found.strip("| ").split("|")][1:]


@pytest.mark.parametrize("sites", [3, 5, 10, 30, 100])
def test_bits_that_a_value_keeps(sites: int) -> None:
    cells = row(str(sites))
    for bits, (levels, kept) in zip((8, 16, 32), zip(cells[::2], cells[1::2], strict=True), strict=True):
        if levels == "refused":
            with pytest.raises(PlanError):
                Encoding(bits, sites, 1.0)
            continue
        most = int(levels.replace(",", ""))
        assert most == (2 ** (bits - 1) - 1) // sites
        assert Encoding(bits, sites, float(most)).largest == most
        assert kept == f"{math.log2(2 * most + 1):.1f}"


def test_ranges_that_fit() -> None:
    sites, first, example = (
        row("sites", "first row times"),
        row("R that fits, times 2^-k"),
        row("for example"),
    )
    for number, most, value_range in zip(sites, first, example, strict=True):
        assert int(most) == 127 // int(number)
        encoding = Encoding(8, int(number), float(value_range))
        assert encoding.largest == int(most)
        assert encoding.largest * encoding.unit == float(value_range)


def test_the_noise_of_rounding() -> None:
    sites, units, noise = (
        row(head, "per coordinate and round")
        for head in ("sites", "u / R", "noise of the mean, at most, of R")
    )
    for number, unit, share in zip(sites, units, noise, strict=True):
        n, most = int(number), 127 // int(number)
        assert float(unit) == pytest.approx(1 / most, abs=6e-4)
        assert share == f"{100 / most / (2 * math.sqrt(n)):.1f} %"


def test_the_ranges_of_the_example_fit_five_sites() -> None:
    text = PAGE[PAGE.index("```toml") + 8 :]
    section = tomllib.loads(text[: text.index("```")])["aggregation"]
    for value_range in (section["value_range"], *(entry["value_range"] for entry in section["ranges"])):
        encoding = Encoding(section["bits"], 5, value_range)
        assert encoding.largest * encoding.unit == value_range
        assert encoding.largest == 25
