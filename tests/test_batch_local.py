"""Runs on this machine, by the scripts that are used everywhere: what they do with workers, here made of shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.errors import LaunchError, TooFewSlotsError
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.command import run_command
from academy_hpc.launch.follow import RunFollower
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.launcher import WorkerEndedError
from academy_hpc.launch.run import Run
from academy_hpc.launch.schedulers import JobStatus, find_scheduler
from academy_hpc.launch.submission import Job
from tests.batch_runs import SECRET, some_spec, stand_in_python, until

__all__: list[str] = []

PATIENCE_S = 20.0

MakeLauncher = Callable[..., BatchLauncher]


@pytest.fixture
def launchers(tmp_path: Path) -> Iterator[MakeLauncher]:
    """Makes launchers on this machine whose workers are made of the given lines of shell."""
    made: list[BatchLauncher] = []

    def make(worker: str, **options: Any) -> BatchLauncher:
        python = str(stand_in_python(tmp_path, worker))
        made.append(BatchLauncher("local", runs=tmp_path / "runs", python=python, **options))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close(timeout=5)


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


def process_id(run: Run) -> int:
    return int(run.jobs()[-1].job_id.partition(":")[0])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start(launcher: BatchLauncher, workers: int = 1) -> tuple[Run, list[Any]]:
    futures = launcher.start([some_spec().to_json() for _ in range(workers)])
    return launcher.runs[-1], futures


def test_each_rank_is_started_once_with_its_own_number(launchers: MakeLauncher, tmp_path: Path) -> None:
    run, futures = start(launchers("echo $rank >$ACADEMY_HPC_RUN/seen.$rank; exit 7"), 3)
    for future in futures:
        with pytest.raises(WorkerEndedError, match="exit status 7"):
            future.result(PATIENCE_S)
    assert sorted(path.name for path in run.path.glob("seen.*")) == ["seen.0", "seen.1", "seen.2"]
    assert [call.split()[:3] for call in calls(tmp_path)] == [["-m", "academy_hpc", "worker"]] * 3


def test_a_worker_that_cannot_even_start_tells_by_the_end_of_its_log(launchers: MakeLauncher) -> None:
    _, [future] = start(launchers("echo no module named academy_hpc >&2; exit 1"))
    with pytest.raises(WorkerEndedError, match="no module named academy_hpc"):
        future.result(PATIENCE_S)


def test_a_worker_that_was_killed_is_started_again_in_its_place(launchers: MakeLauncher, tmp_path: Path) -> None:
    run, [future] = start(launchers("[ $attempt = 2 ] && exit 3; kill -KILL $$"))
    with pytest.raises(WorkerEndedError, match="exit status 3"):
        future.result(PATIENCE_S)
    assert len(calls(tmp_path)) == 2 and len(run.jobs()) == 1
    [killed] = [event for event in run.events() if event["event"] == "worker_killed"]
    assert (killed["signal"], killed["attempt"]) == (9, 1)


def test_a_worker_that_is_killed_too_often_is_given_up_and_its_agents_told(
    launchers: MakeLauncher, tmp_path: Path
) -> None:
    _, [future] = start(launchers("kill -KILL $$", max_restarts=1))
    with pytest.raises(WorkerEndedError, match="killed by signal 9"):
        future.result(PATIENCE_S)
    assert next(call for call in calls(tmp_path) if "--give-up" in call).endswith("2 times in one job")


def test_a_prelude_may_use_any_names_and_make_the_shell_strict(launchers: MakeLauncher) -> None:
    names = ("run", "workers", "python", "job", "deadline", "rank", "mine")
    prelude = ("set -euo pipefail", " ".join(f"{name}=other" for name in names))
    run, [future] = start(launchers("touch $ACADEMY_HPC_RUN/up; exit 3", prelude=prelude))
    with pytest.raises(WorkerEndedError, match="exit status 3"):
        future.result(PATIENCE_S)
    until(lambda: run.job_exit_code(run.jobs()[0].job_id) == 1)
    assert (run.path / "up").exists()
    assert "script_ended" not in {event["event"] for event in run.events()}


def test_a_worker_that_is_started_while_the_job_is_told_to_end_is_told(launchers: MakeLauncher) -> None:
    """The function stands for whatever takes a moment between two steps of the script."""
    late = 'uname() { [ "$*" != "" ] && [ -n "$mine" ] && kill -USR1 $$; echo here; }'
    worker = "trap 'exit 75' USR1; touch $ACADEMY_HPC_RUN/up; while :; do sleep 0.05; done"
    run, _ = start(launchers(worker, prelude=(late,)))
    until(lambda: run.exit_code(0) == 75)


def test_a_worker_that_ends_by_itself_is_not_started_again(launchers: MakeLauncher, tmp_path: Path) -> None:
    _, [future] = start(launchers("exit 1"))
    with pytest.raises(WorkerEndedError):
        future.result(PATIENCE_S)
    assert len(calls(tmp_path)) == 1


def test_a_warning_to_the_job_reaches_the_worker_as_one(launchers: MakeLauncher) -> None:
    worker = (
        "trap 'touch $ACADEMY_HPC_RUN/warned; exit 75' USR1; touch $ACADEMY_HPC_RUN/up; while :; do sleep 0.1; done"
    )
    run, [future] = start(launchers(worker))
    until((run.path / "up").exists)
    os.kill(process_id(run), signal.SIGTERM)
    until((run.path / "warned").exists)
    with pytest.raises(WorkerEndedError, match=r"SIGTERM has ended job .* before its walltime") as caught:
        future.result(PATIENCE_S)
    assert caught.value.cause == "preempted" and run.exit_code(0) == 75


def test_a_worker_that_dies_of_the_warning_goes_on_in_another_life(launchers: MakeLauncher) -> None:
    """It was told to end before it could listen."""
    run, [future] = start(launchers("touch up; exec sleep 60", max_restarts=0))
    until((run.path / "up").exists)
    os.kill(process_id(run), signal.SIGTERM)
    assert isinstance(future.exception(PATIENCE_S), WorkerEndedError)
    assert run.exit_code(0) == 75


def test_a_process_that_has_got_the_number_of_a_job_is_not_taken_for_it() -> None:
    local = find_scheduler("local")
    job_id, other = f"{os.getpid()}:1", subprocess.Popen(["/bin/true"])
    until(lambda: is_gone(other.pid))
    started = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
    zombie = f"{other.pid}:{started}"
    said = local.parse_status(run_command(local.status_command([job_id, zombie])))
    assert {one: status.state for one, status in said.items()} == {job_id: "failed", zombie: "failed"}
    run_command(local.cancel_command([job_id]))
    assert other.wait(5) == 0


def test_a_job_on_another_host_is_not_taken_for_gone_and_nothing_is_ended_in_its_place() -> None:
    """Run directories are shared: another login node sees the runs of this one, and those inside allocations."""
    local, other = find_scheduler("local"), subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
    job_id = f"{other.pid}:1@elsewhere"
    said = local.parse_status(run_command(local.status_command([job_id])))
    assert (said[job_id].state, said[job_id].reason) == ("running", "on elsewhere, as far as is known here")
    with pytest.raises(LaunchError, match="on elsewhere: cancel it there") as caught:
        run_command(local.cancel_command([job_id]))
    assert "\n" not in str(caught.value)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_job_on_another_host_has_ended_when_its_script_has_said_so(tmp_path: Path) -> None:
    run = Run.create("test", runs=tmp_path)
    job_id = run.record_job("1:1@elsewhere").job_id
    follower = RunFollower(run, Job(JobRequest(scheduler="local"), 1))
    run.event("job_started", job_id=job_id)
    run.event("told_to_end", job_id=job_id, signal="TERM")
    follower.look(0.0, JobStatus("running", "on elsewhere, as far as is known here"))
    assert not follower.over
    (run.path / f"job.{job_id}.exit").write_text("0\n")
    follower.look(1.0, None)
    assert follower.over and isinstance(follower.futures[0].exception(0), WorkerEndedError)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.3])
def test_signals_to_all_processes_of_a_job_cost_no_exit_code(launchers: MakeLauncher, delay_s: float) -> None:
    """As schedulers send them, whenever they come."""
    worker = "trap 'told=1' USR1 TERM; until [ -n \"$told\" ]; do sleep 0.02; done; exit 75"
    run, [future] = start(launchers(worker))
    until(lambda: run.job_log(run.jobs()[0].job_id).exists())
    time.sleep(delay_s)
    for _ in range(10):
        os.killpg(process_id(run), signal.SIGTERM)
        time.sleep(0.01)
    with pytest.raises(WorkerEndedError, match="before its walltime"):
        future.result(PATIENCE_S)
    assert run.exit_code(0) in (75, None)


def test_cancelling_ends_the_processes_and_starts_nothing_again(launchers: MakeLauncher, tmp_path: Path) -> None:
    launcher = launchers("trap 'exit 75' USR1; touch $ACADEMY_HPC_RUN/up; while :; do sleep 0.1; done")
    run, [future] = start(launcher)
    until((run.path / "up").exists)
    launcher.cancel(run)
    with pytest.raises(WorkerEndedError, match="cancelled") as caught:
        future.result(PATIENCE_S)
    assert caught.value.cause == "stopped"
    until(lambda: is_gone(process_id(run)))
    assert len(run.jobs()) == 1 and run.status().state == "ended"


def test_a_job_that_was_killed_is_followed_by_another_one(launchers: MakeLauncher) -> None:
    worker = "touch $ACADEMY_HPC_RUN/up.$attempt; [ $attempt = 2 ] && exit 5; while :; do sleep 0.1; done"
    run, [future] = start(launchers(worker))
    until((run.path / "up.1").exists)
    os.killpg(process_id(run), signal.SIGKILL)
    with pytest.raises(WorkerEndedError, match="exit status 5"):
        future.result(PATIENCE_S)
    assert [record.number for record in run.jobs()] == [1, 2]


def test_a_worker_that_has_ended_for_good_is_not_started_by_the_next_job(
    launchers: MakeLauncher, tmp_path: Path
) -> None:
    worker = "[ $rank = 0 ] && exit 7; touch up.$attempt; [ $attempt = 2 ] && exit 5; while :; do sleep 0.1; done"
    run, futures = start(launchers(worker), 2)
    until((run.path / "up.1").exists)
    until(lambda: run.exit_code(0) == 7)
    os.killpg(process_id(run), signal.SIGKILL)
    with pytest.raises(WorkerEndedError, match="exit status 5"):
        futures[1].result(PATIENCE_S)
    assert len([call for call in calls(tmp_path) if " worker " in call]) == 3
    assert (run.path / "workers" / "0.attempt").read_text() == "1\n"


def test_a_run_has_only_so_many_jobs_and_then_its_agents_are_given_up(launchers: MakeLauncher, tmp_path: Path) -> None:
    run, [future] = start(launchers("touch $ACADEMY_HPC_RUN/up; while :; do sleep 0.1; done", max_jobs=1))
    until((run.path / "up").exists)
    os.killpg(process_id(run), signal.SIGKILL)
    with pytest.raises(WorkerEndedError, match=r"job \S+ has ended: .*gone.* max_jobs=1"):
        future.result(PATIENCE_S)
    assert any("--give-up" in call for call in calls(tmp_path))
    assert run.status().state == "failed"


def test_a_job_script_that_fails_before_its_workers_is_not_tried_again(launchers: MakeLauncher) -> None:
    run, [future] = start(launchers("exit 0", prelude=("echo module: command not found >&2", "exit 3")))
    with pytest.raises(WorkerEndedError, match=r"exit status 3 before its workers.*module: command not found"):
        future.result(PATIENCE_S)
    assert len(run.jobs()) == 1 and "exit status 3" in run.status().reason


def test_a_run_whose_directory_is_removed_is_lost(launchers: MakeLauncher) -> None:
    run, [future] = start(launchers("touch $ACADEMY_HPC_RUN/up; exec sleep 20"))
    until((run.path / "up").exists)
    job_id = run.jobs()[0].job_id
    shutil.rmtree(run.path)
    run_command(find_scheduler("local").cancel_command([job_id]))
    with pytest.raises(WorkerEndedError, match=r"its run directory .* is gone"):
        future.result(PATIENCE_S)
    assert not run.path.exists()


def test_what_nobody_waits_for_any_more_is_cancelled(launchers: MakeLauncher) -> None:
    run, futures = start(launchers("touch $ACADEMY_HPC_RUN/up; while :; do sleep 0.1; done"), 2)
    until((run.path / "up").exists)
    futures[0].cancel()
    futures[1].cancel()
    until(lambda: is_gone(process_id(run)))
    assert run.asked_to_stop


def test_only_so_many_workers_fit(launchers: MakeLauncher) -> None:
    launcher = launchers("exit 0", nodes=1, workers_per_node=2)
    assert launcher.slots() == 2
    with pytest.raises(TooFewSlotsError, match="3 workers asked for, 2 slots"):
        start(launcher, 3)


def test_secrets_are_in_private_files_alone(launchers: MakeLauncher, tmp_path: Path) -> None:
    run, [future] = start(launchers("cat /proc/$$/cmdline /proc/$$/environ >$ACADEMY_HPC_RUN/mine; exit 1"))
    with pytest.raises(WorkerEndedError):
        future.result(PATIENCE_S)
    assert run.path.stat().st_mode & 0o777 == 0o700
    holders = [path for path in run.path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert [path.name for path in holders] == ["spec.json"]
    assert holders[0].stat().st_mode & 0o777 == 0o600


def test_a_refused_option_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no such option"):
        BatchLauncher("local", runs=tmp_path / "runs", wall_time="2h")
    assert not (tmp_path / "runs").exists()


def test_an_older_life_does_not_speak_for_the_rank_that_has_a_newer_one_elsewhere(launchers: MakeLauncher) -> None:
    """A node was unplugged, and its job started again on another one, which counts the lives on."""
    worker = 'echo 9 >"$ACADEMY_HPC_RUN/workers/$rank.attempt"; exit 0'
    run, _ = start(launchers(worker, max_jobs=1))
    until(lambda: list(run.path.glob("job.*.exit")))
    assert run.exit_code(0) is None
