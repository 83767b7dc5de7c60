"""Parsl on any machine with PBS Professional or OpenPBS, and a start for a file of your own."""

from parsl.config import Config
from parsl.launchers import MpiExecLauncher
from parsl.providers import PBSProProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("pbs")` gives, and every site with PBS that has no file here."""
    site = blocks.site
    provider = PBSProProvider(
        queue=site.queue,
        account=site.account,
        walltime=blocks.walltime,
        select_options=site.constraint or "",
        scheduler_options=blocks.directives(
            "#PBS", *([f"-l filesystems={site.filesystems}"] if site.filesystems else [])
        ),
        # MPICH and Cray PALS: one manager of workers a node. Open MPI has other words: --map-by ppr:1:node.
        launcher=MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--ppn 1"),
        cpus_per_node=1,
        **blocks.counts,
    )
    return blocks.config(provider)
