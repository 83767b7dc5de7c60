"""Writes the reference of the command line into its page, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from academy_hpc.cli.command import main

__all__ = ["on_page_markdown", "reference"]

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """All commands, each with its help."""
    return "\n".join(_lines(main, "academy-hpc", None))


def _lines(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    if not isinstance(command, click.Group):
        yield from (f"## `{path}`", "", "```text", *_help(command, context), "```", "")
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None and not found.hidden:
            yield from _lines(found, f"{path} {name}", context)


def _help(command: click.Command, context: click.Context) -> list[str]:
    return inspect.cleandoc(command.get_help(context)).splitlines()
