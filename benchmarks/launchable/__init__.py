"""The agent that is launched, in a module for each side: workers import it by name."""

__all__: list[str] = []
