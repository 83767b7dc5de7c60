"""What is known of a site: where each value comes from, and what is said of one that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.profile import Profile
from academy_hpc.launch.site import Site, find_site_file, site_names, user_folder
from academy_hpc.launch.walltime import clock_text, walltime_s

__all__: list[str] = []

Write = Callable[[str, str], Path]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment without anything of this machine's user."""
    return {"HOME": str(tmp_path / "home")}


@pytest.fixture
def write(environ: dict[str, str]) -> Write:
    """Puts a profile where users have theirs."""

    def write(name: str, text: str) -> Path:
        path = user_folder(environ) / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_the_first_that_has_a_value_counts(environ: dict[str, str], write: Write) -> None:
    """Given, environment, the user's file, the packaged files, the default; each value says which it was."""
    path = write("polaris", 'account = "file"\nqueue = "file"\nwalltime = "10m"\n')
    environ |= {"ACADEMY_HPC_ACCOUNT": "environment", "ACADEMY_HPC_QUEUE": "environment"}
    site = Site.load("polaris", given={"account": "given", "gres": None}, environ=environ)
    assert (site.account, site.origin("account")) == ("given", "given")
    assert (site.queue, site.origin("queue")) == ("environment", "environment ACADEMY_HPC_QUEUE")
    assert (site.walltime, site.origin("walltime")) == ("10m", str(path))
    assert (site.filesystems, site.origin("filesystems")) == ("home:eagle", "packaged polaris.toml")
    assert (site.scheduler, site.origin("scheduler")) == ("pbs", "packaged pbs.toml")
    assert (site.gres, site.origin("gres")) == (None, "default")


def test_a_users_file_may_change_one_queue(environ: dict[str, str], write: Write) -> None:
    path = write("polaris", "[queues.debug]\nmax_nodes = 8\n")
    site = Site.load("polaris", environ=environ)
    assert site.queues["debug"].max_nodes == 8
    assert site.origin("queues.debug") == str(path)
    assert site.queues["preemptable"].max_walltime == "3-00:00:00"


def test_a_new_site_is_a_few_lines(environ: dict[str, str], write: Write) -> None:
    write("gauss", 'extends = "slurm"\nrequired = ["account"]\nqueue = "batch"\ninterfaces = ["ib1"]\n')
    site = Site.load("gauss", given={"account": "m1", "nodes": 3}, environ=environ)
    assert site.check() == []
    own = {"account": "m1", "queue": "batch", "nodes": 3}
    assert site.job_options() == Site.load("slurm", environ=environ).job_options() | own
    assert "gauss" in site_names(environ)


def test_a_site_may_extend_another_one_of_the_user(environ: dict[str, str], write: Write) -> None:
    write("group", 'extends = "anvil"\naccount = "group"\n')
    write("mine", 'extends = "group"\nqueue = "gpu"\n')
    site = Site.load("mine", environ=environ)
    assert (site.account, site.queue, site.scheduler) == ("group", "gpu", "slurm")


def test_a_profile_can_be_given_by_its_path(environ: dict[str, str], tmp_path: Path) -> None:
    for path in (tmp_path / "elsewhere.toml", tmp_path / "elsewhere"):
        path.write_text('scheduler = "flux"\n')
        site = Site.load(str(path), environ=environ)
        assert (site.name, site.scheduler, site.origin("scheduler")) == ("elsewhere", "flux", str(path))


def test_where_users_keep_profiles(environ: dict[str, str]) -> None:
    assert user_folder(environ) == Path(environ["HOME"]) / ".config/academy_hpc/sites"
    assert user_folder({"XDG_CONFIG_HOME": "/elsewhere"}) == Path("/elsewhere/academy_hpc/sites")


def test_without_a_name_the_environment_says_which_site(environ: dict[str, str]) -> None:
    assert Site.load(environ=environ).name == "local"
    assert Site.load(environ={**environ, "ACADEMY_HPC_SITE": "frontier"}).name == "frontier"
    assert Site.load("aurora", environ={**environ, "ACADEMY_HPC_SITE": "frontier"}).name == "aurora"


