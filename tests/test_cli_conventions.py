"""What holds for every command of academy-hpc."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from academy_hpc.cli.command import main
from academy_hpc.cli.console import Command, Group, age, fail, say_when_interrupted, show_table
from academy_hpc.errors import LaunchError

__all__: list[str] = []


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main, "academy-hpc"))
# Job scripts run these: their output is a log.
OF_JOB_SCRIPTS = {"academy-hpc worker", "academy-hpc exchange host"}


@pytest.mark.parametrize("path", COMMANDS)
def test_help_of_every_command_has_an_example(path: str) -> None:
    shown = CliRunner().invoke(main, [*path.split()[1:], "--help"]).stdout
    assert re.search(rf"Examples?\b[^:]*:\n(.*\n)*? .*\b{path}\b", shown), shown


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_has_help(path: str) -> None:
    options = [option for option in COMMANDS[path].params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("path", sorted(COMMANDS.keys() - OF_JOB_SCRIPTS))
def test_every_command_speaks_json(path: str) -> None:
    assert "--json" in [option for parameter in COMMANDS[path].params for option in parameter.opts]


def test_help_loads_nothing_that_takes_long() -> None:
    """The modules of the commands themselves, click and the standard library are all."""
    code = "import sys; from academy_hpc.cli.command import main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {name.partition(".")[0] for name in loaded} & {
        "aiohttp",
        "asyncio",
        "msgspec",
        "parsl",
        "psutil",
        "rich",
    } == set()
    own = [name for name in loaded if name.startswith("academy_hpc.") and not name.startswith("academy_hpc.cli")]
    assert own == ["academy_hpc.errors"]


# Errors and interruptions


@click.group(cls=Group)
def group() -> None:
    """A group."""


@group.command()
@click.argument("what")
def end(what: str) -> None:
    """End in some way."""
    if what == "interrupted":
        raise KeyboardInterrupt
    if what == "interrupted later":
        say_when_interrupted("It goes on; `academy-hpc runs` shows it.")
        raise KeyboardInterrupt
    while what == "much":
        click.echo(what)
    raise {"error": LaunchError("no node"), "wrong": ValueError("no number"), "told": fail("told"), "disk": OSError()}[
        what
    ]


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("error", 1, "Error: no node\n"),
        ("wrong", 1, "Error: no number\n"),
        ("disk", 1, "Error: OSError\n"),
        ("told", 1, "Error: told\n"),
        ("interrupted", 130, "\nInterrupted: nothing was changed.\n"),
        ("interrupted later", 130, "\nIt goes on; `academy-hpc runs` shows it.\n"),
    ],
)
def test_a_command_says_how_it_ended_in_one_line(what: str, code: int, said: str) -> None:
    done = CliRunner().invoke(group, ["end", what])
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", said)
    assert isinstance(group.commands["end"], Command)


def test_wrong_usage_has_exit_code_2() -> None:
    assert CliRunner().invoke(main, ["agents", "call"]).exit_code == 2


# Tables


@click.command()
def long_table() -> None:
    """A table that is wider than any terminal."""
    rows = [("[red]x", "y" * 300), (None, 1), (r"a\[/x]", "home:eagle:grand")]
    show_table(("a", "b"), rows, empty="")


def test_a_table_that_a_program_reads_is_not_cut_and_shows_all_characters_as_they_are() -> None:
    shown = CliRunner().invoke(long_table).stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["a", "b"],
        ["[red]x", "y" * 300],
        ["1"],
        [r"a\[/x]", "home:eagle:grand"],
    ]


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = "from tests.test_cli_conventions import group; group(['end', 'much'])"
    done = subprocess.run(
        ["/bin/bash", "-c", '"$0" -c "$1" | head -n 1', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("much\n", "")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (119, "119 s"), (121, "2 min"), (7300, "2 h"), (3e5, "3 d")])
def test_an_age_is_told_in_its_largest_unit(monkeypatch: pytest.MonkeyPatch, seconds: float, text: str) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert age(1e9 - seconds) == text
    assert age(None) == ""


# Completion


def completed(*words: str, environment: dict[str, str] | None = None) -> list[str]:
    """What bash is offered for the last of the words."""
    line = ["academy-hpc", *words]
    variables = {"_ACADEMY_HPC_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(words))}
    command = Path(sys.executable).with_name("academy-hpc")
    done = subprocess.run(
        [command], env=os.environ | variables | (environment or {}), capture_output=True, text=True, check=False
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_the_shell_completes_commands_and_runs(tmp_path: Path) -> None:
    for name in ("sim-20261124-145740-0aac", "b-20261124-150000-1111"):
        (tmp_path / name / "workers").mkdir(parents=True)
    assert completed("agents", "ca") == ["call"]
    assert completed("launch", "sim.py:Sim", "--site", "perl") == ["perlmutter"]
    environment = {"ACADEMY_HPC_RUNS": str(tmp_path)}
    assert completed("agents", "list", "s", environment=environment) == ["sim-20261124-145740-0aac"]
    assert len(completed("agents", "list", "", environment=environment)) == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert f"_ACADEMY_HPC_COMPLETE={shell}_complete" in done.stdout
    script = json.loads(CliRunner().invoke(main, ["completion", shell, "--json"]).stdout)["script"]
    assert script == done.stdout[:-1]
