"""Job requests, and the text that is made of them: nothing of a user's words is ever taken for more than itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.errors import LaunchError, TooFewSlotsError
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.rendering import SCRIPT_VARIABLES, render_job, render_worker
from academy_hpc.launch.schedulers import find_scheduler, scheduler_names
from academy_hpc.launch.script import fill, quote, quote_all

__all__: list[str] = []

HOSTILE = ["a b", 'a"b', "a'; echo x", "$HOME", "`id`", "$(id)", "a\\", "*", "!x", "", "-n", "#", "ünï", "a&&b|c>d"]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_quoted_word_comes_through_a_shell_as_it_is(word: str) -> None:
    said = subprocess.run(["/bin/bash", "-c", f"printf %s {quote(word)}"], capture_output=True, text=True, check=True)
    assert said.stdout == word


@pytest.mark.parametrize("word", ["a\nb", "a\rb", "a\0b", "\x1b[2J", "a\x7f"])
def test_what_cannot_be_on_one_line_is_refused(word: str) -> None:
    with pytest.raises(LaunchError, match="prelude has a line break or another control character"):
        quote(word, "prelude")


def test_a_quoted_command_keeps_its_words() -> None:
    code = "import sys; print(sys.argv[1:])"
    command = quote_all([sys.executable, "-c", code, *HOSTILE])
    said = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == repr(HOSTILE)


def test_a_template_with_a_name_that_nobody_gives_is_an_error() -> None:
    assert fill("$HOME ${a} @{a} @b", {"a": "@{b}"}) == "$HOME ${a} @{b} @b"
    with pytest.raises(KeyError, match="missing"):
        fill("@{missing}", {})


@pytest.mark.parametrize("scheduler", scheduler_names())
@pytest.mark.parametrize("inside", [False, True])
def test_scripts_are_understood_by_bash(scheduler: str, inside: bool, tmp_path: Path) -> None:
    run = tmp_path / "it's $HOME & more" if scheduler == "local" else tmp_path / "a run"
    request = JobRequest.from_options(
        scheduler=scheduler,
        walltime="1h",
        exchange="job",
        env={"A": "it's $HOME"},
        prelude=("module load x",),
        unset_proxies=True,
        directory=str(tmp_path),
    )
    job = render_job(find_scheduler(scheduler), request, workers=3, run=run, inside=inside)
    for script in (job, render_worker(request, workers=3, run=run)):
        assert "@{" not in script
        subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
        assert "unset http_proxy HTTP_PROXY" in script and "A='it'\"'\"'s $HOME'" in script


@pytest.mark.parametrize("field", ["directives", "prelude"])
def test_free_lines_are_one_line_each(field: str) -> None:
    request = JobRequest.from_options(scheduler="slurm", **{field: ("a\nb",)})
    with pytest.raises(LaunchError, match="line break"):
        render_job(find_scheduler("slurm"), request, workers=1, run=Path("/runs/x"))


@pytest.mark.parametrize("name", ["run", "pids", "ACADEMY_HPC_RANK"])
def test_an_environment_variable_that_the_scripts_have_for_themselves_is_refused(name: str) -> None:
    request = JobRequest.from_options(scheduler="slurm", env={name: "mine"})
    with pytest.raises(LaunchError, match=f"env: {name} .* job script"):
        render_worker(request, workers=1, run=Path("/runs/x"))


def test_all_variables_of_the_scripts_are_known() -> None:
    request = JobRequest.from_options(scheduler="gridengine", exchange="job", nodes=2, parallel_environment="mpi")
    job = render_job(find_scheduler("gridengine"), request, workers=3, run=Path("/runs/x"))
    used = re.findall(r"(?:^|[\s;({])([a-z_]+)\+?=", job + render_worker(request, workers=3, run=Path("/runs/x")), re.M)
    assert set(used) - SCRIPT_VARIABLES == set()


@pytest.mark.parametrize("line", ["#SBATCH --mail-type=END", " #PBS -l x", "#$ -q long"])
def test_a_directive_that_the_scheduler_would_not_see_is_refused(line: str) -> None:
    request = JobRequest.from_options(scheduler="slurm", directives=(line,))
    with pytest.raises(LaunchError, match=r"without #SBATCH"):
        render_job(find_scheduler("slurm"), request, workers=1, run=Path("/runs/x"))


def test_the_log_of_slurm_is_in_the_run_directory_whatever_that_is_called() -> None:
    job = render_job(find_scheduler("slurm"), JobRequest(scheduler="slurm"), workers=1, run=Path("/50%j/x"))
    assert "#SBATCH --output=/50%%j/x/scheduler.log\n" in job


def test_a_directory_means_the_same_wherever_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert JobRequest.from_options(scheduler="slurm", directory="sub").directory == str(tmp_path / "sub")


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, (8, 1, 8)),
        ({"nodes": 3}, (8, 3, 3)),
        ({"workers_per_node": 3}, (8, 3, 3)),
        ({"nodes": 16}, (8, 16, 1)),
        ({"nodes": 4, "workers_per_node": 2}, (8, 4, 2)),
    ],
)
def test_workers_are_spread_evenly(options: dict[str, Any], layout: tuple[int, int, int]) -> None:
    assert JobRequest.from_options(scheduler="slurm", **options).layout(8) == layout


def test_more_workers_than_fit_are_told() -> None:
    with pytest.raises(TooFewSlotsError, match="8 workers asked for, 6 slots"):
        JobRequest.from_options(scheduler="slurm", nodes=2, workers_per_node=3).layout(8)


@pytest.mark.parametrize(
    ("walltime", "seconds"), [("2h", 7200), ("1-00:00:00", 86400), (90.5, 91), (3600, 3600), (None, None)]
)
def test_walltimes(walltime: Any, seconds: int | None) -> None:
    assert JobRequest.from_options(scheduler="slurm", walltime=walltime, grace_s=0).walltime_s == seconds


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"nodes": 0}, "nodes=0"),
        ({"name": "a b"}, "name='a b'"),
        ({"walltime": "60"}, "no walltime"),
        ({"walltime": "1m"}, "no longer than grace_s=90"),
        ({"nodes": "two"}, "nodes"),
        ({"wall_time": "1h"}, "wall_time: a job has no such option"),
        ({"env": {"A-B": "x"}}, "A-B"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(LaunchError, match=told) as caught:
        JobRequest.from_options(scheduler="slurm", **options)
    assert "\n" not in str(caught.value)


def test_options_have_the_names_that_users_know() -> None:
    request = JobRequest.from_options(scheduler="slurm", partition="gpu", project="m1")
    assert (request.queue, request.account) == ("gpu", "m1")
