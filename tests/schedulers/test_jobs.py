"""Runs by schedulers that can't be had here: their scripts under bash, with stand-ins for the commands on PATH."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from academy_hpc.errors import LaunchError
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.launcher import WorkerEndedError
from academy_hpc.launch.run import Run
from academy_hpc.launch.submission import find_lost_job, read_job
from tests.batch_runs import some_spec, until
from tests.schedulers.conftest import MakeLauncher
from tests.schedulers.stand_in import Jobs

__all__: list[str] = []

PATIENCE_S = 30.0
STAY = "touch up; trap 'exit 75' USR1; while :; do sleep 0.05; done"


def start(launcher: BatchLauncher, workers: int = 1) -> tuple[Run, list[Any]]:
    futures = launcher.start([some_spec().to_json() for _ in range(workers)])
    return launcher.runs[-1], futures


def test_workers_are_spread_over_the_nodes_with_their_ranks(launchers: MakeLauncher) -> None:
    run, futures = start(launchers("echo $STAND_IN_HOST >host.$rank; exit 7", nodes=2), 4)
    for future in futures:
        with pytest.raises(WorkerEndedError, match="exit status 7"):
            future.result(PATIENCE_S)
    hosts = {rank: (run.path / f"host.{rank}").read_text().strip() for rank in range(4)}
    assert Counter(hosts.values()) == {"node0": 2, "node1": 2}
    [record] = run.jobs()
    until(lambda: run.job_exit_code(record.job_id) == 1)
    assert run.job_log(record.job_id).exists(), "the script knows its job by the same id"


@pytest.mark.parametrize("scheduler", ["lsf"])
def test_on_machines_with_jsrun_it_starts_the_workers(launchers: MakeLauncher) -> None:
    launcher = launchers("exit 7", nodes=2, starter="jsrun")
    assert "#BSUB -nnodes 2" in launcher.render(workers=4)


def test_the_environment_reaches_workers_whatever_the_starter_hands_on(launchers: MakeLauncher) -> None:
    worker = "env >env.$rank; exit 7"
    launcher = launchers(worker, nodes=2, env={"MINE": "a 'b' $c"}, prelude=("export THEIRS=$MINE",))
    run, futures = start(launcher, 2)
    for future in futures:
        assert isinstance(future.exception(PATIENCE_S), WorkerEndedError)
    for rank in range(2):
        seen = (run.path / f"env.{rank}").read_text().splitlines()
        assert {"MINE=a 'b' $c", "THEIRS=a 'b' $c", f"ACADEMY_HPC_RUN={run.path}", "ACADEMY_HPC_ATTEMPT=1"} <= set(seen)
        assert any(line.startswith("ACADEMY_HPC_DEADLINE=1") for line in seen)


def test_a_job_near_its_walltime_submits_the_next_one_itself(launchers: MakeLauncher, jobs: Jobs) -> None:
    worker = "[ $attempt = 2 ] && exit 7; exit 75"
    launcher = launchers(worker, walltime="5m", grace_s=270.0)
    run, _ = start(launcher)
    launcher.release()
    until(lambda: len(run.jobs()) == 2, timeout_s=PATIENCE_S)
    until(lambda: run.exit_code(0) == 7, timeout_s=PATIENCE_S)
    assert len({record.job_id for record in run.jobs()}) == 2 == len(jobs.all())


def test_a_job_that_waits_says_so(launchers: MakeLauncher, jobs: Jobs) -> None:
    jobs.hold()
    launcher = launchers(STAY)
    run, _ = start(launcher)
    assert until(launcher.waiting).startswith(f"job {run.jobs()[0].job_id} is pending")
    assert not (run.path / "up").exists()


def test_a_job_of_a_run_that_is_to_end_starts_nothing(launchers: MakeLauncher, jobs: Jobs) -> None:
    jobs.hold()
    launcher = launchers("touch up; exit 0")
    run, _ = start(launcher)
    run.ask_to_stop()
    jobs.release()
    until(lambda: jobs.read(jobs.all()[0])["state"] == "completed")
    assert not (run.path / "up").exists()


@pytest.mark.parametrize("waits", [True, False])
def test_cancelling_ends_a_job(launchers: MakeLauncher, jobs: Jobs, waits: bool) -> None:
    if waits:
        jobs.hold()
    launcher = launchers(STAY)
    run, [future] = start(launcher)
    until(lambda: waits or (run.path / "up").exists())
    launcher.cancel(run)
    with pytest.raises(WorkerEndedError, match="cancelled"):
        future.result(PATIENCE_S)
    until(lambda: jobs.read(jobs.all()[0])["state"] == "cancelled")
    assert len(jobs.all()) == 1


@pytest.mark.parametrize("state", ["timeout", "node_failure"])
def test_a_job_that_was_killed_is_followed_by_another_one(launchers: MakeLauncher, jobs: Jobs, state: str) -> None:
    run, [future] = start(launchers("touch up; [ $attempt = 2 ] && exit 7; sleep 60"))
    until((run.path / "up").exists)
    jobs.end(jobs.all()[0], state)
    with pytest.raises(WorkerEndedError, match="exit status 7"):
        future.result(PATIENCE_S)
    assert len(run.jobs()) == 2


def test_a_job_that_its_user_has_cancelled_is_not_followed_by_another_one(launchers: MakeLauncher, jobs: Jobs) -> None:
    run, [future] = start(launchers(STAY))
    until((run.path / "up").exists)
    jobs.end(jobs.all()[0], "cancelled")
    with pytest.raises(WorkerEndedError) as caught:
        future.result(PATIENCE_S)
    assert caught.value.cause in ("stopped", "preempted") and len(run.jobs()) == 1


def test_a_refused_job_is_told_in_the_words_of_the_scheduler(launchers: MakeLauncher) -> None:
    launcher = launchers(STAY, account="nobody")
    with pytest.raises(LaunchError, match=r"nobody|bank"):
        start(launcher)
    assert launcher.runs[-1].status().state == "failed"


def test_a_job_whose_id_was_lost_is_found_by_its_name(launchers: MakeLauncher, jobs: Jobs) -> None:
    jobs.hold()
    launcher = launchers(STAY)
    run, _ = start(launcher)
    [record] = run.jobs()
    launcher.release()
    (run.path / "jobs.jsonl").unlink()  # as if the program had been killed before it was written
    assert find_lost_job(run, read_job(run)) is not None
    assert [again.job_id for again in run.jobs()] == [record.job_id]
    jobs.end(jobs.all()[0], "cancelled")


def test_one_command_asks_for_the_jobs_of_all_runs(launchers: MakeLauncher, jobs: Jobs, scheduler: str) -> None:
    launcher = launchers(STAY)
    runs = [start(launcher)[0] for _ in range(3)]
    for run in runs:
        until((run.path / "up").exists)
    until(lambda: all(run.status().job_state == "running" for run in runs))
    command = {"pbs": "qstat", "lsf": "bjobs"}.get(scheduler)
    assert command is None or jobs.calls(command) < 15


def test_what_is_rendered_is_what_is_submitted(launchers: MakeLauncher, jobs: Jobs) -> None:
    launcher = launchers("exit 0", nodes=2)
    shown = launcher.render(workers=3)
    run, _ = start(launcher, 3)
    submitted = jobs.read(jobs.all()[0])["script"]
    assert submitted == (run.path / "job.sh").read_text() == re.sub(r"\bRUN\b", run.id, shown)
