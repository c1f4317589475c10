"""Names of shards: the many numbered tar or Parquet files of one data set."""

import re
from collections.abc import Sequence
from pathlib import Path

from recal.data.splits import WORDS, shard_word
from recal.errors import InputError, listed

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_NUMBER = re.compile(r"(\d+)-of-(\d+)")
MOST_FILES = 100_000


def expanded(path: Path) -> list[Path]:
    """Return the files that a path with braces names, as in `val-{000..127}.tar` or `{a,b}.tar`.

    A path without braces, or one that exists, is returned as it is.

    Raises:
        InputError: One of the files does not exist.
    """
    text = str(path)
    if path.exists() or not _BRACES.search(text):
        return [path]
    files = [Path(name) for name in spellings(text)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{path}: expected {len(files):,} files, got {len(missing):,} that do not exist: "
            f"{listed(missing)}."
        )
    return files


def spellings(text: str) -> list[str]:
    """Return the texts that one with braces stands for, the first braces changing last."""
    found = _BRACES.search(text)
    if found is None:
        return [text]
    first, last, words = found.groups()
    if words is not None:
        middles = words.split(",")
    elif int(last) - int(first) < MOST_FILES:
        middles = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        raise InputError(f"{text}: expected at most {MOST_FILES:,} files.")
    tails = spellings(text[found.end() :])
    return [text[: found.start()] + middle + tail for middle in middles for tail in tails]


def shards_of_split(files: Sequence[Path], split: str, where: Path) -> list[list[Path]]:
    """Return the shards that are named for a split, by the words for it, the likeliest first.

    Without any names of splits they are all files; it is empty if there are only other splits.

    Raises:
        InputError: Names such as `val-00003-of-00014` tell that some are missing.
    """
    words = {file: shard_word(file.stem) for file in files}
    if not any(words.values()):
        return [_complete(files, where)] if files else []
    groups = ([file for file in files if words[file] == word] for word in WORDS[split])
    return [_complete(group, where) for group in groups if group]


def _complete(files: Sequence[Path], where: Path) -> list[Path]:
    numbers = [found for file in files if (found := _NUMBER.search(file.stem))]
    total = max((int(found[2]) for found in numbers), default=0)
    if len(numbers) < total:
        have = {int(found[1]) for found in numbers}
        missing = [number for number in range(total) if number not in have]
        raise InputError(
            f"{where}: expected {total:,} files such as {files[0].name}, got {len(numbers):,}, "
            f"without number {listed(missing)}. Complete them, or name some of them, in braces: "
            "'train-{00000,00001}-of-00002.parquet'."
        )
    return list(files)
