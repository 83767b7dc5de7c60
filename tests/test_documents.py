"""The Python in README.md and docs/ runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

__all__: list[str] = []

PROJECT = Path(__file__).parent.parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `print(...)  # text` in a document promises that line of output.
PROMISE = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)
BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(PROJECT)}-{number}")
    for page in PAGES
    for number, code in enumerate(BLOCK.findall(page.read_text()), 1)
]


@pytest.mark.parametrize("code", BLOCKS)
def test_a_code_block_runs_and_prints_what_it_says(code: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(code)
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == PROMISE.findall(code)
