"""The files of ``launchers/``: templates of job scripts, profiles of sites, configurations for Parsl.

An installed package has them inside, as ``academy_hpc/_launchers``; in a checkout, also one installed to be edited,
they are beside it.
"""

from __future__ import annotations

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path

from academy_hpc.errors import LaunchError

__all__ = ["data_file", "data_names", "read_data"]

PACKAGE = "academy_hpc"


def read_data(path: str) -> str:
    """The text of one of the files.

    Args:
        path: Such as ``"templates/slurm.sh"``.

    Raises:
        LaunchError: There is no such file.
    """
    return data_file(path).read_text(encoding="utf-8")


def data_file(path: str) -> Traversable:
    """One of the files, such as ``"parsl/polaris.py"``. Raises LaunchError: there is none."""
    file = _root().joinpath(*path.split("/"))
    if not file.is_file():
        raise LaunchError(f"academy_hpc has no file {file}: it was not installed as a whole. Install it again.")
    return file


def data_names(folder: str, suffix: str) -> list[str]:
    """What the files of a folder are called, without their suffix, in order: ``data_names("sites", ".toml")``."""
    files = _root().joinpath(folder)
    names = [file.name for file in files.iterdir()] if files.is_dir() else []
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def _root() -> Traversable:
    package = importlib.resources.files(PACKAGE)
    packed = package / "_launchers"
    # A wheel's folder is looked for first: beside an installed package, "launchers" would be somebody else's.
    return packed if packed.is_dir() else Path(str(package)).parent / "launchers"
