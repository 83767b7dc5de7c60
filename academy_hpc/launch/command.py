"""Running the commands of a scheduler."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from academy_hpc.errors import LaunchError

__all__ = ["CommandError", "CommandLateError", "interrupts_wait", "run_command"]

# Schedulers that are busy, or restarting, take their time.
COMMAND_S = 120.0
WORDS_SHOWN = 3
ERROR_CHARACTERS = 600


class CommandError(LaunchError):
    """A command of the scheduler failed."""


class CommandLateError(CommandError):
    """It did not end in time: what it was to do may have been done, or will be."""


def run_command(
    words: Sequence[str],
    *,
    stdin: Path | None = None,
    directory: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_S,
) -> str:
    """Run a command and return what it says on its standard output.

    It is in a session of its own: Ctrl-C at the terminal does not reach it.

    Raises:
        CommandError: There is no such program, it failed, or took too long.
    """
    try:
        with _opened(stdin) as file:
            done = subprocess.run(  # noqa: S603 - the words are built by the modules of schedulers
                words,
                stdin=file,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=directory,
                env=environment,
                timeout=timeout_s,
                start_new_session=True,
                check=False,
            )
    except FileNotFoundError as error:
        if directory is not None and error.filename == directory:
            raise CommandError(f"The directory {directory}, in which the job is to run, is gone.") from None
        raise CommandError(
            f"There is no program {words[0]!r} here: is this machine's scheduler the one that was named, and on PATH?"
        ) from None
    except OSError as error:
        raise CommandError(f"`{_shown(words)}` could not be run: {error}.") from None
    except subprocess.TimeoutExpired:
        raise CommandLateError(f"`{_shown(words)}` did not end within {timeout_s:g} s.") from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:ERROR_CHARACTERS]
        raise CommandError(f"`{_shown(words)}` failed (exit status {done.returncode}): {said or 'it says nothing'}")
    return done.stdout


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C takes effect at the end: what was asked of a scheduler must not be done without being written down."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal gets here
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[IO[bytes] | int]:
    if path is None:
        yield subprocess.DEVNULL
        return
    with path.open("rb") as file:
        yield file


def _shown(words: Sequence[str]) -> str:
    """Without the scripts and long lists that some have."""
    if list(words[:2]) == ["bash", "-c"] and len(words) > WORDS_SHOWN:
        words = words[WORDS_SHOWN:]
    return shlex.join(words[:WORDS_SHOWN]) + (" ..." if len(words) > WORDS_SHOWN else "")
