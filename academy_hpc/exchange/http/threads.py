"""Blocking calls beside the event loop that neither hold up the loop nor the end of the program."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_daemon_thread"]

ResultT = TypeVar("ResultT")


async def in_daemon_thread(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """What `function` returns or raises, called in a thread of its own. Cancelling this leaves it running.

    The threads of the event loop's executor are waited for when a program ends, whatever they wait for themselves.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ResultT] = loop.create_future()

    def deliver(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():  # whoever waited may have gone
            set_outcome(outcome)

    def work() -> None:
        try:
            told: tuple[Callable[[Any], None], Any] = future.set_result, function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            told = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, *told)

    threading.Thread(target=work, name=function.__name__, daemon=True).start()
    return await future
