"""The logs of a run: of its jobs and of its workers, as lines that say whose they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from academy_hpc.launch.chain import unfinished_ranks
from academy_hpc.launch.run import Run
from academy_hpc.launch.submission import read_job

__all__ = ["follow_logs", "log_lines"]

POLL_S = 0.5


def log_lines(run: Run, rank: int | None = None) -> Iterator[tuple[str, str]]:
    """What all logs hold, or that of one worker: pairs of whose it is and a line."""
    for label, path in _logs(run, rank):
        for line in _Log(path).lines(unfinished=True):
            yield label, line


def follow_logs(run: Run, rank: int | None = None) -> Iterator[tuple[str, str]]:
    """The same, and what is added to them, until the run has ended."""
    logs: dict[Path, _Log] = {}
    while True:
        over = _is_over(run)
        for label, path in _logs(run, rank):
            for line in logs.setdefault(path, _Log(path)).lines(unfinished=over):
                yield label, line
        if over:
            return
        time.sleep(POLL_S)


def _is_over(run: Run) -> bool:
    """Where no program follows it, nobody has written that it has ended."""
    return run.status().state in ("ended", "failed") or not unfinished_ranks(run, read_job(run))


def _logs(run: Run, rank: int | None) -> Iterator[tuple[str, Path]]:
    if rank is not None:
        yield f"worker {rank}", run.worker_log(rank)
        return
    for job in run.jobs():
        yield f"job {job.job_id}", run.job_log(job.job_id)
    workers = (path for path in (run.path / "workers").glob("*.log") if path.stem.isdigit())
    for path in sorted(workers, key=lambda path: int(path.stem)):
        yield f"worker {path.stem}", path


class _Log:
    """One file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def lines(self, *, unfinished: bool) -> Iterator[str]:
        """The lines that were not read yet; `unfinished`: also one without its end."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n") and not unfinished:
                    return
                self._read += len(line)
                yield line.decode(errors="replace").rstrip("\r\n")
