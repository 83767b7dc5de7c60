"""Text for shells and schedulers: the one place where anything is quoted or filled into a template."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

from academy_hpc.errors import LaunchError

__all__ = ["directive_word", "fill", "one_line", "quote", "quote_all"]

_PLACEHOLDER = re.compile(r"@\{(\w+)\}")
_PLAIN_WORD = re.compile(r"[\w@%+=:,./~^-]+", re.ASCII)


def one_line(text: str, what: str) -> str:
    """`text` itself. Raises LaunchError: it has a line break or another control character, which nothing can quote."""
    if not text.isprintable() and any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise LaunchError(f"{what} has a line break or another control character: {text!r}.")
    return text


def quote(text: str, what: str = "A word of the script") -> str:
    """One word for a shell. Raises LaunchError: it can't be written on one line."""
    return shlex.quote(one_line(text, what))


def quote_all(words: Iterable[str], what: str = "A word of the script") -> str:
    """A command for a shell. Raises LaunchError."""
    return " ".join(quote(word, what) for word in words)


def directive_word(text: str, what: str) -> str:
    """One word for the lines that schedulers read, each with rules of its own: all take plain double quotes.

    Args:
        text: The word.
        what: The option it is from, for the error.

    Raises:
        LaunchError: It has characters that some scheduler would take for more than themselves.
    """
    one_line(text, what)
    if found := set(text) & set("\"'\\`$"):
        raise LaunchError(f"{what} has {' and '.join(sorted(found))}, which schedulers can't read: {text!r}.")
    return text if _PLAIN_WORD.fullmatch(text) else f'"{text}"'


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with each ``@{name}`` replaced. Raises KeyError: a name is not among `values`."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)
