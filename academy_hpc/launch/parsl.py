"""Workers in Parsl: one endless task for each.

Parsl is loaded with this module and nowhere else. For agents inside a ``@python_app`` of your own, see
`academy_hpc.worker`.
"""

from __future__ import annotations

import importlib.resources
import logging
import math
import os
import runpy
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import parsl
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.errors import ParslError
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from academy_hpc.errors import LaunchError
from academy_hpc.exchange.http.addresses import local_addresses
from academy_hpc.launch.data import data_file, data_names
from academy_hpc.launch.launcher import run_worker
from academy_hpc.launch.profile import Profile
from academy_hpc.launch.site import Site
from academy_hpc.launch.walltime import clock_text, walltime_s

__all__ = ["ParslBlocks", "ParslLauncher", "parsl_config"]

logger = logging.getLogger(__name__)

ALL_EXECUTORS = "all"

# Agents stop `LaunchSpec.grace_s` before the end of their job, and its managers start some time after it.
LAST_S = 150
BROKEN_CLEANUP_S = 3.0
# An interchange that lives takes a task at once; one that has just been started, in a moment.
SEND_MS = 20_000
"""For the cleanup of a Parsl whose interchange is gone: it would wait for ever, and there is little left to clean."""


class ParslLauncher:
    """Starts workers as tasks of Parsl.

    A worker keeps its slot until its agents end, so it counts the slots that Parsl can come to have, and refuses more.
    Leave ``retries`` of the configuration at 0: an agent that is run again by Parsl has lost its state. Leave
    ``prefetch_capacity`` at 0, and set no ``walltime`` or ``drain_period`` that is shorter than the agents' work.

    Args:
        parsl: A ``Config``, which is loaded when the first worker is started, for this launcher alone, and cleaned up
            with the manager; or a loaded ``DataFlowKernel``, which is left as it is.
        executors: Labels of the executors that may be used; ``"all"``: any. Labels alone, without `parsl`, mean those
            of the configuration that ``parsl.load`` has loaded, as for ``@python_app(executors=[...])``.
        slots: How many workers Parsl can run at one time, where it does not know: known are the
            ``HighThroughputExecutor`` with ``max_workers_per_node`` and the ``ThreadPoolExecutor``.
        label: What it is called in errors.
    """

    def __init__(
        self,
        parsl: Config | DataFlowKernel | Sequence[str] | None = None,
        *,
        executors: Sequence[str] | str = ALL_EXECUTORS,
        slots: int | None = None,
        label: str = "Parsl",
    ) -> None:
        if not isinstance(parsl, Config | DataFlowKernel):
            executors, parsl = (executors if parsl is None else parsl), None
        self._config = parsl if isinstance(parsl, Config) else None
        self._kernel = parsl if isinstance(parsl, DataFlowKernel) else None
        self._labels = executors if executors == ALL_EXECUTORS else _labels(executors)
        self._slots = slots
        self._label = label
        self._apps: dict[str, Callable[[str], Future[str]]] = {}
        self._running: dict[str, list[Future[str]]] = {}
        self._closed = False

    @property
    def label(self) -> str:
        """See `Launcher`."""
        return self._label

    @property
    def restarts(self) -> bool:
        """See `Launcher`."""
        return False

    def slots(self) -> int | None:
        """See `Launcher`."""
        if self._slots is not None:
            return self._slots
        counts = [_slots(executor) for executor in self._executors()]
        known = [count for count in counts if count is not None]
        return sum(known) if counts and len(known) == len(counts) else None

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        """See `Launcher`."""
        self._load()
        try:
            return [self._submit(spec) for spec in specs]
        except ParslError as error:
            raise LaunchError(f"{self._label} takes no more workers: {error}") from error

    def waiting(self) -> str | None:
        """See `Launcher`."""
        return None

    def failure(self) -> str | None:
        """See `Launcher`. Parsl itself would wait for ever for an interchange that has died."""
        if self._kernel is None:
            return None
        failures = [_failure(executor) for executor in self._executors()]
        broken = [failure for failure in failures if failure is not None]
        return broken[0] if broken and len(broken) == len(failures) else None

    def close(self, *, timeout: float) -> None:
        """See `Launcher`. A kernel that was loaded elsewhere stays."""
        if self._closed or self._config is None or self._kernel is None:
            return
        self._closed = True
        # In a thread that nobody has to wait for: with its interchange gone, Parsl's cleanup never returns.
        thread = threading.Thread(target=_clean_up, args=(self._kernel,), name="parsl cleanup", daemon=True)
        thread.start()
        timeout = timeout if self.failure() is None else min(timeout, BROKEN_CLEANUP_S)
        thread.join(timeout)
        if thread.is_alive():
            logger.warning("%s did not clean up within %s s; its blocks are cancelled", self._label, timeout)
            _cancel_blocks(self._kernel)

    # Steps

    def _load(self) -> None:
        if self._kernel is not None:
            return
        try:
            if self._config is not None:
                _find_programs()
                # Not parsl.load: that is the program's own to call, once.
                self._kernel = DataFlowKernel(self._config)
                _limit_sends(self._kernel)
            else:
                self._kernel = parsl.dfk()
        except Exception as error:
            raise LaunchError(f"{self._label} could not be started: {type(error).__name__}: {error}") from error

    def _executors(self) -> list[ParslExecutor]:
        if self._kernel is not None:
            known = {label: one for label, one in self._kernel.executors.items() if label != "_parsl_internal"}
        elif self._config is not None:
            known = {executor.label: executor for executor in self._config.executors}
        else:
            return []
        if self._labels == ALL_EXECUTORS:
            return list(known.values())
        missing = [label for label in self._labels if label not in known]
        if missing:
            raise LaunchError(f"Parsl has no executor {', '.join(missing)}; there are: {', '.join(known)}.")
        return [known[label] for label in self._labels]

    def _submit(self, spec: str) -> Future[str]:
        # Parsl would choose among several executors by lot, and queue a worker on one while another has room.
        executor = max(self._executors(), key=self._free)
        if executor.label not in self._apps:
            self._apps[executor.label] = parsl.python_app(
                run_worker, data_flow_kernel=self._kernel, executors=[executor.label], cache=False
            )
        future = self._apps[executor.label](spec)
        self._running.setdefault(executor.label, []).append(future)
        return future

    def _free(self, executor: ParslExecutor) -> float:
        running = [future for future in self._running.get(executor.label, ()) if not future.done()]
        self._running[executor.label] = running
        slots = _slots(executor)
        return (math.inf if slots is None else slots) - len(running)


