"""The tests of academy_hpc."""
