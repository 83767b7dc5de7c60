"""What a stand-in of Globus Compute's service and a real endpoint need: a real RabbitMQ, and a real Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rigs import slurm
from tests.rigs.hosts import LOGIN, folder, wait_until
from tests.rigs.packages import install

__all__ = ["BROKER_URL", "environment", "install_packages", "start"]

BROKER_URL = "amqp://guest:guest@127.0.0.1:5672/%2F"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

CONFIGURATION = """\
listeners.tcp.default = 127.0.0.1:5672
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 512MiB
"""


def install_packages() -> None:
    """RabbitMQ with the Erlang that it runs on, and Slurm."""
    slurm.install_packages()
    install({str(SERVER): "rabbitmq-server"})


def environment() -> dict[str, str]:
    """What finds Slurm; the broker is where its URL says."""
    return slurm.environment()


def start() -> None:
    """Slurm and the broker; return when the one takes jobs, and the other connections."""
    slurm.start()
    files = folder() / "rabbitmq"
    files.mkdir()
    (files / "enabled_plugins").write_text("[].\n")
    (files / "rabbitmq.conf").write_text(CONFIGURATION)
    variables = {
        "HOME": str(files),
        "RABBITMQ_NODENAME": "broker@localhost",
        "RABBITMQ_MNESIA_BASE": str(files / "mnesia"),
        "RABBITMQ_LOG_BASE": str(files / "log"),
        "RABBITMQ_CONFIG_FILE": str(files / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(files / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(files / "pid"),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    with (files / "output").open("wb") as output:
        subprocess.Popen(
            LOGIN.command(str(SERVER)),
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    wait_until(_takes_connections, timeout=60)


def _takes_connections() -> bool:
    """Asked from the login host, whose loopback is not that of the rig's first process."""
    probe = "import socket; socket.create_connection(('127.0.0.1', 5672), 1).close()"
    return subprocess.run(LOGIN.command(sys.executable, "-c", probe), capture_output=True, check=False).returncode == 0
