"""Agents inside a ``@python_app`` of your own: ``python -m examples.python_app``.

A `ParslLauncher` does this by itself. Do it by hand where the app needs something of its own: other executors for
other agents, a resource specification, files that are staged first. Activate the environment before: Parsl looks for
its programs on PATH.
"""

from __future__ import annotations

import asyncio
import tempfile

import parsl
from parsl import python_app
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from academy_hpc import Agent, AgentLaunch, HttpExchangeFactory, Manager, ParslLauncher, action, spawn_http_exchange


class Greeter(Agent):
    """Runs by value, since it is defined in the main program. In a module, it would be imported on the worker."""

    def __init__(self, greeting: str) -> None:
        super().__init__()
        self.greeting = greeting

    @action
    async def greet(self, name: str) -> str:
        return f"{self.greeting}, {name}!"


@python_app
def run_agents(spec: str) -> str:
    """An endless task: it ends with its agents. All that it needs is in `spec`, which holds a key: keep it private."""
    from academy_hpc.worker import run

    return run(spec)


def parsl_config(folder: str) -> Config:
    executor = HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=2,
        cores_per_worker=0.1,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=folder, strategy_period=1, initialize_logging=False)


async def main(factory: HttpExchangeFactory) -> None:
    # Labels: whatever the manager launches itself goes to the Parsl that the program has loaded.
    async with await Manager.from_exchange_factory(factory, ParslLauncher(["workers"])) as manager:
        items = [AgentLaunch(Greeter, args=("Hello",), name="en"), AgentLaunch(Greeter, args=("Moin",), name="nds")]
        spec = await manager.make_spec(items)
        future = run_agents(spec.to_json())
        english, low_german = await manager.adopt(spec, future)
        print(await english.greet("Ada"))
        print(await low_german.greet("Konrad"))
    report = await asyncio.wrap_future(future)
    print(f"The task has ended, with a report of {len(report):,} characters")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="academy-hpc-") as folder, parsl.load(parsl_config(folder)):
        with spawn_http_exchange(port=0) as factory:
            asyncio.run(main(factory))
