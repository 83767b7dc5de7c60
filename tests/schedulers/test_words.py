"""What scheduler modules make of requests, and of what schedulers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from academy_hpc.errors import LaunchError
from academy_hpc.launch.command import run_command
from academy_hpc.launch.job import JobRequest, SchedulerName
from academy_hpc.launch.schedulers import CAUSES, ENDED, JobState, JobStatus, find_scheduler, scheduler_names

__all__: list[str] = []

ALL = scheduler_names()
WITH_DIRECTIVES = tuple(name for name in ALL if name != "local")


def directives(scheduler: str, workers: int = 4, **options: Any) -> list[str]:
    request = JobRequest.from_options(scheduler=scheduler, directory="/", **options)
    words = find_scheduler(scheduler)
    return words.directives(request, request.layout(workers), name="academy-1", output="/runs/academy-1/scheduler.log")


def test_there_is_a_module_and_a_template_for_each_name() -> None:
    assert set(ALL) == set(get_args(SchedulerName))
    for name in ALL:
        assert find_scheduler(name).name == name
    with pytest.raises(LaunchError, match="no scheduler 'cobalt'; there are: slurm"):
        find_scheduler("cobalt")


def test_each_state_in_which_a_job_has_ended_badly_has_a_cause() -> None:
    assert set(CAUSES) == ENDED - {"completed"}


def test_slurm_directives() -> None:
    made = directives(
        "slurm", account="m1", queue="gpu", qos="debug", nodes=2, walltime="1-02:00:00", constraint="gpu&hbm80g",
        gres="gpu:4", filesystems="scratch", reservation="r1", cpus_per_worker=8, grace_s=89.5,
    )  # fmt: skip
    assert made == [
        "--job-name=academy-1",
        "--output=/runs/academy-1/scheduler.log",
        "--account=m1",
        "--partition=gpu",
        "--qos=debug",
        "--nodes=2",
        "--ntasks=4",
        "--ntasks-per-node=2",
        "--cpus-per-task=8",
        "--time=26:00:00",
        '--constraint="gpu&hbm80g"',
        "--gres=gpu:4",
        "--licenses=scratch",
        "--reservation=r1",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@90",
    ]


def test_pbs_directives() -> None:
    made = directives(
        "pbs", account="m1", queue="prod", nodes=2, walltime="90m", constraint="system=polaris", gres="ngpus=4",
        filesystems="home:eagle", cpus_per_worker=8,
    )  # fmt: skip
    assert made == [
        "-N academy-1",
        "-A m1",
        "-q prod",
        "-l select=2:ncpus=16:system=polaris:ngpus=4",
        "-l walltime=01:30:00",
        "-l filesystems=home:eagle",
        "-o /runs/academy-1/scheduler.log",
        "-j oe",
        "-r y",
        "-S /bin/bash",
    ]


def test_lsf_rounds_times_up_to_minutes() -> None:
    made = directives("lsf", account="m1", nodes=2, walltime="0:10:30", grace_s=61, workers=4)
    assert {"-P m1", "-W 11", "-n 4", '-R "span[ptile=2]"', "-wt 2 -wa USR1", "-r"} <= set(made)


def test_flux_directives() -> None:
    made = directives("flux", account="b1", nodes=2, walltime="10m", queue="batch")
    assert {"--bank=b1", "--queue=batch", "--nodes=2", "--time-limit=600s", "--signal=SIGUSR1@90s"} <= set(made)


def test_grid_engine_has_a_slot_for_each_cpu_of_a_worker() -> None:
    made = directives("gridengine", nodes=2, parallel_environment="mpi", cpus_per_worker=3, walltime="1h")
    assert {"-pe mpi 12", "-l h_rt=01:00:00", "-notify", "-r y", "-S /bin/bash"} <= set(made)
    with pytest.raises(LaunchError, match="give parallel_environment"):
        directives("gridengine", nodes=2)


def test_torque_names_are_short() -> None:
    request = JobRequest(scheduler="torque")
    name = "academy-20261124-151304-4178"
    made = find_scheduler("torque").directives(request, request.layout(1), name=name, output="/x")
    assert made[0] == "-N academy-20-4178" and len("academy-20-4178") == 15


@pytest.mark.parametrize("scheduler", WITH_DIRECTIVES)
@pytest.mark.parametrize("field", ["account", "queue"])
@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", 'a"b', "a'b", "$(id)", "`id`", "a\\b", "a\rb", "a\0b"])
def test_a_value_that_could_be_taken_for_more_is_refused(scheduler: str, field: str, value: str) -> None:
    with pytest.raises(LaunchError, match=field):
        directives(scheduler, **{field: value})


@pytest.mark.parametrize("scheduler", WITH_DIRECTIVES)
def test_a_value_with_spaces_is_one_word(scheduler: str) -> None:
    assert any(line.endswith('"two words"') for line in directives(scheduler, account="two words"))


@pytest.mark.parametrize(
    ("scheduler", "field"),
    [
        ("pbs", "qos"),
        ("lsf", "filesystems"),
        ("flux", "gres"),
        ("slurm", "parallel_environment"),
        ("gridengine", "qos"),
    ],
)
def test_an_option_that_a_scheduler_has_no_word_for_is_not_ignored(scheduler: str, field: str) -> None:
    with pytest.raises(LaunchError, match=f"no word for {field}='x'"):
        directives(scheduler, **{field: "x"})


SUBMITTED = [
    ("slurm", "4711\n", "4711"),
    ("slurm", "sbatch: a notice\n4711;cluster\n", "4711"),
    ("pbs", "4711.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov\n", "4711.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov"),
    ("torque", "179.host\n", "179.host"),
    ("lsf", "Job <771278> is submitted to default queue <short>.\n", "771278"),
    ("flux", "ƒ2Xy8pzn\n", "f2Xy8pzn"),
    ("gridengine", "4711\n", "4711"),
    ("local", "4711:918273\n", "4711:918273"),
]


@pytest.mark.parametrize(("scheduler", "output", "job_id"), SUBMITTED)
def test_the_id_of_a_submitted_job_is_read(scheduler: str, output: str, job_id: str) -> None:
    assert find_scheduler(scheduler).parse_submit(output) == job_id


@pytest.mark.parametrize("scheduler", ALL)
@pytest.mark.parametrize("output", ["", "\n", "no job was made\n"])
def test_where_there_is_no_id_that_is_an_error(scheduler: str, output: str) -> None:
    with pytest.raises(ValueError, match="no "):
        find_scheduler(scheduler).parse_submit(output)


def test_slurm_states() -> None:
    said = "1|PENDING|Priority\n2|RUNNING|None\n3|TIMEOUT|TimeLimit\n4|NODE_FAIL|NodeDown\n5|BRAND_NEW|None\n"
    assert find_scheduler("slurm").parse_status(said) == {
        "1": JobStatus("pending", "Priority"),
        "2": JobStatus("running"),
        "3": JobStatus("timeout", "TimeLimit"),
        "4": JobStatus("node_failure", "NodeDown"),
        "5": JobStatus("unknown"),
    }
    assert find_scheduler("slurm").parse_history("6|CANCELLED by 1000|None\n") == {"6": JobStatus("cancelled")}


PBS_SAID = """\
Job Id: 1.pbs
    Job_Name = academy
    job_state = Q
    comment = Not Running: Insufficient amount of resource: ncpus (R: 64 A: 0 T:
\t 64)
    Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=en_US.UTF-8,
