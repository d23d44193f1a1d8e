"""Plans for tests: built as text, so that what is tested is what a person writes."""

from __future__ import annotations

from cloister.learning import Plan, parse_plan

SITES = ("a", "b", "c")

TABLES: dict[str, dict[str, str]] = {
    "study": {"name": '"demo"', "purpose": '"research"'},
    "hub": {"name": '"hub"', "identity": f'"{"0" * 64}"'},
    "data": {"schema": f'"{"5" * 64}"', "features": '["x1", "x2"]', "label": '"y"'},
    "model": {"kind": '"logistic"'},
    "training": {"rounds": "4", "batch": "2", "local_steps": "3", "learning_rate": "0.5"},
    "aggregation": {},
    "release": {},
}


def plan_text(
    changes: dict[str, str | None] | None = None, *, sites: tuple[str, ...] = SITES, extra: str = ""
) -> bytes:
    """TOML of a small valid plan; `changes` maps "table.field" to a TOML literal, or to None for absent."""
    tables = {name: dict(fields) for name, fields in TABLES.items()}
    for path, literal in (changes or {}).items():
        table, _, field = path.partition(".")
        tables[table].pop(field, None)
        if literal is not None:
            tables[table][field] = literal
    lines = []
    for table, fields in tables.items():
        lines += [f"[{table}]", *(f"{field} = {literal}" for field, literal in fields.items())]
    for number, site in enumerate(sites, start=1):
        lines += ["[[sites]]", f'name = "{site}"', f'identity = "{number:064x}"', 'dataset = "rows"']
    return ("\n".join(lines) + "\n" + extra).encode()


def make_plan(changes: dict[str, str | None] | None = None, **options: object) -> Plan:
    return parse_plan(plan_text(changes, **options))  # type: ignore[arg-type]
