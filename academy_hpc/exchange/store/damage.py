"""What a store says inside when a file of its own can't be what it wrote."""

from __future__ import annotations

__all__ = ["DamageError"]


class DamageError(Exception):
    """A file is not as it was written; the text says which and how."""
