"""Measures academy_hpc beside the HTTP exchange of academy-py: ``python -m benchmarks``."""

__all__: list[str] = []
