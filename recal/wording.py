"""Words of messages: lists that are cut to a length, foreign values and suggestions."""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from typing import TYPE_CHECKING, Any

from recal.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path


MOST_CHARACTERS = 200

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = 100


def shown(value: object) -> str:
    """Return the repr of a value from outside: printable, and at most `MOST_CHARACTERS` long."""
    text = _repr.repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def listed(items: Iterable[object], most: int = 3) -> str:
    """Return `a, b and 3 more`: the first `most` items, and how many more there are."""
    words = [str(item) for item in items]
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to `word`, else an empty string."""
    near = difflib.get_close_matches(word[:100].lower(), sorted(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def pick(word: str, known: Collection[str], what: str) -> str:
    """Return `word` if it is one of `known`.

    Args:
        word: The word to look up.
        known: The accepted words.
        what: The option or value that is chosen, for the message.

    Raises:
        UsageError: It is not among them. The message lists them and suggests the nearest.
    """
    if word in known:
        return word
    raise UsageError(
        f"{what}: expected one of {', '.join(sorted(known))}, got {shown(word)}."
        f"{did_you_mean(word, known)}"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        InputError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected TOML, got {error}.") from error


def check_keys(
    table: Mapping[str, Any], known: Collection[str], where: str, required: Collection[str] = ()
) -> None:
    """Refuse unknown keys and missing required ones.

    Raises:
        InputError: With the place, the known keys and a suggestion.
    """
    for key in table:
        if key not in known:
            raise InputError(
                f"{where}: expected one of {', '.join(sorted(known))}, got '{key}'."
                f"{did_you_mean(key, known)}"
            )
    missing = [key for key in required if key not in table]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing. Add it.")


def check_type(value: Any, kind: type | tuple[type, ...], where: str) -> None:
    """Refuse a value of another type; an integer passes for a float, a boolean for nothing else.

    Raises:
        InputError: With the place, the expected type and the value.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    accepted = (*kinds, int) if float in kinds else kinds
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise InputError(f"{where}: expected {names}, got {value!r}.")
