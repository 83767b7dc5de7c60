"""What parent and exchange process tell each other at the start, and how the child proves who it is.

The parent writes one `Handover` as a line of JSON into the child's standard input, the child answers with one `Ready`
on its standard output. Pipes, because argv and environment are seen by others and files outlive a crash.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Ended", "Handover", "Ready"]


class Handover(msgspec.Struct, frozen=True):
    """All that the child needs.

    Attributes:
        socket_fd: Descriptor of the listening socket, inherited under this number.
        parent_pid: Process whose end ends the child.
        nonce: Random text that the child works into its proof.
        log_level: Of the child's root logger, as in `logging`.
        log_limit_bytes: Size at which the log on standard error starts again from nothing; None: it only grows.
        server: Fields of ``ServerConfig``. Not its type: that would load the server into the parent.
    """

    socket_fd: int
    parent_pid: int
    nonce: str
    log_level: int
    log_limit_bytes: int | None
    server: dict[str, Any]

    def __repr__(self) -> str:
        """Without the server's configuration, which holds the token."""
        return f"{type(self).__name__}(socket_fd={self.socket_fd}, parent_pid={self.parent_pid})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("socket_fd", self.socket_fd), ("parent_pid", self.parent_pid)]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child serves on the socket.

    Attributes:
        pid: Its process id.
        exchange: Id of the exchange, which ``GET /whoami`` must repeat.
        proof: `tokens.proof` of the token and the handover's nonce.
    """

    pid: int
    exchange: str
    proof: str

    def __repr__(self) -> str:
        """Without the proof."""
        return f"{type(self).__name__}(pid={self.pid}, exchange={self.exchange!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("pid", self.pid), ("exchange", self.exchange)]


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The child ends on purpose, before or after it served: another start would be of no use.

    An exit code would not do: where the program ignores SIGCHLD, or waits for whatever child ends, it is lost.

    Attributes:
        why: To follow on a colon.
    """

    why: str
