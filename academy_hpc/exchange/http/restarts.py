"""The exchange process is watched while its parent lives: a durable one that dies is started again.

Its listening socket stays open in the parent meanwhile. So nobody else can take the port, and clients that connect
wait in the socket's queue instead of being refused.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

from academy_hpc.errors import ExchangeStartError, StoreError
from academy_hpc.exchange.http.process import ExchangeProcess

__all__ = ["Patience", "Watch"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0

GOOD_SERVICE_S = 60.0
"""After so long a service, a death is the first again."""

EARLY_S = 5.0
"""A death so soon after the start is likely to come again."""

MAX_EARLY_DEATHS = 6

START_S = 60.0
"""Of a restart: longer than a first start may take, because nobody is asked meanwhile."""


class Patience:
    """How long to wait before each start. It has no clock."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self._early_deaths = 0

    def after(self, served_s: float) -> float | None:
        """Seconds to wait now that the process died, having served for `served_s`; None: it is no use."""
        if served_s >= GOOD_SERVICE_S:
            self._pause_s = FIRST_PAUSE_S
        self._early_deaths = self._early_deaths + 1 if served_s < EARLY_S else 0
        if self._early_deaths >= MAX_EARLY_DEATHS:
            return None
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


class _Death(NamedTuple):
    served_s: float
    text: str
    on_purpose: str | None


class Watch:
    """Watches a process that serves for the ``with`` block, in a thread that sleeps until it dies."""

    def __init__(
        self, process: ExchangeProcess, listener: socket.socket, *, restarts: bool, on_end: Callable[[str], None] | None
    ) -> None:
        """Store what to watch.

        Args:
            process: It serves already.
            listener: Its listening socket, closed here when the process is given up.
            restarts: Whether to start it again.
            on_end: Called from the thread when the process has ended and is not started again; told why, in one line.
        """
        self._process = process
        self._listener = listener
        self._restarts = restarts
        self._on_end = on_end
        self._patience = Patience()
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._watch, name="academy_hpc exchange watch", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._cancel_fd, self._cancelling_fd = os.pipe()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread, wherever it is: from now on nothing is started. The process is left as it is."""
        if os.getpid() == self._owner:  # a forked copy of this program has no such thread
            os.write(self._cancelling_fd, b".")
            try:
                self._thread.join()
            finally:  # once more when Ctrl-C interrupts it: all that the thread does is short now
                self._thread.join()
        os.close(self._cancel_fd)
        os.close(self._cancelling_fd)

    def _watch(self) -> None:
        death = self._serve_on()
        while death is not None:
            pause_s = self._pause_after(death)
            if pause_s is None or self._cancelled(pause_s):
                return
            death = self._serve_again()

    def _serve_on(self) -> _Death | None:
        started = time.monotonic()
        if not self._process.wait_end(self._cancel_fd):
            return None
        served_s = time.monotonic() - started
        text = str(self._process.failed(f"ended by itself ({self._process.ending()})"))
        return _Death(served_s, text, self._process.last_words())

    def _serve_again(self) -> _Death | None:
        try:
            self._process.restart()
            self._process.wait_ready(time.monotonic() + START_S, cancel_fd=self._cancel_fd)
        except (ExchangeStartError, StoreError) as error:
            on_purpose = str(error) if isinstance(error, StoreError) else None
            return None if self._cancelled(0) else _Death(0.0, str(error), on_purpose)
        log.warning("The exchange serves again, in process %d.", self._process.pid)
        return self._serve_on()

    def _pause_after(self, death: _Death) -> float | None:
        """Seconds until the next start; None: there is none, and everybody has been told."""
        pause_s = self._patience.after(death.served_s)
        why = death.on_purpose
        if not self._restarts:
            why = "it has no state directory"
        elif why is None and pause_s is None:
            why = f"it died {MAX_EARLY_DEATHS} times in a row within {EARLY_S:g} s of its start"
        if why is None:
            log.warning("%s\nIt is started again in %g s.", death.text, pause_s)
            return pause_s
        log.warning("%s", death.text)
        self._give_up(f"The exchange has ended and is not started again: {why.rstrip('.')}.")
        return None

    def _give_up(self, line: str) -> None:
        self._process.finish()
        # From here on, whoever connects is refused and knows, instead of waiting in the queue of the socket.
        self._listener.close()
        log.error("%s", line)
        if self._on_end is not None:
            self._on_end(line)

    def _cancelled(self, within_s: float) -> bool:
        poll = select.poll()
        poll.register(self._cancel_fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))
