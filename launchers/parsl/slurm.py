"""Parsl on any machine with Slurm, and a start for a file of your own."""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("slurm")` gives, and every site with Slurm that has no file here."""
    site = blocks.site
    provider = SlurmProvider(
        partition=site.queue,
        account=site.account,
        qos=site.qos,
        constraint=site.constraint,
        gres=site.gres,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#SBATCH"),
        # One manager of workers a node, with all of its cores.
        launcher=SrunLauncher(overrides=" ".join(site.starter_options) or "--cpu-bind=none"),
        cmd_timeout=60,
        **blocks.counts,
    )
    return blocks.config(provider)
