"""`academy-hpc site`, as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__: list[str] = []

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where this user has profiles."""
    folder = tmp_path / "config" / "academy_hpc" / "sites"
    folder.mkdir(parents=True)
    return folder


def site(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("ACADEMY_HPC_")}
    environment = own | {"XDG_CONFIG_HOME": str(folder.parent.parent)} | variables
    command = [COMMAND, "site", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environment)


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_all_sites_are_listed_with_the_file_that_they_come_from(folder: Path) -> None:
    (folder / "gauss.toml").write_text('extends = "slurm"\ntitle = "Gauss [test]"\n')
    (folder / "bad.toml").write_text("nodes = 0\n")
    listed = {one["site"]: one for one in as_json(site(folder, "list", "--json"))}
    assert listed["gauss"] == {
        "site": "gauss",
        "scheduler": "slurm",
        "title": "Gauss [test]",
        "file": str(folder / "gauss.toml"),
        "problem": None,
    }
    assert listed["polaris"]["file"] == "packaged polaris.toml"
    assert "nodes = 0" in listed["bad"]["problem"]
    table = site(folder, "list").stdout
    assert "Gauss [test]" in table
    assert "nodes = 0" in table


def test_each_value_is_shown_with_where_it_comes_from(folder: Path) -> None:
    path = folder / "polaris.toml"
    path.write_text('walltime = "10m"\n[queues.debug]\nmax_nodes = 3\n')
    values = as_json(site(folder, "show", "polaris", "--json", ACADEMY_HPC_ACCOUNT="m1"))["values"]
    assert values["account"] == {"value": "m1", "origin": "environment ACADEMY_HPC_ACCOUNT"}
    assert values["walltime"] == {"value": "10m", "origin": str(path)}
    assert values["filesystems"] == {"value": "home:eagle", "origin": "packaged polaris.toml"}
    assert values["max_jobs"] == {"value": 10, "origin": "default"}
    assert values["queues.debug"]["value"]["max_nodes"] == 3
    assert values["queues.debug"]["origin"] == str(path)
    assert values["queues.prod"]["origin"] == "packaged polaris.toml"


def test_a_table_for_people_says_what_is_missing(folder: Path) -> None:
    done = site(folder, "show", ACADEMY_HPC_SITE="polaris")
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("interfaces")]
    assert line.split() == ["interfaces", "hsn0;", "bond0", "packaged", "polaris.toml"]
    assert not any(line.startswith("account") for line in done.stdout.splitlines())
    assert "polaris takes no job without account" in done.stderr


def test_a_profile_that_can_be_used(folder: Path) -> None:
    path = folder / "gauss.toml"
    path.write_text('extends = "slurm"\nrequired = ["account"]\n')
    done = site(folder, "check", "gauss")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: can be used.\ngauss takes no job without account")
    answer = as_json(site(folder, "check", path, "--json", ACADEMY_HPC_ACCOUNT="m1"))
    assert answer == {"site": "gauss", "file": str(path), "problems": [], "remarks": []}


def test_a_profile_that_can_not_be_used(folder: Path) -> None:
    """Each reason is a line; the exit code says so to programs, too."""
    path = folder / "bad.toml"
    path.write_text('acount = "a"\nnodes = 0\n')
    done = site(folder, "check", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"Error: {path}: 'acount' is not a value of a profile; perhaps 'account' is meant.",
        f"{path}: nodes = 0: Expected a whole number >= 1.",
    ]
    done = site(folder, "check", "bad", "--json")
    assert done.returncode == 1
    assert len(as_json(done)["problems"]) == 2


def test_a_mistake_in_what_a_profile_extends_is_told(folder: Path) -> None:
    (folder / "base.toml").write_text("nodes = 0\n")
    (folder / "gauss.toml").write_text('extends = "base"\n')
    done = site(folder, "check", "gauss")
    assert done.returncode == 1
    assert str(folder / "base.toml") in done.stderr


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_site_that_is_not_there(folder: Path, command: str) -> None:
    done = site(folder, command, "polarsi")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: There is no site 'polarsi'. Did you mean polaris?")
    assert done.stderr.count("\n") == 1


def test_the_shell_completes_names(folder: Path) -> None:
    (folder / "polar.toml").write_text("")
    done = site(
        folder,
        _ACADEMY_HPC_COMPLETE="bash_complete",
        COMP_WORDS="academy-hpc site show pol",
        COMP_CWORD="3",
    )
    assert done.stdout.splitlines() == ["plain,polar", "plain,polaris"]
