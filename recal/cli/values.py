"""Types of options whose values are several: names, counts and numbers of channels."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import click

AS_ASSUMED = "as-assumed"


class Listed(click.ParamType[tuple[Any, ...]]):
    """Values separated by commas, such as `main,aux0`; a list of recal.toml is taken as it is.

    Args:
        name: The values as the help shows them.
        kind: Function that reads one value.
        wanted: Phrase for the values that are accepted.
        fits: Function that tells whether the values are accepted.
    """

    def __init__(
        self,
        name: str,
        kind: Callable[[str], Any],
        wanted: str = "",
        fits: Callable[[tuple[Any, ...]], bool] = lambda _: True,
    ) -> None:
        self.name, self.kind, self.wanted, self.fits = name, kind, wanted, fits

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Split the text at its commas and read each part."""
        parts = value.split(",") if isinstance(value, str) else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        try:
            found = tuple(self.kind(str(part).strip()) for part in parts)
            if self.fits(found):
                return found
        except (ValueError, ZeroDivisionError):
            pass
        return self.fail(f"expected {self.wanted}, got {value!r}.", param)


def counts(minimum: int = 1) -> Listed:
    """Return the type of integers from `minimum`, such as `1,8,64`."""
    wanted = f"integers from {minimum} such as 1,2,3"
    return Listed("n,n,...", int, wanted, lambda found: all(n >= minimum for n in found))


NAMES = Listed("a,b,...", str)


class Channels(Listed):
    """Numbers for the channels, or one for all of them; `1/255` is a number, too.

    Args:
        words: Words that are accepted instead of numbers.
    """

    def __init__(self, *words: str) -> None:
        wanted = "numbers such as 0.485,0.456,0.406, one for each channel or for all"
        super().__init__("r,g,b", Fraction, " or ".join((wanted, *words)))
        self._words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Return the numbers, or the word that was given."""
        if value in self._words:
            return value  # type: ignore[no-any-return]
        return tuple(map(float, super().convert(value, param, ctx)))
