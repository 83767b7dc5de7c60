"""What a forked copy of this program must not hold: a listening socket or a lock lives as long as any copy of it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol, TypeVar

__all__ = ["close_in_copies"]


class _Closable(Protocol):
    def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Closable)
_resources: weakref.WeakSet[_Closable] | None = None


def close_in_copies(resource: _Resource) -> _Resource:
    """`resource`, whose descriptor processes that this one forks from now on will not have.

    A pool of forked workers, for example, may outlive the exchange beside it, and would keep its port.
    """
    global _resources
    if _resources is None:
        _resources = weakref.WeakSet()
        os.register_at_fork(after_in_child=_close_all)
    _resources.add(resource)
    return resource


def _close_all() -> None:
    for resource in list(_resources or ()):
        resource.close()
