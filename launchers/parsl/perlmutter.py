"""Parsl on Perlmutter. Sources: docs.nersc.gov and Globus Compute's docs/configs/perlmutter.yaml. Not run there."""

from parsl.config import Config
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc.launch.parsl import ParslBlocks

GPUS = 4


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("perlmutter")` gives: up to four workers of a GPU node have a GPU each."""
    site = blocks.site
    gpu = site.constraint is not None and site.constraint.startswith("gpu")
    provider = SlurmProvider(
        account=site.account,
        qos=site.qos,
        constraint=site.constraint,
        gpus_per_node=GPUS if gpu else None,
        walltime=blocks.walltime,
        scheduler_options=blocks.directives("#SBATCH"),
        # One manager of workers a node, with all of its cores, each twice.
        launcher=SrunLauncher(overrides=f"-c {128 if gpu else 256} --cpu-bind=none"),
        # The scheduler is slow at times.
        cmd_timeout=120,
        **blocks.counts,
    )
    share = gpu and 1 < blocks.workers_per_node <= GPUS
    return blocks.config(provider, available_accelerators=GPUS if share else ())
