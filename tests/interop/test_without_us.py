"""A program of academy-py that has not installed academy_hpc calls an agent of ours: it can read every answer."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from academy_hpc import UserExchangeClient
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.interop.agents import OurAgent
from tests.interop.conftest import Running

__all__: list[str] = []

# Runs in a process of its own, where academy_hpc can't be imported. Prints how each call went, as JSON.
PROGRAM = """
import asyncio, json, sys, uuid

sys.modules["academy_hpc"] = None

from academy.exchange.cloud.client import HttpExchangeFactory
from academy.handle import Handle
from academy.identifier import AgentId


async def main(url, token, uid, calls):
    factory = HttpExchangeFactory(url, additional_headers={"Authorization": f"Bearer {token}"})
    outcomes = []
    async with await factory.create_user_client() as client:
        for request_format, action, arguments in json.loads(calls):
            handle = Handle(AgentId(uid=uuid.UUID(uid)), exchange=client, request_serializer=request_format)
            try:
                async with asyncio.timeout(10):
                    outcomes.append(["result", await handle.action(action, *arguments)])
            except Exception as error:
                outcomes.append([type(error).__name__, str(error)])
        [found] = await client.discover("academy.agent.Agent")
        outcomes.append(["found", str(found.uid)])
    print(json.dumps(outcomes))


asyncio.run(main(*sys.argv[1:]))
"""


async def outcomes_of(calls: list[list[Any]], exchange: RunningExchange, uid: Any, folder: Path) -> list[list[str]]:
    url = f"http://127.0.0.1:{exchange.port}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, url, TOKEN, str(uid), json.dumps(calls)),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found: list[list[str]] = json.loads(out)
    return found


@pytest.mark.parametrize("request_format", ["pickle", "json"])
async def test_every_answer_of_our_agent_is_readable(request_format: str, run_ours: Running, tmp_path: Path) -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=200_000))
    calls: list[tuple[str, list[Any], str, str]] = [
        ("add", [3], "result", "3"),
        ("echo", [{"a": [1, None]}], "result", "{'a': [1, None]}"),
        ("divide", [0], "ZeroDivisionError", "division by zero"),
        ("no_such_action", [], "AttributeError", 'does not have an action named "no_such_action"'),
        ("echo", [], "TypeError", "echo"),
        ("fail_as_framework", [], "AcademyRemoteError", "ActionInterruptedError: The action 'sinter' was interrupted"),
        ("unanswerable", [], "AcademyRemoteError", "SerializationError: generator can't be sent as"),
        ("fail_unpicklably", [], "AcademyRemoteError", "RuntimeError"),
        ("repeat", ["x", 300_000], "AcademyRemoteError", "MessageTooLargeError: Message of size"),
    ]
    async with running_exchange(config) as exchange, await exchange.factory.create_user_client() as user:
        registration = await user.register_agent(OurAgent)
        async with run_ours(OurAgent(), exchange.factory, registration):
            wanted = [[request_format, action, arguments] for action, arguments, _, _ in calls]
            outcomes = await outcomes_of(wanted, exchange, registration.agent_id.uid, tmp_path)
    assert outcomes.pop() == ["found", str(registration.agent_id.uid)]
    for (action, _, kind, text), (got, detail) in zip(calls, outcomes, strict=True):
        # In JSON every exception is a remote one with its text.
        expected = kind if kind == "result" or request_format == "pickle" else "AcademyRemoteError"
        assert got == expected, (action, detail)
        assert text in str(detail), action


async def test_a_terminated_agent_of_ours_is_told_of(
    exchange: RunningExchange, we: UserExchangeClient, tmp_path: Path
) -> None:
    registration = await we.register_agent(OurAgent)
    await we.register_agent(OurAgent)
    await we.terminate(registration.agent_id)
    [outcome, _] = await outcomes_of([["pickle", "add", [1]]], exchange, registration.agent_id.uid, tmp_path)
    assert outcome[0] == "AgentTerminatedError"
