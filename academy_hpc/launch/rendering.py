"""The scripts of a run, from the templates in ``launchers/templates``: what is submitted, and what each rank runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

from academy_hpc.errors import LaunchError
from academy_hpc.launch.chain import WARNING_SPREAD_S
from academy_hpc.launch.data import read_data
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.schedulers import Scheduler, find_scheduler
from academy_hpc.launch.script import fill, one_line, quote
from academy_hpc.launch.starters import RANK_VARIABLES, start_lines
from academy_hpc.launch.submission import OWN_VARIABLES

__all__ = ["SCRIPT_VARIABLES", "render_job", "render_worker"]

_OWN_NAMES = (
    "again attempt child code deadline end exchange failed host hosts job latest left mine name now pause pid pids "
    "python rank reason restarts run slot slots stat told tries workers"
)
SCRIPT_VARIABLES = frozenset(_OWN_NAMES.split())
"""What the scripts have in variables of their own."""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")

# Killed, it goes on with what it has left on this node, and workers connect again.
_START_EXCHANGE = """rm -f "$run/connection.json"  # of an earlier job
keep_exchange() {
    local told= child= tries code
    trap 'told=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM
    trap '' INT USR1 USR2
    for ((tries = 0; tries < 5; tries++)); do
        "$python" -m academy_hpc exchange host "$run" &
        child=$!
        [ -z "$told" ] || kill -TERM "$child"
        while
            wait "$child"
            code=$?
            kill -0 "$child" 2>/dev/null
        do :; done
        if [ $code = 0 ] || [ -n "$told" ]; then return; fi
        echo "$(date) the exchange has ended with $code"
        tell exchange_ended
        sleep 1
    done
}
keep_exchange &
exchange=$!"""
_END_EXCHANGE = """kill -TERM "$exchange" 2>/dev/null
while kill -0 "$exchange" 2>/dev/null; do wait "$exchange"; done"""


def render_job(scheduler: Scheduler, request: JobRequest, *, workers: int, run: Path, inside: bool = False) -> str:
    """The job script.

    Args:
        scheduler: Whose job.
        request: The job.
        workers: How many in all.
        run: The run directory; its name is the name of the job.
        inside: The script is going to be started inside an allocation.

    Raises:
        LaunchError: An option is missing, or can't be said.
    """
    layout = request.layout(workers)
    name = one_line(run.name, "The name of the job")
    words = scheduler.directives(request, layout, name=name, output=str(run / "scheduler.log"))
    words += [_directive(line) for line in request.directives]
    has_exchange = request.exchange == "job"
    values = {
        "directives": "\n".join(f"{scheduler.comment} {line}" for line in words),
        "job_id": (find_scheduler("local") if inside else scheduler).job_id,
        "outside": "" if inside else scheduler.outside,
        "deadline": "" if request.walltime_s is None else f"$((now + {request.walltime_s}))",
        # A signal that comes before that is no warning of the walltime: see `academy_hpc.launch.chain.resubmit`.
        "early_s": str(math.ceil(request.grace_s + WARNING_SPREAD_S)),
        "run": quote(str(run), "The run directory"),
        "workers": str(workers),
        "python": quote(request.python, "python"),
        "directory": quote(request.directory or str(run), "directory"),
        "environment": _environment(request),
        "start": start_lines(request.starter or scheduler.starter(layout), request, layout, inside=inside),
        "exchange_start": _START_EXCHANGE if has_exchange else "",
        "exchange_end": _END_EXCHANGE if has_exchange else "",
    }
    steps = fill(read_data("templates/steps.sh"), values)
    return fill(read_data(f"templates/{scheduler.name}.sh"), values | {"steps": steps})


def render_worker(request: JobRequest, *, workers: int, run: Path) -> str:
    """What the starter runs for each rank."""
    values = {
        "run": quote(str(run), "The run directory"),
        "python": quote(request.python, "python"),
        "workers": str(workers),
        "rank": functools.reduce(lambda rest, name: f"${{{name}:-{rest}}}", reversed(RANK_VARIABLES), ""),
        "rank_variables": " ".join(RANK_VARIABLES),
        "directory": quote(request.directory or str(run), "directory"),
        "environment": _environment(request),
        "max_restarts": str(request.max_restarts),
    }
    return fill(read_data("templates/worker.sh"), values)


def _environment(request: JobRequest) -> str:
    proxies = [name for lower in PROXY_VARIABLES for name in (lower, lower.upper())]
    lines = [f"unset {' '.join(proxies)}"] if request.unset_proxies else []
    lines += [_export(name, value) for name, value in request.env.items()]
    return "\n".join([*lines, *_checked(request.prelude)])


def _directive(line: str) -> str:
    if line.lstrip().startswith("#"):  # behind the one that we write, schedulers take it for a comment
        raise LaunchError(f"The directive {line!r} has a mark already: give it without #SBATCH, #PBS and the like.")
    return one_line(line, "A directive")


def _export(name: str, value: str) -> str:
    if name in SCRIPT_VARIABLES | OWN_VARIABLES:
        raise LaunchError(f"env: {name} is a variable of the job script itself: give it another name.")
    return f"export {name}={quote(value, f'env: {name}')}"


def _checked(prelude: Iterable[str]) -> list[str]:
    return [one_line(line, "A line of prelude") for line in prelude]
