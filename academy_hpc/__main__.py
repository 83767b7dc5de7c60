"""``python -m academy_hpc``: the same as the command ``academy-hpc``."""

from __future__ import annotations

from academy_hpc.cli.command import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="python -m academy_hpc")
