"""What the documentation shows is true: commands run, links lead somewhere, both READMEs say the same."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.docs.markdown import ROOT, Block, Page, pages, shell_text, shown_output

from cloister.cli.main import COMMANDS, run
from cloister.enclave.attester import why_no_swtpm

PAGES = pages()
BY_NAME = {page.name: page for page in PAGES}
RUN = [page for page in PAGES if page.setup is not None]
SHELL = ("console", "bash", "sh", "shell")
SETUPS = {
    "": [],
    "rows": ["printf 'customer,age,income,region\\n1,34,41000,north\\n2,51,58000,south\\n' > rows.csv"],
    "homes": [f"PYTHONPATH={ROOT} python -m tests.docs.homes"],
    "enclave": [
        f"PYTHONPATH={ROOT} python -m tests.docs.homes"
    ],  # the same, where a software TPM can be started
    "language": [f"PYTHONPATH={ROOT} python -m tests.docs.language"],  # where one can be trained
    "serving": [f"PYTHONPATH={ROOT} python -m tests.docs.serving"],  # and where language models can be run
}
NEEDS = {
    "language": ("torch", "transformers", "peft"),
    "serving": ("torch", "transformers", "uvicorn", "openai"),
}
PORTS = ("8100", "8200", "8300", "8310")  # on which the page on private inference listens
PASSPHRASE = "correct horse battery staple, six words long"


@functools.cache
def help_of(*path: str) -> str:
    """The text of `cloister PATH --help`; it must exist."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        for name in ("COLUMNS", "TERMINAL_WIDTH"):
            patch.setenv(name, "200")
        code = run([*path, "--help"])
    assert code == 0, f"`cloister {' '.join(path)} --help` ends with {code}"
    return re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())


def resolve(words: list[str]) -> tuple[str, ...]:
    """The command that a line calls: () for `cloister` itself, else names as deep as groups go."""
    if not words or words[0].startswith("-"):
        return ()
    assert words[0] in COMMANDS, f"there is no command `cloister {words[0]}`"
    path = (words[0],)
    while len(words) > len(path) and is_group(*path) and not words[len(path)].startswith("-"):
        path = (*path, words[len(path)])
    return path


def is_group(*path: str) -> bool:
    usage = help_of(*path).split("\n\n")[0]
    return " COMMAND " in usage or "COMMAND [ARGS]" in usage


COMMAND_LINES = [
    pytest.param(words, id=f"{page.name}:{line} cloister {' '.join(words)[:60]}")
    for page in PAGES
    for line, words in page.commands()
]


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_every_command_shown_is_known_with_its_options(words: list[str]) -> None:
    path = resolve(words)
    text = help_of(*path)
    for word in words[len(path) :]:
        if re.match(r"--?[a-z]", word):
            option = word.split("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (
                f"`cloister {' '.join(path)}` has no option {option}"
            )


def test_the_command_overview_is_in_the_reference() -> None:
    """Each command, and each command of a group, has a line in the page on the command line."""
    text = BY_NAME["docs/reference/cli.md"].text
    for name in COMMANDS:
        assert f"`cloister {name}" in text, f"docs/reference/cli.md does not mention `cloister {name}`"


def script_of(page: Page) -> str:
    """The page as one bash script; each step says its line first, so that a failure can be found."""
    ending = "trap 'kill $(jobs -p) 2> /dev/null || :' EXIT"  # what a page left in the background
    steps = ["set -euo pipefail", ending, *SETUPS[page.setup]]
    for block in page.blocks():
        steps += [f"echo '@@ {page.name}:{block.line}' >&2", *step_of(block)]
    return "\n".join(steps) + "\n"


def step_of(block: Block) -> list[str]:
    if block.directive == "skip":
        return []
    if block.directive == "file":
        return [
            f"mkdir -p \"$(dirname '{block.argument}')\"",
            f"cat > '{block.argument}' <<'END_OF_BLOCK'",
            block.text + "END_OF_BLOCK",
        ]
    if block.directive == "python":
        return ["python -W error - <<'END_OF_BLOCK'", block.text + "END_OF_BLOCK"]
    if block.language not in SHELL:
        return []
    if block.directive == "fails":
        return [
            f"code=0; {shell_text(block).strip()} || code=$?",
            f'[ "$code" = {block.argument} ] || {{ echo "exit code $code" >&2; exit 99; }}',
        ]
    return [shell_text(block)]


