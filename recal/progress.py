"""Callbacks that report progress."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of steps done and the number of steps in total."""


def silent(_done: int, _total: int) -> None:
    """Report nothing."""
