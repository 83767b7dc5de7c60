"""Schedulers that can't be had here, with stand-ins for their commands."""
