"""The errors that recal raises on purpose, each with its exit status, and the words of messages.

Messages quote text from outside: names and metadata in files, and what other libraries say. Such
text can be of any length and can hold terminal escapes, so that every error and every warning of
the command goes through `printable`.
"""

import difflib
import re
import reprlib
from collections.abc import Collection, Iterable

# where the middle of a longer text is left out; place and advice stand at its ends
OMITTED = " [...] "
LONGEST = 1_500
LONGEST_REASON = 800
LONGEST_SHOWN = 200
MOST_MEANT = 4

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = 100


class RecalError(Exception):
    """Something failed; what had been computed is kept.

    Args:
        message: One line of text, which is made printable.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RecalWarning(UserWarning):
    """A result is not all that was asked for."""


class UsageError(RecalError):
    """The request itself is wrong: an unknown name, options that contradict each other."""

    exit_code = 2


class InputError(RecalError):
    """A file, folder or array is not what it has to be."""

    exit_code = 3


class LockedError(RecalError):
    """Another process is at work where only one may be."""


class BrokenImageError(InputError):
    """An image cannot be decoded."""


class VerificationError(RecalError):
    """A result does not agree with what it claims to be."""

    exit_code = 4


def printable(text: str) -> str:
    r"""Return a text as one line of at most `LONGEST` printable characters.

    Control characters, line breaks, terminal escapes, invisible characters and lone surrogates
    are spelled as in Python (`\n`, `\x1b`, `\u202e`, `\udc80`). The middle of a longer text is
    left out. A text that this function returned is returned as it is.
    """
    return _shortened("".join(map(_spelled, _shortened(text, LONGEST))), LONGEST)


def reason(error: BaseException) -> str:
    """Return the first line of another library's error, shortened, or its type if it says nothing.

    The line has no full stop at its end.
    """
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return _shortened(first.rstrip("."), LONGEST_REASON)


def _spelled(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = (longest - len(OMITTED)) // 2
    return f"{text[: longest - len(OMITTED) - tail]}{OMITTED}{text[-tail:]}"


def shown(value: object) -> str:
    """Return the repr of a value from outside: printable, and at most `LONGEST_SHOWN` long."""
    text = _repr.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def listed(items: Iterable[object], most: int = 3) -> str:
    """Return `a, b and 3 more`: the first `most` items, and how many more there are."""
    words = [str(item) for item in items]
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return ` Did you mean 'x'?` for the known words nearest to `word`, else an empty string.

    They are those of which it is a part, as `pgd` is of `cifar10-pgd`, or the most similar one.
    """
    asked = word[:100].lower()
    near = [name for name in sorted(known) if asked in re.split("[-_]", name)][:MOST_MEANT]
    near = near or difflib.get_close_matches(asked, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


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
