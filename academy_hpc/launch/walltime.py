"""How long a job may take, as people write it: schedulers read the same digits differently.

``30:00`` is half an hour to Slurm and PBS, and thirty hours to LSF; ``90`` is minutes to one and seconds to another. So
only what can't be mistaken is taken: ``2:00:00``, ``1-12:00:00`` (a day and a half), ``90m``, ``2h``, ``1d12h``.
"""

from __future__ import annotations

import re

__all__ = ["clock_text", "walltime_s"]

_CLOCK = re.compile(r"(?:(?P<d>\d{1,3})-)?(?P<h>\d{1,4}):(?P<m>[0-5]\d):(?P<s>[0-5]\d)")
_UNITS = re.compile(r"(?:(?P<d>\d{1,3})d)?(?:(?P<h>\d{1,4})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,7})s)?")
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def walltime_s(text: str) -> int:
    """Seconds of a duration such as ``"2:00:00"``, ``"1-12:00:00"``, ``"90m"`` or ``"1d12h"``.

    Raises:
        ValueError: It is written otherwise, or is nothing.
    """
    found = _CLOCK.fullmatch(text) or _UNITS.fullmatch(text)
    parts = {} if found is None else found.groupdict()
    seconds = sum(int(number) * _SECONDS[unit] for unit, number in parts.items() if number)
    if not seconds:
        raise ValueError(f"{text!r} is no walltime: write 2:00:00 (hours, minutes and seconds), 1-12:00:00, 90m or 2h")
    return seconds


def clock_text(seconds: int) -> str:
    """The same in hours, minutes and seconds, which all schedulers but LSF read: ``"02:00:00"``."""
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"
