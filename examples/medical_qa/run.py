"""Six institutes train one model that answers questions about diseases, and none shows another its pages.

python -m examples.medical_qa.run --data DIR [--model DIR] [--out DIR] [--epsilon 8] [--json]
"""

from __future__ import annotations

from pathlib import Path

from examples.medical_qa.prepare import prepare
from examples.textstudy.command import main
from examples.textstudy.study import Task

__all__ = ["task_of"]

TITLE = "Six institutes train one model that answers questions about diseases"


def task_of(data: Path, folder: Path) -> Task:
    """Prepare the institutes' rows in a folder, and return the task."""
    counts = prepare(data, folder)
    return Task(
        name="medical-qa",
        template=Path(__file__).with_name("plan.toml"),
        schema=folder / "schema.toml",
        sites={name: folder / f"{name}.csv" for name in counts},
        tests=tuple(folder / f"{name}-test.csv" for name in counts),
        leave_out=("medquad",),
    )


if __name__ == "__main__":
    main(TITLE, task_of, first_file="medquad_6sources.csv.gz", length=128)
