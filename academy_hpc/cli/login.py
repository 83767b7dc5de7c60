"""``academy-hpc login``: what programs without a terminal can't do themselves."""

from __future__ import annotations

import click

from academy_hpc.cli.console import Command, json_option, show_json

__all__ = ["login"]


@click.command(cls=Command)
@json_option
def login(as_json: bool) -> None:
    """Log in at Globus Auth, for exchanges that ask for it.

    Once is enough, also for programs on other nodes with this home directory: the login is kept in
    ~/.academy_hpc/globus, for this user's eyes only, and renewed for as long as it is used.

    Exit code 0: logged in, or it was already; 1: not, with the reason.

    \b
    Example:
      academy-hpc login
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.exchange.http.globus_login import GlobusCredential

    GlobusCredential().blocking_authorization()
    if as_json:
        show_json({"logged_in": True})
    else:
        click.echo("Logged in: programs of this account can use exchanges with Globus Auth.")
