"""One mailbox: put, take within a window, acknowledge, release, terminate. No I/O, no clock.

Life of a message in its mailbox:

    =========  ===========  =========  ==============================================
    state      event        new state  when
    =========  ===========  =========  ==============================================
    (none)     put          READY      accepted; it has a number, in order
    READY      take         OUT        handed to the listener; counts as one attempt
    OUT        acknowledge  GONE       the listener has done with it
    OUT        release      READY      its listener is gone; goes back in its old place
    OUT        give_up      GONE       as many listeners as allowed have died with it
    READY      give_up      GONE       nobody has listened for too long
    READY      acknowledge  GONE       it came from an earlier, resumed connection
    READY      hold         OUT        the resumed listener is still at work on it
    OUT        hold         OUT        the same, before it was released
    =========  ===========  =========  ==============================================

A *session* is one listener's life, across reconnects. A new session fences off the earlier one; the same session
coming back resumes: it says which number it has received last and which it still works on, and the mailbox treats
the rest as acknowledged, so that a broken connection neither loses nor doubles a message. A session that says good-bye
(`detach`) has not died of what it leaves behind.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Collection, Iterable

import msgspec

from academy_hpc.message import Message

__all__ = ["Delivery", "Mailbox", "Window", "size_of"]

_READY, _OUT, _GONE = "READY", "OUT", "GONE"
_TRANSITIONS = {
    (_READY, "take"): _OUT,
    (_READY, "acknowledge"): _GONE,
    (_READY, "hold"): _OUT,
    (_READY, "give_up"): _GONE,
    (_OUT, "acknowledge"): _GONE,
    (_OUT, "release"): _READY,
    (_OUT, "give_up"): _GONE,
    (_OUT, "hold"): _OUT,
}
# Room for header and bookkeeping of one message when bytes are counted, so that empty bodies are not free.
OVERHEAD_BYTES = 512


def size_of(message: Message) -> int:
    """The bytes that `message` counts for where it is kept. Names are as long as a sender likes."""
    header = message.header
    names = len(header.src.name or "") + len(header.dest.name or "")
    versions = len(header.protocol_version or "") + len(header.academy_version)
    return OVERHEAD_BYTES + names + versions + len(message.body)


class Window(msgspec.Struct, frozen=True):
    """How much a listener may have been handed and not yet consumed."""

    messages: int = 512
    limit_bytes: int = 16 * 1024 * 1024


class Delivery(msgspec.Struct, frozen=True):
    """A message handed to a listener: its number in the mailbox, and which attempt this is."""

    seq: int
    attempt: int
    message: Message


class _Entry:
    __slots__ = ("attempts", "deaths", "message", "size", "state")

    def __init__(self, message: Message, attempts: int = 0) -> None:
        self.message = message
        self.size = size_of(message)
        self.attempts = attempts
        self.deaths = 0  # of listeners that had it
        self.state = _READY

    def move(self, event: str) -> None:
        self.state = _TRANSITIONS[self.state, event]


class Mailbox:
    """The messages for one entity. Queues are made when first used: an idle mailbox is small."""

    __slots__ = (
        "_detached",
        "_entries",
        "_out",
        "_ready",
        "_restored",
        "_unconsumed",
        "_window_bytes",
        "last_seq",
        "session",
        "stored_bytes",
    )

    def __init__(self, *, last_seq: int = 0, session: uuid.UUID | None = None) -> None:
        self.last_seq = last_seq
        self.session = session
        self.stored_bytes = 0
        self._detached = False
        self._entries: dict[int, _Entry] | None = None
        self._ready: deque[int] | None = None
        self._out: dict[int, None] | None = None  # in the order of numbers: take hands out in order
        self._unconsumed: deque[tuple[int, int]] | None = None  # number and bytes of what was handed out
        self._window_bytes = 0
        self._restored = 0  # the highest number that came from a store, until a listener has come

    def __len__(self) -> int:
        """Messages stored: ready or handed out."""
        return len(self._entries) if self._entries else 0

    @property
    def ready(self) -> int:
        """Messages that wait to be taken."""
        return len(self._ready) if self._ready else 0

    def put(self, message: Message) -> int:
        """Accept `message`; its number."""
        self._add(self.last_seq + 1, _Entry(message))
        return self.last_seq

    def restore(self, seq: int, message: Message) -> None:
        """Take back number `seq` from a store, in order.

        Attempts are not stored. Where there was a listener, the message counts as handed to it once, unless that very
        listener comes back and says that it did not get it: what must not run twice is rather not run again.
        """
        entry = _Entry(message, 0 if self.session is None else 1)
        entry.deaths = entry.attempts
        self._add(seq, entry)
        self._restored = seq

    def take(self, window: Window, *, kept: int | None = None) -> list[Delivery]:
        """What fits into `window` beside that which was handed out and not consumed; oldest first.

        The last message may exceed the window. `kept` is the highest number that a store has:
        what is not stored yet is not handed out. None: all are.
        """
        taken: list[Delivery] = []
        if not self._ready or self._entries is None:
            return taken
        limit = self.last_seq if kept is None else kept
        if self._unconsumed is None:
            self._unconsumed = deque()
        if self._out is None:
            self._out = {}
        while self._ready and self._ready[0] <= limit and len(self._unconsumed) < window.messages:
            entry = self._entries[self._ready[0]]
            # One message may go beyond the limit: a listener reports what it read only when a part of the window is
            # full, and what is small must not keep out what is large until then.
            if self._window_bytes >= window.limit_bytes:
                break
            seq = self._ready.popleft()
            entry.move("take")
            entry.attempts += 1
            self._out[seq] = None
            self._unconsumed.append((seq, entry.size))
            self._window_bytes += entry.size
            taken.append(Delivery(seq, entry.attempts, entry.message))
        return taken

    def consumed(self, seq: int) -> None:
        """The listener's program has read all up to number `seq`: the window opens by as much."""
        queue = self._unconsumed
        while queue and queue[0][0] <= seq:
            self._window_bytes -= queue.popleft()[1]
        if not queue:
            self._clear_window()

    def acknowledge(self, seqs: Iterable[int]) -> list[int]:
        """Forget the messages with these numbers; the numbers that were there. Twice is harmless."""
        done = []
        for seq in seqs:
            if self._out is not None and seq in self._out:
                del self._out[seq]
                self._forget(seq, "acknowledge")
                done.append(seq)
        self._shrink()
        return done

    def start_session(self, session: uuid.UUID, *, max_attempts: int) -> list[Delivery]:
        """`session` is the listener from now on; what earlier ones did not acknowledge is ready again, in order.

        Returns:
            What is given up: `max_attempts` listeners have died with it.
        """
        died, self._detached = not self._detached, False
        self.session = session
        self._restored = 0
        back, given_up = [], []
        for seq in self._out or ():
            entry = self._entry(seq)
            entry.deaths += died
            if entry.deaths >= max_attempts:
                given_up.append(Delivery(seq, entry.attempts, entry.message))
                self._forget(seq, "give_up")
            else:
                entry.move("release")
                back.append(seq)
        self._out = None
        self._clear_window()
        if back:
            self._ready = deque([*back, *(self._ready or ())])
        self._shrink()
        return given_up

    def detach(self, unbegun: Iterable[int] = ()) -> bool:
        """The session ends in order; what it had waits for the next one. What it has not begun counts as no attempt.

        Returns:
            Whether nothing is left that it, or one before it, may have begun.
        """
        self._detached = True
        for seq in set(self._out or ()).intersection(unbegun):
            entry = self._entry(seq)
            entry.attempts = max(0, entry.attempts - 1)
        return not any(entry.attempts for entry in (self._entries or {}).values())

    def give_up(self, tags: Collection[uuid.UUID]) -> list[Delivery]:
        """Forget the requests with these tags; there is no listener."""
        found = [
            Delivery(seq, entry.attempts, entry.message)
            for seq, entry in (self._entries or {}).items()
            if entry.message.is_request and entry.message.tag in tags
        ]
        gone = {delivery.seq for delivery in found}
        for seq in gone:
            self._forget(seq, "give_up")
        self._ready = deque(seq for seq in self._ready or () if seq not in gone)
        self._out = {seq: None for seq in self._out or () if seq not in gone}
        self._clear_window()
        self._shrink()
        return found

    def resume(self, *, received: int, held: Iterable[int]) -> list[int]:
        """The same session on a new connection: it has all up to `received` and still works on `held` of these.

        What was on its way and did not arrive is ready again, and that attempt does not count.

        Returns:
            Numbers of the messages acknowledged by this.
        """
        self._detached = False
        working = set(held)
        done = []
        self._out, self._ready = {}, deque()
        for seq in list(self._entries or ()):
            entry = self._entry(seq)
            if seq <= self._restored:
                entry.deaths = 0
            if seq > received:
                if entry.state == _OUT:
                    entry.move("release")
                    entry.attempts -= 1
                elif seq <= self._restored:
                    entry.attempts = 0
                self._ready.append(seq)
            elif seq in working:
                entry.move("hold")
                entry.attempts = max(entry.attempts, 1)
                self._out[seq] = None
            else:
                self._forget(seq, "acknowledge")
                done.append(seq)
        self._restored = 0
        self._clear_window()
        self._shrink()
        return done

    def terminate(self) -> None:
        """Drop all messages."""
        self._entries = self._ready = self._out = self._unconsumed = None
        self.stored_bytes = self._window_bytes = 0

    def _add(self, seq: int, entry: _Entry) -> None:
        self.last_seq = seq
        if self._entries is None:
            self._entries = {}
        if self._ready is None:
            self._ready = deque()
        self._entries[seq] = entry
        self._ready.append(seq)
        self.stored_bytes += entry.size

    def _entry(self, seq: int) -> _Entry:
        return (self._entries or {})[seq]

    def _forget(self, seq: int, event: str) -> None:
        entry = (self._entries or {}).pop(seq)
        entry.move(event)
        self.stored_bytes -= entry.size

    def _clear_window(self) -> None:
        self._unconsumed = None
        self._window_bytes = 0

    def _shrink(self) -> None:
        if not self._entries:
            self._entries = self._ready = self._out = None
