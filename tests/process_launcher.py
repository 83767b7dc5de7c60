"""A launcher of plain processes: one that dies takes no other with it, as on nodes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from academy_hpc.launch.launcher import WorkerEndedError

__all__ = ["ProcessLauncher"]

WORKER = "import sys; from academy_hpc.worker import run; sys.stdout.write(run(sys.stdin.read()))"


class ProcessLauncher:
    """See `academy_hpc.launch.launcher.Launcher`."""

    label = "processes"
    restarts = False

    def __init__(self, slots: int | None = None) -> None:
        self._slots = slots
        self.processes: list[subprocess.Popen[str]] = []
        self.started = 0

    def slots(self) -> int | None:
        return self._slots

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        self.started += len(specs)
        return [self._start(spec) for spec in specs]

    def _start(self, spec: str) -> Future[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()

        def wait() -> None:
            output, _ = process.communicate(spec)
            if process.returncode == 0:
                future.set_result(output)
            else:
                future.set_exception(WorkerEndedError(f"process {process.pid} gave {process.returncode}", "lost"))

        threading.Thread(target=wait, daemon=True).start()
        return future

    def waiting(self) -> str | None:
        return None

    def failure(self) -> str | None:
        return None

    def close(self, *, timeout: float) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout)
