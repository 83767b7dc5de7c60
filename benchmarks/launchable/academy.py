"""The agent of academy."""

from academy.agent import Agent, action

__all__ = ["Echo"]


class Echo(Agent):
    """Returns what it is given."""

    @action
    async def echo(self, payload: bytes) -> bytes:
        """Return it."""
        return payload
