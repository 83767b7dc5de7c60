"""Parsl on Frontier. Sources: the OLCF user guide and software/workflows/parsl.rst. Not run there."""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc.launch.parsl import ParslBlocks

CORES = 56  # of 64: with its default -S 8, Slurm keeps the first of each L3 region for the system
GPUS = 8


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("frontier")` gives: nodes are whole, and each has eight GPUs."""
    site = blocks.site
    provider = SlurmProvider(
        partition=site.queue,
        account=site.account,
        qos=site.qos,
        constraint=site.constraint,
        gpus_per_node=GPUS,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#SBATCH"),
        # One manager of workers a node.
        launcher=SrunLauncher(overrides=f"-c {CORES} --gpus-per-task={GPUS} --cpu-bind=none"),
        cmd_timeout=60,
        **blocks.counts,
    )
    return blocks.config(provider)
