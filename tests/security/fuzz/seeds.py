"""Writes the inputs with which fuzzing starts: ``python -m tests.security.fuzz.seeds FOLDER``."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec

from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.server_rest import ROUTES
from academy_hpc.message import ActionRequest, Message
from tests.security.fuzz.harness import ENTITIES

__all__: list[str] = []

USER, AGENT, _ = ENTITIES
SESSION = uuid.UUID(int=1)
REQUEST = Message.create(USER, AGENT, ActionRequest("run", "W10=", "e30=", "json"), tag=uuid.UUID(int=5))
METHODS = ["terminate", "status", "discover", "heartbeat", "stats", "share", "unshare", "groups", "create"]


def frames() -> list[bytes]:
    """One of each operation, and a course of events."""
    attach = wire.Attach(1, AGENT, SESSION, 10, 10_000)
    resume = wire.Attach(2, AGENT, SESSION, 10, 10_000, (1, [1]))
    send = wire.Send(3, REQUEST.header, REQUEST.body)
    done = wire.Send(4, REQUEST.header.response(), b"{}", 1)
    others: list[Any] = [wire.Acknowledge(AGENT.uid, 1, [1]), wire.Detach(AGENT.uid), wire.Present(AGENT.uid, "a.b.c")]
    calls = [wire.Call(n, method, [AGENT, "m.Worker"][: 1 + (n > 4)]) for n, method in enumerate(METHODS)]
    operations: list[Any] = [attach, resume, send, done, *others, *calls]
    course = b"--cut--".join(
        wire.encode_operations([one]) for one in (attach, send, others[0], done, resume, others[1])
    )
    return [course, *(wire.encode_operations([operation]) for operation in operations)]


def requests() -> list[bytes]:
    """One good request for each route."""
    body = msgspec.json.encode(
        {
            "mailbox": msgspec.json.encode(AGENT).decode(),
            "message": REQUEST.to_json().decode(),
            "agent": "m.Worker,m.Base",
            "allow_subclasses": True,
            "group_id": "g",
            "timeout": 0.001,
        }
    )
    return [bytes([number]) + body for number in range(sum(map(len, ROUTES.values())))]


if __name__ == "__main__":
    for name, inputs in (("frames", frames()), ("routes", requests())):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(inputs):
            (folder / str(number)).write_bytes(data)
