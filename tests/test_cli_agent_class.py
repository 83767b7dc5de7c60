"""The agent class that a command line names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy_hpc.cli.agent_class import load_agent_class
from academy_hpc.errors import LaunchError
from academy_hpc.launch.source import ByReference, source_of
from academy_hpc.launch.spec import import_folders

__all__: list[str] = []

MODULE = "from academy_hpc import Agent\nclass {}(Agent): ...\nnumber = 1\n"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty directory; what is imported is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_class_in_a_file_travels_by_reference_with_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a-model.py").write_text(MODULE.format("Model"))
    found = load_agent_class("models/a-model.py:Model")
    assert source_of(found) == ByReference("a-model:Model")
    assert import_folders().first[0] == str(tmp_path / "models")


def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path) -> None:
    package = tmp_path / "weather" / "models"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "rain.py").write_text("from . import shared\n" + MODULE.format("Rain"))
    (package / "shared.py").touch()
    assert load_agent_class("weather/models/rain.py:Rain").__module__ == "weather.models.rain"
    assert import_folders().first[0] == str(tmp_path)


def test_a_module_is_looked_for_in_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(MODULE.format("Here"))
    assert load_agent_class("here:Here").__name__ == "Here"
    assert import_folders().first[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sim", "'sim' names no agent: say MODULE:CLASS or FILE.py:CLASS"),
        (":Sim", "':Sim' names no agent"),
        ("none.py:Sim", "There is no file "),
        ("none_there:Sim", "none_there can't be imported from "),
        ("good.py:Sim", "Sim of good.py does not exist. Agent classes there: Good."),
        ("good.py:number", "number of good.py is no agent class. Agent classes there: Good."),
        ("good.py:Agent.__init__", "does not exist"),
        ("broken.py:Sim", "broken can't be imported from .*: ZeroDivisionError: division by zero."),
        ("leaves.py:Sim", "leaves can't be imported from .*: SystemExit: 3."),
        ("json.py:Sim", "json is another module here, .*. Rename the file."),
        ("a.b.py:Sim", "a.b can't be imported from "),
    ],
)
def test_what_keeps_a_class_from_being_found_is_told(tmp_path: Path, name: str, said: str) -> None:
    files = {"good": MODULE.format("Good"), "broken": "1 / 0", "leaves": "raise SystemExit(3)", "json": "", "a.b": ""}
    for stem, text in files.items():
        (tmp_path / f"{stem}.py").write_text(text)
    with pytest.raises(LaunchError, match=said) as raised:
        load_agent_class(name)
    assert "\n" not in str(raised.value)
