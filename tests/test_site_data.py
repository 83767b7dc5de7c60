"""The profiles that come with the package, and where they are found."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import academy_hpc
from academy_hpc.errors import LaunchError
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.data import data_file, data_names, read_data
from academy_hpc.launch.profile import profile_schema
from academy_hpc.launch.schedulers import scheduler_names
from academy_hpc.launch.site import Site, find_site_file

__all__: list[str] = []

PROJECT = Path(academy_hpc.__file__).parent.parent
SITES = data_names("sites", ".toml")
MACHINES = {"polaris", "aurora", "perlmutter", "frontier", "anvil", "stampede3", "delta", "expanse"}


def test_there_is_a_profile_for_each_machine_and_scheduler() -> None:
    assert set(SITES) == MACHINES | set(scheduler_names())
    for name in scheduler_names():
        assert Site.load(name, environ={}).scheduler == name


def test_the_schema_is_that_of_the_code() -> None:
    """`python -m academy_hpc.launch.profile` writes it."""
    written = subprocess.run([sys.executable, "-m", "academy_hpc.launch.profile"], capture_output=True, check=True)
    assert written.stdout.decode() == read_data("sites/schema.json")


@pytest.mark.parametrize("name", SITES)
def test_a_profile_fits_the_schema(name: str) -> None:
    schema = json.loads(read_data("sites/schema.json"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(tomllib.loads(read_data(f"sites/{name}.toml")))


@pytest.mark.parametrize("values", [{"acount": "a"}, {"nodes": 0}, {"scheduler": "x"}, {"queues": {"a": {"b": 1}}}])
def test_the_schema_finds_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(profile_schema()).validate(values)


@pytest.mark.parametrize("name", SITES)
def test_a_profile_is_taken(name: str) -> None:
    site = Site.load(name, given={"account": "m1"}, environ={"HOME": "/nonexistent"})
    assert site.check() == []
    assert site.title


@pytest.mark.parametrize("name", SITES)
def test_a_job_script_comes_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that bash can read, with the options that the site has values for."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    more = {"parallel_environment": "mpi"} if name == "gridengine" else {}
    script = BatchLauncher(name, account="m1", inside=False, **more).render(workers=2)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # noqa: S607
    site = Site.load(name)
    for value in (site.queue, site.qos, site.filesystems, site.constraint, *site.directives):
        assert value is None or value in script
    if name != "local":
        assert "m1" in script


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_a_machine_says_where_its_values_come_from(name: str) -> None:
    text = find_site_file(name, packaged_only=True).text
    assert "Sources: " in text
    site = Site.load(name, environ={"HOME": "/nonexistent"})
    assert site.documentation.startswith("https://")
    assert site.interfaces
    assert site.exchange_note


def test_a_site_that_forbids_agents_on_login_nodes_has_its_exchange_in_the_job() -> None:
    assert Site.load("stampede3", environ={"HOME": "/nonexistent"}).exchange == "job"


def test_a_checkout_has_the_data_beside_the_package() -> None:
    assert Path(str(data_file("sites/schema.json"))) == PROJECT / "launchers" / "sites" / "schema.json"


def test_an_installed_package_has_them_inside(tmp_path: Path) -> None:
    """A folder "launchers" beside it, which would be another package's, is not looked at."""
    (tmp_path / "academy_hpc").symlink_to(PROJECT / "academy_hpc")
    installed = tmp_path / "installed"
    copy = installed / "academy_hpc"
    copy.mkdir(parents=True)
    for path in (PROJECT / "academy_hpc").iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "_launchers" / "sites").mkdir(parents=True)
    (copy / "_launchers" / "sites" / "packed.toml").write_text("")
    (installed / "launchers" / "sites").mkdir(parents=True)
    (installed / "launchers" / "sites" / "stranger.toml").write_text("")
    code = "from academy_hpc.launch.data import data_names; print(data_names('sites', '.toml'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=installed, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "['packed']", run.stderr


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(LaunchError, match=r"launchers/templates/none.sh: it was not installed as a whole"):
        data_file("templates/none.sh")
    assert data_names("nowhere", ".toml") == []
