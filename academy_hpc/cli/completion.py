"""``academy-hpc completion``: the shell completes commands, options, runs and the names of agents."""

from __future__ import annotations

import click

from academy_hpc.cli.console import Command, json_option, show_json

__all__ = ["completion"]

PROGRAM = "academy-hpc"
# What click looks for when the program is called to complete a line.
VARIABLE = "_ACADEMY_HPC_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print what makes the shell complete commands, options, runs and the names of agents.

    \b
    Example, once and for all new shells:
      academy-hpc completion bash >> ~/.bashrc
    and for this one:
      eval "$(academy-hpc completion bash)"
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None  # click has these three
    script = complete(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source()
    if as_json:
        show_json({"shell": shell, "script": script})
    else:
        click.echo(script)
