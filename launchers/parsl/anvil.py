"""Parsl on Anvil. Sources: parsl/configs/anvil.py and Globus Compute's docs/configs/anvil.yaml. Not run there."""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("anvil")` gives: nodes are shared with other jobs, unless it asks for whole ones."""
    site = blocks.site
    provider = SlurmProvider(
        partition=site.queue,
        account=site.account,
        constraint=site.constraint,
        gres=site.gres,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#SBATCH"),
        # A worker of agents needs little: a core for each, and no node of its own.
        exclusive=False,
        cores_per_node=blocks.workers_per_node,
        launcher=SrunLauncher(overrides="--cpu-bind=none"),
        cmd_timeout=60,
        **blocks.counts,
    )
    return blocks.config(provider)
