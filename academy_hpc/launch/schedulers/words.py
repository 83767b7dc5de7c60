"""What the directives of several schedulers have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.script import directive_word

__all__ = ["options", "refuse", "tolerant"]

_TOLERANT = """harmless=$1
shift
said=$("$@" 2>&1)
code=$?
[ $code = 0 ] || grep -Eq "$harmless" <<<"$said" || { echo "$said" >&2; exit $code; }
echo "$said"
"""


def options(words: Iterable[tuple[str, str, str | None]]) -> list[str]:
    """Directives for the values that are given.

    Args:
        words: What the scheduler calls the option, with the ``=`` or space that follows; our name of it, for errors;
            its value.

    Raises:
        LaunchError: A value can't be said.
    """
    return [f"{flag}{directive_word(value, name)}" for flag, name, value in words if value is not None]


def refuse(request: JobRequest, title: str, *names: str) -> None:
    """Raises LaunchError: the request has an option that this scheduler has no word for."""
    for name in names:
        if getattr(request, name) is not None:
            raise LaunchError(f"{title} has no word for {name}={getattr(request, name)!r}: use directives.")


def tolerant(command: Sequence[str], harmless: str) -> list[str]:
    """A command, whose further arguments follow, and whose failure is none when it says `harmless`.

    Args:
        command: Its words.
        harmless: An extended regular expression.
    """
    return ["bash", "-c", _TOLERANT, command[0], harmless, *command]
