"""Seven line icons, one a stage, drawn by hand on a 24 by 24 grid; no field of a report enters them."""

from __future__ import annotations

from typing import Final

from cloister.report.markup import Markup
from cloister.report.model import StageName

__all__ = ["icon"]

_PATHS: Final[dict[StageName, str]] = {
    # a table with one row ticked
    "collect": '<path d="M4 5h16M4 5v14h9M20 5v6M4 10h16M10 5v14"/><path d="m15 17 2 2 4-4.5"/>',
    # a padlock
    "encrypt": '<rect x="5" y="11" width="14" height="9" rx="2"/>'
    '<path d="M8 11V8a4 4 0 0 1 8 0v3M12 14.5v2"/>',
    # three parties, joined
    "federate": '<circle cx="12" cy="5" r="2.4"/><circle cx="5" cy="18" r="2.4"/>'
    '<circle cx="19" cy="18" r="2.4"/><path d="m10.8 7.2-4.6 8.6M13.2 7.2l4.6 8.6M7.6 18h8.8"/>',
    # a sum, going round
    "train": '<path d="M20 12a8 8 0 1 1-2.6-5.9M20 3v4h-4"/><path d="M14.6 9.2H9.6l2.7 2.8-2.7 2.8h5"/>',
    # a question, asked aside
    "infer": '<path d="M4 5h16v11h-9l-4 4v-4H4z"/>'
    '<path d="M9.8 9.2a2.2 2.2 0 1 1 3.2 2c-.7.4-1 .8-1 1.5M12 14v.1"/>',
    # an envelope
    "seal": '<rect x="3.5" y="6" width="17" height="12.5" rx="1.5"/><path d="m4 7 8 6.5L20 7"/>',
    # a document with a rosette
    "release": '<path d="M13 20H5V4h11l3 3v4M8 9h6M8 13h3"/><circle cx="17" cy="15" r="3"/>'
    '<path d="m15.4 17.6-.9 3.9 2.5-1.3 2.5 1.3-.9-3.9"/>',
}


def icon(name: StageName) -> Markup:
    """Return the stage's icon; decoration only, the name stands beside it."""
    return Markup(
        f'<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">{_PATHS[name]}</svg>'
    )
