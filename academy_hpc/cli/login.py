"""``academy-hpc login``: what programs without a terminal can't do themselves."""

from __future__ import annotations

import click

from academy_hpc.errors import AcademyError

__all__ = ["login"]


@click.command()
def login() -> None:
    """Log in at Globus Auth, for exchanges that ask for it.

    Once is enough, also for programs on other nodes with this home directory: the login is kept in
    ~/.academy_hpc/globus, for this user's eyes only, and renewed for as long as it is used.

    Exit code 0: logged in, or it was already; 1: not, with the reason.
    """
    from academy_hpc.exchange.http.globus_login import GlobusCredential

    try:
        GlobusCredential().blocking_authorization()
    except AcademyError as error:
        raise click.ClickException(str(error)) from None
    click.echo("Logged in: programs of this account can use exchanges with Globus Auth.")
