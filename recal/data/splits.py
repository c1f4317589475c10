"""The splits of a data set, which the names of its folders, tar files and shards give."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from recal.data.images import is_hidden, is_image_name
from recal.errors import InputError, listed

TRAIN, TEST = "train", "test"
# the words for each split; where there are several folders, the first word's is the likeliest
WORDS = {TRAIN: ("train", "training"), TEST: ("test", "testing", "val", "valid", "validation")}
_WORD = "|".join(word for words in WORDS.values() for word in words)
_FOLDER = re.compile(
    rf"(?:ilsvrc2012_img_|imagenet[-_])?({_WORD})(?:[-_ ]?(?:set|images|imgs|data))?", re.IGNORECASE
)
_SHARD = re.compile(rf"(?:.*[-_.])?({_WORD})(?:[-_.]?\d[-_.\da-z]*)?", re.IGNORECASE)


def split_word(name: str) -> str | None:
    """Return the word for a split in a folder's name, such as `val` in `val_images`, or None."""
    found = _FOLDER.fullmatch(name)
    return found[1].lower() if found else None


def shard_word(stem: str) -> str | None:
    """Return the word for a split in a file's name, such as `val` in `imagenet-val-0001`, or None.

    It is the last word, or is followed by a number.
    """
    found = _SHARD.fullmatch(stem)
    return found[1].lower() if found else None


def outermost_split(path: str) -> str | None:
    """Return the part of a path with slashes that ends at its first folder of a split, or None."""
    folders = path.split("/")[:-1]
    depth = next((i for i, name in enumerate(folders) if split_word(name)), None)
    return None if depth is None else "/".join(folders[: depth + 1])


def choose_folders(
    folders: Iterable[str], split: str, where: Path, *, beside: str = ""
) -> list[str]:
    """Return the folders of a split, the likeliest first; empty if there are only other splits.

    Args:
        folders: Paths of all folders of splits below `where`, with slashes.
        split: `train` or `test`.
        where: The data set, for messages.
        beside: An image that lies in none of them; empty if there is none.

    Raises:
        InputError: They are the splits of several data sets, or of a part of the images: which
            images are meant cannot be told.
    """
    found = sorted(set(folders))
    parents = sorted({path.rpartition("/")[0] for path in found})
    # beside the splits of the folder itself, people keep samples, masks and the like
    unclear = len(parents) > 1 or (beside and parents != [""])
    if unclear:
        also = f" beside {beside}" if beside else ""
        places = listed((f"'{path}'" for path in found), 4)
        raise InputError(
            f"{where}: expected one data set, got the splits {places}{also}. Name the folder of "
            f"one data set, such as {where / parents[-1]}, or of one split."
        )
    words = WORDS[split]
    mine = [path for path in found if split_word(path.rpartition("/")[2]) in words]
    return sorted(mine, key=lambda path: words.index(split_word(path.rpartition("/")[2]) or ""))


def find_splits(folder: Path) -> tuple[list[str], Sequence[str]]:
    """Return the paths of the folders of splits below a folder, and of the images beside them.

    Both are with slashes. If the folder holds such folders itself, nothing else is looked at. A
    folder of a split without images, such as one of annotations, does not count.
    """
    top = [entry.name for entry in os.scandir(folder) if entry.is_dir() and split_word(entry.name)]
    if top:
        return top, ()
    splits: list[str] = []
    images = list(_walk(folder, "", splits, ()))
    return [path for path in splits if next(_walk(folder / path, "", None, ()), None)], images


def images_below(folder: Path) -> list[str]:
    """Return the paths of the images below a folder, with slashes, sorted folder by folder."""
    return sorted(_walk(folder, "", None, ()), key=lambda name: name.split("/"))


def _walk(
    folder: Path, prefix: str, splits: list[str] | None, above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    """Yield the images below a folder; folders of splits are noted in `splits`, not entered.

    Links to folders are followed, but not to one of those `above` (device and inode).
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                if splits is not None and split_word(entry.name):
                    splits.append(prefix + entry.name)
                else:
                    yield from _walk(
                        Path(entry.path), f"{prefix}{entry.name}/", splits, (*above, here)
                    )
            elif is_image_name(entry.name) and entry.is_file():
                yield prefix + entry.name
