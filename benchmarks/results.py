"""What one measuring process found: figures by name, and what went wrong on the way."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

__all__ = ["Results"]


@dataclass(slots=True)
class Results:
    """Figures and errors of one side in one repetition of one workload."""

    figures: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def record(self, name: str, value: float) -> None:
        """Keep one figure."""
        self.figures[name] = value

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Note an error under `name` and go on: one failed figure must not cost the others."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any failure of the package under test is a result
            self.errors[name] = _describe(error)

    @asynccontextmanager
    async def attempt_within(self, name: str, limit_s: float) -> AsyncIterator[None]:
        """Like `attempt`, and give up after `limit_s` seconds."""
        with self.attempt(name):
            async with asyncio.timeout(limit_s):
                yield


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = str(error) or "no message"
    return f"{type(error).__name__}: {text[:400]}{where}"
