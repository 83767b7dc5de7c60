"""An endpoint of Globus Compute inside this process: the real engine, behind the real SDK, without the service between.

What the service does with functions and tasks is done here in memory: results go from the engine straight to the
futures. So nothing of it says anything about AMQP, HTTP or endpoint processes; for these see tests/globus_compute.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import globus_sdk
import pytest
import requests
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, Task
from globus_compute_endpoint.engines import GCFuture, GlobusComputeEngine
from globus_compute_endpoint.engines.base import GlobusComputeEngineBase
from globus_compute_sdk import Client, Executor
from globus_compute_sdk.errors import TaskExecutionFailed

from academy_hpc import GlobusComputeLauncher

__all__ = ["EngineEndpoint", "api_error", "in_process_results", "running_engine", "two_workers"]


def two_workers() -> GlobusComputeEngine:
    """Real workers that are started at once, and missed soon."""
    return GlobusComputeEngine(
        address="127.0.0.1",
        max_workers_per_node=2,
        cores_per_worker=0.01,
        heartbeat_period=1,
        heartbeat_threshold=5,
        job_status_kwargs={"max_idletime": 0, "strategy": "none", "strategy_period": 0.1},
    )


@contextlib.contextmanager
def in_process_results() -> Iterator[None]:
    """Where the SDK, ours and that of a program, would receive results by AMQP, it gets them from the engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("academy_hpc.launch.globus_compute._ResultWatcher", _Watcher)
        patch.setattr("globus_compute_sdk.sdk.executor._ResultWatcher", _Watcher)
        patch.setattr(Executor, "_default_task_group_id", None)  # another endpoint does not know it
        yield


@contextlib.contextmanager
def running_engine(engine: GlobusComputeEngineBase, folder: Path) -> Iterator[EngineEndpoint]:
    """Start `engine`, whose files go into `folder`; in the block, launchers find it."""
    with in_process_results(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("GLOBUS_COMPUTE_USER_DIR", str(folder / "globus_compute"))
        engine.start(endpoint_id=uuid.uuid4(), run_dir=str(folder))
        try:
            yield EngineEndpoint(engine)
        finally:
            engine.shutdown(block=True)


class EngineEndpoint:
    """The endpoint, and as much of the service as the SDK asks."""

    def __init__(self, engine: GlobusComputeEngineBase | None) -> None:
        self.engine = engine  # None: tasks wait for ever
        self.endpoint_id = uuid.uuid4()
        self.status = "online"
        self.refusal: tuple[int, str] | None = None  # answers to submissions: HTTP status and code
        self.requests: list[int] = []  # how many tasks each had
        self.registered = 0
        self._functions: dict[str, str] = {}
        self._tasks: dict[str, GCFuture] = {}
        self.groups: set[str] = set()

    def launcher(self, **options: Any) -> GlobusComputeLauncher:
        return GlobusComputeLauncher(self.endpoint_id, client=self.client(), **options)

    def client(self) -> Client:
        client = Client(authorizer=globus_sdk.NullAuthorizer(), do_version_check=False)
        client._compute_web_client = self
        client.results = self._tasks  # for the watcher
        return client

    @property
    def v2(self) -> EngineEndpoint:
        return self

    @property
    def v3(self) -> EngineEndpoint:
        return self

    def get_endpoint_status(self, endpoint_id: uuid.UUID) -> _Answer:
        if endpoint_id != self.endpoint_id:
            raise api_error(404, "ENDPOINT_NOT_FOUND")
        return _Answer(status=self.status)

    def register_function(self, data: dict[str, Any]) -> _Answer:
        self.registered += 1
        function_id = str(uuid.uuid4())
        self._functions[function_id] = data["function_code"]
        return _Answer(function_uuid=function_id)

    def submit(self, endpoint_id: uuid.UUID, data: dict[str, Any]) -> _Answer:
        if self.refusal is not None:
            raise api_error(*self.refusal)
        group = str(data.get("task_group_id") or uuid.uuid4())
        if data.get("task_group_id") and group not in self.groups:
            raise api_error(404, "TASK_GROUP_NOT_FOUND")
        self.groups.add(group)
        tasks = {
            function_id: [self._run(self._functions[function_id] + payload, data) for payload in payloads]
            for function_id, payloads in data["tasks"].items()
        }
        self.requests.append(sum(map(len, tasks.values())))
        answer = {"tasks": tasks, "task_group_id": group, "endpoint_id": str(endpoint_id)}
        return _Answer(**answer, request_id=str(uuid.uuid4()))

    def _run(self, body: str, data: dict[str, Any]) -> str:
        task_id = uuid.uuid4()
        future = self._tasks[str(task_id)] = GCFuture(task_id)
        if self.engine is not None:
            packed = messagepack.pack(Task(task_id=task_id, task_buffer=body))
            self.engine.submit(future, packed, resource_specification=data.get("resource_specification") or {})
        return str(task_id)


class _Answer:
    def __init__(self, **data: Any) -> None:
        self.data = data

    def __getitem__(self, name: str) -> Any:
        return self.data[name]


class _Watcher:
    """Has the results of the engine where the SDK has those that come by AMQP."""

    def __init__(self, group: uuid.UUID, client: Any, port: int | None) -> None:
        self._client = client
        self._time_to_stop = False

    def start(self) -> None:
        """Nothing has to be started."""

    def is_alive(self) -> bool:
        return not self._time_to_stop

    def watch_for_task_results(self, executor: Executor, futures: list[Any]) -> int:
        for future in futures:
            self._client.results[future.task_id].add_done_callback(lambda done, future=future: self._tell(done, future))
        return len(futures)

    def _tell(self, done: Future[bytes], future: Future[Any]) -> None:
        result = messagepack.unpack(done.result())
        assert isinstance(result, Result)
        if self._time_to_stop:
            return
        if result.is_error:
            future.set_exception(TaskExecutionFailed(result.data))
        else:
            future.set_result(self._client.fx_serializer.deserialize(result.data))


def api_error(status: int, code: str) -> globus_sdk.GlobusAPIError:
    """What globus_sdk raises for such an answer of the service."""
    response = requests.Response()
    response.status_code = status
    response.headers["Content-Type"] = "application/json"
    response._content = json.dumps({"code": code, "reason": f"reason of {code}", "http_status_code": status}).encode()
    response.request = requests.Request("POST", "https://compute.example.org/v3/submit").prepare()
    return globus_sdk.GlobusAPIError(response)
