"""Parsl on any machine with Grid Engine: blocks of one node, since its provider starts workers on no other."""

from parsl.config import Config
from parsl.launchers import SingleNodeLauncher
from parsl.providers import GridEngineProvider

from academy_hpc.errors import LaunchError
from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("gridengine")` gives."""
    site = blocks.site
    if blocks.nodes > 1:
        raise LaunchError("Parsl's blocks have one node on Grid Engine: give blocks=... instead of nodes=...")
    own = [f"-A {site.account}"] if site.account else []
    environment = [f"-pe {site.parallel_environment} {blocks.workers_per_node}"] if site.parallel_environment else []
    provider = GridEngineProvider(
        queue=site.queue,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#$", *own, *environment),
        launcher=SingleNodeLauncher(),
        **blocks.counts,
    )
    return blocks.config(provider)
