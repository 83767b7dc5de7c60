"""The agent class that a command names: ``package.module:Class``, or ``folder/file.py:Class``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from academy_hpc.errors import LaunchError

if TYPE_CHECKING:
    from academy_hpc.agent import Agent

__all__ = ["load_agent_class"]


def load_agent_class(name: str) -> type[Agent]:
    """Import the class, from beside the current directory or beside its file, as workers will do.

    The folder comes to the front of ``sys.path``, from where a launch takes the folders of the program's modules.

    Raises:
        LaunchError: There is no such class, or its module can't be imported, and why.
    """
    from academy_hpc.agent import Agent

    module_name, separator, class_name = name.rpartition(":")
    if not (separator and module_name and class_name):
        raise LaunchError(f"{name!r} names no agent: say MODULE:CLASS or FILE.py:CLASS, such as sim.py:Simulator.")
    module = _imported_file(Path(module_name)) if module_name.endswith(".py") else _imported(module_name, Path.cwd())
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Agent)]
        own = ", ".join(key for key in classes if getattr(module, key).__module__ == module.__name__) or "none"
        what = "is no agent class" if found is not None else "does not exist"
        raise LaunchError(f"{class_name} of {module_name} {what}. Agent classes there: {own}.")
    return found


def _imported_file(path: Path) -> ModuleType:
    """The module in a file, under the name that it has for those who import it."""
    path = path.expanduser().absolute()
    if not path.is_file():
        raise LaunchError(f"There is no file {path}.")
    name, folder = path.stem, path.parent
    while (folder / "__init__.py").exists():
        name, folder = f"{folder.name}.{name}", folder.parent
    module = _imported(name, folder)
    there = getattr(module, "__file__", None)
    if there is None or Path(there).resolve() != path.resolve():
        other = there or "part of Python"
        raise LaunchError(f"{path} can't be imported: {name} is another module here, {other}. Rename the file.")
    return module


def _imported(name: str, folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise LaunchError(f"{name} can't be imported from {folder}: {type(error).__name__}: {error}.") from error
