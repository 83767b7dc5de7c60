"""The exchange that a launch uses: one that is named, or that of this user, which is started where none runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from academy_hpc.cli.console import say
from academy_hpc.errors import ConnectionInfoError, LaunchError
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.detached import connection_files, running_exchange
from academy_hpc.exchange.http.process import child_environment

__all__ = ["connection_for"]


def connection_for(place: str) -> ConnectionInfo | None:
    """The exchange at a place.

    Args:
        place: ``"login"``: on a login node; ``"job"``: in the job, so that there is none yet; or a connection file.

    Raises:
        LaunchError: The file is of no use; or none runs, and none could be started.
    """
    if place == "job":
        return None
    if place != "login":
        try:
            return ConnectionInfo.read(place)
        except ConnectionInfoError as error:
            raise LaunchError(f"{error} With --exchange login, your own exchange is used, or started.") from None
    for path in connection_files():
        if (info := running_exchange(path)) is not None:
            return info
    return _started()


def _started() -> ConnectionInfo:
    command = [sys.executable, "-P", "-m", "academy_hpc", "exchange", "start", "--json"]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=child_environment(), check=False
    )
    if done.returncode != 0:
        raise LaunchError(f"An exchange could not be started: {done.stderr.strip().removeprefix('Error: ')}")
    path = Path(json.loads(done.stdout)["connection_file"])
    say(f"An exchange was started; `academy-hpc exchange stop` ends it. Its connection file: {path}")
    return ConnectionInfo.read(path)