\tPBS_O_PATH=/usr/bin:/bin

Job Id: 2.pbs
    job_state = R
    comment = Job run at Tue Nov 24 at 15:00 on (x1:ncpus=64)

Job Id: 3.pbs
    resources_used.walltime = 00:00:12
    job_state = F
    Resource_List.walltime = 01:00:00
    Exit_status = {code}
    substate = {substate}
"""


@pytest.mark.parametrize(
    ("code", "substate", "state"),
    [(0, 92, "completed"), (271, 91, "cancelled"), (-29, 93, "timeout"), (-27, 93, "out_of_memory"), (1, 93, "failed")],
)
def test_pbs_states(code: int, substate: int, state: JobState) -> None:
    said = find_scheduler("pbs").parse_status(PBS_SAID.format(code=code, substate=substate))
    assert said["1.pbs"].state == "pending" and said["1.pbs"].reason.endswith("(R: 64 A: 0 T: 64)")
    assert said["2.pbs"].state == "running"
    assert (said["3.pbs"].state, said["3.pbs"].exit_code) == (state, code)


@pytest.mark.parametrize(("code", "state"), [(0, "completed"), (271, "cancelled"), (-11, "timeout"), (2, "failed")])
def test_torque_states(code: int, state: JobState) -> None:
    said = f"Job Id: 179.host\n    Job_Name = STDIN\n    job_state = C\n    exit_status = {code}\n"
    assert find_scheduler("torque").parse_status(said)["179.host"].state == state


def test_lsf_states() -> None:
    said = """\
