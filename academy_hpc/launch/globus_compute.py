"""Workers on a Globus Compute endpoint: one task for each, which lasts as long as its agents.

The SDK of Globus Compute is loaded with this module and nowhere else. For agents in tasks that a program submits
itself, see `GlobusComputeLauncher`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import PurePosixPath
from typing import Any

import msgspec
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.sdk.executor import _REGISTERED_EXECUTORS, _RESULT_WATCHERS, _ResultWatcher
from globus_compute_sdk.serialize import ComputeSerializer

from academy_hpc.errors import LaunchError
from academy_hpc.launch.globus_compute_errors import explain_call, explain_task
from academy_hpc.launch.launcher import WorkerEndedError, run_worker
from academy_hpc.launch.spec import EndCause, LaunchSpec

__all__ = ["GlobusComputeLauncher"]

logger = logging.getLogger(__name__)

# What Globus Compute takes in one request, and how many tasks its SDK puts into one.
REQUEST_BYTES = 10_000_000
REQUEST_TASKS = 128
# What a request holds besides the arguments of its tasks.
REQUEST_MARGIN_BYTES = 50_000
# Between two looks at an endpoint that has tasks of ours. One that was out of reach for a moment has lost nothing.
STATUS_PERIOD_S = 60.0
OFFLINE_S = 170.0


class GlobusComputeLauncher:
    """Starts workers as tasks of a Globus Compute endpoint.

    A worker is a task without end, of which Globus Compute does not know how it is: what became of an agent is told
    through the exchange, and a task's result is only a second source. What the endpoint needs for that, above all idle
    settings under which it does not end agents, is in the template in ``launchers/globus_compute``. Its workers need
    ``academy_hpc`` of the same version.

    Tasks can't be taken back, so futures can't be cancelled; a worker that starts for an agent that is not wanted any
    more ends at once. A program may end, or fail, while its tasks run: nothing here keeps it from that.

    To submit the tasks yourself, end the manager inside the ``with`` block of the ``Executor``, which waits for all of
    its tasks:

        from academy_hpc.worker import run

        with Executor(endpoint_id) as executor:
            async with await Manager.from_exchange_factory(factory, launcher) as manager:
                spec = await manager.make_spec([AgentLaunch(Simulator, name="sim-1")])
                [simulator] = await manager.adopt(spec, executor.submit(run, spec.to_json()))

    Args:
        endpoint_id: The endpoint.
        user_endpoint_config: Values for its template, such as ``{"account": "m1234"}``.
        resource_specification: Of each task; endpoints with a ``GlobusMPIEngine`` know some.
        slots: How many workers the endpoint can run at one time, which nobody else can know: more agents than that
            would wait for ever without a word.
        state_dir: A folder that all workers see, where agents keep their state for their next life; an absolute path on
            the endpoint's machine. None: they keep none.
        client: Of the SDK; default: one that logs in as the SDK does.
        label: What it is called in errors.

    Raises:
        ValueError: This is no endpoint id, or no absolute path.
    """

    def __init__(
        self,
        endpoint_id: uuid.UUID | str,
        *,
        user_endpoint_config: Mapping[str, Any] | None = None,
        resource_specification: Mapping[str, Any] | None = None,
        slots: int | None = None,
        state_dir: str | None = None,
        client: Client | None = None,
        label: str = "Globus Compute",
    ) -> None:
        if state_dir is not None and not PurePosixPath(state_dir).is_absolute():
            raise ValueError(f"state_dir is {state_dir!r}: give an absolute path on the endpoint's machine.")
        self._endpoint_id = uuid.UUID(str(endpoint_id))
        self._user_endpoint_config = None if user_endpoint_config is None else dict(user_endpoint_config)
        self._resource_specification = None if resource_specification is None else dict(resource_specification)
        self._slots = slots
        self._state_dir = state_dir
        self._client = client
        self._label = label
        self._executor: _OwnExecutor | None = None
        self._spent: list[_OwnExecutor] = []
        self._function_id: str | None = None
        self._futures: set[Future[str]] = set()
        self._endpoint: _EndpointWatch | None = None
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
        return self._slots

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        """See `Launcher`. The tasks are sent by a thread: what fails then is told by the futures."""
        specs = [self._with_state(spec) for spec in specs]
        tasks_per_request = self._tasks_per_request(specs)
        try:
            executor = self._open()
            executor.batch_size = tasks_per_request
            return [self._follow(executor.take(spec), executor) for spec in specs]
        except LaunchError:
            raise
        except Exception as error:  # of requests, globus_sdk, pika or the SDK, which have no common class
            self._replace(self._executor)
            raise LaunchError(f"{self._label}: {explain_call(error, self._endpoint_id)}") from error

    def waiting(self) -> str | None:
        """See `Launcher`."""
        if self._endpoint is None or not self._futures:
            return None
        return f"Globus Compute endpoint {self._endpoint_id}, which is {self._endpoint.status}"

    def failure(self) -> str | None:
        """See `Launcher`. The futures of an endpoint that has ended stay pending for ever."""
        offline_s = 0.0 if self._endpoint is None else self._endpoint.offline_s
        if offline_s < OFFLINE_S:
            return None
        return f"the Globus Compute endpoint {self._endpoint_id} has been offline for {offline_s:.0f} s"

    def close(self, *, timeout: float) -> None:
        """See `Launcher`. Tasks that still run can't be ended from here."""
        if self._closed:
            return
        self._closed = True
        if self._endpoint is not None:
            self._endpoint.stop()
        self._replace(self._executor)
        for executor in self._spent:
            executor.leave()
        if self._futures:
            logger.debug("%s: %d tasks have not told their end", self._label, len(self._futures))

    # Steps

    def _with_state(self, spec: str) -> str:
        if self._state_dir is None:
            return spec
        return msgspec.structs.replace(LaunchSpec.from_json(spec), state_dir=self._state_dir).to_json()

    def _tasks_per_request(self, specs: Sequence[str]) -> int:
        """How many of these tasks fit into one request. Raises LaunchError: one is too large by itself."""
        serializer = ComputeSerializer()
        largest = max((len(serializer.serialize((spec,))) for spec in specs), default=0) + REQUEST_MARGIN_BYTES
        if largest > REQUEST_BYTES:
            raise LaunchError(
                f"{self._label}: the agents of one worker take {largest / 1e6:.1f} MB, and Globus Compute takes "
                f"{REQUEST_BYTES / 1e6:.0f} MB: put fewer into a worker, or have them read their data from a file."
            )
        return max(1, min(REQUEST_TASKS, REQUEST_BYTES // max(largest, 1)))

    def _open(self) -> _OwnExecutor:
        """The executor, a new one after a call that failed, for that ends an executor."""
        if self._closed:
            raise LaunchError(f"{self._label} is closed.")
        if self._client is None:
            self._client = Client()
        if self._endpoint is None:
            self._endpoint = _EndpointWatch(self._client, self._endpoint_id)
        if self._endpoint.ask() == "offline":
            raise LaunchError(
                f"{self._label}: the endpoint {self._endpoint_id} is offline. Start it where it was configured: "
                "globus-compute-endpoint start NAME"
            )
        self._endpoint.start()
        if self._executor is None:
            self._executor = _OwnExecutor(
                self._endpoint_id,
                self._client,
                user_endpoint_config=self._user_endpoint_config,
                resource_specification=self._resource_specification,
            )
            self._function_id = self._executor.register_function(run_worker, self._function_id)
        return self._executor

    def _follow(self, task: Future[str], executor: _OwnExecutor) -> Future[str]:
        """A future of our own, which can't be cancelled: of the SDK's it would say so, and the task would run on."""
        future: Future[str] = Future()
        future.set_running_or_notify_cancel()
        self._futures.add(future)
        task.add_done_callback(lambda done: self._ended(done, future, executor))
        return future

    def _ended(self, task: Future[str], future: Future[str], executor: _OwnExecutor) -> None:
        """Called in a thread of the SDK."""
        self._futures.discard(future)
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            future.set_exception(WorkerEndedError("it was not submitted, because a call before it had failed", "lost"))
        elif error is None:
            future.set_result(task.result())
        elif getattr(task, "task_id", None) is None:
            self._replace(executor)
            future.set_exception(_because(error, explain_call(error, self._endpoint_id), "lost"))
        else:
            future.set_exception(_because(error, *explain_task(error)))

    def _replace(self, executor: _OwnExecutor | None) -> None:
        """Use it no more, and let it receive the results of what it has submitted."""
        if executor is not None and executor is self._executor:
            self._executor = None
            self._spent.append(executor)


class _OwnExecutor(Executor):
    """An executor that keeps no program from ending, and shares nothing with other executors of the program.

    Python would wait at its end for the thread that receives results, and with it for all tasks; and the executors of a
    program have one task group and one such thread, where ending ours would end those of others.
    """

    def __init__(self, endpoint_id: uuid.UUID, client: Client, **options: Any) -> None:
        self._group: uuid.UUID | None = None
        self._watcher: _ResultWatcher | None = None
        super().__init__(endpoint_id, client, **options)
        self._group = None  # by now that of the program's last executor; Globus Compute is to make one
        _REGISTERED_EXECUTORS.pop(id(self), None)

    @property
    def task_group_id(self) -> uuid.UUID | None:
        return self._group

    @task_group_id.setter
    def task_group_id(self, group: uuid.UUID | str | None) -> None:
        self._group = None if group is None else uuid.UUID(str(group))

    def take(self, spec: str) -> Future[str]:
        """Submit one worker."""
        task: Future[str] = self.submit(run_worker, spec)  # type: ignore[no-untyped-call]
        return task

    def _get_result_watcher(self) -> _ResultWatcher:
        assert self._group is not None  # something was submitted
        if self._watcher is None or not self._watcher.is_alive():
            self._watcher = _ResultWatcher(self._group, self.client, port=self.amqp_port)
            _RESULT_WATCHERS.pop(self._group, None)
            self._watcher.daemon = True
            self._watcher.start()
        return self._watcher

    def leave(self) -> None:
        """Send no more, and receive no more results. Returns at once."""
        self.shutdown(wait=False, cancel_futures=True)  # type: ignore[no-untyped-call]
        if self._watcher is not None:
            self._watcher._time_to_stop = True  # its `shutdown` would start another thread that waits


class _EndpointWatch:
    """Whether the endpoint is online, asked now and then by a thread."""

    def __init__(self, client: Client, endpoint_id: uuid.UUID) -> None:
        self._client = client
        self._endpoint_id = endpoint_id
        self._online_s = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._go_round, name="globus compute endpoint", daemon=True)
        self.status = "unknown"

    @property
    def offline_s(self) -> float:
        """For how many seconds it has been offline."""
        return time.monotonic() - self._online_s if self.status == "offline" else 0.0

    def ask(self) -> str:
        """Ask now. Raises what the SDK raises."""
        status: str = self._client.get_endpoint_status(self._endpoint_id)["status"]
        if status != "offline":
            self._online_s = time.monotonic()
        self.status = status
        return status

    def start(self) -> None:
        """Go on asking; calling it again does nothing."""
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Ask no more. Returns at once."""
        self._stopped.set()

    def _go_round(self) -> None:
        while not self._stopped.wait(STATUS_PERIOD_S):
            try:
                self.ask()
            except Exception as error:  # noqa: BLE001 - see `start`; what can't be asked is as it was
                logger.debug("the status of endpoint %s can't be asked: %s", self._endpoint_id, error)


def _because(error: BaseException, reason: str, cause: EndCause) -> WorkerEndedError:
    ended = WorkerEndedError(reason, cause)
    ended.__cause__ = error
    return ended
