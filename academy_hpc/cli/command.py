"""The command ``academy-hpc``. What its parts need is imported when they run, so that help is there at once."""

from __future__ import annotations

import click

from academy_hpc import __version__
from academy_hpc.cli.exchange import exchange
from academy_hpc.cli.login import login

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="academy-hpc")
def main() -> None:
    """Agents on the compute nodes of HPC machines that talk through a private HTTP exchange."""


main.add_command(exchange)
main.add_command(login)
