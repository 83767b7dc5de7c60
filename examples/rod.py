"""The agents of the demo: pieces of a metal rod along which heat flows.

Each piece computes its own cells. For the two at its ends it needs the neighbours' cells, and asks them for those.
"""

from __future__ import annotations

import asyncio
import os

from academy_hpc import Agent, Handle, action

FLOW = 0.4  # of the difference between two cells, in one step
HOT, COLD = 100.0, 0.0  # what the rod's two ends are held at


class Piece(Agent):
    """Cells of the rod, and who has the cells beside them."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = [COLD] * cells
        self.left: Handle[Piece] | None = None
        self.right: Handle[Piece] | None = None
        self.ends: list[tuple[float, float]] = []  # the first and the last cell before each step
        self.stepped = asyncio.Condition()

    @action
    async def connect(self, left: Handle[Piece] | None, right: Handle[Piece] | None) -> int:
        """Get to know the neighbours; tell the process this runs in."""
        self.left, self.right = left, right
        return os.getpid()

    @action
    async def end_cells(self, step: int) -> tuple[float, float]:
        """The first and the last cell before `step`; a neighbour that is ahead waits here."""
        async with self.stepped:
            await self.stepped.wait_for(lambda: len(self.ends) > step)
        return self.ends[step]

    @action
    async def simulate(self, steps: int) -> list[float]:
        """Go through all steps, in step with the neighbours."""
        for step in range(steps):
            async with self.stepped:
                self.ends.append((self.cells[0], self.cells[-1]))
                self.stepped.notify_all()
            before, after = await asyncio.gather(self.beside(self.left, step, HOT), self.beside(self.right, step, COLD))
            self.cells = flow([before[1], *self.cells, after[0]])
        return self.cells

    async def beside(self, neighbour: Handle[Piece] | None, step: int, outside: float) -> tuple[float, float]:
        """The ends of a neighbour, or what is outside of the rod."""
        return (outside, outside) if neighbour is None else await neighbour.end_cells(step)


def flow(cells: list[float]) -> list[float]:
    """All cells but the outermost, one step later."""
    return [
        here + FLOW * ((left - here) + (right - here)) / 2
        for left, here, right in zip(cells, cells[1:], cells[2:], strict=False)
    ]