def lacking(page: Page) -> str | None:
    """What this machine lacks to run a page; None where nothing."""
    absent = [name for name in NEEDS.get(page.setup or "", ()) if importlib.util.find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return why_no_swtpm() if page.setup in ("enclave", "serving") else None


def with_free_ports(script: str) -> str:
    """The script with ports in the place of its own that nobody uses, since tests run beside one another."""
    with contextlib.ExitStack() as stack:
        for port in PORTS:
            free = stack.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            script = re.sub(rf"(?<=[: ]){port}\b", str(free.getsockname()[1]), script)
    return script


LONG = (
    "docs/audit.md",
    "docs/crypto.md",
    "docs/enclave-broker.md",
    "docs/enclave.md",
    "docs/encrypted-scoring.md",
    "docs/ledger.md",
    "docs/llm.md",
    "docs/local-privacy.md",
    "docs/privacy.md",
    "docs/private-inference.md",
    "docs/private-modes.md",
    "docs/sealed-models.md",
    "docs/statistics.md",
    "docs/tutorial.md",
    "docs/vault.md",
)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.name in LONG), id=page.name) for page in RUN],
)
def test_a_page_runs_from_top_to_bottom(page: Page, tmp_path: Path) -> None:
    if missing := lacking(page):
        pytest.skip(missing)
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\n", encoding="utf-8")
    secret.chmod(0o600)
    work = tmp_path / "work"
    work.mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(work),
        "LANG": "C.UTF-8",
        "CLOISTER_PASSPHRASE_FILE": str(secret),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "EXAMPLES": str(ROOT / "examples"),
    }
    done = subprocess.run(
        ["bash", "-c", with_free_ports(script_of(page)) if page.setup == "serving" else script_of(page)],  # noqa: S607
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    for block in page.blocks():
        for line in shown_output(block):
            pattern = re.compile(".*".join(map(re.escape, line.strip().split("..."))))
            assert any(pattern.fullmatch(each) for each in said), (
                f"{page.name} shows what was not said: {line}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links():
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "mailto:")), f"{page.name}: {link}"
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        assert path.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        assert path.exists(), f"{page.name}: {link} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in Page(path).anchors(), f"{page.name}: {link} names a heading that is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_well_formed(page: Page) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in page.blocks():
        place = f"{page.name}:{block.line}"
        if block.language == "python":
            compile(block.text, place, "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language in SHELL:
            for target in re.findall(r"^make ([a-z-]+)", shell_text(block), re.MULTILINE):
                assert target in targets, f"{place}: make has no target {target}"


def test_both_readmes_have_the_same_shape() -> None:
    english, chinese = BY_NAME["README.md"], BY_NAME["README.zh-CN.md"]
    assert [level for level, _ in english.headings()] == [level for level, _ in chinese.headings()]
    assert [(block.language, block.text) for block in english.blocks()] == [
        (block.language, block.text) for block in chinese.blocks()
    ]
    rows = [len(re.findall(r"^\|", page.text, re.MULTILINE)) for page in (english, chinese)]
    assert rows[0] == rows[1]


def test_no_page_names_a_place_of_one_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(work|tmp|root|home/\w+)/", page.text), page.name


def test_the_site_has_every_page_in_its_navigation() -> None:
    listed = set(re.findall(r"[\w./-]+\.md\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    for path in (ROOT / "docs").rglob("*.md"):
        assert path.relative_to(ROOT / "docs").as_posix() in listed, f"{path.name} is not in mkdocs.yml"


def test_the_tests_that_the_threat_model_names_exist() -> None:
    rows = [line for line in BY_NAME["SECURITY.md"].text.splitlines() if "`test_" in line]
    assert len(rows) > 10
    for row in rows:
        files = re.findall(r"\]\((tests/[\w/]+\.py)\)", row)
        assert files, f"no file is linked for {row[:60]}"
        source = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(test_\w+)`", row):
            assert re.search(rf"def {name}\(", source), f"{name} is not in {files}"
