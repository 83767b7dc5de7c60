"""A seeded random soak: users call agents through the fault proxy while the exchange, agents and connections break.

``python -m tests.faults.soak --seconds 120 --seed 7`` prints each fault and how long it took until every agent
answered again, then a summary; the exit code is 1 if the history has a complaint. The same seed gives the same faults
in the same order; how the processes interleave is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.wire import Acknowledge, Call, Deliver, Reply, Send, Sent
from academy_hpc.handle import Handle
from tests.faults.durable import ROOT, DurableExchange, through
from tests.faults.history import History
from tests.faults.participants import PATIENCE_S, SUPERSEDED, AgentPart, UserPart, Worker
from tests.faults.proxy import Proxy, running_proxy

__all__ = ["Fault", "Scene", "main", "plan"]

# Two agents share a process, two have one each.
AGENT_PROCESSES = (("anna", "bert"), ("carl",), ("dora",))
USER_PROCESSES = (("uma", "vera"), ("will",))
# A dead connection is noticed in half of this again, so that a run sees many of them.
HEARTBEAT_S = 1.5
# An interrupted action that must not run twice is answered with the first of these.
MAY_FAIL = ("ActionInterruptedError",)
RECOVERY_S = 60.0
UP: tuple[type[Any], ...] = (Send, Acknowledge, Call)
DOWN: tuple[type[Any], ...] = (Sent, Deliver, Reply)


class Fault(msgspec.Struct, frozen=True):
    """What is broken, and for how long."""

    name: str
    seconds: float = 0.0
    which: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.which} for {self.seconds:.2f} s"


FAULTS = (
    *(
        "kill_exchange",
        "crash_exchange",
        "stop_exchange",
        "kill_agents",
        "kill_agents",
        "stop_agents",
        "replace_agents",
    ),
    *("cut", "stall", "stall_up", "stall_down", "delay", "refuse", "answer_trouble", "repeat_frames"),
    *("lose_request", "lose_answer", "tear_up", "tear_down", "half_open_up", "half_open_down"),
)


def plan(seed: int) -> Iterator[tuple[float, tuple[Fault, ...]]]:
    """A pause, then one or two faults at once, for ever."""
    rng = random.Random(seed)
    while True:
        names = rng.sample(sorted(set(FAULTS)), 2) if rng.random() < 0.3 else [rng.choice(FAULTS)]
        faults = (Fault(name, rng.uniform(0.0, 2.0), rng.randrange(60)) for name in names)
        yield rng.uniform(0.1, 1.0), tuple(faults)


class Scene:
    """All processes of a run, and how each fault is made."""

    def __init__(self, folder: Path, seed: int, *, tls: bool) -> None:
        self.folder = folder
        self.exchange = DurableExchange(folder, tls=tls)
        self.proxy: Proxy
        self.owner: UserExchangeClient
        self.killed: set[str] = set()
        self.replaced: set[str] = set()
        self._seed = seed
        self._connection = ""
        self._registrations: dict[str, Any] = {}
        self._agents: list[asyncio.subprocess.Process] = []
        self._users: list[asyncio.subprocess.Process] = []
        self._exchange_lock = asyncio.Lock()
        self._locks = [asyncio.Lock() for _ in AGENT_PROCESSES]

    @contextlib.asynccontextmanager
    async def open(self) -> Any:
        """Everything at work; killed at the end."""
        info = await self.exchange.start()
        try:
            async with running_proxy(int(info.urls[0].rsplit(":", 1)[1])) as self.proxy:
                info = through(info, self.proxy.port)
                factory = HttpExchangeFactory.from_connection_info(info)
                async with await factory.create_user_client(name="owner") as self.owner:
                    await self._start(info)
                    yield self
        finally:
            for process in (*self._agents, *self._users):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            await self.exchange.stop()

    async def _start(self, info: ConnectionInfo) -> None:
        self._connection = info.to_json()
        for name in (name for names in AGENT_PROCESSES for name in names):
            self._registrations[name] = await self.owner.register_agent(Worker, name=name)
        self._agents = [await self._start_agents(number) for number in range(len(AGENT_PROCESSES))]
        agents = {name: registration.agent_id for name, registration in self._registrations.items()}
        for number, names in enumerate(USER_PROCESSES):
            journal = str(self.folder / f"users-{number}.jsonl")
            seed = self._seed + 100 * number
            part = UserPart(self._connection, list(names), agents, journal, seed, HEARTBEAT_S)
            self._users.append(await self._launch_until_it_started(part))

    async def _start_agents(self, number: int) -> asyncio.subprocess.Process:
        registrations = {name: self._registrations[name].to_json() for name in AGENT_PROCESSES[number]}
        part = AgentPart(self._connection, registrations, str(self.folder / f"agents-{number}.jsonl"), HEARTBEAT_S)
        return await self._launch_until_it_started(part)

    async def _launch_until_it_started(self, part: AgentPart | UserPart) -> asyncio.subprocess.Process:
        """Again, as a launcher would, where it finds no exchange: the first connection is not waited for."""
        async with asyncio.timeout(RECOVERY_S):
            while True:
                process = await self._launch(part)
                assert process.stdout is not None
                if await process.stdout.readline():
                    return process
                self.killed.add(str(process.pid))
                await process.wait()

    async def _launch(self, part: AgentPart | UserPart) -> asyncio.subprocess.Process:
        with (self.folder / "errors").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.faults.participants"),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(part) + b"\n")
        return process

    async def finish(self) -> History:
        """No more calls; those that were made are answered. The history of it all."""
        for process in self._users:
            assert process.stdin is not None
            process.stdin.close()
        async with asyncio.timeout(PATIENCE_S + RECOVERY_S):
            codes = [await process.wait() for process in self._users]
        assert codes == [0] * len(codes), f"user processes ended with {codes}"
        return History.read(*self.folder.glob("*.jsonl"), killed=self.killed, replaced=self.replaced)

    async def recovered(self) -> None:
        """Until every agent answers a call that is made now."""
        async with asyncio.timeout(RECOVERY_S):
            handles = (Handle(item.agent_id, exchange=self.owner) for item in self._registrations.values())
            await asyncio.gather(*(handle.ping() for handle in handles))

    async def do(self, fault: Fault) -> None:
        """Break something, and stop breaking it."""
        await getattr(self, fault.name)(fault)

    # Processes

    async def kill_exchange(self, fault: Fault) -> None:
        async with self._exchange_lock:
            await self.exchange.kill()
            await asyncio.sleep(fault.seconds)
            await self.exchange.start()

    async def crash_exchange(self, fault: Fault) -> None:
        """The program that holds it starts it again."""
        async with self._exchange_lock:
            await self.exchange.crash()

    async def stop_exchange(self, fault: Fault) -> None:
        async with self._exchange_lock, self.exchange.stopped():
            await asyncio.sleep(2 * fault.seconds)

    async def kill_agents(self, fault: Fault) -> None:
        async with self._agent_process(fault) as (number, process):
            self.killed.add(str(process.pid))
            process.kill()
            await process.wait()
            await asyncio.sleep(fault.seconds)
            self._agents[number] = await self._start_agents(number)

    async def stop_agents(self, fault: Fault) -> None:
        async with self._agent_process(fault) as (_, process):
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            process.send_signal(signal.SIGCONT)

    async def replace_agents(self, fault: Fault) -> None:
        """A stopped copy that is replaced wakes up, and has to notice."""
        async with self._agent_process(fault) as (number, process):
            self.replaced.add(str(process.pid))
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            self._agents[number] = await self._start_agents(number)
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(RECOVERY_S):
                code = await process.wait()
            assert code == SUPERSEDED, f"the older copy ended with {code}"

    @contextlib.asynccontextmanager
    async def _agent_process(self, fault: Fault) -> Any:
        number = fault.which % len(AGENT_PROCESSES)
        async with self._locks[number]:
            yield number, self._agents[number]

    # Connections

    async def cut(self, fault: Fault) -> None:
        self.proxy.cut()

    async def refuse(self, fault: Fault) -> None:
        self.proxy.refuse(True)
        self.proxy.cut()
        await asyncio.sleep(fault.seconds)
        self.proxy.refuse(False)

    async def stall(self, fault: Fault) -> None:
        with self.proxy.black_hole():
            await asyncio.sleep(fault.seconds)

    async def stall_up(self, fault: Fault) -> None:
        with self.proxy.black_hole("up"):
            await asyncio.sleep(2 * fault.seconds)

    async def stall_down(self, fault: Fault) -> None:
        with self.proxy.black_hole("down"):
            await asyncio.sleep(2 * fault.seconds)

    async def delay(self, fault: Fault) -> None:
        with self.proxy.delay(up=fault.seconds / 4, down=fault.which / 120):
            await asyncio.sleep(2 * fault.seconds)

    async def answer_trouble(self, fault: Fault) -> None:
        with self.proxy.answering((429, 500, 502, 503, 504, 408)[fault.which % 6]):
            self.proxy.cut()
            await asyncio.sleep(fault.seconds)

    async def repeat_frames(self, fault: Fault) -> None:
        with self.proxy.twice():
            await asyncio.sleep(fault.seconds)

    async def lose_request(self, fault: Fault) -> None:
        await self._spring(self.proxy.lose_requests(UP[fault.which % 3], skip=fault.which // 3), fault)

    async def lose_answer(self, fault: Fault) -> None:
        await self._spring(self.proxy.lose_answers(DOWN[fault.which % 3], skip=fault.which // 3), fault)

    async def tear_up(self, fault: Fault) -> None:
        await self._spring(self.proxy.tear("up", UP[fault.which % 3], skip=fault.which // 3), fault)

    async def tear_down(self, fault: Fault) -> None:
        await self._spring(self.proxy.tear("down", DOWN[fault.which % 3], skip=fault.which // 3), fault)

    async def half_open_up(self, fault: Fault) -> None:
        await self._spring(self.proxy.swallow("up", UP[fault.which % 3], skip=fault.which // 3), fault)

    async def half_open_down(self, fault: Fault) -> None:
        await self._spring(self.proxy.swallow("down", DOWN[fault.which % 3], skip=fault.which // 3), fault)

    async def _spring(self, faults: Any, fault: Fault) -> None:
        with faults as trap, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(fault.seconds):
                await trap.hit.wait()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def run(seconds: float, seed: int, folder: Path, *, tls: bool) -> History:
    """Break things for that long. Raises AssertionError, TimeoutError."""
    recoveries: dict[str, list[float]] = {}
    async with Scene(folder, seed, tls=tls).open() as scene:
        started = time.monotonic()
        for pause_s, faults in plan(seed):
            if time.monotonic() - started + pause_s >= seconds:
                break
            await asyncio.sleep(pause_s)
            await asyncio.gather(*(scene.do(fault) for fault in faults))
            took_s = await _timed(scene.recovered)
            for fault in faults:
                recoveries.setdefault(fault.name, []).append(took_s)
            say(f"{time.monotonic() - started:7.1f} s  {' and '.join(map(str, faults)):70}  back after {took_s:.2f} s")
        history: History = await scene.finish()
    say(f"{'fault':16} times  back after (s): median, longest")
    for name, times in sorted(recoveries.items()):
        say(f"{name:16} {len(times):5}  {sorted(times)[len(times) // 2]:6.2f} {max(times):6.2f}")
    return history


async def _timed(function: Callable[[], Awaitable[None]]) -> float:
    started = time.monotonic()
    await function()
    return time.monotonic() - started


def main() -> int:
    """Exit code: 0, or 1 after a complaint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--tls", action="store_true", help="over TLS; faults of single frames then hit none")
    options = parser.parse_args()
    say(f"seed {options.seed}, {options.seconds:g} s")
    folder = Path(tempfile.mkdtemp(prefix="academy-soak-"))
    try:
        history = asyncio.run(run(options.seconds, options.seed, folder, tls=options.tls))
        calls, answers = history.count("invoke"), history.count("ok")
        say(f"{calls} calls, {answers} answered, {history.count('fail')} interrupted, {history.repeated()} repeated")
        history.check(may_fail=MAY_FAIL)
    except (AssertionError, TimeoutError) as error:
        say(f"seed {options.seed}: {''.join(traceback.format_exception(error))}\nEverything is in {folder}.")
        return 1
    say("lost 0, doubled 0, out of order 0, unanswered 0")
    _remove(folder)
    return 0


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        (path.rmdir if path.is_dir() else path.unlink)()
    folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
