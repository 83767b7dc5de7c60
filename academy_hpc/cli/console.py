"""What all commands have in common: how they show things, fail, and are interrupted.

- On standard output is what was asked for: a table for people; with ``--json`` one JSON document, or one a line where
  more may come, and nothing else. All else is on standard error.
- An error is one line that says what to do, and exit code 1; wrong usage has exit code 2.
- Ctrl-C says what goes on without the command, and how to go on with it; exit code 130, as shells have it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click

from academy_hpc.errors import AcademyError

__all__ = ["Command", "Group", "age", "fail", "json_option", "say", "say_when_interrupted", "show_json", "show_table"]

INTERRUPTED = 130
# Nothing is cut where a program reads along.
UNLIMITED_COLUMNS = 10_000

_HINT = "academy_hpc.interrupted"
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Command(click.Command):
    """A command whose errors are one line, and which says how to go on when it is interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"\n{ctx.meta.get(_HINT, 'Interrupted: nothing was changed.')}")
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:  # `| head` has seen enough: click ends in silence
            raise
        except (AcademyError, OSError, ValueError) as error:
            raise fail(str(error) or type(error).__name__) from None


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


def fail(text: str) -> click.ClickException:
    """The error to raise: exit code 1."""
    return click.ClickException(text)


def say(text: str) -> None:
    """Tell people something that is not what was asked for."""
    click.echo(text, err=True)


def say_when_interrupted(text: str) -> None:
    """From here on, Ctrl-C says this."""
    click.get_current_context().meta[_HINT] = text


def show_json(document: Any) -> None:
    """One JSON document on a line of its own, there at once also where a program reads along."""
    click.echo(json.dumps(document, default=str))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table for people; `empty`: what to say where there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # In plain words, rich would take what is in brackets for markup, and what is between colons for emoji.
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    if not table.row_count:
        say(empty)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = UNLIMITED_COLUMNS
    console.print(table)


def age(time_s: float | None) -> str:
    """How long ago a Unix time is, in its largest unit: ``3 min``."""
    if not time_s:
        return ""
    seconds = max(0, int(time.time() - time_s))
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