class ParslBlocks(NamedTuple):
    """The blocks (jobs) that a configuration of Parsl is to have: what a file of ``launchers/parsl`` makes it from.

    Attributes:
        site: Whose machine, with all that the user has said.
        workers_per_node: How many tasks, that is workers, each node runs at one time.
        blocks: How many jobs there are at one time; all are asked for at once.
        run_dir: Where Parsl keeps its logs and scripts.
    """

    site: Site
    workers_per_node: int
    blocks: int
    run_dir: str

    @property
    def nodes(self) -> int:
        """Of each block."""
        return self.site.nodes or 1

    @property
    def walltime_s(self) -> int:
        """Of each block."""
        return walltime_s(self.site.walltime or "1h")

    @property
    def walltime(self) -> str:
        """The same in hours, minutes and seconds."""
        return clock_text(self.walltime_s)

    @property
    def prelude(self) -> str:
        """What a job runs first: it finds this program's Python, unless the profile activates another environment.

        Workers get to know when the job ends, so that agents save their state in time.
        """
        path = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        deadline = f"export ACADEMY_HPC_DEADLINE=$(($(date +%s) + {self.walltime_s}))"
        return "\n".join([path, *([deadline] if self._is_limited else []), *self.site.prelude])

    @property
    def _is_limited(self) -> bool:
        """Nothing ends processes of this machine when their walltime is over."""
        return self.site.scheduler != "local"

    @property
    def _drain_s(self) -> int | None:
        """Seconds after which a block takes no more workers, which would have to end at once."""
        long_enough = self.walltime_s > 2 * LAST_S
        return self.walltime_s - LAST_S if self._is_limited and long_enough else None

    def directives(self, comment: str, *more: str) -> str:
        """Further lines for the scheduler; `comment`: what begins them, such as ``#SBATCH``."""
        return "\n".join(f"{comment} {line}" for line in (*more, *self.site.directives))

    @property
    def counts(self) -> dict[str, Any]:
        """What all providers of Parsl call alike."""
        return {
            "nodes_per_block": self.nodes,
            "init_blocks": self.blocks,
            "min_blocks": 0,
            "max_blocks": self.blocks,
            "worker_init": self.prelude,
        }

    def config(self, provider: ExecutionProvider, **executor: Any) -> Config:
        """A configuration that suits agents, which run for hours and are supervised by a manager.

        A worker is never run again behind its manager's back, no task waits behind another one, a block that failed
        does not end all others, and nothing is told to the developers of Parsl.
        """
        options: dict[str, Any] = {
            "cores_per_worker": 1e-3,
            "max_workers_per_node": self.workers_per_node,
            "prefetch_capacity": 0,
        }
        options |= {"label": self.site.name, "address": self._address(), "block_error_handler": False}
        options |= {"drain_period": self._drain_s}
        workers = HighThroughputExecutor(provider=provider, **options | executor)
        return Config(executors=[workers], retries=0, usage_tracking=0, run_dir=self.run_dir, initialize_logging=False)

    def _address(self) -> str:
        """Where nodes find Parsl. Asked to find out by itself, it would ask a server in the internet."""
        if self.site.scheduler == "local":
            return "127.0.0.1"
        local = sorted((one for one in local_addresses() if one.ip.version == 4), key=lambda one: one.rank)
        preferred = [one for name in self.site.interfaces for one in local if one.interface == name]
        return str([*preferred, *local][0].ip) if local else "127.0.0.1"


