"""How a launch, or an agent, ended badly: one readable error."""

from __future__ import annotations

from academy_hpc.errors import AgentTerminatedError, LaunchError
from academy_hpc.launch.progress import LaunchProgress, shown_names
from academy_hpc.launch.supervised import SupervisedAgent

__all__ = ["late_error", "launch_error", "raise_failure"]

MOST_DESCRIBED = 20


def launch_error(failed: list[SupervisedAgent], total: int) -> LaunchError:
    """One error for all that failed: each reason once, with the agents that have it."""
    reasons: dict[str, list[SupervisedAgent]] = {}
    for agent in failed:
        reasons.setdefault(str(agent.started.exception()), []).append(agent)
    parts = [f"{shown_names(tuple(a.name for a in agents))}: {reason}" for reason, agents in reasons.items()]
    count = "" if total == 1 else f"{len(failed)} of {total} agents could not be started. "
    error = LaunchError(count + "\n".join(parts))
    report = failed[0].report
    if report is not None and report.checks:
        error.add_note(f"What the worker found where it started:\n{report.checks}")
    if report is not None and report.origin is not None:
        error.add_note(f"The worker: {report.origin}.")
    if report is not None and report.remote_traceback:
        error.add_note(f"\nRemote traceback:\n{report.remote_traceback}")
    error.__cause__ = failed[0].cause
    return error


def late_error(agents: list[SupervisedAgent], progress: LaunchProgress) -> LaunchError:
    """The time is over: who is missing, and what is known of each."""
    missing = [agent for agent in agents if agent.phase != "ready"]
    error = LaunchError(f"Not all agents are ready in time: {progress}.")
    for agent in missing[:MOST_DESCRIBED]:
        error.add_note(f"{agent.name}: {_known(agent, progress)}")
    return error


def _known(agent: SupervisedAgent, progress: LaunchProgress) -> str:
    if agent.phase == "starting":
        return f"its worker has started ({agent.origin}), and imports, constructs or starts it"
    before = f", after its life {agent.ends[-1].attempt} ended: {agent.ends[-1].reason}" if agent.ends else ""
    return f"waits for a worker{f' ({progress.waiting})' if progress.waiting else ''}{before}"


def raise_failure(agent: SupervisedAgent) -> None:
    """Raise AgentTerminatedError, with the reason, if the agent ended badly."""
    report = agent.report
    if report is not None and report.state in ("failed", "lost"):
        error = AgentTerminatedError(agent.agent_id, report.reason)
        if report.remote_traceback:
            error.add_note(f"\nRemote traceback:\n{report.remote_traceback}")
        raise error
