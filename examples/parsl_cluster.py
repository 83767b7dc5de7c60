"""The pipeline of examples/pipeline.py on a cluster, by Parsl: ``python -m examples.parsl_cluster perlmutter m1234``.

The configuration is the one of the site in ``launchers/parsl``: print it to see what Parsl is told, or copy that file
and change it. ``python -m examples.parsl_cluster local`` runs on this machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from academy_hpc import ParslLauncher, parsl_config, spawn_http_exchange
from examples import pipeline

if __name__ == "__main__":
    site = sys.argv[1]
    options = {"account": sys.argv[2]} if len(sys.argv) > 2 else {}
    # In a folder that the nodes share. Two workers, since the pipeline has four agents, two in each.
    with tempfile.TemporaryDirectory(prefix="parsl-", dir=Path.cwd()) as folder:
        config = parsl_config(site, workers_per_node=2, run_dir=folder, **options)
        with spawn_http_exchange(port=0) as factory:
            asyncio.run(pipeline.main(factory, ParslLauncher(config)))
