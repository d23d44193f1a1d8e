"""A dry run as text: what the site policy decides, what would leave the site, and what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.runtime.disclosure import Disclosure

__all__ = ["in_words"]


def in_words(disclosure: Disclosure) -> list[str]:
    """Return the lines of a disclosure."""
    lines = [
        f"Study {disclosure.study}, for {disclosure.purpose}: hub {disclosure.hub}, "
        f"with {', '.join(disclosure.partners)}.",
        f"Plan {disclosure.digest}.",
        f"Verdict: {disclosure.verdict}. {'; '.join(disclosure.reasons)}.",
    ]
    lines += [f"It could not run here: {obstacle}." for obstacle in disclosure.obstacles]
    lines.append(
        f"Of dataset {disclosure.dataset} ({disclosure.rows} rows) it reads {', '.join(disclosure.columns)}; "
        f"not read: {', '.join(disclosure.not_read) or 'none'}."
    )
    lines.append("What would leave:")
    for item in disclosure.items:
        size = "" if item.size is None else f" [{item.size} bytes]"
        lines.append(f"  {item.what}{size}")
        lines.append(f"      to {', '.join(item.readers)}; {item.protection}")
    lines.append(f"What stays: {'; '.join(disclosure.stays)}.")
    if disclosure.epsilon_hub is not None:
        unit = "row" if disclosure.unit == "record" else f"{disclosure.unit} (all its rows together)"
        lines.append(
            f"Privacy of one {unit}: epsilon {disclosure.epsilon_hub:.4g} against the hub and every reader, "
            f"{disclosure.epsilon_colluders:.4g} with colluding sites, at delta {disclosure.delta:g}."
        )
    lines += [f"Not known: {each}." for each in disclosure.unknown]
    if disclosure.sent_bytes is not None:
        lines.append(
            f"At most {disclosure.sent_bytes} bytes sent and {disclosure.received_bytes} received, "
            "in all attempts."
        )
    readers = ", ".join(disclosure.recipients) or "whom the release policies allow"
    lines.append(f"The model may be released to: {readers}.")
    return lines
