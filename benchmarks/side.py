"""One measuring process: `python -m benchmarks.side --side academy --workload roundtrip --json FILE`.

Writes its figures and errors to FILE. Imports of the packages under test happen inside `main`: academy-py starts
its exchange with multiprocessing, which imports this module again in the child.
"""

import argparse
import json
import resource
from dataclasses import asdict
from pathlib import Path

__all__ = ["main"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side", description=__doc__)
    parser.add_argument("--side", required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--scale", default="full")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Run one workload on one side and write what was found."""
    from benchmarks.bench import Bench
    from benchmarks.scale import SCALES
    from benchmarks.sides import load
    from benchmarks.workloads import WORKLOADS

    options = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    bench = Bench(load(options.side), SCALES[options.scale])
    with bench.results.attempt(options.workload):
        WORKLOADS[options.workload](bench)
    options.json.write_text(json.dumps(asdict(bench.results)))


if __name__ == "__main__":
    main()
