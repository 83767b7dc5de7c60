"""How far a launch has come: "13/16 ready, waiting for: sim-3, sim-7, sim-9"."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO, TypeAlias

import msgspec

__all__ = ["LaunchProgress", "ProgressCallback", "ProgressLine", "shown_names"]

MOST_NAMES = 10
# Between lines in a log: longer and longer, for a job may wait in the queue for days.
LOG_PAUSE_S, LONGEST_LOG_PAUSE_S = 1.0, 60.0


class LaunchProgress(msgspec.Struct, frozen=True):
    """The agents of one launch by name.

    Attributes:
        ready: Serve requests.
        starting: Have a worker, which imports and constructs them.
        queued: Have none yet.
        waiting: What those wait for, such as a job in a queue, where it is known.
    """

    ready: tuple[str, ...] = ()
    starting: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()
    waiting: str = ""

    @property
    def total(self) -> int:
        """How many agents."""
        return len(self.ready) + len(self.starting) + len(self.queued)

    def __str__(self) -> str:
        """One line for people."""
        text = f"{len(self.ready)}/{self.total} ready"
        if self.starting:
            text += f", starting: {shown_names(self.starting)}"
        if self.queued:
            text += f", waiting for a worker: {shown_names(self.queued)}"
            text += f" ({self.waiting})" if self.waiting else ""
        return text


ProgressCallback: TypeAlias = Callable[[LaunchProgress], None]


def shown_names(names: tuple[str, ...]) -> str:
    """The first of them."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


class ProgressLine:
    """Shows progress on a terminal as one line that changes; elsewhere as a line now and then, and the last one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._last = ""
        self._quiet_until = 0.0
        self._pause_s = LOG_PAUSE_S

    def __call__(self, progress: LaunchProgress) -> None:
        """Show it, if it is not shown already."""
        text, complete = str(progress), len(progress.ready) == progress.total
        if text == self._last or progress.total == 0 or (not complete and time.monotonic() < self._quiet_until):
            return
        if self._stream.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps can't be written over
            self._stream.write(f"\r{text.ljust(len(self._last))}" + "\n" * complete)
        else:
            self._stream.write(f"{text}\n")
            self._quiet_until = time.monotonic() + self._pause_s
            self._pause_s = min(1.5 * self._pause_s, LONGEST_LOG_PAUSE_S)
        self._stream.flush()
        self._last = text
