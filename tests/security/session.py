"""A program of a user at work, with mishaps, that tells all it can: ``python -m tests.security.session FOLDER pool``.

Everything is logged, and every object that somebody might print is printed, into files below FOLDER. The secrets
themselves go to standard output, once, when all is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import sys
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
from rich.pretty import pretty_repr

import academy_hpc
from academy_hpc import AcademyError, ConnectionInfo, HttpExchangeFactory, Manager, UserId, spawn_http_exchange
from academy_hpc.agent import RuntimeConfig
from academy_hpc.exchange.http import tokens
from academy_hpc.exchange.http.certificate import Certificate
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.handover import Handover, Ready
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.wire import Present
from academy_hpc.launch.source import source_of
from academy_hpc.launch.spec import AgentSpec, LaunchSpec
from academy_hpc.message import Message, PingRequest
from tests.launched_agents import Counter, LateFailure

__all__: list[str] = []

_HANDOVER = Handover(socket_fd=3, parent_pid=1, nonce="", log_level=0, log_limit_bytes=None, server={})

logger = logging.getLogger("session")


class Witness:
    """Writes down what is seen, and learns the secrets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets: set[str] = set()
        self.owner = ""
        made = tokens._mac

        def mac(secret: str, purpose: str, text: str) -> bytes:
            result = made(secret, purpose, text)
            self.secrets.add(result.hex())
            return result

        tokens._mac = mac

    def see(self, *objects: Any) -> None:
        """All ways in which an object becomes text."""
        for thing in objects:
            ways = [repr(thing), str(thing), f"{thing}", "%s" % (thing,), pretty_repr(thing)]  # noqa: UP031
            if isinstance(thing, BaseException):
                ways += traceback.format_exception(thing)
            with (self.folder / "seen.txt").open("a") as file:
                file.write("\n".join(ways) + "\n")
            logger.debug("%s %r", thing, thing)

    def see_processes(self) -> None:
        """What other users of the machine see of this program and all that it started."""
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            for name in ("cmdline", "environ", "comm"):
                with contextlib.suppress(OSError):
                    content = Path(f"/proc/{process.pid}/{name}").read_bytes()
                    (self.folder / f"proc-{process.pid}-{name}").write_bytes(content)

    def see_tasks(self) -> None:
        self.see(*asyncio.all_tasks())

    def learn(self, factory: HttpExchangeFactory, state: Path) -> None:
        """The secrets of the exchange."""
        identity = Identity.read(state)
        assert identity is not None
        self.owner = identity.token
        self.secrets.add(identity.token)
        assert factory.connection_info.headers["Authorization"] == f"Bearer {identity.token}"
        if identity.certificate is not None:
            key = identity.certificate.private_key.splitlines()
            self.secrets |= {line for line in key if len(line) > 30 and "PRIVATE" not in line}
        start = tokens.proof(identity.token, "a nonce")
        config = {"token": identity.token, "certificate": identity.certificate}
        handover = msgspec.structs.replace(_HANDOVER, server=config)
        self.see(identity, identity.certificate, handover, Ready(1, "exchange", start), ServerConfig(**config))

    def learn_agent(self, uid: uuid.UUID) -> None:
        """The token that the exchange gave out for an agent."""
        self.secrets.add(tokens.agent_token(self.owner, uid))

    @contextlib.contextmanager
    def mishap(self, what: str) -> Iterator[None]:
        """Something that fails, as a program would log it."""
        try:
            yield
        except (AcademyError, OSError, aiohttp.ClientError, TimeoutError, ZeroDivisionError) as error:
            logger.exception("as it had to be: %s", what)
            self.see(error, error.__cause__, error.__context__)
        else:
            raise AssertionError(f"{what} did not fail")


def log_to(folder: str) -> None:
    """All of the log of this process into a file of its own."""
    form = "%(asctime)s %(name)s %(taskName)s %(message)s" if sys.version_info >= (3, 12) else "%(name)s %(message)s"
    path = Path(folder) / f"process-{os.getpid()}.log"
    logging.basicConfig(filename=path, level=logging.DEBUG, format=form, force=True)


