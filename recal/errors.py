"""The errors that recal raises on purpose, each with its exit status; how foreign text is quoted.

Messages quote text from outside: names and metadata in files, and what other libraries say. Such
text can be of any length and can hold terminal escapes, so that every error and every warning of
the command goes through `printable`.
"""

# where the middle of a longer text is left out; place and advice stand at its ends
OMITTED = " [...] "
LONGEST = 1_500
LONGEST_REASON = 800


class RecalError(Exception):
    """Something failed; what had been computed is kept.

    Args:
        message: One line of text, which is made printable.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class UsageError(RecalError):
    """The request itself is wrong: an unknown name, options that contradict each other."""

    exit_code = 2


class InputError(RecalError):
    """A file, folder or array is not what it has to be."""

    exit_code = 3


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
