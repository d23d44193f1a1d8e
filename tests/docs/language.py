"""Make what the page on language models begins with: `python -m tests.docs.language`, in an empty folder.

The homes of `tests.docs.homes`, and a language model with random weights in `base`.
"""

from __future__ import annotations

from pathlib import Path

from tests.docs import homes
from tests.inference.language.models import make_tiny_model


def main() -> None:
    homes.main()
    make_tiny_model(Path("base"))


if __name__ == "__main__":
    main()
