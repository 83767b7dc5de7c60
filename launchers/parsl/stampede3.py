"""Parsl on Stampede3. Source: TACC's documentation, docs/hpc/3stampede/running.md. Not run there.

TACC's rules have agents run on compute nodes only, and so does what starts them: use this from inside a job.
"""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("stampede3")` gives: TACC's Slurm has no --mem, no --gres and whole nodes only."""
    site = blocks.site
    provider = SlurmProvider(
        partition=site.queue,
        account=site.account,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#SBATCH"),
        # Nodes are never shared, and TACC does not document the option.
        exclusive=False,
        launcher=SrunLauncher(overrides="--cpu-bind=none"),
        cmd_timeout=60,
        **blocks.counts,
    )
    return blocks.config(provider)