1|PEND|-|-|New job is waiting for scheduling;
2|RUN|-|-|-
3|DONE|-|-|-
4|EXIT|140|TERM_RUNLIMIT: job killed after reaching LSF run time limit|-
5|EXIT|130|TERM_OWNER: job killed by owner|-
6|EXIT|3|-|-
7|UNKWN|-|-|-
8|EXIT|137|TERM_MEMLIMIT: job killed after reaching LSF memory usage limit|-
Job <9> is not found
"""
    states = {job_id: status.state for job_id, status in find_scheduler("lsf").parse_status(said).items()}
    assert list(states.values()) == [
        "pending", "running", "completed", "timeout", "cancelled", "failed", "running", "out_of_memory",
    ]  # fmt: skip


def test_flux_states() -> None:
    said = "ƒA|SCHED||\nƒB|RUN||\nƒC|TIMEOUT|timeout|resource allocation expired\nfD|CANCELED|cancel|\n"
    said += "ƒE|FAILED|node-failure|x\n"
    states = {job_id: status.state for job_id, status in find_scheduler("flux").parse_status(said).items()}
    assert states == {"fA": "pending", "fB": "running", "fC": "timeout", "fD": "cancelled", "fE": "node_failure"}


GRID_ENGINE_SAID = """<?xml version='1.0'?>
<job_info><queue_info>
<job_list state="running"><JB_job_number>1</JB_job_number><JB_name>academy</JB_name><state>r</state></job_list>
</queue_info><job_info>
<job_list state="pending"><JB_job_number>2</JB_job_number><JB_name>academy</JB_name><state>qw</state></job_list>
<job_list state="pending"><JB_job_number>3</JB_job_number><JB_name>academy</JB_name><state>Eqw</state></job_list>
</job_info></job_info>
"""
ACCOUNTS = """\
==============================================================
qname        all.q
jobnumber    4
failed       0
exit_status  0
==============================================================
jobnumber    5
failed       100 : assumedly after job
exit_status  137                  (Killed)
==============================================================
jobnumber    6
failed       37  : qmaster enforced h_rt, h_cpu, or h_vmem limit
exit_status  137                  (Killed)
"""


def test_grid_engine_states() -> None:
    words = find_scheduler("gridengine")
    said = words.parse_status(GRID_ENGINE_SAID)
    assert {job_id: status.state for job_id, status in said.items()} == {"1": "running", "2": "pending", "3": "pending"}
    assert "qstat -j" in said["3"].reason
    ended = words.parse_history(ACCOUNTS)
    assert {job_id: status.state for job_id, status in ended.items()} == {
        "4": "completed",
        "5": "failed",
        "6": "timeout",
    }
    with pytest.raises(LaunchError, match="can't be read"):
        words.parse_status("error: commlib error: got select error")


@pytest.mark.parametrize("scheduler", ALL)
def test_what_a_scheduler_does_not_mention_is_not_known(scheduler: str) -> None:
    empty = "<job_info/>" if scheduler == "gridengine" else ""
    assert find_scheduler(scheduler).parse_status(empty) == {}


@pytest.mark.parametrize(
    ("scheduler", "environment", "nodes"),
    [
        ("slurm", {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3"}, 3),
        ("pbs", {"PBS_JOBID": "1.pbs"}, None),
        ("lsf", {"LSB_JOBID": "1", "LSB_MCPU_HOSTS": "a 4 b 4"}, 2),
        ("flux", {"FLUX_URI": "local:///x"}, None),
        ("gridengine", {"SGE_ROOT": "/x", "JOB_ID": "1", "NHOSTS": "2"}, 2),
    ],
)
def test_an_allocation_is_seen_in_the_environment(
    scheduler: str, environment: dict[str, str], nodes: int | None
) -> None:
    found = find_scheduler(scheduler).allocation(environment)
    assert found is not None and found.nodes == nodes
    assert find_scheduler(scheduler).allocation({}) is None


def test_paths_of_runs_with_spaces_are_one_word() -> None:
    request = JobRequest(scheduler="slurm")
    made = find_scheduler("slurm").directives(request, request.layout(1), name="x", output=str(Path("/a run/x.log")))
    assert '--output="/a run/x.log"' in made


def answering(folder: Path, said: str, code: int) -> None:
    """All commands of schedulers say this."""
    for name in ("scancel", "qdel", "bkill", "flux", "qstat", "bjobs"):
        (folder / name).write_text(f"#!/bin/bash\necho {said!r} >&2\nexit {code}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("slurm", "scancel: error: Kill job error on job id 1: Invalid job id specified"),
        ("pbs", "qdel: Job has finished 1.pbs"),
        ("torque", "qdel: Unknown Job Id 1.pbs"),
        ("lsf", "Job <1>: Job has already finished"),
        ("gridengine", 'denied: job "1" does not exist'),
        ("flux", "flux-cancel: ERROR: fA: job is inactive"),
    ],
)
def test_cancelling_a_job_that_has_ended_is_no_failure(
    scheduler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answering(tmp_path, said, 1)
    run_command(find_scheduler(scheduler).cancel_command(["1"]))
    answering(tmp_path, "the server can't be reached", 1)
    with pytest.raises(LaunchError, match="the server can't be reached"):
        run_command(find_scheduler(scheduler).cancel_command(["1"]))


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [("pbs", "qstat: Unknown Job Id 1.pbs"), ("lsf", "Job <1> is not found"), ("lsf", "No job found")],
)
def test_a_job_that_is_not_known_any_more_is_told_apart_from_a_server_that_does_not_answer(
    scheduler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    words = find_scheduler(scheduler)
    answering(tmp_path, said, 153)
    assert words.parse_status(run_command(words.status_command(["1"]))) == {}
    answering(tmp_path, "LSF is down. Please wait ...", 153)
    with pytest.raises(LaunchError, match="LSF is down"):
        run_command(words.status_command(["1"]))
