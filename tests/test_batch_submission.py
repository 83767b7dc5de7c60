"""Between a program and its scheduler: what happens when one of them ends in the middle of a submission."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from academy_hpc.errors import LaunchError
from academy_hpc.launch import follow, submission
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.chain import go_on
from academy_hpc.launch.command import CommandError, CommandLateError, interrupts_wait, run_command
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.run import Run
from academy_hpc.launch.schedulers import JobStatus, find_scheduler
from academy_hpc.launch.submission import Job, job_environment, read_job, submit, write_job
from tests.batch_runs import some_spec

__all__: list[str] = []

JOB = Job(JobRequest(scheduler="slurm"), 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create("test", runs=tmp_path)
    write_job(made, JOB)
    (made.path / "job.sh").touch()
    return made


class Commands:
    """Commands of a scheduler that has given the ids of `jobs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run: list[str] = []
        self.environment: dict[str, str] = {}
        self.queue = ""
        self.interrupt = False
        self.fail = self.late = False
        monkeypatch.setattr(submission, "run_command", self)

    def __call__(self, words: Sequence[str], **options: Any) -> str:
        self.run.append(words[0])
        self.environment = options.get("environment", {})
        if words[0] == "squeue":
            return self.queue
        if self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        if self.late:
            raise CommandLateError("`sbatch` did not end within 120 s.")
        if self.fail:
            raise CommandError("the account is not valid")
        return f"{4711 + self.run.count('sbatch') - 1}\n"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(monkeypatch)


def test_the_id_is_on_disk_when_submit_returns(run: Run, commands: Commands) -> None:
    record = submit(run, JOB)
    assert record is not None and [record] == run.jobs() and record.job_id == "4711"


def test_ctrl_c_during_a_submission_strands_no_job(run: Run, commands: Commands) -> None:
    commands.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        submit(run, JOB)
    assert [record.job_id for record in run.jobs()] == ["4711"]


def test_ctrl_c_that_was_put_off_is_not_forgotten() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)
    assert reached


def test_what_somebody_else_submits_is_not_submitted_twice(run: Run, commands: Commands) -> None:
    (run.path / "job.1.claim").touch()
    assert submit(run, JOB) is None
    assert commands.run == [] and run.jobs() == []


def test_a_program_that_was_killed_in_the_middle_does_not_keep_others_from_submitting(
    run: Run, commands: Commands
) -> None:
    claim = run.path / "job.1.claim"
    claim.touch()
    os.utime(claim, (time.time() - 600, time.time() - 600))
    record = submit(run, JOB)
    assert record is not None and commands.run == ["squeue", "sbatch"]


def test_a_job_that_it_had_submitted_is_found(run: Run, commands: Commands) -> None:
    claim = run.path / "job.1.claim"
    claim.touch()
    os.utime(claim, (time.time() - 600, time.time() - 600))
    commands.queue = "99\n"
    record = submit(run, JOB)
    assert record is not None and record.job_id == "99" and commands.run == ["squeue"]


def test_a_refused_job_can_be_submitted_again(run: Run, commands: Commands) -> None:
    commands.fail = True
    with pytest.raises(LaunchError, match="account"):
        submit(run, JOB)
    commands.fail = False
    assert submit(run, JOB) is not None


def test_a_job_of_which_the_scheduler_was_too_slow_to_tell_is_found_and_not_submitted_twice(
    run: Run, commands: Commands
) -> None:
    commands.late = True
    with pytest.raises(LaunchError, match="did not end"):
        submit(run, JOB)
    commands.late, commands.queue = False, "99\n"
    assert submit(run, JOB) is None
    BatchLauncher.of_run(run).attach(run)
    assert [record.job_id for record in run.jobs()] == ["99"]


def test_a_job_whose_id_was_never_written_down_is_cancelled_with_its_run(
    run: Run, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "job.1.claim").touch()
    cancelled: list[list[str]] = []
    commands.queue = "99\n"
    monkeypatch.setattr(follow, "run_command", cancelled.append)
    BatchLauncher.of_run(run).cancel(run)
    assert [command[-1] for command in cancelled] == ["99"]


def test_it_is_the_job_that_the_run_has_gone_on_in_that_is_cancelled(
    run: Run, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job submits the next one itself, and who follows the run has not looked since."""
    cancelled: list[list[str]] = []
    monkeypatch.setattr(follow, "run_command", cancelled.append)
    run.record_job("4711")
    follower = follow.RunFollower(run, JOB)
    follower.status = JobStatus("completed")
    run.record_job("4712")
    follower.cancel("it is not wanted")
    assert [command[-1] for command in cancelled] == ["4712"]


def test_agents_of_a_run_that_does_not_go_on_are_given_up_by_its_own_directory(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where no job script has said which run it is: their last life is told there."""
    given: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, **options: given.append(options["env"]))
    monkeypatch.delenv("ACADEMY_HPC_RUN", raising=False)
    run.record_job("1")
    go_on(run, msgspec.structs.replace(JOB, request=JobRequest(scheduler="slurm", max_jobs=1)), "lost", because="it")
    assert [one["ACADEMY_HPC_RUN"] for one in given] == [str(run.path)]


def test_a_run_that_came_to_nothing_says_why(tmp_path: Path) -> None:
    launcher = BatchLauncher("local", runs=tmp_path, directives=("#SBATCH --x",))
    with pytest.raises(LaunchError, match="has a mark already"):
        launcher.submit(some_spec())
    [run] = Run.all(runs=tmp_path)
    assert run.status().state == "failed" and "has a mark already" in run.status().reason


def test_a_directory_that_is_gone_is_not_taken_for_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=rf"directory {tmp_path}/gone"):
        run_command(["/bin/true"], directory=str(tmp_path / "gone"))


def test_each_job_has_its_own_number(run: Run, commands: Commands) -> None:
    submit(run, JOB)
    submit(run, JOB)
    assert [(record.number, record.job_id) for record in run.jobs()] == [(1, "4711"), (2, "4712")]


def test_a_run_of_which_nothing_was_submitted_cannot_be_attached_to(run: Run, commands: Commands) -> None:
    with pytest.raises(LaunchError, match=r"Nothing was submitted of run test-"):
        BatchLauncher.of_run(run).attach(run)


def test_what_is_kept_of_a_job_is_private_and_can_be_read_again(run: Run) -> None:
    assert read_job(run) == JOB
    assert (run.path / "request.json").stat().st_mode & 0o777 == 0o600


def test_a_job_is_submitted_without_what_is_about_another_one(
    run: Run, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_HPC_RANK", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    submit(run, JOB)
    assert commands.environment["PATH"] == os.environ["PATH"]
    assert not {"ACADEMY_HPC_RANK", "SLURM_NTASKS"} & commands.environment.keys()


def test_a_job_inherits_nothing_about_the_job_that_submits_it() -> None:
    own = {"ACADEMY_HPC_DEADLINE": "1", "ACADEMY_HPC_RANK": "0", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}
    kept = {"ACADEMY_HPC_RUNS": "/runs", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/home/me", "SBATCH_ACCOUNT": "m1"}
    assert job_environment(own | kept, JOB.scheduler.variables) == kept


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("slurm", "scancel: error: Kill job error on job id 7: Invalid job id specified"),
        ("slurm", "scancel: error: Kill job error on job id 7: Job/step already completing or completed"),
        ("pbs", "qdel: Job has finished 7.pbs"),
        ("pbs", "qdel: Unknown Job Id 7.pbs"),
        ("torque", "qdel: Request invalid for state of job MSG=invalid state for job - COMPLETE 7.pbs"),
        ("lsf", "Job <7>: Job has already finished"),
        ("flux", "flux-cancel: f7: job is inactive"),
        ("gridengine", 'denied: job "7" does not exist'),
    ],
)
def test_a_job_that_has_ended_can_be_cancelled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, said: str
) -> None:
    command = find_scheduler(scheduler).cancel_command
    for name in ("scancel", "qdel", "bkill", "flux"):
        program = tmp_path / name
        program.write_text(
            f"#!/bin/bash\n[ \"${{*: -1}}\" = 7 ] && echo '{said}' >&2 || echo 'not permitted' >&2\nexit 1\n"
        )
        program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run_command(command(["7"]))
    with pytest.raises(CommandError, match="not permitted"):
        run_command(command(["8"]))
