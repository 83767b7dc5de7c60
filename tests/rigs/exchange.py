"""An exchange on the login host that belongs to no program, as a user runs it for a campaign."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from academy_hpc import ConnectionInfo, HttpExchangeFactory

__all__ = ["ExchangeProgram"]

STOP_S = 20.0


class ExchangeProgram:
    """``academy-hpc exchange run`` with a state directory."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "exchange"
        self._program: subprocess.Popen[str] | None = None

    @property
    def connection_file(self) -> Path:
        """Where clients find it."""
        return self._state / "connection.json"

    def start(self) -> HttpExchangeFactory:
        """Start it, for the first time or again; return when it serves."""
        command = [sys.executable, "-m", "academy_hpc", "exchange", "run", "--port=0", "--json"]
        command += [f"--state-dir={self._state}"]
        self._program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._program.stdout is not None
        assert self._program.stdout.readline(), "the exchange did not start"
        return HttpExchangeFactory.from_connection_info(ConnectionInfo.read(self.connection_file))

    def kill(self) -> None:
        """SIGKILL to all of it in one moment."""
        assert self._program is not None
        # Stopped first, it can't start its exchange again.
        self._program.send_signal(signal.SIGSTOP)
        for process in psutil.Process(self._program.pid).children(recursive=True):
            process.kill()
        self._program.kill()
        self._ended()

    def stop(self) -> None:
        """An end in order."""
        if self._program is not None:
            self._program.terminate()
            self._ended()

    def _ended(self) -> None:
        assert self._program is not None
        self._program.communicate(timeout=STOP_S)
        self._program = None
