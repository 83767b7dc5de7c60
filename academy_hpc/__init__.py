"""Agents on the compute nodes of HPC machines that talk through a private HTTP exchange.

The names of `__all__` are the public interface. Each is loaded from its module at first use, so that a worker or an
exchange process loads only what it runs.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Module -> the public names it defines. A new name stands here and, for type checkers, in __init__.pyi.
_MODULES: dict[str, tuple[str, ...]] = {
    "academy_hpc.errors": (
        "AcademyError",
        "AcademyRemoteError",
        "ActionCancelledError",
        "ActionInterruptedError",
        "ActionInvalidStateError",
        "AgentAbsentError",
        "AgentLoopError",
        "AgentNotInitializedError",
        "AgentTerminatedError",
        "BadEntityIdError",
        "BadRequestError",
        "CheckpointError",
        "ConnectionInfoError",
        "DeliveryFailedError",
        "DeserializationMethodProhibitedError",
        "ExceptionSerializationError",
        "ExchangeChangedError",
        "ExchangeClientNotFoundError",
        "ExchangeError",
        "ExchangeFullError",
        "ExchangeStartError",
        "ExchangeUnavailableError",
        "ExchangeUnreachableError",
        "ForbiddenError",
        "IncompatibleProtocolError",
        "InvalidClientError",
        "LaunchError",
        "ListenerSupersededError",
        "LoginRequiredError",
        "MailboxFullError",
        "MailboxTerminatedError",
        "MessageTooLargeError",
        "PingCancelledError",
        "RefusedError",
        "RequestError",
        "SerializationError",
        "StoreError",
        "TooFewSlotsError",
        "UnauthorizedError",
        "UserTerminatedError",
    ),
    "academy_hpc.identifiers": ("AgentId", "EntityId", "UserId"),
    "academy_hpc.message": ("Header", "Message"),
    "academy_hpc.serialization": ("NoPickleMixin",),
    "academy_hpc.dead_letters": ("DeadLetter",),
    "academy_hpc.exchange.transport": ("AgentRegistration", "ExchangeTransport", "MailboxStatus"),
    "academy_hpc.exchange.factory": ("ExchangeFactory",),
    "academy_hpc.exchange.client": ("AgentExchangeClient", "ExchangeClient", "UserExchangeClient"),
    "academy_hpc.exchange.http.client": ("HttpAgentRegistration", "HttpExchangeFactory", "HttpExchangeTransport"),
    "academy_hpc.exchange.http.connection": ("ConnectionInfo",),
    "academy_hpc.exchange.http.console": ("HttpExchangeConsole",),
    "academy_hpc.exchange.http.globus_settings": ("GlobusSettings",),
    "academy_hpc.exchange.http.spawn": ("spawn_http_exchange",),
    "academy_hpc.handle": ("Handle",),
    "academy_hpc.agent": ("Agent", "RuntimeConfig", "action", "event", "loop", "timer"),
    "academy_hpc.runtime": ("Runtime",),
    "academy_hpc.launch.batch": ("BatchLauncher",),
    "academy_hpc.launch.enrol": ("submit_run",),
    "academy_hpc.launch.executor": ("ExecutorLauncher",),
    "academy_hpc.launch.globus_compute": ("GlobusComputeLauncher",),
    "academy_hpc.launch.manager": ("Manager",),
    "academy_hpc.launch.parsl": ("ParslLauncher", "parsl_config"),
    "academy_hpc.launch.request": ("AgentLaunch",),
    "academy_hpc.launch.restart": ("RestartPolicy",),
    "academy_hpc.launch.run": ("Run",),
    "academy_hpc.launch.site": ("Site",),
    "academy_hpc.launch.spec": ("LaunchSpec",),
}
_EXPORTS: dict[str, str] = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_EXPORTS)
__all__.append("__version__")


def __getattr__(name: str) -> Any:
    """Load a public name from its module, once."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Show the names that are not loaded yet, too."""
    return sorted({*globals(), *__all__})
