"""What starts one worker for each rank on the nodes of a job: a few lines of shell for the job script.

Each leaves the process ids of what it started in the array ``pids``: on a warning, the script sends these USR1, which
starters pass on to their tasks; on TERM, most would end the tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest, Layout
from academy_hpc.launch.script import quote_all

__all__ = ["RANK_VARIABLES", "start_lines"]

RANK_VARIABLES = (
    "ACADEMY_HPC_RANK",
    "OMPI_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
)
"""Where a worker finds its rank. Slurm's comes last: a job script has it, too, and so all that is started in it."""

WORKER = 'bash "$run/worker.sh"'


def start_lines(starter: str, request: JobRequest, layout: Layout, *, inside: bool) -> str:
    """The lines of shell.

    Args:
        starter: Its name.
        request: The job.
        layout: Its workers and nodes.
        inside: The program is in the allocation already, perhaps in a step that holds all of it.

    Raises:
        LaunchError: There is no such starter, or it can't do that.
    """
    if starter not in _STARTERS:
        raise LaunchError(f"There is no starter {starter!r}; there are: {', '.join(_STARTERS)}.")
    if starter in _ONE_NODE and layout.nodes > 1:
        raise LaunchError(f"starter={starter!r} reaches one node, and the job has {layout.nodes}: name another one.")
    return _STARTERS[starter](request, layout, inside)


def _srun(request: JobRequest, layout: Layout, inside: bool) -> str:
    words = ["srun", f"--nodes={min(layout.nodes, layout.workers)}", f"--ntasks={layout.workers}"]
    words += [f"--ntasks-per-node={layout.workers_per_node}", "--kill-on-bad-exit=0", "--wait=0", "--mpi=none"]
    # Since Slurm 22.05 srun does not take it from the job.
    words += ["--overcommit"] if request.cpus_per_worker is None else [f"--cpus-per-task={request.cpus_per_worker}"]
    words += ["--overlap"] if inside else []
    return _one(words, request)


def _mpiexec(request: JobRequest, layout: Layout, inside: bool) -> str:
    words = ["mpiexec", "-n", str(layout.workers), "--ppn", str(layout.workers_per_node)]
    words += [] if request.cpus_per_worker is None else ["--depth", str(request.cpus_per_worker)]
    return _one(words, request)


def _mpirun(request: JobRequest, layout: Layout, inside: bool) -> str:
    return _one(["mpirun", "-np", str(layout.workers), "-N", str(layout.workers_per_node), "--oversubscribe"], request)


def _jsrun(request: JobRequest, layout: Layout, inside: bool) -> str:
    words = ["jsrun", f"--nrs={layout.workers}", f"--rs_per_host={layout.workers_per_node}", "--tasks_per_rs=1"]
    return _one([*words, f"--cpu_per_rs={request.cpus_per_worker or 1}"], request)


def _flux(request: JobRequest, layout: Layout, inside: bool) -> str:
    words = ["flux", "run", f"--nodes={min(layout.nodes, layout.workers)}", f"--ntasks={layout.workers}"]
    return _one([*words, f"--cores-per-task={request.cpus_per_worker or 1}"], request)


def _blaunch(request: JobRequest, layout: Layout, inside: bool) -> str:
    """LSB_MCPU_HOSTS has the name of a host and its slots in turn."""
    hosts = "$(set -- $LSB_MCPU_HOSTS; while [ $# -gt 1 ]; do echo $1 $2; shift 2; done)"
    return _by_slot(request, f'<<<"{hosts}"', quote_all(["blaunch", *request.starter_options]))


def _qrsh(request: JobRequest, layout: Layout, inside: bool) -> str:
    return _by_slot(request, '<"$PE_HOSTFILE"', quote_all(["qrsh", "-inherit", "-nostdin", *request.starter_options]))


def _processes(request: JobRequest, layout: Layout, inside: bool) -> str:
    return f"""for ((rank = 0; rank < workers; rank++)); do
    ACADEMY_HPC_RANK=$rank {WORKER} &
    pids+=($!)
done"""


def _one(words: list[str], request: JobRequest) -> str:
    return f"{quote_all([*words, *request.starter_options])} {WORKER} &\npids+=($!)"


def _by_slot(request: JobRequest, hosts: str, command: str) -> str:
    """One command for each worker, which hands no environment on; `hosts` has a host and its slots on each line."""
    return f"""hosts=()
while read -r host slots _; do
    for ((slot = 0; slot < slots; slot += {request.cpus_per_worker or 1})); do hosts+=("$host"); done
done {hosts}
for ((rank = 0; rank < workers; rank++)); do
    {command} "${{hosts[rank]}}" env ACADEMY_HPC_RANK=$rank {WORKER} &
    pids+=($!)
done"""


_STARTERS: dict[str, Callable[[JobRequest, Layout, bool], str]] = {
    "srun": _srun,
    "mpiexec": _mpiexec,
    "mpirun": _mpirun,
    "jsrun": _jsrun,
    "flux": _flux,
    "blaunch": _blaunch,
    "qrsh": _qrsh,
    "processes": _processes,
}
_ONE_NODE = {"processes"}
