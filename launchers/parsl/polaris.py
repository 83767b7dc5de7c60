"""Parsl on Polaris. Sources: the ALCF user guides and parsl/configs/polaris.py. Not run there."""

from parsl.config import Config
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

from academy_hpc.launch.parsl import ParslBlocks

GPUS = 4


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("polaris")` gives: up to four workers a node have a GPU each."""
    site = blocks.site
    provider = PBSProProvider(
        queue=site.queue,
        account=site.account,
        walltime=blocks.walltime,
        select_options=f"ngpus={GPUS}:{site.constraint}" if site.constraint else f"ngpus={GPUS}",
        scheduler_options=blocks.directives("#PBS", f"-l filesystems={site.filesystems}"),
        # One manager of workers a node, with all of its 32 cores, each twice.
        launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1"),
        cpus_per_node=64,
        **blocks.counts,
    )
    return blocks.config(provider, available_accelerators=GPUS if 1 < blocks.workers_per_node <= GPUS else ())
