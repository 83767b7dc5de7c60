"""Parsl on this machine: one block of processes."""

from parsl.config import Config
from parsl.providers import LocalProvider

from academy_hpc.launch.parsl import ParslBlocks


def config(blocks: ParslBlocks) -> Config:
    """What `parsl_config("local")` gives."""
    return blocks.config(LocalProvider(**blocks.counts))
