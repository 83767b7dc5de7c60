"""Parsl on any machine with Torque: workers on other nodes are started by its mpiexec or pbsdsh; blocks of one node."""

from parsl.config import Config
from parsl.launchers import SingleNodeLauncher
from parsl.providers import TorqueProvider

from academy_hpc.errors import LaunchError
from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config(...)` gives for a site with Torque."""
    site = blocks.site
    if blocks.nodes > 1:
        raise LaunchError("Parsl's blocks have one node here: give blocks=... instead of nodes=...")
    provider = TorqueProvider(
        queue=site.queue,
        account=site.account,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#PBS"),
        launcher=SingleNodeLauncher(),
        **blocks.counts,
    )
    return blocks.config(provider)
