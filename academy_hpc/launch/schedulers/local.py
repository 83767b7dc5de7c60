"""No scheduler: the script runs on this machine, in a session of its own, which outlives the program.

A job's id is the process id of its script and, since these are used again, when that process started, as
/proc/PID/stat says it, and on which host, since other hosts see the run directory: ``4711:918273@login1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobStatus

__all__ = ["Local"]

# In /proc/PID/stat the name of the program comes second, and may have spaces and parentheses; the fields counted here
# come after it: 1 is the state, 20 the time of the start.
_FIELDS = r"""fields() {
    local stat
    { read -r stat </proc/$1/stat; } 2>/dev/null || return
    set -- ${stat##*) }
    echo "$1 ${20}"
}
here=$(</proc/sys/kernel/hostname)"""

# The script is the leader of a session: bash, without job control, has started setsid as no leader of a group.
_SUBMIT = f"""{_FIELDS}
setsid bash "$1" </dev/null >>"${{1%/*}}/scheduler.log" 2>&1 &
set -- $! $(fields $!)
echo "$1:$3@$here"
"""
_STATUS = f"""{_FIELDS}
for job; do
    own=${{job%@$here}}
    set -- $(fields ${{own%:*}})
    if [[ $own = *@* ]]; then echo "$job ${{own#*@}}"
    elif [ -n "$2" ] && [ "$2" = "${{own#*:}}" ] && [ "$1" != Z ]; then echo "$job running"
    else echo "$job gone"
    fi
done
"""
# As a scheduler does: a request, and after a while the end; starters end their tasks on TERM, and could not on KILL.
_CANCEL = f"""{_FIELDS}
for job; do
    job=${{job%@$here}}
    pid=${{job%:*}}
    if [[ $job = *@* ]]; then
        echo "it runs on ${{job#*@}}: cancel it there" >&2
        exit 1
    fi
    set -- $(fields $pid)
    if [ -z "$2" ] || [ "$1" = Z ]; then pkill -TERM -s $pid  # what it has left behind
    elif [ "$2" = "${{job#*:}}" ]; then kill -TERM $pid
    else continue
    fi
    (
        for ((i = 0; i < 150; i++)); do pgrep -s $pid -r R,S,D,T >/dev/null || exit 0; sleep 0.2; done
        pkill -TERM -s $pid && sleep 3
        pkill -KILL -s $pid
    ) </dev/null >/dev/null 2>&1 &
done
true
"""
_SAID = {"running": JobStatus("running"), "gone": JobStatus("failed", "its process is gone")}


class Local:
    """This machine."""

    name: SchedulerName = "local"
    title = "this machine"
    comment = "#"
    job_id = '$$:$(stat=$(<"/proc/$$/stat"); set -- ${stat##*) }; echo ${20})@$(</proc/sys/kernel/hostname)'
    variables: tuple[str, ...] = ()
    outside = ""

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`."""
        return "processes"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: nobody reads any."""
        return []

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`."""
        return ["bash", "-c", _SUBMIT, "academy-hpc", script]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`."""
        pid, colon, start = output.strip().partition(":")
        if not (pid.isdecimal() and colon):
            raise ValueError(f"no process id in {output!r}")
        return f"{pid}:{start}"

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return ["bash", "-c", _STATUS, "academy-hpc", *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`. That a process is gone is known for sure; how it ended, only its own files tell."""
        words = [line.split() for line in output.splitlines()]
        return {
            job_id: _SAID.get(word) or JobStatus("running", f"on {word}, as far as is known here")
            for job_id, word in words
        }

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`."""
        return None

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {}

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return None

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return []

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return ["bash", "-c", _CANCEL, "academy-hpc", *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`: this machine is nobody's allocation."""
        return None
