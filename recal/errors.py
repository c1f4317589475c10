"""The errors that recal raises on purpose, each with the exit status of its kind."""

from __future__ import annotations


class RecalError(Exception):
    """Something failed; what had been computed is kept."""

    exit_code = 1


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
