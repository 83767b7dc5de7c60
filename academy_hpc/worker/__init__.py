"""What runs on the node: ``run(spec)`` builds the agents of a launch spec and runs them until they end.

Launchers call it. To start agents in a Parsl app of your own:

    @python_app
    def run_agents(spec: str) -> str:
        from academy_hpc.worker import run
        return run(spec)

    spec = await manager.make_spec([AgentLaunch(Simulator, name="sim-1")])
    [simulator] = await manager.adopt(spec, run_agents(spec.to_json()))

In a job script of your own, ``academy-hpc worker --spec FILE`` does the same.
"""

from __future__ import annotations

from academy_hpc.worker.running import event_runner, run

__all__ = ["event_runner", "run"]
