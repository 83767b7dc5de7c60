"""Saved states of agents: each in a file of its own that is whole or not there; the newest valid one counts.

An agent that is to go on in another life defines both of these, plain or ``async``:

    def agent_get_state(self) -> Any: ...
    def agent_set_state(self, state: Any) -> None: ...

`agent_get_state` returns anything that pickles. It is called in the event loop and pickled at once when it returns, so
no action, loop or timer runs in between: what is consistent whenever the agent awaits something is consistent in the
file. Only threads of `agent_run_sync` run on. `agent_set_state` gets it back in the next life, before
`agent_on_startup`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import logging
import pickle
import re
from pathlib import Path
from typing import Any, Self

from academy_hpc.errors import CheckpointError
from academy_hpc.exchange.http.private_file import read_private_bytes, write_private

__all__ = ["CheckpointFiles", "StateKeeper", "has_state"]

logger = logging.getLogger(__name__)

HEADING = b"academy-hpc-checkpoint 1\n"
DIGEST_BYTES = hashlib.sha256().digest_size
KEPT = 2

_NAME = re.compile(r"(\d{6})-(\d{9})\.state")


class CheckpointFiles:
    """The saved states of one agent. All methods block.

    Args:
        directory: For this agent alone; made (0700) when something is saved.
        attempt: Which life of the agent this is, at the least: its states are newer than those of all lives that have
            saved something before it loads, one of which may go on for a while on a host that nobody reaches.
    """

    def __init__(self, directory: Path, *, attempt: int = 1) -> None:
        self._directory = directory
        self._attempt = attempt
        self._last: bytes | None = None  # digest of what was saved

    @property
    def place(self) -> str:
        """The directory, for people."""
        return str(self._directory)

    def save(self, state: bytes) -> None:
        """Keep `state`: on the disk when this returns; older ones but the last go.

        Raises:
            CheckpointError: It could not be written; what was saved before is still there.
        """
        digest = hashlib.sha256(state).digest()
        if digest == self._last:
            return
        try:
            names = self._names()
            number = max((int(name[7:16]) for name in names), default=0) + 1
            write_private(self._directory / f"{self._attempt:06}-{number:09}.state", HEADING + digest + state)
            for old in sorted(self._names())[:-KEPT]:
                with contextlib.suppress(FileNotFoundError):  # another copy may have been faster
                    (self._directory / old).unlink()
        except OSError as error:
            raise CheckpointError(self.place, f"can't be written: {error}") from error
        self._last = digest

    def load(self) -> bytes | None:
        """The newest valid state; None: none was ever saved.

        Raises:
            CheckpointError: There are files, and none is valid; or they can't be read.
        """
        try:
            names = sorted(self._names(), reverse=True)
            if names:  # who counts lives may be another program than before, and begin anew
                self._attempt = max(self._attempt, int(names[0][:6]) + 1)
            for name in names:
                state = self._read(self._directory / name)
                if state is not None:
                    return state
        except OSError as error:
            raise CheckpointError(self.place, f"can't be read: {error}") from error
        if names:
            raise CheckpointError(self.place, "holds damaged files only: move it away to start anew")
        return None

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._directory.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> bytes | None:
        content = read_private_bytes(path)
        start = len(HEADING) + DIGEST_BYTES
        state = content[start:]
        if content[:start] == HEADING + hashlib.sha256(state).digest():
            return state
        logger.error("the saved state %s is damaged; the one before it is used", path)
        return None


def has_state(agent: Any) -> bool:
    """Whether the agent saves and restores its state.

    Raises:
        TypeError: It can save and not restore, or restore and not save.
    """
    there = [name for name in ("agent_get_state", "agent_set_state") if callable(getattr(agent, name, None))]
    if len(there) == 1:
        raise TypeError(
            f"{type(agent).__name__} has {there[0]} alone: agent_get_state and agent_set_state go together."
        )
    return bool(there)


class StateKeeper:
    """Saves and restores what an agent makes of itself. Its methods don't block the event loop, but for pickling.

    Args:
        agent: One that has `agent_get_state` and `agent_set_state`: see `of`.
        files: Where it is kept.
    """

    def __init__(self, agent: Any, files: CheckpointFiles) -> None:
        self._agent = agent
        self._files = files
        self._saving = asyncio.Lock()

    @classmethod
    def of(cls, agent: Any, files: CheckpointFiles | None) -> Self | None:
        """That of `agent`; None: it has no state, or nowhere to keep it. Raises TypeError: see `has_state`."""
        return cls(agent, files) if has_state(agent) and files is not None else None

    async def restore(self) -> None:
        """Give the agent its newest state, if there is one.

        Raises:
            CheckpointError: What is there can't be read.
            Exception: What `agent_set_state` raises.
        """
        data = await asyncio.to_thread(self._files.load)
        if data is None:
            return
        try:
            state = pickle.loads(data)  # noqa: S301 - from a directory that only this user can write
        except Exception as error:
            what = f"can't be unpickled: {type(error).__name__}: {error}. The code that wrote it may have been another"
            raise CheckpointError(self._files.place, what) from error
        await _result(self._agent.agent_set_state(state))

    async def save(self) -> None:
        """Save the state that the agent has now.

        Raises:
            CheckpointError: It can't be pickled, or not be written.
            Exception: What `agent_get_state` raises.
        """
        async with self._saving:
            state = await _result(self._agent.agent_get_state())
            try:
                data = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                what = f"can't be written: what agent_get_state returned can't be pickled: {error}"
                raise CheckpointError(self._files.place, what) from error
            del state
            await asyncio.to_thread(self._files.save, data)

    async def save_regularly(self, interval_s: float) -> None:
        """Save every `interval_s` seconds, until cancelled. What goes wrong is logged."""
        while True:
            await asyncio.sleep(interval_s)
            # Cancelled in the middle, it goes on: the next one waits for it, and is the newer one.
            await asyncio.shield(self._save_or_log())

    async def _save_or_log(self) -> None:
        try:
            await self.save()
        except Exception:
            logger.exception("the state of %s was not saved", type(self._agent).__name__)


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
