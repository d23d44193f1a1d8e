"""`cloister receipts FILE`: a file of receipts, checked offline against one's own enclave policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.common import JsonOption, emit
from cloister.cli.serviceoptions import PolicyOption, client_policy

if TYPE_CHECKING:
    from cloister.inference.client.checkreceipts import Checked

__all__ = ["receipts"]

_REFUSED = 1


def receipts(
    file: Annotated[Path, typer.Argument(help="What --receipts kept.", show_default=False)],
    policy: PolicyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every receipt in a file, and the evidence behind each key. Exit 1 where one does not hold."""
    from cloister.enclave.appraise import appraiser
    from cloister.inference.client import check_receipts

    found = check_receipts(file, appraiser(client_policy(policy)))
    result = {
        "accepted": found.accepted,
        "receipts": found.receipts,
        "last": None if found.last is None else found.last.isoformat(),
        "key_sets": [
            {
                "keys": each.digest,
                "model": each.model,
                "model_digest": each.model_digest,
                "verified_at": each.at.isoformat(),
                "protection": each.protection,
                "receipts": each.receipts,
                "refused_because": list(each.refused_because),
            }
            for each in found.key_sets
        ],
        "problems": list(found.problems),
    }
    emit(result, as_json=as_json, text=_in_words(found))
    if not found.accepted:
        raise typer.Exit(_REFUSED)


def _in_words(found: Checked) -> str:
    from cloister.inference.client.page import named_model

    counted = "1 receipt verifies" if found.receipts == 1 else f"{found.receipts} receipts verify"
    lines = [f"{'accepted' if found.accepted else 'REFUSED'}: {counted}."]
    for each in found.key_sets:
        digest = f" ({each.model_digest[:16]})" if named_model(each.model_digest) else ", another server's,"
        lines.append(
            f"  {each.receipts} of {each.model}{digest} under keys {each.digest[:16]}, "
            f"verified {each.at.isoformat(timespec='seconds')}: {each.protection}"
        )
        lines += [f"    refused because {reason}" for reason in each.refused_because]
    lines += [f"  {problem}" for problem in found.problems]
    return "\n".join(lines)
