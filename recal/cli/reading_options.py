"""Options on how a checkpoint is read, shared by the commands that take one."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = ("layout", "roles", "ema")


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--layout`, `--roles`, `--ema`, passed as one dict `reading` for `load_checkpoint`."""

    @click.option("--layout", help="How the file spells its branches: a name, or a .toml file.")
    @click.option("--roles", help="Which position is which branch, such as main=1,aux0=0.")
    @click.option("--ema", is_flag=True, help="Take the averaged weights that the file holds.")
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        reading = {field: kwargs.pop(field) for field in FIELDS}
        return function(*args, reading=reading, **kwargs)

    return wrapper