def test_numbers_and_lists_can_stand_in_the_environment(environ: dict[str, str]) -> None:
    environ |= {"ACADEMY_HPC_NODES": "4", "ACADEMY_HPC_GRACE_S": "30", "ACADEMY_HPC_PRELUDE": "module load a\nb\n"}
    site = Site.load("slurm", environ=environ)
    assert (site.nodes, site.grace_s, site.prelude) == (4, 30.0, ("module load a", "b"))


def test_options_may_have_the_names_of_their_schedulers(environ: dict[str, str]) -> None:
    site = Site.load("frontier", given={"partition": "extended", "project": "m1", "nodes": 65}, environ=environ)
    assert (site.queue, site.account) == ("extended", "m1")
    assert site.check() == ["extended takes jobs of up to 64 nodes; this one has 65"]


def test_programs_give_seconds_and_paths(environ: dict[str, str], tmp_path: Path) -> None:
    site = Site.load("slurm", given={"walltime": 90.5, "python": tmp_path / "python"}, environ=environ)
    assert (site.walltime, site.python) == ("91s", str(tmp_path / "python"))


def test_all_options_of_a_job_but_its_name_and_folder_can_stand_in_a_profile(environ: dict[str, str]) -> None:
    assert set(JobRequest.__struct_fields__) - set(Profile.__struct_fields__) == {"name", "directory"}
    options = Site.load("polaris", given={"account": "a"}, environ=environ).job_options()
    request = JobRequest.from_options(**options)
    assert (request.account, request.filesystems, request.walltime_s) == ("a", "home:eagle", 3600)
    assert "exchange" not in options


def test_the_variables_of_a_running_job_are_no_values_of_a_site(environ: dict[str, str]) -> None:
    """What a job exports for its workers would otherwise change what they submit."""
    exported = ("RUN", "DEADLINE", "ATTEMPT", "JOB", "CONNECTION", "EXTENDS", "REQUIRED", "TITLE")
    plain = Site.load("polaris", environ=environ)
    assert Site.load("polaris", environ={**environ, **{f"ACADEMY_HPC_{name}": "x" for name in exported}}) == plain


def test_what_a_site_demands_is_asked_for_before_submission(environ: dict[str, str]) -> None:
    site = Site.load("perlmutter", environ=environ)
    with pytest.raises(LaunchError) as raised:
        site.check()
    text = str(raised.value)
    assert text.startswith("perlmutter takes no job without account: give --account")
    assert "ACADEMY_HPC_ACCOUNT" in text
    assert "perlmutter.toml" in text


@pytest.mark.parametrize(
    ("site", "given", "concern"),
    [
        ("polaris", {"nodes": 2}, None),
        ("polaris", {"nodes": 3}, "debug takes jobs of up to 2 nodes; this one has 3"),
        ("polaris", {"queue": "prod", "nodes": 9}, "prod takes jobs of 10 nodes or more; this one has 9"),
        (
            "polaris",
            {"queue": "prod", "nodes": 24, "walltime": "4h"},
            "prod takes jobs of 24 nodes for up to 03:00:00; this one asks for 4h",
        ),
        ("polaris", {"queue": "prod", "nodes": 25, "walltime": "4h"}, None),
        ("polaris", {"queue": "prod", "nodes": 100, "walltime": "24:00:00"}, None),
        ("polaris", {"queue": "another", "nodes": 1000}, None),
        ("frontier", {"nodes": 92, "walltime": "3h"}, None),
        (
            "frontier",
            {"nodes": 91, "walltime": "3h"},
            "batch takes jobs of 91 nodes for up to 02:00:00; this one asks for 3h",
        ),
        (
            "frontier",
            {"nodes": 92, "walltime": "3h", "qos": "debug"},
            "debug takes jobs of 92 nodes for up to 02:00:00; this one asks for 3h",
        ),
        (
            "frontier",
            {"walltime": "3h", "qos": "normal"},
            "batch takes jobs of 1 node for up to 02:00:00; this one asks for 3h",
        ),
    ],
)
def test_what_a_queue_does_not_take_is_told(
    environ: dict[str, str], site: str, given: dict[str, Any], concern: str | None
) -> None:
    loaded = Site.load(site, given={"account": "a", **given}, environ=environ)
    assert loaded.check() == ([] if concern is None else [concern])


