"""Numbers with their ranges, as a report's fields are held to them when a report is written or read."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = ["Count", "Digest", "Fraction", "NotNegative", "Positive"]

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
