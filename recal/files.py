"""Folders that recal knows; reading text files, and writing files whole or not at all."""

import csv
import io
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from recal.errors import InputError, LockedError, RecalError

PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """Return the folder of shipped declarations of a kind, `policies` or `evals`.

    It is `recal/_data/<kind>` in an installed wheel, and beside the package in a checkout.
    """
    installed = PACKAGE / "_data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def sample_folder() -> Path:
    """Return the folder of the bundled checkpoints and images."""
    return PACKAGE / "sample"


def cache_folder() -> Path:
    """Return recal's folder in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recal"


def data_folders() -> list[Path]:
    """Return the folders that are searched for data sets without `--data`, in order."""
    environment = os.environ.get("RECAL_DATA")
    named = [Path(environment)] if environment else []
    return [*named, Path("data"), cache_folder() / "data", sample_folder()]


def sample_checkpoint(family: str = "sample") -> Path:
    """Return the bundled checkpoint for a family, `sample` (Fashion-MNIST) or `cifar`."""
    network = (
        "cifar10_wrn16_1_splitbn_noise" if family == "cifar" else "fashion_mnist_wrn10_1_splitbn"
    )
    return sample_folder() / f"{network}.pth"


def sample_images() -> Path:
    """Return the folder with the bundled images, `train.npz` and `test.npz`."""
    return sample_folder() / "fashion-mnist"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` when the block succeeds.

    The file is synced before it is renamed. If the block fails, the temporary file is removed, and
    an existing file at `path` is unchanged.

    Raises:
        RecalError: The folder cannot be written or the disk is full.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise RecalError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes or UTF-8 text to `path`, whole or not at all.

    Raises:
        RecalError: The folder cannot be written or the disk is full.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


# seconds: how often the holder of a lock renews it, and after what time without it counts as dead;
# network file systems show a renewal to other machines after a minute at most
RENEWED, DEAD = 5.0, 120.0
# seconds between two looks at the lock of another process
POLLED = 0.5


@contextmanager
def locked(
    folder: Path, name: str = ".lock", *, what: str = "", wait: float = 0.0
) -> Iterator[None]:
    """Make a folder, and lock it against processes of this and other machines inside the block.

    The lock is a file with the name of its process, as shared folders need it. That of a dead
    process is taken over: at once on its own machine, after two minutes on others.

    Args:
        folder: The folder.
        name: Name of the lock's file in it.
        what: What is locked, for messages; by default the folder.
        wait: Seconds to wait for another process that is alive.

    Raises:
        LockedError: Another process is at work in it.
        RecalError: The folder cannot be written.
    """
    path = folder / name
    lock = filelock.SoftFileLease(path, lease_duration=DEAD, heartbeat_interval=RENEWED)
    renewed: int | None = None
    begun = time.monotonic()

    def is_alive() -> bool:
        nonlocal renewed
        if time.monotonic() < begun + wait:
            return False
        owner = lock.owner
        if owner is not None and owner.hostname == socket.gethostname():
            return True  # a dead one would have been noticed
        try:
            last = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        renewed, before = last, renewed
        return before is not None and last != before

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait + 2 * DEAD, poll_interval=POLLED, cancel_check=is_alive)
    except filelock.Timeout as error:
        owner = lock.owner
        who = "" if owner is None else f" (process {owner.pid} on {owner.hostname})"
        raise LockedError(
            f"{folder}: another recal process writes to {what or 'it'}{who}. Wait for it, or "
            "choose another folder with -o."
        ) from error
    except OSError as error:
        raise RecalError(f"{folder}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        lock.release()


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file, with line ends as newlines.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got other bytes.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}).") from error


def require_file(path: Path, what: str) -> None:
    """Check that a path is a file.

    Raises:
        InputError: It is missing, or a folder.
    """
    if not path.is_file():
        found = "got a folder" if path.is_dir() else "but it does not exist"
        raise InputError(f"{path}: expected {what}, {found}.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows that share their keys as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
