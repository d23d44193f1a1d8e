"""Five banks train one model that routes support requests, and none shows another a request.

python -m examples.support_intents.run --data DIR [--model DIR] [--out DIR] [--epsilon 8] [--json]
"""

from __future__ import annotations

from pathlib import Path

from examples.support_intents.prepare import prepare
from examples.textstudy.command import main
from examples.textstudy.study import Task

__all__ = ["task_of"]

TITLE = "Five banks train one model that routes support requests"


def task_of(data: Path, folder: Path) -> Task:
    """Prepare the banks' rows in a folder, and return the task."""
    counts = prepare(data, folder)
    return Task(
        name="support-intents",
        template=Path(__file__).with_name("plan.toml"),
        schema=folder / "schema.toml",
        sites={name: folder / f"{name}.csv" for name in counts},
        tests=(folder / "test.csv",),
        leave_out=("banking77",),
    )


if __name__ == "__main__":
    main(TITLE, task_of, first_file="banking77_train.csv", length=128)
