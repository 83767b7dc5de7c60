"""Parsl on any machine with LSF, and a start for a file of your own. Not run on a real one."""

from parsl.config import Config
from parsl.launchers import JsrunLauncher
from parsl.providers import LSFProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("lsf")` gives."""
    site = blocks.site
    provider = LSFProvider(
        project=site.account,
        queue=site.queue,
        # LSF reads hours and minutes.
        walltime=blocks.walltime.rpartition(":")[0],
        scheduler_options=blocks.directives("#BSUB"),
        launcher=JsrunLauncher(overrides="--cpu_per_rs ALL_CPUS"),
        **blocks.counts,
    )
    return blocks.config(provider)
