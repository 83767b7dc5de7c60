"""Whether another job follows, as a job decides at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from academy_hpc.launch import chain, submission
from academy_hpc.launch.chain import AGAIN, go_on, last_words, resubmit, unfinished_ranks
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.run import Run
from academy_hpc.launch.submission import Job, submit, write_job

__all__: list[str] = []

JOB = Job(JobRequest(scheduler="slurm", max_jobs=2, grace_s=60.0), 3)


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands by which agents are given up."""
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(chain.subprocess, "run", lambda words, **_: commands.append(words))
    return commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: list[Sequence[str]]) -> Run:
    """With one job, 4711, whose workers want to go on."""
    ids = iter(("4711", "4712", "4713"))
    monkeypatch.setattr(submission, "run_command", lambda words, **_: next(ids))
    made = Run.create("test", runs=tmp_path)
    write_job(made, JOB)
    (made.path / "job.sh").touch()
    submit(made, JOB)
    for rank in range(3):
        end(made, rank, AGAIN)
    return made


def end(run: Run, rank: int, code: int) -> None:
    (run.path / "workers" / f"{rank}.exit").write_text(f"{code}\n")


def environment(left_s: float, told: str = "") -> dict[str, str]:
    return {"ACADEMY_HPC_JOB": "4711", "ACADEMY_HPC_DEADLINE": str(time.time() + left_s), "ACADEMY_HPC_TOLD": told}


def jobs(run: Run) -> list[str]:
    return [record.job_id for record in run.jobs()]


@pytest.mark.parametrize("told", ["", "TERM", "USR1"])
def test_near_the_walltime_the_next_job_is_submitted(run: Run, told: str) -> None:
    assert resubmit(run, environment=environment(100.0, told)) == "Submitted job 4712."
    assert jobs(run) == ["4711", "4712"] and run.status().state == "queued"


@pytest.mark.parametrize("told", ["TERM", "USR2"])
def test_a_job_that_was_ended_before_its_time_is_not_followed(run: Run, told: str) -> None:
    """It was cancelled, or its scheduler starts it again by itself."""
    assert f"SIG{told}" in resubmit(run, environment=environment(1000.0, told))
    assert jobs(run) == ["4711"]


def test_a_job_that_has_lost_workers_is_followed(run: Run) -> None:
    assert resubmit(run, environment=environment(1000.0)) == "Submitted job 4712."


def test_a_run_that_is_to_end_goes_no_further(run: Run) -> None:
    run.ask_to_stop()
    assert resubmit(run, environment=environment(10.0)) == "The run was asked to end."
    assert jobs(run) == ["4711"] and run.status().state == "ended"


def test_a_run_whose_workers_have_ended_for_good_goes_no_further(run: Run) -> None:
    for rank, code in enumerate((0, 1, 137)):
        end(run, rank, code)
    assert resubmit(run, environment=environment(10.0)) == "All its workers have ended."
    assert jobs(run) == ["4711"]


def test_only_workers_that_have_not_ended_for_good_go_on(run: Run) -> None:
    end(run, 0, 0)
    (run.path / "workers" / "1.exit").unlink()
    assert unfinished_ranks(run, JOB) == [1, 2]


def test_after_the_last_job_the_agents_are_given_up_with_the_reason(run: Run, given_up: list[Sequence[str]]) -> None:
    resubmit(run, environment=environment(10.0))
    end(run, 0, 0)
    said = resubmit(run, environment=environment(10.0) | {"ACADEMY_HPC_JOB": "4712"})
    assert said == "job 4712 has come near its walltime, and the run has had its max_jobs=2 jobs."
    assert [words[-1] for words in given_up] == [said, said]
    assert (run.status().state, run.status().cause, run.status().reason) == ("failed", "walltime", said)


def test_two_who_see_a_job_end_submit_one_job(run: Run, given_up: list[Sequence[str]]) -> None:
    """The second has looked before the first submitted, and does not take that job for the one that has ended."""
    request = msgspec.structs.replace(JOB.request, max_jobs=3)
    said = [go_on(run, Job(request, 3), "lost", because="job 4711 was killed", after=1) for _ in range(2)]
    assert said == ["Submitted job 4712.", "Somebody else has submitted the next job."]
    assert submit(run, JOB, number=2) is None
    assert jobs(run) == ["4711", "4712"] and not given_up


def test_who_is_late_gives_up_no_agents_of_the_last_job(run: Run, given_up: list[Sequence[str]]) -> None:
    for _ in range(2):
        go_on(run, JOB, "lost", because="job 4711 was killed", after=1)
    assert jobs(run) == ["4711", "4712"] and not given_up and run.status().state == "queued"


def test_in_an_allocation_there_is_no_next_job(run: Run, given_up: list[Sequence[str]]) -> None:
    write_job(run, Job(JOB.request, 3, inside=True))
    assert "no allocation for another one" in resubmit(run, environment=environment(10.0))
    assert len(given_up) == 3 and jobs(run) == ["4711"]


@pytest.mark.parametrize(
    "line", ['{"time_s": , "event": "x"}', "[]", '{"event": "x"}', '{"time_s": 1, "event": 2}', "x"]
)
def test_a_line_that_was_not_written_to_its_end_is_passed_over(run: Run, line: str) -> None:
    before = run.events()
    with (run.path / "events.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert run.events() == before


def test_what_a_job_has_said_counts_until_it_starts_again(run: Run) -> None:
    def say(event: str, **fields: Any) -> None:
        run.event(event, job_id="4711", **fields)

    say("job_started")
    assert "signal" not in last_words(run, "4711")
    say("told_to_end", signal="TERM")
    assert last_words(run, "4711")["signal"] == "TERM" and not last_words(run, "4712")
    say("job_started")
    assert "signal" not in last_words(run, "4711")
