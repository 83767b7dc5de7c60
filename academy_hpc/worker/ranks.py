"""Which of several workers this process is: starters number the processes that they start, each in its own variables.

A variable may be left over from an outer starter: where ``mpiexec`` or ``flux`` run inside a Slurm job, every process
also has the SLURM_PROCID of the daemon that started it. So those of the inner ones are looked at first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.launch.spec import LaunchSpec

__all__ = ["RANK_VARIABLE", "SIZE_VARIABLE", "Rank", "rank_here", "share_here"]

RANK_VARIABLE, SIZE_VARIABLE = "ACADEMY_HPC_RANK", "ACADEMY_HPC_RANKS"
"""What a job script exports that starts its workers without any of these starters."""

_VARIABLES = (
    (RANK_VARIABLE, SIZE_VARIABLE),
    # Open MPI's mpirun, and jsrun: docs.open-mpi.org, "Environment variables set for MPI applications".
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    # jsrun without Open MPI: IBM Job Step Manager.
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    # Cray PALS (aprun, mpiexec): pals.h names no size of its own, but the PMI_SIZE that it sets beside.
    ("PALS_RANKID", "PMI_SIZE"),
    ("PALS_RANK", "PMI_SIZE"),
    # flux run: flux-environment(7).
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    # Hydra's mpiexec (MPICH, Intel MPI), and srun --mpi=pmi2.
    ("PMI_RANK", "PMI_SIZE"),
    # prterun; PMIx has no variable for the size.
    ("PMIX_RANK", None),
    # srun: srun(1). SLURM_NTASKS would be that of the job where the step has fewer.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
_NUMBER = re.compile(r"\d{1,9}")


class Rank(msgspec.Struct, frozen=True):
    """One of the processes that a starter has started.

    Attributes:
        number: From 0.
        size: How many there are; None: the starter does not tell.
        source: The variable that says so.
    """

    number: int
    size: int | None
    source: str


def rank_here(environment: Mapping[str, str]) -> Rank | None:
    """What the variables of a starter say; None: none has started this process.

    Raises:
        LaunchError: A variable holds something else.
    """
    for name, size_name in _VARIABLES:
        if name in environment and _is_meant(name, environment):
            size = None if size_name is None else _number(size_name, environment)
            number = _number(name, environment)
            if number is None or (size is not None and number >= size):
                raise LaunchError(f"{name}={environment[name]!r} is no rank where {size_name}={size}.")
            return Rank(number, size, name)
    return None


def share_here(spec: LaunchSpec, environment: Mapping[str, str]) -> tuple[LaunchSpec, int]:
    """What of `spec` is to run in this process, and its rank.

    Raises:
        LaunchError: There are fewer ranks than the agents are spread over, so some would be left out; or it can't be
            known which rank this is, or of how many.
    """
    if spec.ranks == 1:  # whatever has started this process, such as Parsl under srun, did not mean its agents
        return spec, 0
    rank = rank_here(environment)
    if rank is None:
        if spec.ranks is None:
            return spec, 0
        raise LaunchError(
            f"The agents are spread over {spec.ranks} ranks, and this process has none: start the workers by srun, "
            f"mpiexec, jsrun or flux run, or export {RANK_VARIABLE} and {SIZE_VARIABLE} for each."
        )
    ranks = spec.ranks or rank.size
    if ranks is None:
        raise LaunchError(
            f"{rank.source} says that this is rank {rank.number}, and nothing says of how many: export {SIZE_VARIABLE} "
            f"and {RANK_VARIABLE}, or say in the launch spec how many ranks there are."
        )
    if rank.size is not None and rank.size < ranks:
        raise LaunchError(
            f"The agents are spread over {ranks} ranks, and only {rank.size} were started ({rank.source} is "
            f"{rank.number}): the agents of the others would never run. Start {ranks}."
        )
    if rank.number >= ranks:
        return msgspec.structs.replace(spec, agents=(), ranks=1), rank.number
    return spec.share(rank.number, ranks), rank.number


def _is_meant(name: str, environment: Mapping[str, str]) -> bool:
    if name == "SLURM_PROCID":  # a batch script has it, too, without being a task of any step
        return "SLURM_STEP_NUM_TASKS" in environment
    if name == "PMIX_RANK":  # srun --mpi=pmix sets it beside its own, which tell the size
        return not environment.get("PMIX_NAMESPACE", "").startswith("slurm.")
    return True


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise LaunchError(f"{name}={text!r} is no number of a rank, or of ranks. Who has set it?")
    return int(text)
