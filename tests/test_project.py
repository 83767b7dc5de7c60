"""Rules that hold for the package as a whole."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import academy_hpc

__all__: list[str] = []

PACKAGE = Path(academy_hpc.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# A module with such a name has no subject of its own.
VAGUE_NAMES = {"utils", "helpers", "common", "misc", "base", "core"}
LONGEST_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loaded_after(statement: str) -> set[str]:
    """The top-level packages that a fresh Python has loaded once it has run `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long it is, without what it says of itself: a docstring explains as many parameters as there are."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    spent = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno
    return (function.end_lineno or 0) - function.lineno - spent


@pytest.mark.parametrize("path", [path for path in SOURCES if path.read_text()], ids=module_name)
def test_every_module_says_which_of_its_names_are_for_others(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_type_checkers_see_the_public_names() -> None:
    """The stub is the pinned list: adding or moving a public name shows in two places."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    pinned = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert pinned == academy_hpc._EXPORTS
    assert sorted(academy_hpc.__all__) == sorted([*pinned, "__version__"])


@pytest.mark.parametrize("name", sorted(academy_hpc._EXPORTS))
def test_a_public_name_is_one_that_its_module_gives_to_others(name: str) -> None:
    module = importlib.import_module(academy_hpc._EXPORTS[name])
    assert name in module.__all__
    assert getattr(academy_hpc, name) is getattr(module, name)


def test_every_error_is_public() -> None:
    """Whoever has to catch an error can import it from the top."""
    errors = importlib.import_module("academy_hpc.errors")
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert classes <= set(academy_hpc.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = academy_hpc.no_such_name  # type: ignore[attr-defined]


def test_the_version_stands_in_one_place() -> None:
    assert importlib.metadata.version("academy_hpc") == academy_hpc.__version__


def test_no_module_has_a_name_without_a_subject() -> None:
    assert [str(path) for path in SOURCES if VAGUE_NAMES & set(module_name(path).split("."))] == []


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path}:{function.lineno} {function.name}"
        for path in SOURCES
        for function in functions(path)
        if lines(function) >= LONGEST_FUNCTION_LINES
    ]
    assert long == []


def test_importing_the_package_loads_no_framework() -> None:
    assert loaded_after("import academy_hpc") & {"aiohttp", "asyncio", "msgspec", "parsl", "psutil"} == set()


def test_the_exchange_process_does_not_load_the_launchers_packages() -> None:
    loaded = loaded_after("import academy_hpc.exchange.http.server")
    assert loaded & {"globus_compute_sdk", "globus_sdk", "parsl"} == set()
    assert "aiohttp" in loaded
