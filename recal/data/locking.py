"""Keeping a second process out of a folder that is being written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from recal.errors import RecalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; a killed process leaves none behind.

    Raises:
        RecalError: Another process holds it, or the folder cannot be made.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise RecalError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows has none; there it is for the user not to start two
            pass
        except OSError as error:
            raise RecalError(
                f"{folder}: another process is at work there. Wait for it, or choose another."
            ) from error
        yield
        path.unlink(missing_ok=True)
