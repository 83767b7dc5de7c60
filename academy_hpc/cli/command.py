"""The command ``academy-hpc``. What its parts need is imported when they run, so that help is there at once."""

from __future__ import annotations

import click

from academy_hpc import __version__
from academy_hpc.cli.agents import agents
from academy_hpc.cli.completion import completion
from academy_hpc.cli.console import Group
from academy_hpc.cli.doctor import doctor
from academy_hpc.cli.exchange import exchange
from academy_hpc.cli.job import job
from academy_hpc.cli.launch import launch
from academy_hpc.cli.login import login
from academy_hpc.cli.runs import runs
from academy_hpc.cli.site import site
from academy_hpc.cli.worker import worker

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="academy-hpc")
def main() -> None:
    """Agents on the compute nodes of HPC machines that talk through a private HTTP exchange."""


main.add_command(agents)
main.add_command(completion)
main.add_command(doctor)
main.add_command(exchange)
main.add_command(job)
main.add_command(launch)
main.add_command(login)
main.add_command(runs)
main.add_command(site)
main.add_command(worker)
