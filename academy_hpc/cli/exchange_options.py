"""The options of an exchange, which `run` takes, and `start`, which runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["DIRECTORY", "FILE", "LEVELS", "arguments_of", "check_certificate_options", "server_options"]

LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def server_options(*, port: int) -> Callable[[FunctionT], FunctionT]:
    """All but the places of files, of which each command has its own defaults. `port`: the default."""
    options = [*_address_options(port), *_server_options()]

    def add(function: FunctionT) -> FunctionT:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _address_options(port: int) -> Iterator[Callable[[FunctionT], FunctionT]]:
    yield click.option(
        "--host",
        default="0.0.0.0",  # noqa: S104 as spawn_http_exchange; a token guards every route
        show_default=True,
        help="Address or host name to bind. "
        "0.0.0.0: all IPv4 addresses; ::: all; 127.0.0.1: reachable from this machine only.",
    )
    yield click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=port,
        show_default=True,
        help="TCP port. 0: any free one. With a state directory, 0 and 5463 mean the one it had before.",
    )
    yield click.option("--interface", help="Bind and advertise this network interface only, such as hsn0.")
    yield click.option(
        "--address", help="Host name or IP to advertise before all others, such as the near end of a tunnel."
    )


def _server_options() -> Iterator[Callable[[FunctionT], FunctionT]]:
    yield click.option("--log-level", type=LEVELS, default="WARNING", show_default=True, help="Least level of the log.")
    yield click.option(
        "--tls/--no-tls", default=None, help="Speak https or not. Default: unless only this machine can reach it."
    )
    yield click.option(
        "--certificate", type=FILE, help="PEM file with a certificate to use instead of one made for this exchange."
    )
    yield click.option("--private-key", type=FILE, help="PEM file with the key of --certificate, closed to others.")
    yield click.option(
        "--globus",
        is_flag=True,
        help="Let in others with a Globus Auth token for this exchange, too. Needs ACADEMY_EXCHANGE_CLIENT_ID and "
        "ACADEMY_EXCHANGE_SECRET.",
    )
    yield click.option(
        "--absent-days",
        type=click.FloatRange(0, min_open=True),
        default=7.0,
        show_default=True,
        help="After so long, callers of an agent that nobody runs get an error.",
    )


def check_certificate_options(certificate: Path | None, private_key: Path | None) -> None:
    """Raises UsageError: one is given without the other."""
    if (certificate is None) != (private_key is None):
        raise click.UsageError("--certificate and --private-key belong together: give both.")


def arguments_of(command: click.Command, values: dict[str, Any]) -> list[str]:
    """The command line that gives the options of `command` these values, from whichever directory."""
    words: list[str] = []
    for option in command.params:
        value = values.get(option.name or "")
        if isinstance(value, bool):
            words += [option.opts[0]] if value else option.secondary_opts[:1]
        elif value is not None:
            words += [option.opts[0], str(value.absolute() if isinstance(value, Path) else value)]
    return words
