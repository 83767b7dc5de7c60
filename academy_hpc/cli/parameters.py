"""Parameters that several commands have: a run, the agents of a run, JSON values; the shell completes what it can."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from academy_hpc.cli.console import fail
from academy_hpc.errors import LaunchError

if TYPE_CHECKING:
    from academy_hpc.launch.run import Run

__all__ = ["JsonType", "NamedJsonType", "RunType", "complete_names", "run_argument"]


class RunType(click.ParamType):
    """A run: by its id, a beginning of it, its directory, or as the latest."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Run:
        """The run; one that is not there is no wrong usage, but an error."""
        from academy_hpc.launch.run import Run

        try:
            return value if isinstance(value, Run) else Run.find(value)
        except LaunchError as error:
            raise fail(str(error)) from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The ids that there are, the newest first."""
        from academy_hpc.launch.run import Run

        ids = [run.id for run in reversed(Run.all())]
        return [CompletionItem(name) for name in [*ids, "latest"] if name.startswith(incomplete)]


class JsonType(click.ParamType):
    """A JSON value; a word that can't be meant as one is a text."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value."""
        try:
            return json.loads(value)
        except ValueError as error:
            if value.lstrip()[:1] in ("[", "{", '"'):
                self.fail(f"{value!r} is no JSON: {error}.", param, ctx)
            if value.startswith("-"):  # where negative numbers may come, click takes any unknown option for a value
                self.fail(f"{value!r} is no option, and as a text it needs quotes: '\"{value}\"'.", param, ctx)
            return value


class NamedJsonType(JsonType):
    """``name=VALUE``."""

    name = "name=json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Name and value."""
        name, separator, text = value.partition("=")
        if not (separator and name.isidentifier()):
            self.fail(f"{value!r} is not NAME=VALUE.", param, ctx)
        return name, super().convert(text, param, ctx)


run_argument = click.argument("run", type=RunType(), metavar="RUN")


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the agents of the run that was named before."""
    run = ctx.params.get("run")
    if run is None:
        return []
    names = (agent.agent_id.name for agent in run.spec().agents)
    return [CompletionItem(name) for name in names if name is not None and name.startswith(incomplete)]
