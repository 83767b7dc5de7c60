"""How a launch, or an agent, ended badly: one readable error."""

from __future__ import annotations

from academy_hpc.errors import AgentTerminatedError, LaunchError
from academy_hpc.launch.progress import shown_names
from academy_hpc.launch.supervisor import SupervisedAgent

__all__ = ["launch_error", "raise_failure"]


def launch_error(failed: list[SupervisedAgent], total: int) -> LaunchError:
    """One error for all that failed: each reason once, with the agents that have it."""
    reasons: dict[str, list[SupervisedAgent]] = {}
    for agent in failed:
        reasons.setdefault(str(agent.started.exception()), []).append(agent)
    parts = [f"{shown_names(tuple(a.name for a in agents))}: {reason}" for reason, agents in reasons.items()]
    count = "" if total == 1 else f"{len(failed)} of {total} agents could not be started. "
    error = LaunchError(count + "\n".join(parts))
    report = failed[0].report
    if report is not None and report.origin is not None:
        error.add_note(f"The worker: {report.origin}.")
    if report is not None and report.remote_traceback:
        error.add_note(f"\nRemote traceback:\n{report.remote_traceback}")
    error.__cause__ = failed[0].cause
    return error


def raise_failure(agent: SupervisedAgent) -> None:
    """Raise AgentTerminatedError, with the reason, if the agent ended badly."""
    report = agent.report
    if report is not None and report.state in ("failed", "lost"):
        error = AgentTerminatedError(agent.agent_id, report.reason)
        if report.remote_traceback:
            error.add_note(f"\nRemote traceback:\n{report.remote_traceback}")
        raise error
