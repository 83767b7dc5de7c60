"""What is installed beside one another on a compute node fits into one environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

__all__: list[str] = []

PROJECT = Path(__file__).parent.parent
# A fresh environment takes half a minute, and as long as the downloads where nothing is in pip's cache.
pytestmark = [pytest.mark.packages, pytest.mark.timeout(900)]


def run(*command: str | Path, folder: Path) -> str:
    """Run a command in `folder`, away from this checkout, and give back what it printed."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the package as a wheel, and all its neighbours."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--progress-bar", "off", f"{PROJECT}[dev]", folder=folder)
    return python


@pytest.mark.parametrize("name", ["academy-py", "parsl", "globus-compute-sdk", "globus-compute-endpoint"])
def test_a_neighbour_is_installed(python: Path, name: str) -> None:
    """Without this, the next test could pass because a package was not asked for."""
    assert f"Name: {name}\n" in run(python, "-m", "pip", "show", name, folder=python.parent)


def test_nothing_asks_for_a_release_that_something_else_refuses(python: Path) -> None:
    assert "No broken requirements found." in run(python, "-m", "pip", "check", folder=python.parent)


def test_the_launchers_data_travels_in_the_wheel(python: Path) -> None:
    code = "import importlib.resources as r; print(*(f.name for f in r.files('academy_hpc._launchers').iterdir()))"
    packed = run(python, "-c", code, folder=python.parent).split()
    assert set(packed) == {path.name for path in (PROJECT / "launchers").iterdir()}


def test_an_installed_package_knows_its_sites(python: Path) -> None:
    code = "from academy_hpc import Site; print(Site.load('polaris').origin('scheduler'))"
    assert run(python, "-c", code, folder=python.parent).strip() == "packaged pbs.toml"