async def work(witness: Witness, factory: HttpExchangeFactory, launcher: Any) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        counter = await manager.launch(Counter, args=(5,), name="counter")
        await counter.add(1)
        with witness.mishap("an action that divides by zero"):
            await counter.divide(0)
        with witness.mishap("an agent that can't start"):
            await manager.launch(LateFailure)
        witness.learn_agent(counter.agent_id.uid)
        witness.see(manager, counter)
        witness.see_tasks()
        witness.see_processes()


async def misuse(witness: Witness, factory: HttpExchangeFactory) -> None:
    info = factory.connection_info
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(Counter, name="launched by hand")
        assert registration.token is not None
        witness.secrets |= {registration.token, registration.token.rpartition(".")[2]}
        with witness.mishap("a message to nobody"):
            await client.send(Message.create(client.client_id, UserId.new(), PingRequest()))
        spec = launch_spec(info, registration)
        witness.see(
            info,
            factory,
            registration,
            spec,
            spec.agents[0],
            client,
            Present(registration.agent_id.uid, registration.token),
        )
        witness.see(pickle.loads(pickle.dumps(factory)), msgspec.structs.replace(info))  # noqa: S301
        with witness.mishap("a connection info that was cut short"):
            ConnectionInfo.from_json(info.to_json()[:-9])
        with witness.mishap("a launch spec with a field of a wrong type"):
            LaunchSpec.from_json(spec.to_json().replace('"urls":[', '"urls":[7,'))
        with witness.mishap("a registration that is none"):
            type(registration).from_json(registration.to_json()[1:])
    wrong = msgspec.structs.replace(info, headers={"Authorization": "Bearer wrong"})
    with witness.mishap("a wrong token"):
        await HttpExchangeFactory.from_connection_info(wrong).create_user_client()
    nowhere = msgspec.structs.replace(info, urls=("https://127.0.0.1:9/", "https://no.such.host.invalid:1"))
    with witness.mishap("an exchange that can't be reached"):
        await HttpExchangeFactory.from_connection_info(nowhere).create_user_client()


def launch_spec(info: ConnectionInfo, registration: Any) -> LaunchSpec:
    source = source_of(Counter, (5,))
    agent = AgentSpec(registration, source, RuntimeConfig(), tag=registration.agent_id.uid)
    return LaunchSpec(info, ClientOptions(), (agent,), UserId.new())


async def kill(witness: Witness, factory: HttpExchangeFactory) -> None:
    """The exchange is killed under a client, who is told."""
    patient = HttpExchangeFactory.from_connection_info(factory.connection_info, options=ClientOptions(reconnect_s=1))
    client = await patient.create_user_client()
    for process in psutil.Process().children():
        if any("exchange.http.serve" in word for word in process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
    try:
        await asyncio.wait_for(client.discover("no.such.Class"), 10)
    except (AcademyError, TimeoutError) as error:
        witness.see(error)
    with contextlib.suppress(AcademyError, TimeoutError):
        await asyncio.wait_for(client.close(), 5)


async def session(witness: Witness, factory: HttpExchangeFactory, launcher: Any) -> None:
    await misuse(witness, factory)
    await work(witness, factory, launcher)
    await kill(witness, factory)
    witness.see_tasks()


@contextlib.contextmanager
def some_launcher(kind: str, folder: Path) -> Iterator[Any]:
    if kind == "parsl":
        from academy_hpc import ParslLauncher
        from tests.parsl_workers import parsl_config

        config = parsl_config(folder / "parsl", slots=2)
        config.initialize_logging = True
        yield ParslLauncher(config)
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(2, context, initializer=log_to, initargs=(str(folder),)) as pool:
            yield pool


def main(folder: Path, kind: str) -> None:
    log_to(str(folder))
    witness, state = Witness(folder), folder / "state"
    options = {"log_path": folder / "exchange.log", "level": "DEBUG", "state_dir": state, "tls": True}
    with some_launcher(kind, folder) as launcher, spawn_http_exchange("127.0.0.1", 0, **options) as factory:  # type: ignore[arg-type]
        witness.learn(factory, state)
        factory.connection_info.write(folder / "private" / "connection.json")
        asyncio.run(session(witness, factory, launcher))
    witness.see(*(getattr(academy_hpc, name) for name in academy_hpc.__all__), Certificate)
    sys.stdout.write("\n".join(sorted(witness.secrets)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
