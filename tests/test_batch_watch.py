"""How often schedulers are asked, and what is made of answers that are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from academy_hpc.errors import LaunchError
from academy_hpc.launch.command import CommandError, run_command
from academy_hpc.launch.schedulers import JobStatus, find_scheduler
from academy_hpc.launch.watch import StatusDesk

__all__: list[str] = []

SLURM = find_scheduler("slurm")


class Answers:
    """A scheduler with a clock of its own."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []
        self.said = "1|RUNNING|None\n"
        self.broken = False
        self.desk = StatusDesk(self, lambda: 0.5)

    def __call__(self, words: Sequence[str]) -> str:
        self.commands.append(words)
        if self.broken or words[0] == "sacct":
            raise LaunchError("no answer")
        return self.said

    def ask(self, now_s: float, *, changed_s: float = 0.0, urgent: bool = False) -> dict[str, JobStatus]:
        return self.desk.ask(SLURM, ["1"], now_s=now_s, changed_s=changed_s, urgent=urgent)

    def asked_during(self, start_s: int, end_s: int) -> int:
        before = len(self.commands)
        for now_s in range(start_s, end_s):
            self.ask(now_s)
        return len(self.commands) - before


@pytest.fixture
def answers() -> Answers:
    return Answers()


def test_one_command_serves_all_jobs(answers: Answers) -> None:
    answers.said = "1|RUNNING|None\n2|PENDING|Priority\n3|RUNNING|None\n"
    said = answers.desk.ask(SLURM, ["1", "2"], now_s=0.0, changed_s=0.0)
    assert said == {"1": JobStatus("running"), "2": JobStatus("pending", "Priority")}
    assert len(answers.commands) == 1


def test_old_jobs_are_asked_for_less_often(answers: Answers) -> None:
    assert answers.asked_during(0, 10) == 10
    assert answers.asked_during(600, 1200) == 10
    assert answers.asked_during(86_400, 86_400 + 3600) == 60


def test_a_command_that_fails_is_repeated_less_often_and_says_nothing(answers: Answers) -> None:
    answers.broken = True
    assert answers.ask(0.0) == {}
    assert 3 <= answers.asked_during(1, 120) <= 6
    assert answers.ask(500.0, urgent=True) == {}
    count = len(answers.commands)
    answers.ask(501.0, urgent=True)
    assert len(answers.commands) == count, "an urgent question does not hurry a scheduler that does not answer"


def test_an_urgent_question_does_not_wait_for_long(answers: Answers) -> None:
    answers.ask(5000.0)
    assert answers.ask(5001.0, urgent=True) == {}
    assert answers.ask(5003.0) == {}
    assert answers.ask(5003.0, urgent=True) == {"1": JobStatus("running")}


def test_a_job_that_is_gone_from_the_queue_is_not_completed(answers: Answers) -> None:
    answers.said = ""
    assert answers.ask(0.0)["1"].state == "unknown"
    assert [words[0] for words in answers.commands] == ["squeue", "sacct"]


def test_a_missing_program_is_told_with_what_that_may_mean() -> None:
    with pytest.raises(CommandError, match=r"There is no program 'no-such-qsub' here: .* PATH"):
        run_command(["no-such-qsub"])


def test_a_failed_command_is_told_in_one_line_in_its_own_words() -> None:
    with pytest.raises(CommandError, match=r"`bash -c .*` failed \(exit status 3\): it is wrong") as caught:
        run_command(["bash", "-c", "echo it is; echo it is >&2; echo wrong >&2; exit 3"])
    assert "\n" not in str(caught.value)


def test_ctrl_c_at_the_terminal_does_not_reach_commands() -> None:
    """It goes to the session of the terminal."""
    session = run_command(["bash", "-c", "read -r _ _ _ _ _ sid _ </proc/$$/stat; echo $sid"])
    assert int(session) != os.getsid(0)


def test_a_command_that_hangs_is_given_up() -> None:
    with pytest.raises(CommandError, match=r"did not end within 0.2 s"):
        run_command(["sleep", "20"], timeout_s=0.2)