def test_jobs_do_not_follow_one_another_where_a_queue_forbids_it(environ: dict[str, str]) -> None:
    """Unless the user wants it in spite of that."""
    debug = Site.load("perlmutter", environ=environ)
    assert (debug.job_options()["max_jobs"], debug.origin("max_jobs")) == (1, "packaged perlmutter.toml")
    regular = Site.load("perlmutter", given={"qos": "regular"}, environ=environ)
    assert "max_jobs" not in regular.job_options()
    assert Site.load("perlmutter", given={"max_jobs": 2}, environ=environ).job_options()["max_jobs"] == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('acount = "a"', "'acount' is not a value of a profile; perhaps 'account' is meant."),
        ("nodes = 0", "nodes = 0: Expected a whole number >= 1"),
        ('nodes = "2"', "nodes = '2': Expected a whole number, got text"),
        ('scheduler = "slrum"', "scheduler = 'slrum': Invalid enum value 'slrum'"),
        ('walltime = "30:00"', "walltime: '30:00' is no walltime"),
        ('account = "a b"', "account = 'a b': it has characters, or a line break, that it can't have"),
        ('directives = ["-l x\\n#PBS -q y"]', "it has characters, or a line break, that it can't have"),
        ('account = "a\\n"', "account = 'a\\n': it has characters, or a line break, that it can't have"),
        ("[queues.debug]\nmax_node = 1", "Object contains unknown field `max_node`"),
        ('[queues.debug]\nmax_walltime = "1 hour"', "queues: '1 hour' is no walltime"),
        ("nodes = = 2", "is no TOML: Invalid value (at line 1, column 9)"),
        ('extends = "slrum"', "extends = 'slrum': There is no site 'slrum'. Did you mean slurm?"),
        ('extends = "loop2"', "extends itself: loop > loop2 > loop"),
    ],
)
def test_a_mistake_in_a_profile_is_told_with_its_place(
    environ: dict[str, str], write: Write, text: str, problem: str
) -> None:
    write("loop2", 'extends = "loop"\n')
    path = write("loop", text)
    with pytest.raises(LaunchError) as raised:
        Site.load("loop", environ=environ)
    assert problem in str(raised.value)
    assert str(path) in str(raised.value)


def test_all_mistakes_of_a_file_are_told_at_once(environ: dict[str, str], write: Write) -> None:
    write("bad", 'acount = "a"\nnodes = 0\nqueue = "fine"\n')
    assert len(find_site_file("bad", environ=environ).problems()) == 2


def test_a_mistake_of_the_environment_or_the_program_is_told_as_theirs(environ: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="environment ACADEMY_HPC_NODES: nodes = 'two'"):
        Site.load("slurm", environ={**environ, "ACADEMY_HPC_NODES": "two"})
    with pytest.raises(LaunchError, match="given: account = 'a b'"):
        Site.load("slurm", given={"account": "a b"}, environ=environ)


def test_a_site_that_is_not_there(environ: dict[str, str], write: Write) -> None:
    write("gauss", "")
    with pytest.raises(LaunchError, match=r"no site 'gaus'. Did you mean gauss\?"):
        Site.load("gaus", environ=environ)
    with pytest.raises(LaunchError, match=r"There is no site '\.\.'"):
        Site.load("..", environ=environ)
    with pytest.raises(LaunchError, match="No such file"):
        Site.load("/nowhere/site.toml", environ=environ)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2:00:00", 7200), ("0:30:00", 1800), ("1-12:00:00", 129_600), ("90m", 5400), ("1d12h", 129_600), ("45s", 45)],
)
def test_walltimes_that_can_not_be_mistaken(text: str, seconds: int) -> None:
    assert walltime_s(text) == seconds
    assert walltime_s(clock_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["90", "30:00", "", "2 h", "0:00:00", "1:60:00", "-1:00:00", "2:00:00\n"])
def test_walltimes_that_schedulers_read_differently_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no walltime"):
        walltime_s(text)
