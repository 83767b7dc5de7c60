"""Measure academy_hpc beside academy-py 1.0.0 over HTTP, on this machine, in one interleaved run.

Each workload runs in fresh processes on 127.0.0.1, first on one side, then on the other, again and again; the table
gives medians, the range, the ratio of the medians, and whether the target for the ratio is met. A second table has
round trips of academy_hpc with TLS, with a state directory on a disk, and with both, beside those without. Exchange
and agents run as their own package starts them (academy_hpc: on uvloop where it is installed), the measuring user
process on asyncio.
"""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.report import table, variants_table
from benchmarks.runner import Outcome, measure_interleaved
from benchmarks.scale import SCALES
from benchmarks.sides import SIDES, VARIANTS

__all__ = ["main"]

#: Spelled out, not imported: the workloads' modules load packages that only measuring processes need.
WORKLOADS = ("roundtrip", "fleet", "oneway", "registry", "idle", "lifecycle", "launch")
ON_REQUEST = ("slurm",)

_NAMES = f"{', '.join(WORKLOADS)}; on a login node with Slurm, also slurm"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, help="repetitions of each workload and side (default 5; 2 if quick)")
    parser.add_argument("--only", action="append", choices=(*WORKLOADS, *ON_REQUEST), metavar="NAME", help=_NAMES)
    parser.add_argument("--side", action="append", choices=(*SIDES, *VARIANTS), help="measure one side alone")
    parser.add_argument("--scale", choices=SCALES, default="full", help="how much each workload does")
    parser.add_argument("--quick", action="store_const", const="quick", dest="scale", help="same as --scale quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every raw figure to FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; return 1 where a figure could not be measured, 130 after Ctrl-C, else 0."""
    options = _arguments(arguments)
    scale = SCALES[options.scale]
    repeats = options.repeats or scale.repeats
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    outcomes: list[Outcome] = []
    status = 0
    try:
        for outcome in measure_interleaved(
            options.only or WORKLOADS, sides=options.side or (*SIDES, *VARIANTS), repeats=repeats, scale=scale.name
        ):
            outcomes.append(outcome)
            _show_progress(outcome, repeats)
    except KeyboardInterrupt:
        status = 130
        print("interrupted: the table covers what was measured so far", file=sys.stderr)
    print(f"\n{_machine()}; {scale.name}, {repeats} repetitions, median [min - max]\n\n{table(outcomes, scale)}")
    print(variants_table(outcomes, scale))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return status or int(any(outcome.errors for outcome in outcomes))


def _show_progress(outcome: Outcome, repeats: int) -> None:
    state = "" if not outcome.errors else f", {len(outcome.errors)} error(s)"
    name = f"[{outcome.repeat + 1}/{repeats}] {outcome.workload:10} {outcome.side:23}"
    print(f"{name} {outcome.seconds:5.1f} s{state}", file=sys.stderr, flush=True)


def _machine() -> str:
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
