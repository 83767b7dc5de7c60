"""README.md and docs/ say what is so: their Python runs, their commands exist, their messages are those of the code."""

from __future__ import annotations

import ast
import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from academy_hpc import LaunchError
from academy_hpc.cli.command import main
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.schedulers import find_scheduler

__all__: list[str] = []

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `print(...)  # text` in a document promises that line of output.
PROMISE = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(PROJECT)}-{number}")
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text()), 1)
]

# In blocks of shell, in indented blocks, in code within a sentence, and in scripts.
COMMAND = re.compile(r"(?:^[ ]*|`|\$\()academy-hpc +((?:\\\n|[^`\n#|;&)])+)", re.MULTILINE)
NO_COMMANDS = {"agent 1", "server 1"}  # texts that keys are derived from
WITH_COMMANDS = [*PAGES, *PROJECT.glob("launchers/**/README.md"), *PROJECT.glob("examples/*")]
COMMANDS = sorted(
    {
        " ".join(found.replace("\\\n", " ").split())
        for page in WITH_COMMANDS
        if page.is_file()
        for found in COMMAND.findall(page.read_text())
    }
    - NO_COMMANDS
)

ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
MESSAGES = ROW.findall((PROJECT / "docs" / "troubleshooting.md").read_text())
ANYTHING = "\0"


@pytest.mark.parametrize("code", BLOCKS)
def test_a_code_block_runs_and_prints_what_it_says(code: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == PROMISE.findall(code)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_and_its_options_exist(words: str) -> None:
    _check(main, shlex.split(words))


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for words in ("launsh sim.py:Simulator", "launch sim.py:Simulator --node 2", "exchange start -Z"):
        with pytest.raises(AssertionError):
            _check(main, words.split())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_troubleshooting_page_is_one_of_the_package(message: str) -> None:
    assert _is_message(message), "no text of the package is like it"


def test_the_troubleshooting_page_has_messages_and_a_wrong_one_is_noticed() -> None:
    assert len(MESSAGES) > 30
    assert not _is_message("There is no such cluster …")


def _check(command: click.Command, words: list[str]) -> None:
    """Each word is a command of the group before it, an option of its command, or an argument."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{command.name} has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    for word in words:
        if re.match(r"--\w|-[A-Za-z]$", word):
            assert word.partition("=")[0] in options, f"{command.name} has no option {word}"


def _is_message(message: str) -> bool:
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    return any(pattern.search(text) for text in _texts())


@functools.cache
def _texts() -> list[str]:
    """All texts of the package, with a mark where a value goes; and the lines of the scripts that it makes."""
    code = [PROJECT / "academy_hpc", PROJECT / "launchers" / "parsl"]
    modules = [ast.parse(path.read_text()) for folder in code for path in folder.rglob("*.py")]
    scripts = [path.read_text() for path in (PROJECT / "launchers" / "templates").glob("*.sh")]
    return [text for module in modules for text in _constants(module)] + scripts


def _constants(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{\w*\}", ANYTHING, node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else ANYTHING for part in node.values]
            yield "".join(map(str, parts))


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`")
FILE = re.compile(r"`((?:academy_hpc|tests|examples|launchers|benchmarks|docs)/[\w./-]+)`")
MADE = {"academy_hpc/_launchers"}  # in the wheel


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    text, file = page.read_text(), ""
    missing = [name for name in FILE.findall(text) if name not in MADE and not (PROJECT / name).exists()]
    for named, test in NAMED_TEST.findall(text):
        if test:
            file = named or file
            if f"def {test}(" not in (PROJECT / file).read_text():
                missing.append(f"{file}::{test}")
    assert missing == []


SCHEDULERS = ("slurm", "pbs", "torque", "lsf", "flux", "gridengine")
OPTION = re.compile(r"^\| `(\w+)`[^|]* \|(.*)\|$", re.MULTILINE)
OPTIONS = [
    pytest.param(scheduler, option, cell, id=f"{scheduler}-{option}")
    for option, cells in OPTION.findall((PROJECT / "docs" / "launch" / "index.md").read_text())
    for scheduler, cell in zip(SCHEDULERS, cells.split("|"), strict=True)
]
VALUES = {"walltime": "1:00:00", "nodes": 2, "cpus_per_worker": 3}


@pytest.mark.parametrize(("scheduler", "option", "cell"), OPTIONS)
def test_an_option_is_said_to_a_scheduler_as_the_table_has_it(scheduler: str, option: str, cell: str) -> None:
    given = {"nodes": 2, option: VALUES.get(option, "word")}
    request = JobRequest.from_options(scheduler=scheduler, **{"parallel_environment": "mpi"} | given)
    if scheduler != "gridengine" and option != "parallel_environment":
        request = msgspec.structs.replace(request, parallel_environment=None)
    try:
        directives = find_scheduler(scheduler).directives(request, request.layout(2), name="name", output="output")
    except LaunchError:
        assert not cell.strip()
    else:
        [word, *_] = re.findall(r"`([^`]+)`", cell)
        assert "of" in cell or any(directive.startswith(word) for directive in directives)


@pytest.mark.timeout(90)
def test_the_quick_start_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "quickstart.md").read_text()
    (tmp_path / "sim.py").write_text(BLOCK.findall(page)[0])
    [commands] = re.findall(r"^```sh\n(academy-hpc launch sim.py:Simulator --count 4.*?)^```$", page, re.M | re.S)
    connection = tmp_path / "exchange" / "connection.json"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ACADEMY_HPC_CONNECTION": str(connection),
    }
    # The exchange would be started by `launch`, in a place that all programs of this user share.
    start = f"academy-hpc exchange start --state-dir {connection.parent} --connection-file {connection}\n"
    run = subprocess.run(
        ["bash", "-e", "-c", start + commands],  # noqa: S607 - whichever there is
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert '"position": 1.5' in run.stdout
    assert run.stdout.count("ready") >= 4
    assert not connection.exists()


def test_the_reference_of_the_command_line_has_every_command() -> None:
    reference = runpy.run_path(str(PROJECT / "docs" / "hooks" / "commands.py"))["reference"]()
    assert [name for name in main.commands if f"## `academy-hpc {name}" not in reference] == []
    assert "--checkpoint-every" in reference
