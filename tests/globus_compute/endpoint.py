"""A real endpoint of Globus Compute, configured with our template as its page says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Self

import globus_sdk
import psutil
from globus_compute_sdk import Client

from academy_hpc.launch.data import data_file
from tests.globus_compute.service import ComputeService

__all__ = ["PROGRAMS", "ROOT", "Endpoint", "compute_client"]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
START_S = 40.0
STOP_S = 30.0

# Endpoints on clusters are slower to notice than a test likes.
QUICKER = {
    "heartbeat_period: 10": "heartbeat_period: 1",
    "heartbeat_threshold: 60": "heartbeat_threshold: 5",
    "strategy_period: 15": "strategy_period: 1",
}
LOCAL = "local_compute_services: true\nemail: nobody@example.org\nheartbeat_period: 5\n"


def compute_client() -> Client:
    """The SDK's, for the service on loopback."""
    authorizer = globus_sdk.AccessTokenAuthorizer("a token")
    return Client(local_compute_services=True, authorizer=authorizer)


class Endpoint:
    """``globus-compute-endpoint start``. Enter it to have it online."""

    def __init__(self, folder: Path, service: ComputeService) -> None:
        self.endpoint_id = uuid.uuid4()
        self._folder = folder
        self._environment = {
            "HOME": str(folder),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GLOBUS_COMPUTE_USER_DIR": str(folder / "globus_compute"),
            "SLURM_CONF": os.environ["SLURM_CONF"],
        }
        self._login = {
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"{service.url}/",
            "GLOBUS_COMPUTE_CLIENT_ID": str(uuid.uuid4()),
            "GLOBUS_COMPUTE_CLIENT_SECRET": "a secret",
        }

    def __enter__(self) -> Self:
        self._configure()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, for the first time or again; return when the service has heard of it."""
        command = [PROGRAMS / "globus-compute-endpoint", "start", "agents", "--endpoint-uuid", str(self.endpoint_id)]
        with (self._folder / "endpoint.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | self._environment | self._login,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        client = compute_client()
        until_s = time.monotonic() + START_S
        while not self._online(client):
            assert self._process.poll() is None, (self._folder / "endpoint.log").read_text()
            assert time.monotonic() < until_s, (self._folder / "endpoint.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """In order: its workers are told to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_S)

    def kill(self) -> None:
        """As when the login node is lost; the workers live on."""
        endpoint = psutil.Process(self._process.pid)
        for process in [endpoint, *endpoint.children()]:
            process.kill()
        self._process.wait(STOP_S)
        # By these it would be taken for running, for 90 s.
        for file in self._folder.glob("globus_compute/*/daemon.pid"):
            file.unlink()

    def _online(self, client: Client) -> bool:
        try:
            return bool(client.get_endpoint_status(self.endpoint_id)["status"] == "online")
        except globus_sdk.GlobusAPIError:  # it has not registered yet
            return False

    def _configure(self) -> None:
        """As in ``launchers/globus_compute/README.md``."""
        files = {name: self._folder / name for name in ("config.yaml", "user_config_template.yaml.j2")}
        files["user_config_schema.json"] = self._folder / "user_config_schema.json"
        for name, file in files.items():
            file.write_text(data_file(f"globus_compute/{name}").read_text())
        template = files["user_config_template.yaml.j2"]
        for slow, quick in QUICKER.items():
            assert slow in template.read_text()
            template.write_text(template.read_text().replace(slow, quick))
        files["config.yaml"].write_text(files["config.yaml"].read_text() + LOCAL)
        # An endpoint of root starts user endpoints with an empty environment, and these variables.
        variables = self._folder / "user_environment.yaml"
        variables.write_text("".join(f"{name}: {value!r}\n" for name, value in self._environment.items()))
        options = {"core": "config.yaml", "template": template.name, "schema": "user_config_schema.json"}
        command = [str(PROGRAMS / "globus-compute-endpoint"), "configure", "agents", "--multi-user", "false"]
        command += [f"--{option}-config={self._folder / name}" for option, name in options.items()]
        command += [f"--user-env-config={variables}"]
        environment = os.environ | self._environment
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=START_S)
