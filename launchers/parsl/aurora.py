"""Parsl on Aurora. Sources: the ALCF user guides, docs/aurora/workflows/parsl.md. Not run there."""

from parsl.config import Config
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

from academy_hpc.launch.parsl import ParslBlocks

TILES = [f"{gpu}.{tile}" for gpu in range(6) for tile in range(2)]


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("aurora")` gives: up to twelve workers a node have a tile of a GPU each."""
    site = blocks.site
    provider = PBSProProvider(
        queue=site.queue,
        account=site.account,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#PBS", f"-l filesystems={site.filesystems}"),
        # One manager of workers a node.
        launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--ppn 1"),
        cpus_per_node=208,
        **blocks.counts,
    )
    return blocks.config(provider, available_accelerators=TILES if 1 < blocks.workers_per_node <= len(TILES) else ())
