"""An agent that says where it lives."""

from __future__ import annotations

import os
import socket

from academy_hpc import Agent, action

__all__ = ["Resident"]


class Resident(Agent):
    @action
    async def home(self) -> tuple[str, float]:
        """Its host, and the Unix time at which its job ends."""
        return socket.gethostname(), float(os.environ["ACADEMY_HPC_DEADLINE"])
