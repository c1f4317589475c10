"""What an op's argument may be: read from the annotations of the op's function."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from recal.declared import check_keys, check_type, did_you_mean
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both included; with `items`, a list of so many of them."""

    low: float
    high: float
    items: int | None = None

    def __str__(self) -> str:
        numbers = f"{self.low:g} to {self.high:g}"
        return numbers if self.items is None else f"{self.items} numbers of {numbers}"


Side = Annotated[int, Between(1, 16384)]
Pixels = Annotated[int, Between(0, 16384)]
Share = Annotated[float, Between(0, 1)]
Colour = Annotated[list[int], Between(0, 255, items=3)]


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that a keyword-only function does not take as its annotations say.

    Args:
        function: Annotated with plain types, `Literal` of strings, or `Annotated` with a `Between`.
        given: The arguments by name.
        where: For messages.

    Raises:
        InputError: One is unknown or missing, of another type or out of its range.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    defaults = function.__kwdefaults__ or {}
    check_keys(given, list(hints), where, [name for name in hints if name not in defaults])
    for name, value in given.items():
        _check(value, hints[name], f"{where}: {name}")


def allowed(hint: Any) -> str:
    """Return what an annotation allows, for people."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is Annotated:
        return str(typing.get_args(hint)[1])
    return "true, false" if hint is bool else str(hint.__name__)


def _check(value: Any, hint: Any, where: str) -> None:
    if typing.get_origin(hint) is Literal:
        check_type(value, str, where)
        names = typing.get_args(hint)
        if value not in names:
            raise InputError(
                f"{where}: expected one of {allowed(hint)}, got '{value}'."
                f"{did_you_mean(value, names)}"
            )
    elif typing.get_origin(hint) is Annotated:
        kind, bounds = typing.get_args(hint)
        check_type(value, typing.get_origin(kind) or kind, where)
        numbers = value if bounds.items is not None else [value]
        if bounds.items is not None:
            (number,) = typing.get_args(kind)
            for each in numbers:
                check_type(each, number, where)
        if len(numbers) != (bounds.items or 1) or not all(
            bounds.low <= each <= bounds.high for each in numbers
        ):
            raise InputError(f"{where}: expected {bounds}, got {value!r}.")
    else:
        check_type(value, hint, where)
