"""What every workload gets: the side under test, the scale, the results, and a running exchange."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.process import disk_folder, find_listener, free_port
from benchmarks.results import Results
from benchmarks.scale import Scale
from benchmarks.sides import Side

__all__ = ["Bench", "Exchange"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A spawned exchange: its factory and its process."""

    factory: Any
    process: psutil.Process


@dataclass(frozen=True, slots=True)
class Bench:
    """One measuring process."""

    side: Side
    scale: Scale
    results: Results = field(default_factory=Results)

    @contextmanager
    def exchange(self, host: str = "127.0.0.1") -> Iterator[Exchange]:
        """Spawn an exchange on `host` for the time of the block, then kill it.

        How it stops when asked is measured by `lifecycle`; academy-py takes 5 s for it while a client listens.
        """
        port = free_port()
        with self._options() as options, self.side.spawn_http_exchange(host, port, **options) as factory:
            process = find_listener(port)
            try:
                yield Exchange(factory, process)
            finally:
                process.kill()

    @contextmanager
    def _options(self) -> Iterator[dict[str, Any]]:
        options = dict(self.side.options)
        if not options.pop("durable", False):
            yield options
            return
        with tempfile.TemporaryDirectory(dir=disk_folder(), prefix="academy-bench-") as folder:
            yield {"state_dir": Path(folder, "state"), **options}
