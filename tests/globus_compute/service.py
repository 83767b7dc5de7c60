"""The web service of Globus Compute, and the little of Globus Auth that an endpoint asks, on a port of loopback.

It speaks the formats of the SDK and of endpoints, and keeps the rules that launchers meet: unknown endpoints and task
groups are refused, so are requests above 10 MB; what a user endpoint says of its start fails the tasks that wait for
it; a task of an endpoint that has died is never heard of again. What it can't show: the service's quotas, policies and
availability, and the exact words of its errors.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result, ResultErrorDetails, Task

from tests.globus_compute.broker import Broker

__all__ = ["PORT", "ComputeService"]

# Where SDK and endpoint look for a "local" service; nothing else is possible without changing them.
PORT = 5000
REQUEST_BYTES = 10 * 1024 * 1024
COMPUTE_SCOPE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
IDENTITY = "11111111-aaaa-4bbb-8ccc-222222222222"
PERSON = {"sub": IDENTITY, "preferred_username": "somebody@example.org"}
# An endpoint that has missed so many heartbeats is offline.
MISSED_HEARTBEATS = 2.5


class RefusedError(Exception):
    """The answer to a request that is refused."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.content = {"status": "Failed", "code": code, "reason": reason, "http_status_code": status}


class ComputeService:
    """One person's functions, endpoints and tasks, in memory. Enter it to serve."""

    def __init__(self, broker_url: str) -> None:
        self.broker_url = broker_url
        self.tasks: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []  # those that were answered: method and path
        self._functions: dict[str, str] = {}
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._groups: set[str] = set()
        self._lock = threading.RLock()
        self._routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/v2/version", self._version),
            ("POST", "/v[23]/functions", self._register_function),
            ("POST", "/v3/endpoints", self._register_endpoint),
            ("PUT", "/v3/endpoints/ID", self._register_endpoint),
            ("POST", "/v3/endpoints/ID/submit", self._submit),
            ("POST", "/v3/endpoints/ID/lock", self._lock_endpoint),
            ("GET", "/v2/endpoints/ID/status", self._status),
            ("GET", "/v2/get_amqp_result_connection_url", self._result_queue),
            ("POST", "/v2/oauth2/token", self._token),
            ("GET", "/v2/oauth2/userinfo", lambda fields: PERSON | {"identity_set": [PERSON]}),
        ]

    def __enter__(self) -> Self:
        self._broker = Broker(self.broker_url)
        self._broker.consume("results", self._heard_result)
        self._broker.consume("heartbeats", self._heard_heartbeat)
        self._broker.start()
        self._server = ThreadingHTTPServer(("127.0.0.1", PORT), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._broker.stop()

    @property
    def url(self) -> str:
        return f"http://localhost:{PORT}"

    def answer(self, method: str, path: str, fields: dict[str, Any]) -> Any:
        """What a request is answered with. Raises RefusedError."""
        for known, pattern, route in self._routes:
            found = re.fullmatch(pattern.replace("ID", "([0-9a-f-]{36})"), path)
            if found and known == method:
                with self._lock:
                    self.requests.append(f"{method} {path}")
                return route(fields, *found.groups())
        raise RefusedError(404, "RESOURCE_NOT_FOUND", f"{method} {path} is not here")

    # Endpoints

    def _register_endpoint(self, fields: dict[str, Any], endpoint_id: str | None = None) -> Any:
        endpoint_id = endpoint_id or str(uuid.uuid4())
        commands = f"commands.{endpoint_id}"
        self._endpoints.setdefault(endpoint_id, {})
        self._broker.make_queue(commands)
        queue = {"connection_url": self.broker_url, "queue": commands}
        return {"endpoint_id": endpoint_id, "command_queue_info": queue} | self._report_queues(endpoint_id)

    def _lock_endpoint(self, fields: dict[str, Any], endpoint_id: str) -> Any:
        return {}

    def _status(self, fields: dict[str, Any], endpoint_id: str) -> Any:
        endpoint = self._known(endpoint_id)
        silent_s = time.time() - endpoint.get("seen_s", 0)
        online = silent_s < MISSED_HEARTBEATS * endpoint.get("period_s", 0)
        return {"status": "online" if online else "offline", "details": {}, "endpoint_id": endpoint_id}

    def _known(self, endpoint_id: str) -> dict[str, Any]:
        if endpoint_id not in self._endpoints:
            raise RefusedError(404, "ENDPOINT_NOT_FOUND", f"Endpoint {endpoint_id} could not be resolved")
        return self._endpoints[endpoint_id]

    def _report_queues(self, endpoint_id: str) -> dict[str, Any]:
        """Where it publishes results and heartbeats."""
        queues = {}
        for kind, name in (("result", "results"), ("heartbeat", "heartbeats")):
            publication = {"exchange": name, "routing_key": f"{endpoint_id}.{name}", "mandatory": True}
            publication["properties"] = {"delivery_mode": 2}
            queue = {"connection_url": self.broker_url, "exchange": name, "queue": name}
            queues[f"{kind}_queue_info"] = queue | {"queue_publish_kwargs": publication}
        return queues

    def _heard_heartbeat(self, body: bytes) -> None:
        report = messagepack.unpack(body)
        assert isinstance(report, EPStatusReport)
        state, endpoint_id = report.global_state, str(report.endpoint_id)
        period_s = 0 if state.get("active") is False else state.get("heartbeat_period", 30)  # 0: it says goodbye
        self._endpoints.setdefault(endpoint_id, {}).update(seen_s=time.time(), period_s=period_s)
        if "error" in state:
            self._fail_start(endpoint_id, state["error"])

    # Functions and tasks

    def _register_function(self, fields: dict[str, Any]) -> Any:
        function_id = str(uuid.uuid4())
        self._functions[function_id] = fields["function_code"]
        return {"function_uuid": function_id}

    def _submit(self, fields: dict[str, Any], endpoint_id: str) -> Any:
        self._known(endpoint_id)
        if sum(len(payload) for payloads in fields["tasks"].values() for payload in payloads) > REQUEST_BYTES:
            raise RefusedError(413, "TASK_PAYLOAD_TOO_LARGE", "Task payload too large")
        group = fields.get("task_group_id")
        if group is not None and group not in self._groups:
            raise RefusedError(404, "TASK_GROUP_NOT_FOUND", f"Task group {group} could not be resolved")
        group = group or str(uuid.uuid4())
        self._groups.add(group)
        self._broker.make_queue(f"group.{group}")
        options = fields.get("user_endpoint_config") or {}
        child = str(uuid.uuid5(uuid.UUID(endpoint_id), json.dumps(options, sort_keys=True)))
        self._broker.make_queue(f"tasks.{child}")
        tasks = {
            function_id: [self._send(function_id, payload, group, child, fields) for payload in payloads]
            for function_id, payloads in fields["tasks"].items()
        }
        self._start_child(endpoint_id, child, options, fields)
        made = {"task_group_id": group, "endpoint_id": endpoint_id, "tasks": tasks}
        return made | {"request_id": str(uuid.uuid4())}

    def _send(self, function_id: str, payload: str, group: str, child: str, fields: dict[str, Any]) -> str:
        task_id = str(uuid.uuid4())
        self.tasks[task_id] = {"group": group, "endpoint": child, "result": None}
        headers = {"function_uuid": function_id, "task_uuid": task_id}
        headers["resource_specification"] = json.dumps(fields.get("resource_specification"))
        body = messagepack.pack(Task(task_id=task_id, task_buffer=self._functions[function_id] + payload))
        self._broker.publish(f"tasks.{child}", body, headers=headers)
        return task_id

    def _start_child(self, endpoint_id: str, child: str, options: dict[str, Any], fields: dict[str, Any]) -> None:
        """Tell the endpoint to start a user endpoint for these options, if it has not."""
        queue = {"connection_url": self.broker_url, "queue": f"tasks.{child}"}
        credentials = {"endpoint_id": child, "task_queue_info": queue} | self._report_queues(child)
        details = {"name": f"{endpoint_id}.{child}", "user_opts": options, "amqp_creds": credentials}
        command = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": details | {"user_runtime": fields.get("user_runtime") or {}},
            "globus_effective_identity": IDENTITY,
            "globus_username": PERSON["preferred_username"],
            "globus_identity_set": [{"sub": IDENTITY}],
        }
        body = json.dumps(command).encode()
        self._broker.publish(f"commands.{endpoint_id}", body, content_type="application/json")

    def _result_queue(self, fields: dict[str, Any]) -> Any:
        return {"queue_prefix": "group.", "connection_url": self.broker_url}

    def _heard_result(self, body: bytes) -> None:
        result = messagepack.unpack(body)
        assert isinstance(result, Result)
        task = self.tasks[str(result.task_id)]
        if task["result"] is None:
            task["result"] = result.data
            self._broker.publish(f"group.{task['group']}", body)

    def _fail_start(self, child: str, reason: str) -> None:
        details = ResultErrorDetails(code="ENDPOINT_STARTUP_FAILED", user_message=reason)
        for task_id, task in list(self.tasks.items()):
            if task["endpoint"] == child and task["result"] is None:
                self._heard_result(messagepack.pack(Result(task_id=task_id, data=reason, error_details=details)))

    # The rest

    def _version(self, fields: dict[str, Any]) -> Any:
        return {"api": "stand-in", "min_ep_version": "0.0.1", "min_sdk_version": "0.0.1"}

    def _token(self, fields: dict[str, Any]) -> Any:
        """A token for each service that is asked for, and for no other."""
        scopes = fields.get("scope", "openid").split()
        services = {"funcx_service": [scope for scope in scopes if scope == COMPUTE_SCOPE]}
        services["auth.globus.org"] = [scope for scope in scopes if scope != COMPUTE_SCOPE]
        life = {"expires_in": 172_800, "token_type": "Bearer"}
        first, *others = [
            life | {"access_token": f"token-for-{name}", "scope": " ".join(wanted), "resource_server": name}
            for name, wanted in services.items()
            if wanted
        ]
        return first | {"other_tokens": others}


def _handler(service: ComputeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path = urlsplit(self.path).path
            try:
                if not self.headers.get("Authorization") and path != "/v2/version":
                    raise RefusedError(401, "UNAUTHORIZED", "There is no Authorization header")
                status, content = 200, service.answer(self.command, path, self._fields(body))
            except RefusedError as refused:
                status, content = refused.status, refused.content
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _fields(self, body: str) -> dict[str, Any]:
            if "urlencoded" in (self.headers.get("Content-Type") or ""):
                return {name: values[0] for name, values in parse_qs(body).items()}
            return dict(json.loads(body)) if body else {}

        do_GET = do_POST = do_PUT = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
