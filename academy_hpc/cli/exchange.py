"""``academy-hpc exchange``: run an exchange that belongs to no program, and ask one how it is.

`run` does what a program does with `spawn_http_exchange`, and waits: so the exchange is a process of its own, which is
started again when it dies, and this one has nothing to do but to hold its socket and to watch it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from academy_hpc.errors import AcademyError

__all__ = ["exchange"]

LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group()
def exchange() -> None:
    """Run a private exchange, and ask one how it is."""


@exchange.command()
@click.option(
    "--host",
    default="0.0.0.0",  # noqa: S104 as spawn_http_exchange; a token guards every route
    show_default=True,
    help="Address or host name to bind. "
    "0.0.0.0: all IPv4 addresses; ::: all; 127.0.0.1: reachable from this machine only.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5463,
    show_default=True,
    help="TCP port. 0: any free one. With a state directory, 0 and the default mean the one it had before.",
)
@click.option("--interface", help="Bind and advertise this network interface only, such as hsn0.")
@click.option("--address", help="Host name or IP to advertise before all others, such as the near end of a tunnel.")
@click.option(
    "--state-dir",
    type=DIRECTORY,
    help="Directory on a local disk for all that the exchange accepted: started "
    "again with it, it has the same address, token, mailboxes and messages. Default: in memory only.",
)
@click.option(
    "--connection-file",
    type=FILE,
    help="Where clients find address and token, while the exchange serves. "
    "Its directory must be closed to others. Default: connection.json in the state directory.",
)
@click.option(
    "--log-file",
    type=FILE,
    help="File to which the exchange appends its log. Default: a temporary one, whose "
    "end is shown when the exchange process ends.",
)
@click.option("--log-level", type=LEVELS, default="WARNING", show_default=True, help="Least level of the log.")
@click.option(
    "--certificate", type=FILE, help="PEM file with a certificate to use instead of one made for this exchange."
)
@click.option("--private-key", type=FILE, help="PEM file with the key of --certificate, closed to others.")
@click.option(
    "--globus",
    is_flag=True,
    help="Let in others with a Globus Auth token for this exchange, too. Needs ACADEMY_EXCHANGE_CLIENT_ID and "
    "ACADEMY_EXCHANGE_SECRET.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when it serves.")
def run(*, log_level: str, as_json: bool, state_dir: Path | None, **options: Any) -> None:
    """Run an exchange in the foreground, until Ctrl-C or SIGTERM.

    If its process is killed or crashes, an exchange with a state directory is started again at once.

    \b
    Example, on a login node, for a campaign of weeks:
      academy-hpc exchange run --port 0 --interface hsn0 --state-dir /local/$USER/exchange
    and in another terminal, programs find it by
      export ACADEMY_HPC_CONNECTION=/local/$USER/exchange/connection.json

    Exit code 0: stopped as it was told; 1: it could not start, or ended by itself; 2: wrong usage.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    if (options["certificate"] is None) != (options["private_key"] is None):
        raise click.UsageError("--certificate and --private-key belong together: give both.")
    if options["connection_file"] is None:
        if state_dir is None:
            raise click.UsageError("Say where clients find the exchange: --connection-file, or --state-dir.")
        options["connection_file"] = state_dir / "connection.json"
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # These leave every block in order, as Ctrl-C does; `nohup` has us ignore the second.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    with _one_line_errors(), contextlib.suppress(KeyboardInterrupt):
        _serve(level=log_level, log_path=options.pop("log_file"), state_dir=state_dir, as_json=as_json, **options)


def _serve(*, connection_file: Path, as_json: bool, globus: bool, **options: Any) -> None:
    from academy_hpc.exchange.http.globus_settings import GlobusSettings
    from academy_hpc.exchange.http.spawn import spawn_http_exchange

    options["globus"] = GlobusSettings.from_environment() if globus else None
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    with spawn_http_exchange(connection_file=connection_file, on_end=ended.put, **options) as factory:
        urls, path = factory.connection_info.urls, str(connection_file.absolute())
        if as_json:
            click.echo(json.dumps({"urls": urls, "connection_file": path, "pid": os.getpid()}))
        else:
            click.echo(f"The exchange serves at {', '.join(urls)}.\nConnection file: {path}\nCtrl-C stops it.")
        raise click.ClickException(ended.get())


@exchange.command()
@click.option(
    "--connection-file",
    type=FILE,
    envvar="ACADEMY_HPC_CONNECTION",
    show_envvar=True,
    required=True,
    help="The file that the exchange, or the program that has one, wrote.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    help="Seconds that each step of asking may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def status(connection_file: Path, timeout: float, as_json: bool) -> None:
    """Ask an exchange who and how it is. Exit code 1: it can't be reached, with the reason."""
    with _one_line_errors():
        answer = _ask(connection_file, timeout)
    if as_json:
        click.echo(json.dumps(answer))
        return
    for name, value in answer.items():
        if value is not None:
            click.echo(f"{name:<10} {value}")


def _ask(connection_file: Path, timeout_s: float) -> dict[str, Any]:
    from academy_hpc.exchange.http.connection import ConnectionInfo
    from academy_hpc.exchange.http.probe import ask_first

    info = ConnectionInfo.read(connection_file)
    url, answer = ask_first(info, timeout_s=timeout_s)
    return {
        "url": url,
        "host": None if info.server is None else info.server.host,
        "pid": answer.pid,
        "version": answer.version,
        "uptime_s": answer.uptime_s,
        "mailboxes": answer.mailboxes,
    }


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (AcademyError, ValueError) as error:
        raise click.ClickException(str(error)) from None