def parsl_config(
    site: str | None = None, *, workers_per_node: int = 1, blocks: int = 1, run_dir: str = "runinfo", **options: Any
) -> Config:
    """A configuration of Parsl for a site, to be given to `ParslLauncher`.

        config = parsl_config("perlmutter", account="m1234", constraint="gpu", nodes=2, walltime="2:00:00")

    It comes from ``launchers/parsl/SITE.py``, or from the file of the site's scheduler: read it to write one of your
    own.

    Args:
        site: Its name; None: what ``ACADEMY_HPC_SITE`` says.
        workers_per_node: How many workers each node runs.
        blocks: How many jobs there are at one time.
        run_dir: Where Parsl keeps its logs and scripts: the nodes must share it.
        options: Values of the site, as in its profile: ``account``, ``queue``, ``nodes``, ``walltime``, ``prelude``.

    Raises:
        LaunchError: An option is missing or wrong, or there is nothing for this site and its scheduler.
    """
    if unknown := options.keys() - set(Profile.__struct_fields__):
        raise LaunchError(f"{', '.join(sorted(unknown))}: the profile of a site has no such value.")
    loaded = Site.load(site, given=options)
    for concern in loaded.check():
        logger.warning("%s", concern)
    names = [name for name in (loaded.name, loaded.scheduler) if name in data_names("parsl", ".py")]
    if not names:
        raise LaunchError(
            f"academy_hpc has no configuration of Parsl for {loaded.name}, whose scheduler is {loaded.scheduler}."
        )
    with importlib.resources.as_file(data_file(f"parsl/{names[0]}.py")) as path:
        make: Callable[[ParslBlocks], Config] = runpy.run_path(str(path))["config"]
    return make(ParslBlocks(loaded, workers_per_node, blocks, run_dir))


def _labels(executors: Sequence[str] | str) -> list[str]:
    return [executors] if isinstance(executors, str) else list(executors)


def _find_programs() -> None:
    """Put Parsl's ``interchange.py`` and ``process_worker_pool.py`` on PATH.

    Parsl looks for them there, where an environment that is used without being activated does not have them.
    """
    programs = Path(sys.executable).parent
    if shutil.which("interchange.py") is None and (programs / "interchange.py").exists():
        os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def _slots(executor: ParslExecutor) -> int | None:
    """How many tasks an executor can come to run at one time."""
    if isinstance(executor, ThreadPoolExecutor):
        return executor.max_threads
    if not isinstance(executor, HighThroughputExecutor) or executor.provider is None:
        return None
    per_node = float(executor.workers_per_node)
    if isinstance(executor.provider, LocalProvider):  # the node is this machine, whose cores count, too
        cores = os.cpu_count() or 1
        per_node = min(executor.max_workers_per_node, _accelerators(executor), cores // executor.cores_per_worker)
    elif executor.max_workers_per_node == math.inf and per_node == 1:
        return None  # Parsl has guessed
    return int(executor.provider.max_blocks * (executor.provider.nodes_per_block or 1) * per_node)


def _accelerators(executor: HighThroughputExecutor) -> float:
    return len(executor.available_accelerators) or math.inf


def _failure(executor: ParslExecutor) -> str | None:
    if isinstance(executor, BlockProviderExecutor) and executor.bad_state_is_set:
        return f"Parsl's executor {executor.label!r} has failed: {executor.executor_exception}"
    process = getattr(executor, "interchange_proc", None)
    if process is not None and process.poll() is not None:
        return f"the interchange of Parsl's executor {executor.label!r} has ended (exit status {process.returncode})"
    return None


def _limit_sends(kernel: DataFlowKernel) -> None:
    """A task that is sent to an interchange that has died would wait for ever, in a thread that no program can end."""
    for executor in kernel.executors.values():
        if isinstance(executor, HighThroughputExecutor):
            executor.outgoing_q.zmq_socket.sndtimeo = SEND_MS


def _clean_up(kernel: DataFlowKernel) -> None:
    try:
        if not kernel.cleanup_called:
            kernel.cleanup()
    except Exception:
        logger.exception("Parsl could not be cleaned up")


def _cancel_blocks(kernel: DataFlowKernel) -> None:
    """End the jobs and processes of the workers, past an interchange that does not answer."""
    for executor in kernel.executors.values():
        jobs: dict[str, Any] = getattr(executor, "blocks_to_job_id", {})
        provider = getattr(executor, "provider", None)
        if jobs and provider is not None:
            try:
                provider.cancel(list(jobs.values()))
            except Exception:
                logger.exception("the blocks of Parsl's executor %r could not be cancelled", executor.label)
