"""Which agents a worker runs: its rank, from the variables of whatever has started it."""

from __future__ import annotations

import uuid

import pytest

from academy_hpc import AgentId, ConnectionInfo, HttpAgentRegistration, LaunchError, LaunchSpec, RuntimeConfig, UserId
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.launch.source import ByReference
from academy_hpc.launch.spec import AgentSpec
from academy_hpc.worker.ranks import Rank, rank_here, share_here

__all__: list[str] = []

STARTERS = {
    "srun": ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "9"}, "SLURM_PROCID"),
    "srun --mpi=pmi2": (
        {"PMI_RANK": "2", "PMI_SIZE": "4", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"},
        "PMI_RANK",
    ),
    "srun --mpi=pmix": (
        {
            "PMIX_RANK": "2",
            "PMIX_NAMESPACE": "slurm.pmix.4711.0",
            "SLURM_PROCID": "2",
            "SLURM_STEP_NUM_TASKS": "4",
        },
        "SLURM_PROCID",
    ),
    "mpirun inside a Slurm job": (
        {
            "OMPI_COMM_WORLD_RANK": "2",
            "OMPI_COMM_WORLD_SIZE": "4",
            "PMIX_RANK": "2",
            "SLURM_PROCID": "1",
            "SLURM_STEP_NUM_TASKS": "2",
        },
        "OMPI_COMM_WORLD_RANK",
    ),
    "mpiexec of PALS": ({"PALS_RANKID": "2", "PMI_SIZE": "4", "PMI_RANK": "2"}, "PALS_RANKID"),
    "flux run inside a Slurm job": (
        {"FLUX_TASK_RANK": "2", "FLUX_JOB_SIZE": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
        "FLUX_TASK_RANK",
    ),
    "jsrun": ({"JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4", "PMIX_RANK": "2"}, "JSM_NAMESPACE_RANK"),
    "our own script in a batch shell": (
        {"ACADEMY_HPC_RANK": "2", "ACADEMY_HPC_RANKS": "4", "SLURM_PROCID": "0"},
        "ACADEMY_HPC_RANK",
    ),
}


def spec(agents: int, ranks: int | None) -> LaunchSpec:
    made = [
        AgentSpec(HttpAgentRegistration(AgentId.new(f"a{n}")), ByReference("m:C"), RuntimeConfig(), uuid.uuid4())
        for n in range(agents)
    ]
    info = ConnectionInfo(("http://127.0.0.1:9",))
    return LaunchSpec(info, ClientOptions(), tuple(made), UserId.new(), ranks=ranks)


def names(share: LaunchSpec) -> list[str | None]:
    return [agent.agent_id.name for agent in share.agents]


@pytest.mark.parametrize("starter", STARTERS)
def test_every_starter_tells_rank_and_size(starter: str) -> None:
    environment, source = STARTERS[starter]
    assert rank_here(environment) == Rank(2, 4, source)


def test_pmix_alone_tells_no_size() -> None:
    assert rank_here({"PMIX_RANK": "1"}) == Rank(1, None, "PMIX_RANK")


def test_a_batch_script_of_slurm_is_no_rank() -> None:
    """It has SLURM_PROCID=0 and the number of tasks of the whole job: one that took these would leave agents out."""
    assert rank_here({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "4711"}) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"PMI_RANK": "one", "PMI_SIZE": "4"},
        {"PMI_RANK": "-1", "PMI_SIZE": "4"},
        {"PMI_RANK": "", "PMI_SIZE": "4"},
        {"PMI_RANK": "4", "PMI_SIZE": "4"},
    ],
)
def test_what_is_no_rank_is_an_error_that_names_the_variable(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="PMI_RANK="):
        rank_here(environment)


@pytest.mark.parametrize(("agents", "ranks"), [(1, 1), (5, 2), (24, 3), (7, 7), (2, 4), (0, 2)])
def test_the_shares_of_all_ranks_are_all_agents_once(agents: int, ranks: int) -> None:
    whole = spec(agents, ranks)
    environments = [{"PMI_RANK": str(rank), "PMI_SIZE": str(ranks)} for rank in range(ranks)]
    shares = [share_here(whole, environment)[0] for environment in environments]
    assert [name for share in shares for name in names(share)] == names(whole)
    sizes = {len(share.agents) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_a_spec_for_one_worker_looks_at_no_rank() -> None:
    """A worker of Parsl may run under srun, which did not mean the agents."""
    share, rank = share_here(spec(3, 1), {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"})
    assert (names(share), rank) == (["a0", "a1", "a2"], 0)


def test_a_rank_more_than_there_are_shares_has_no_agent() -> None:
    share, rank = share_here(spec(4, 2), {"PMI_RANK": "2", "PMI_SIZE": "3"})
    assert (share.agents, rank) == ((), 2)


def test_ranks_that_are_not_told_are_as_many_as_were_started() -> None:
    whole = spec(4, None)
    share, _ = share_here(whole, {"PMI_RANK": "1", "PMI_SIZE": "2"})
    assert names(share) == ["a2", "a3"]
    assert share_here(whole, {})[0] is whole  # no starter: one process runs all


@pytest.mark.parametrize(
    ("ranks", "environment", "text"),
    [
        (4, {"PMI_RANK": "1", "PMI_SIZE": "2"}, "only 2 were started"),
        (4, {}, "this process has none"),
        (None, {"PMIX_RANK": "1"}, "nothing says of how many"),
    ],
)
def test_agents_that_no_rank_would_run_are_an_error(ranks: int | None, environment: dict[str, str], text: str) -> None:
    with pytest.raises(LaunchError, match=text):
        share_here(spec(8, ranks), environment)
