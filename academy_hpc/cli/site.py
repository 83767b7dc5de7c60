"""``academy-hpc site``: the profiles of machines, and where each of their values comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from academy_hpc.cli.console import Group, fail, json_option, say, show_json, show_table

if TYPE_CHECKING:
    from academy_hpc.launch.site import Site

__all__ = ["complete_sites", "site"]


def complete_sites(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of all sites."""
    from academy_hpc.launch.site import site_names

    return [CompletionItem(name) for name in site_names() if name.startswith(incomplete)]


@click.group(cls=Group)
def site() -> None:
    """Show what is known of a machine: its scheduler, its queues, what it demands of a job.

    A profile of your own is a file in ~/.config/academy_hpc/sites; it needs to say only what differs from the
    profile that it extends.
    """


@site.command("list")
@json_option
def list_sites(as_json: bool) -> None:
    """List the machines and schedulers that have a profile.

    \b
    Example:
      academy-hpc site list
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.launch.site import site_names

    found = [_summary(name) for name in site_names()]
    if as_json:
        show_json(found)
        return
    rows = [(one["site"], one["scheduler"], one["title"] or one["problem"], one["file"]) for one in found]
    show_table(("site", "scheduler", "what it is", "file"), rows, empty="There are no profiles.")


@site.command()
@click.argument("name", required=False, shell_complete=complete_sites)
@json_option
def show(name: str | None, as_json: bool) -> None:
    """Show a profile as it is for you now, and where each value comes from.

    What you give a command counts first, then ACADEMY_HPC_ACCOUNT, ACADEMY_HPC_QUEUE and so on in the environment, your
    own file, the profile that came with academy_hpc, the default. Without NAME: the site in ACADEMY_HPC_SITE.

    \b
    Example:
      academy-hpc site show polaris
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.launch.site import Site

    loaded = Site.load(name)
    values = _values(loaded)
    if as_json:
        show_json({"site": loaded.name, "values": values})
        return
    rows = [(key, _text(one["value"]), one["origin"]) for key, one in values.items() if one["value"] is not None]
    show_table((loaded.name, "value", "from"), rows, empty="")
    for concern in _concerns(loaded):
        say(concern)


@site.command()
@click.argument("name", shell_complete=complete_sites)
@json_option
def check(name: str, as_json: bool) -> None:
    """Check a profile, by its name or the path of its file, and say what mends it.

    Exit code 0: it can be used; 1: it can't, each reason in a line of its own.

    \b
    Example:
      academy-hpc site check ~/.config/academy_hpc/sites/mycluster.toml
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.errors import LaunchError
    from academy_hpc.launch.site import Site, find_site_file

    file = find_site_file(name)
    problems, remarks = file.problems(), []
    if not problems:
        try:
            remarks = _concerns(Site.load(name))
        except LaunchError as error:  # of a file that it extends, or of the environment
            problems = [str(error)]
    if as_json:
        show_json({"site": file.name, "file": file.place, "problems": problems, "remarks": remarks})
    elif not problems:
        click.echo("\n".join([f"{file.place}: can be used.", *remarks]))
    if problems:
        raise click.exceptions.Exit(1) if as_json else fail("\n".join(problems))


def _summary(name: str) -> dict[str, Any]:
    from academy_hpc.errors import LaunchError
    from academy_hpc.launch.site import Site, find_site_file

    file = find_site_file(name)
    summary = {"site": name, "scheduler": None, "title": None, "file": file.place, "problem": None}
    try:
        loaded = Site.load(name)
    except LaunchError as error:
        return summary | {"problem": str(error)}
    return summary | {"scheduler": loaded.scheduler, "title": loaded.title}


def _values(loaded: Site) -> dict[str, Any]:
    """Each value, and where it comes from; what the profile leaves open is what a job has by default."""
    import msgspec

    from academy_hpc.launch.job import JobRequest
    from academy_hpc.launch.profile import JOB_OPTIONS, Profile
    from academy_hpc.launch.site import NOT_GIVEN

    default = JobRequest(scheduler=loaded.scheduler)
    values: dict[str, Any] = {}
    for key in Profile.__struct_fields__:
        value = getattr(loaded, key)
        if value in NOT_GIVEN and key in JOB_OPTIONS:
            value = getattr(default, key)
        if key != "queues":
            values[key] = {"value": None if value in NOT_GIVEN else value, "origin": loaded.origin(key)}
    for name, queue in loaded.queues.items():
        key = f"queues.{name}"
        values[key] = {"value": msgspec.to_builtins(queue), "origin": loaded.origin(key)}
    return values


def _concerns(loaded: Site) -> list[str]:
    """What speaks against a job that is asked for with nothing else, a sentence each."""
    from academy_hpc.errors import LaunchError

    try:
        return loaded.check()
    except LaunchError as error:
        return [str(error)]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        said = {key: part for key, part in value.items() if part not in (None, "", False, [], ())}
        return ", ".join(f"{key} {_text(part)}" for key, part in said.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_text, value))
    return str(value)
