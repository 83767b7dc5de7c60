"""``academy-hpc exchange start`` and ``stop``: an exchange that goes on without a terminal."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from academy_hpc.cli.console import Command, json_option, say, say_when_interrupted, show_json
from academy_hpc.cli.exchange_options import DIRECTORY, FILE, arguments_of, check_certificate_options, server_options

__all__ = ["connection_option", "find_connection_file", "start", "stop"]

LOG_LIMIT_BYTES = 1 << 20

connection_option = click.option(
    "--connection-file",
    type=FILE,
    envvar="ACADEMY_HPC_CONNECTION",
    show_envvar=True,
    help="The file that the exchange, or the program that has one, wrote. Default: that of `exchange start`.",
)


@click.command(cls=Command)
@server_options(port=0)
@click.option(
    "--state-dir",
    type=DIRECTORY,
    help="Directory on a local disk for all that the exchange accepted: started again with it, it has the same "
    "address, token, mailboxes and messages. Default: /var/tmp/academy_hpc-UID.",
)
@click.option(
    "--connection-file",
    type=FILE,
    help="Where clients find address and token, while the exchange serves. "
    "Default: ~/.academy_hpc/exchange/HOST/connection.json.",
)
@click.option(
    "--log-file", type=FILE, help="File for its log, of 1 MB at the most. Default: exchange.log in the state directory."
)
@json_option
@click.pass_context
def start(
    context: click.Context,
    /,
    *,
    as_json: bool,
    state_dir: Path | None,
    connection_file: Path | None,
    log_file: Path | None,
    **options: Any,
) -> None:
    """Start an exchange that goes on without this terminal; return when it serves.

    If one runs already at this connection file, it says so and starts none. An exchange process that is killed or
    crashes is started again at once.

    \b
    Example, on a login node:
      academy-hpc exchange start --interface hsn0
      export ACADEMY_HPC_CONNECTION=~/.academy_hpc/exchange/$(hostname)/connection.json
      academy-hpc exchange status
      academy-hpc exchange stop

    Exit code 0: it serves; 1: it could not start, with the reason; 2: wrong usage.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.exchange.http import detached
    from academy_hpc.exchange.http.state_lock import start_lock

    check_certificate_options(options["certificate"], options["private_key"])
    state = (state_dir or detached.default_state_dir()).expanduser().absolute()
    places = {
        "state_dir": state,
        "connection_file": (connection_file or detached.default_connection_file()).expanduser().absolute(),
        "log_file": (log_file or state / "exchange.log").expanduser().absolute(),
    }
    say_when_interrupted("Interrupted: `academy-hpc exchange status` tells whether the exchange has started.")
    with start_lock(state):
        answer = _running(places["connection_file"])
        already = answer is not None
        if answer is None:
            words = [*arguments_of(context.command, options | places), "--log-limit", str(LOG_LIMIT_BYTES), "--json"]
            answer = json.loads(detached.start_detached(words, log_file=places["log_file"]))
    answer |= {"log_file": str(places["log_file"]), "already": already}
    if as_json:
        show_json(answer)
    else:
        _tell(answer, already=already)


def _running(path: Path) -> dict[str, Any] | None:
    from academy_hpc.exchange.http.detached import running_exchange

    info = running_exchange(path)
    if info is None:
        return None
    server = info.server
    return {
        "urls": info.urls,
        "connection_file": str(path),
        "pid": None if server is None else server.pid,
        "host": None if server is None else server.host,
    }


def _tell(answer: dict[str, Any], *, already: bool) -> None:
    who = f"An exchange runs already, as process {answer['pid']} on {answer['host']}; it" if already else "The exchange"
    click.echo(
        f"{who} serves at {', '.join(answer['urls'])}.\nConnection file: {answer['connection_file']}\n"
        f"Log: {answer['log_file']}\n`academy-hpc exchange stop` stops it."
    )


@click.command(cls=Command)
@connection_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that it may take to end.",
)
@json_option
def stop(connection_file: Path | None, timeout: float, as_json: bool) -> None:
    """Stop an exchange that `start` started, or `run` in another terminal. What it holds stays in its state directory.

    Exit code 0: it has ended, or did before; 1: not, with the reason, such as the login node on which it runs.

    \b
    Example:
      academy-hpc exchange stop
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.exchange.http.detached import stop_detached

    path = find_connection_file(connection_file)
    if path is None:
        server = None
    else:
        say_when_interrupted("Interrupted: the exchange was told to stop, and may take a moment.")
        server = stop_detached(path, timeout_s=timeout)
    if as_json:
        stopped = {} if server is None else {"pid": server.pid, "host": server.host}
        show_json({"connection_file": None if path is None else str(path), "stopped": server is not None} | stopped)
    elif server is None:
        say("No exchange of yours runs here.")
    else:
        click.echo(f"The exchange has ended (process {server.pid} on {server.host}).")


def find_connection_file(given: Path | None) -> Path | None:
    """The one that is given, else that of an exchange that was started, here rather than elsewhere; None: none was."""
    from academy_hpc.errors import ConnectionInfoError
    from academy_hpc.exchange.http.connection import ConnectionInfo
    from academy_hpc.exchange.http.detached import connection_files

    if given is not None:
        return given
    files = connection_files()
    for path in files:
        with contextlib.suppress(ConnectionInfoError):
            ConnectionInfo.read(path)
            return path
    return files[0] if files else None
