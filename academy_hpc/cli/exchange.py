"""``academy-hpc exchange``: run an exchange that belongs to no program, and ask one how it is.

`run` does what a program does with `spawn_http_exchange`, and waits: so the exchange is a process of its own, which is
started again when it dies, and this one has nothing to do but to hold its socket and to watch it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
from pathlib import Path
from typing import Any

import click

from academy_hpc.cli.console import Group, json_option, show_json
from academy_hpc.cli.exchange_detached import connection_option, find_connection_file, start, stop
from academy_hpc.cli.exchange_host import host
from academy_hpc.cli.exchange_options import DIRECTORY, FILE, check_certificate_options, server_options

__all__ = ["exchange"]

DAY_S = 86400.0


@click.group(cls=Group)
def exchange() -> None:
    """Run a private exchange, and ask one how it is."""


exchange.add_command(host)
exchange.add_command(start)
exchange.add_command(stop)


@exchange.command()
@server_options(port=5463)
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
@click.option(
    "--log-limit",
    type=click.IntRange(1),
    help="Size in bytes at which the log file starts again from nothing. Default: it only grows.",
)
@json_option
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
    check_certificate_options(options["certificate"], options["private_key"])
    if options["connection_file"] is None:
        if state_dir is None:
            raise click.UsageError("Say where clients find the exchange: --connection-file, or --state-dir.")
        options["connection_file"] = state_dir / "connection.json"
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # These leave every block in order, as Ctrl-C does; `nohup` has us ignore the second.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        _serve(level=log_level, state_dir=state_dir, as_json=as_json, **options)


def _serve(*, connection_file: Path, as_json: bool, globus: bool, **options: Any) -> None:
    from academy_hpc.exchange.http.globus_settings import GlobusSettings
    from academy_hpc.exchange.http.spawn import spawn_http_exchange

    options["globus"] = GlobusSettings.from_environment() if globus else None
    options["absent_s"] = options.pop("absent_days") * DAY_S
    options |= {"log_path": options.pop("log_file"), "log_limit_bytes": options.pop("log_limit")}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    with spawn_http_exchange(connection_file=connection_file, on_end=ended.put, **options) as factory:
        urls, path = factory.connection_info.urls, str(connection_file.absolute())
        if as_json:
            show_json({"urls": urls, "connection_file": path, "pid": os.getpid(), "host": socket.gethostname()})
        else:
            click.echo(f"The exchange serves at {', '.join(urls)}.\nConnection file: {path}\nCtrl-C stops it.")
        raise click.ClickException(ended.get())


@exchange.command()
@connection_option
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    default=5.0,
    show_default=True,
    help="Seconds that each step of asking may take.",
)
@json_option
def status(connection_file: Path | None, timeout: float, as_json: bool) -> None:
    """Ask an exchange who and how it is. Exit code 1: it can't be reached, with the reason.

    \b
    Example:
      academy-hpc exchange status
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    path = find_connection_file(connection_file)
    if path is None:
        raise click.ClickException(
            "No exchange of yours is known here: `academy-hpc exchange start` starts one; for others, name their "
            "connection file with --connection-file or ACADEMY_HPC_CONNECTION."
        )
    answer = _ask(path, timeout) | {"connection_file": str(path.absolute())}
    if as_json:
        show_json(answer)
        return
    for name, value in answer.items():
        if value is not None:
            click.echo(f"{name:<15} {value}")


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
