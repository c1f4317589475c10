"""Images on object stores: addresses of fsspec, whose files are copied to the user's cache once.

Random draws of images touch every row group of a Parquet file and every block of a tar file, so
that copies are read sooner than their ranges, and by the same code as other files.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from recal.data.shards import spellings
from recal.errors import InputError, UsageError, reason
from recal.files import cache_folder, locked, whole_file

COPIED = frozenset({".tar", ".parquet", ".npy", ".npz"})
LISTS = frozenset({".txt", ".csv", ".tsv", ".json"})
# seconds to wait for another process that copies the same files
PATIENCE = 24 * 3600.0
OnBytes = Callable[[str, int, int], None]


def drop_bytes(_step: str, _done: int, _total: int) -> None:
    """Do nothing with the number of bytes."""


def is_address(data: str | Path) -> bool:
    """Whether a text is an address such as `s3://bucket/val.tar`, and no path."""
    return isinstance(data, str) and "://" in data


def local_data(data: str | Path, on_bytes: OnBytes = drop_bytes) -> Path:
    """Return the path of images: as it is, or for an address that of a copy in the user's cache.

    Files that have changed are copied again, into another folder of the cache.

    Args:
        data: A path, or an address of fsspec: of a .tar, .parquet, .npy or .npz file, of several
            with braces in the name, or of a folder, of which these files and lists of labels are
            copied.
        on_bytes: Called with the name of the file that is copied, and its bytes done and in total.

    Raises:
        UsageError: The package for the address is missing.
        InputError: There are no such files, or they cannot be read.
        RecalError: They cannot be copied.
    """
    if not is_address(data):
        return Path(data)
    address = str(data)
    try:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(address)
    except ImportError as error:
        raise UsageError(
            f"--data {address}: expected the package for it, got none ({reason(error)}). Install "
            "it, for s3 with pip install 'recal-bn[remote]'."
        ) from error
    except ValueError as error:
        raise InputError(f"{address}: expected an address, got {reason(error)}.") from error
    try:
        base, files = _files(store, path)
        identity = [(name, store.ukey(file)) for name, file in files.items()]
        sizes = {name: int(store.size(file) or 0) for name, file in files.items()}
    except Exception as error:  # each store has its own
        raise _unreadable(address, error) from error
    if not files:
        raise InputError(
            f"{address}: expected files of {', '.join(sorted(COPIED))}, got none. Folders of "
            "single images cannot be read from an address: pack them."
        )
    digest = hashlib.sha256(repr((address, identity)).encode()).hexdigest()[:16]
    folder = cache_folder() / "remote" / digest / (base or "data")
    with locked(folder.parent, wait=PATIENCE):
        missing = [name for name in files if not (folder / name).is_file()]
        needed, free = sum(map(sizes.__getitem__, missing)), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise InputError(
                f"{address}: expected room for {needed / 1e9:.1f} GB in {folder.parent}, got "
                f"{free / 1e9:.1f} GB. Set $XDG_CACHE_HOME to a larger disk."
            )
        for name in missing:
            _copy(store, files[name], folder / name, address, on_bytes)
    name = PurePosixPath(path).name
    return folder if path.rstrip("/").rpartition("/")[2] == base else folder / name


def _files(store: Any, path: str) -> tuple[str, dict[str, str]]:
    """Return the name of the folder, and the files by their names below it."""
    parent, _, last = path.rstrip("/").rpartition("/")
    if "{" in last or store.isfile(path):
        names = spellings(last)
        # `labels.npy` belongs to `images.npy`
        beside = [name.replace("images", "labels") for name in names if name.endswith(".npy")]
        found = {name: f"{parent}/{name}" for name in names}
        found |= {b: f"{parent}/{b}" for b in beside if store.isfile(f"{parent}/{b}")}
        return "", dict(sorted(found.items()))
    root = path.rstrip("/")
    names = sorted(file.removeprefix(f"{root}/") for file in store.find(root))
    wanted = [n for n in names if PurePosixPath(n).suffix.lower() in COPIED | LISTS]
    for name in wanted:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise InputError(f"'{name}' leads out of its folder. Refused.")
    if not any(PurePosixPath(name).suffix.lower() in COPIED for name in wanted):
        wanted = []
    return last, {name: f"{root}/{name}" for name in wanted}


def _copy(store: Any, file: str, target: Path, address: str, on_bytes: OnBytes) -> None:
    from fsspec.callbacks import Callback

    def told(size: int | None, value: int, **_more: object) -> None:
        on_bytes(target.name, value, size or 0)

    try:
        with whole_file(target) as partial:
            store.get_file(file, str(partial), callback=Callback(hooks={"told": told}))
    except Exception as error:
        raise _unreadable(address, error) from error


def _unreadable(address: str, error: Exception) -> Exception:
    if isinstance(error, InputError):
        return InputError(f"{address}: {error}")
    return InputError(f"{address}: cannot be read ({type(error).__name__}: {reason(error)}).")
