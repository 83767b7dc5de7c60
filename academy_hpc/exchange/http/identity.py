"""What a durable exchange is known by: port, token and certificate, kept beside its state for the next start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import msgspec

from academy_hpc.errors import StoreError
from academy_hpc.exchange.http.certificate import Certificate
from academy_hpc.exchange.http.private_file import read_private, write_private

__all__ = ["Identity"]

FILE = "identity.json"


class Identity(msgspec.Struct, frozen=True):
    """Port, token and own certificate of an exchange. `repr` hides the secrets."""

    port: int
    token: str
    certificate: Certificate | None = None
    version: int = 1

    def __repr__(self) -> str:
        """The port."""
        return f"{type(self).__name__}(port={self.port})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("port", self.port)]

    @classmethod
    def read(cls, state_dir: Path) -> Self | None:
        """What `write` kept in `state_dir`; None where nothing is.

        Raises:
            StoreError: It can't be read, or others could have read it.
        """
        path = state_dir / FILE
        try:
            return msgspec.json.decode(read_private(path), type=cls)
        except FileNotFoundError:
            return None
        # The text of the file holds a secret, so msgspec's message, which names only places, is all that is told.
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path} can't be used: {error}. Mend it, or take another state directory.") from None

    def write(self, state_dir: Path) -> None:
        """Keep it in `state_dir`. Raises StoreError."""
        try:
            write_private(state_dir / FILE, msgspec.json.encode(self).decode())
        except OSError as error:
            raise StoreError(f"{state_dir / FILE} can't be written: {error}.") from None
