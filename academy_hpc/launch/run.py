"""The directory of a run: all that is kept of one launch by a batch launcher, where every program of the user finds it.

Several processes on several hosts write here, so each file has one writer at a time and is replaced in one step, or is
appended to by one writer; nobody locks anything on a file system that nodes share.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.exchange.http.private_file import read_private, write_private
from academy_hpc.launch.spec import AgentReport, EndCause, LaunchSpec, Origin

__all__ = ["RUNS_VARIABLE", "JobRecord", "Run", "RunState", "RunStatus", "WorkerStatus", "default_runs"]

RUNS_VARIABLE = "ACADEMY_HPC_RUNS"
"""Environment variable with the directory of all runs."""

RunState = Literal["new", "queued", "running", "ended", "failed"]
"""Nothing submitted yet; a job waits in the queue; a job runs; all is over, as it was meant to; or not."""

# A spec may hold the code of thousands of agents, and a status their tracebacks.
MAX_BYTES = 1 << 30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

StructT = TypeVar("StructT", bound=msgspec.Struct)


class JobRecord(msgspec.Struct, frozen=True):
    """One job of a run.

    Attributes:
        job_id: As the scheduler says it.
        number: 1 for the first job of the run, and so on.
        time_s: Unix time of its submission.
    """

    job_id: str
    number: int
    time_s: float


class RunStatus(msgspec.Struct, frozen=True):
    """How a run is, as the last program that looked has written it.

    Attributes:
        state: In one word.
        job_id: Of the latest job.
        job_state: What the scheduler says of it, in the words of `academy_hpc.launch.schedulers`.
        reason: Why it waits, or ended: a sentence for people.
        cause: Why it ended, if it did.
        time_s: Unix time at which this was so.
    """

    state: RunState = "new"
    job_id: str | None = None
    job_state: str = ""
    reason: str = ""
    cause: EndCause | None = None
    time_s: float = 0.0


class WorkerStatus(msgspec.Struct, frozen=True):
    """How a worker is, as itself has written it.

    Attributes:
        rank: Which.
        attempt: Which life of it.
        origin: Where it runs.
        agents: The last report of each of its agents.
        checks: What it found where it started, for people.
        error: Why it could run nothing.
        again: Whether it is to go on in another life.
        time_s: Unix time at which this was so.
    """

    rank: int
    attempt: int
    origin: Origin
    agents: tuple[AgentReport, ...] = ()
    checks: str = ""
    error: str = ""
    again: bool = False
    time_s: float = 0.0


class Run:
    """One run directory."""

    def __init__(self, path: Path) -> None:
        """Of the directory at `path`, which exists: see `create` and `find`."""
        self.path = path.absolute()

    @classmethod
    def create(cls, name: str, *, runs: Path | None = None) -> Self:
        """A new one, for this user's eyes only.

        Args:
            name: What its id begins with.
            runs: In which directory; None: see `default_runs`.

        Raises:
            LaunchError: The directory can't be made.
            ValueError: The name has other characters than letters, digits and ``._-``.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} can't name a run: use up to 64 letters, digits, '.', '_' and '-'.")
        folder = default_runs() if runs is None else runs
        path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o700)
            for part in ("workers", "state"):
                (path / part).mkdir(mode=0o700)
        except OSError as error:
            raise LaunchError(
                f"The run directory {path} can't be made: {error}. Name another place for runs with {RUNS_VARIABLE}."
            ) from None
        return cls(path)

    @classmethod
    def find(cls, run: str | os.PathLike[str], *, runs: Path | None = None) -> Self:
        """The run with this path, id, or beginning of an id that only one has; ``"latest"``: the newest one.

        Raises:
            LaunchError: There is none, or there are several.
        """
        if isinstance(run, os.PathLike) or os.sep in run:
            path = Path(run).expanduser()
            if not (path / "workers").is_dir():
                raise LaunchError(f"{path} is no run directory.")
            return cls(path)
        known = cls.all(runs=runs)
        if run == "latest" and known:
            return known[-1]
        found = [one for one in known if one.id == run] or [one for one in known if run and one.id.startswith(run)]
        if len(found) == 1:
            return found[0]
        where = default_runs() if runs is None else runs
        what = f"{len(found)} runs begin with" if found else "There is no run"
        raise LaunchError(f"{what} {run!r} in {where}; `academy-hpc runs` lists them.")

    @classmethod
    def all(cls, *, runs: Path | None = None) -> list[Self]:
        """All runs there are, the oldest first."""
        folder = default_runs() if runs is None else runs
        try:
            paths = [path for path in folder.iterdir() if _is_run(path)]
        except FileNotFoundError:
            return []
        # Not by the time of the directory, which changes with what is written there.
        return [cls(path) for path in sorted(paths, key=lambda path: path.name.rsplit("-", 3)[1:])]

    def __repr__(self) -> str:
        """Its path."""
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> str:
        """Its name."""
        return self.path.name

    # Places

    @property
    def spec_path(self) -> Path:
        """The launch spec."""
        return self.path / "spec.json"

    @property
    def connection_path(self) -> Path:
        """The connection file of the exchange."""
        return self.path / "connection.json"

    @property
    def state_dir(self) -> Path:
        """The agents' checkpoints."""
        return self.path / "state"

    @property
    def exchange_dir(self) -> Path:
        """What an exchange inside the job keeps between jobs."""
        return self.path / "exchange"

    @property
    def stop_path(self) -> Path:
        """Exists when the user wants the run to end."""
        return self.path / "stop"

    def worker_log(self, rank: int) -> Path:
        """The log of a worker, of all its lives."""
        return self.path / "workers" / f"{rank}.log"

    def job_log(self, job_id: str) -> Path:
        """The output of a job script, each time that it ran."""
        return self.path / f"job.{job_id}.log"

    # What is kept

    def write_spec(self, spec: LaunchSpec) -> None:
        """Keep the launch spec. Raises LaunchError."""
        self.write_private("spec.json", spec.to_json())

    def spec(self) -> LaunchSpec:
        """The launch spec. Raises LaunchError: there is none, or others could have written it."""
        return LaunchSpec.from_json(self.read_private("spec.json"))

    def write_private(self, name: str, text: str) -> None:
        """Replace a file, for this user's eyes only, in one step. Raises LaunchError."""
        try:
            write_private(self.path / name, text)
        except OSError as error:
            raise LaunchError(f"{self.path / name} can't be written: {error}.") from None

    def read_private(self, name: str) -> str:
        """The text of a file that nobody else could have read or written. Raises LaunchError."""
        try:
            return read_private(self.path / name, limit_bytes=MAX_BYTES)
        except (OSError, ValueError) as error:
            raise LaunchError(f"{self.path / name} can't be read: {error}.") from None

    def record_job(self, job_id: str) -> JobRecord:
        """Keep the id of a job that was submitted: on the disk when this returns."""
        record = JobRecord(job_id, len(self.jobs()) + 1, time.time())
        self._append("jobs.jsonl", record)
        return record

    def jobs(self) -> list[JobRecord]:
        """All jobs that were submitted. Raises LaunchError: they can't be read."""
        try:
            return [msgspec.json.decode(line, type=JobRecord) for line in self._lines("jobs.jsonl")]
        except msgspec.DecodeError as error:
            raise LaunchError(f"{self.path / 'jobs.jsonl'} can't be read: {error}.") from None

    def write_status(self, status: RunStatus) -> None:
        """Say how the run is. Raises LaunchError."""
        self.write_private("status.json", _text(msgspec.structs.replace(status, time_s=time.time())))

    def status(self) -> RunStatus:
        """How the run was when somebody looked."""
        return self._read("status.json", RunStatus) or RunStatus()

    def write_worker(self, status: WorkerStatus) -> None:
        """Say how a worker is. Raises LaunchError."""
        name = f"workers/{status.rank}.json"
        self.write_private(name, _text(msgspec.structs.replace(status, time_s=time.time())))

    def worker(self, rank: int) -> WorkerStatus | None:
        """How a worker is; None: it has not said yet."""
        return self._read(f"workers/{rank}.json", WorkerStatus)

    def exit_code(self, rank: int) -> int | None:
        """What the last life of a worker ended with, as its script has seen it; None: it lives, or was lost."""
        return self._code(f"workers/{rank}.exit")

    def job_exit_code(self, job_id: str) -> int | None:
        """What a job script ended with; None: it has not, or was killed."""
        return self._code(f"job.{job_id}.exit")

    def ask_to_stop(self) -> None:
        """From now on nothing of this run is started again."""
        self.stop_path.touch(mode=0o600)

    @property
    def asked_to_stop(self) -> bool:
        """Whether the user wants the run to end."""
        return self.stop_path.exists()

    def event(self, event: str, *, rank: int | None = None, **fields: Any) -> None:
        """Add a line to the events of the launcher, or of the worker `rank`, which has a file of its own."""
        name = "events.jsonl" if rank is None else f"workers/{rank}.events.jsonl"
        who = {} if rank is None else {"rank": rank}
        self._append(name, {"time_s": time.time(), "event": event, **who, **fields})

    def events(self) -> list[dict[str, Any]]:
        """All events, the oldest first; the clocks of hosts may differ."""
        files = ["events.jsonl", *(f"workers/{path.name}" for path in (self.path / "workers").glob("*.events.jsonl"))]
        events = [event for name in files for line in self._lines(name) if (event := _event(line)) is not None]
        return sorted(events, key=lambda event: float(event["time_s"]))

    # Files

    def _append(self, name: str, value: Any) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            self._named(name),
            open(self.path / name, "ab", buffering=0, opener=lambda path, _: os.open(path, flags, 0o600)) as file,
        ):
            _write_line(file, msgspec.json.encode(value) + b"\n")
            os.fsync(file.fileno())

    def _lines(self, name: str) -> list[bytes]:
        """Whole lines: the last one may be in the middle of being written."""
        try:
            return (self.path / name).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []

    def _code(self, name: str) -> int | None:
        try:
            return int((self.path / name).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _read(self, name: str, cls: type[StructT]) -> StructT | None:
        if not (self.path / name).exists():
            return None
        try:
            return msgspec.json.decode(self.read_private(name), type=cls)
        except msgspec.DecodeError as error:
            raise LaunchError(f"{self.path / name} can't be read: {error}.") from None

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LaunchError(f"{self.path / name} can't be written: {error}.") from None


def default_runs() -> Path:
    """Where runs are kept: the directory in ACADEMY_HPC_RUNS, else one in the home directory, which nodes share."""
    return Path(os.environ.get(RUNS_VARIABLE) or "~/.academy_hpc/runs").expanduser()


def _is_run(path: Path) -> bool:
    try:
        return (path / "workers").is_dir()
    except PermissionError:  # somebody else's
        return False


def _write_line(file: FileIO, line: bytes) -> None:
    """Whole or not at all: half of it would be part of the next one."""
    before = os.fstat(file.fileno()).st_size
    written = file.write(line)
    if written < len(line):
        if os.fstat(file.fileno()).st_size == before + written:
            os.ftruncate(file.fileno(), before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _event(line: bytes) -> dict[str, Any] | None:
    """None: a shell was killed, or a disk was full, in the middle of it."""
    try:
        event: dict[str, Any] = json.loads(line)
        return event if isinstance(event["event"], str) and float(event["time_s"]) else None
    except (ValueError, TypeError, KeyError):
        return None


def _text(value: msgspec.Struct) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
