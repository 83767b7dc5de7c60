"""``academy-hpc doctor``: what on this machine, and on the nodes of its scheduler, may keep agents from working."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import click

from academy_hpc.cli.console import Command, json_option, say_when_interrupted, show_json
from academy_hpc.cli.launch_options import job_options
from academy_hpc.cli.site import complete_sites

if TYPE_CHECKING:
    from academy_hpc.worker.checks import Finding

__all__ = ["doctor"]

# What people read; a finding that fails is a problem of the machine, not of the command.
WORDS = {"ok": "ok", "warning": "warning", "failed": "problem"}
STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command(cls=Command)
@click.option(
    "--site",
    shell_complete=complete_sites,
    help="Look with this site's profile, and run a small job there that reports what its nodes reach.",
)
@click.option("--no-job", is_flag=True, help="With --site: run no job.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="For the job to run, waiting in the queue included; then it is cancelled.",
)
@job_options
@json_option
def doctor(*, site: str | None, no_job: bool, timeout: float, as_json: bool, **job: Any) -> None:
    """Look at this machine, and tell what may keep an exchange or agents from working: the first thing on a new one.

    With --site, a job of a few minutes runs on its nodes (one, unless --nodes says more) and reports which addresses
    they reach; the other options are those of the job.

    \b
    Example, on a login node:
      academy-hpc doctor --site perlmutter --account m1234

    Exit code 0: no problem was found; 1: some were; 130: interrupted, and the job was cancelled.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.login_node import login_node_findings
    from academy_hpc.cli.software import software_findings
    from academy_hpc.launch.site import Site

    given = {name: value for name, value in job.items() if value not in (None, ())}
    loaded = Site.load(site, given=given)
    findings = [*software_findings(loaded), *login_node_findings(loaded)]
    if not as_json:
        _show(f"This machine, {platform.node()}", findings)
    if site is not None and not no_job:
        from academy_hpc.cli.doctor_job import job_findings

        say_when_interrupted("Interrupted: the job was cancelled.")
        told = job_findings(site, given, timeout_s=timeout)
        if not as_json:
            _show(f"A job at {loaded.name}", told)
        findings += told
    problems = [finding for finding in findings if finding.state == "failed"]
    if as_json:
        words = [{"subject": one.subject, "state": WORDS[one.state], "text": one.text} for one in findings]
        show_json({"host": platform.node(), "site": loaded.name, "ok": not problems, "findings": words})
    click.get_current_context().exit(1 if problems else 0)


def _show(title: str, findings: list[Finding]) -> None:
    click.echo(f"{title}:")
    for one in findings:
        word = click.style(f"{WORDS[one.state]:<7}", fg=STYLES[one.state])
        click.echo(f"  {word}  {one.subject:<10} {one.text}")
