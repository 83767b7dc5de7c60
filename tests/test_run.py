"""The directory of a run, on file systems that are full or shared with others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from academy_hpc.launch.run import Run

__all__: list[str] = []

FULL = """
import resource, signal, sys
from pathlib import Path
from academy_hpc.errors import LaunchError
from academy_hpc.launch.run import Run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = Run(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    run.record_job("4712")
except LaunchError as error:
    print(error)
"""


def test_a_job_id_that_finds_no_room_on_the_disk_is_told_and_costs_no_other(tmp_path: Path) -> None:
    run = Run.create("test", runs=tmp_path)
    run.record_job("4711")
    done = subprocess.run([sys.executable, "-c", FULL, str(run.path)], capture_output=True, text=True, check=True)
    assert f"{run.path / 'jobs.jsonl'} can't be written" in done.stdout
    run.record_job("4713")
    assert [record.job_id for record in run.jobs()] == ["4711", "4713"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_directories_of_others_among_the_runs_are_passed_over() -> None:
    """As in a folder of a project."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        _look_as_another_user(Path(folder))


def _look_as_another_user(folder: Path) -> None:
    run = Run.create("theirs", runs=folder)
    code = "import os, sys; os.setuid(65534)\nfrom pathlib import Path\nprint(Run.all(runs=Path(sys.argv[1])))"
    code = f"from academy_hpc.launch.run import Run\n{code}"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert [one.id for one in Run.all(runs=folder)] == [run.id]
