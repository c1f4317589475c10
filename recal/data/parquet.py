"""Images in Parquet files, as the Hugging Face hub stores them, read one row group at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.images import decode, fingerprint_files, numbered
from recal.errors import BrokenImageError, InputError, listed, reason

PARQUET_SUFFIX = ".parquet"
LABEL_COLUMNS = ("label", "labels", "fine_label", "wnid", "synset", "cls", "class", "target")
# bytes of the images of a row group, of which some are kept in memory; the hub's have 10 MB
LARGEST_GROUP = 256_000_000
ROWS = 4096
_reading = Lock()


@dataclass(frozen=True, eq=False, kw_only=True)
class ParquetSource:
    """Images in the rows of one or several Parquet files: an `ImageSource`.

    Attributes:
        where: The file, or the folder or names of the files.
        files: The files.
        column: Path of the column that holds the files' contents, such as `image.bytes`.
        groups: Number of the file, number of the row group in it, and number of its first image,
            int64 (G, 3).
        labels: Label of each image, int64 (N,), or None.
        classes: Names of the classes in the order of the labels, or None.
        ordered: Whether that order is the file's own, not that of the sorted names.
        names: The path of each image where it was packed, or None.
        count: Number of images, N.
    """

    where: Path
    files: tuple[Path, ...]
    column: str
    groups: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    ordered: bool
    names: tuple[str, ...] | None
    count: int
    answers: None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return decode(self._content(index), self.name(index))

    def name(self, index: int) -> str:
        """Return the file's path and the image's name or row in it."""
        file, _, row = self._place(index)
        return f"{file}: {self.names[index] if self.names else f'row {row}'}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""
        names = (self.names[index] if self.names else str(index) for index in indices)
        return fingerprint_files(names, map(self._content, indices), self.labels, indices)

    def _place(self, index: int) -> tuple[Path, int, int]:
        """Return the file of an image, the number of its row group, and its row in that."""
        at = int(np.searchsorted(self.groups[:, 2], index, side="right")) - 1
        file, group, first = self.groups[at].tolist()
        return self.files[file], group, index - first

    def _content(self, index: int) -> bytes:
        file, group, row = self._place(index)
        # threads that want the same group wait for it, instead of each reading it
        with _reading:
            contents = _contents(file, file.stat().st_mtime_ns, group, self.column)
        content: bytes | None = contents[row].as_py()
        if content is None:
            raise BrokenImageError(
                f"{self.name(index)}: expected the image's content, got none: the file names "
                "images that it does not hold. Embed them."
            )
        return content


# neighbouring groups, which the threads of a batch read
@lru_cache(maxsize=4)
def _contents(file: Path, _mtime: int, group: int, column: str) -> Any:
    """Return the column of a row group, as one Arrow array of binary values."""
    import pyarrow.parquet as pq

    with _refusing_bad_files(file), pq.ParquetFile(file) as opened:
        table = opened.read_row_group(group, columns=[column], use_threads=False)
        return table.flatten().column(0).combine_chunks()


def open_parquet(where: Path, files: Sequence[Path]) -> ParquetSource:
    """Open the images of Parquet files, in the order of the files and their rows.

    The images are a column of binary values, or of the hub's `{bytes, path}`. Their labels are a
    column of integers or names; the hub's names of the classes are read from the file's schema.

    Args:
        where: The file, or the folder or names of the files.
        files: The files; all have the same columns.

    Raises:
        InputError: A file is damaged, lacks the columns or some labels, or has row groups that are
            too large to read one by one.
    """
    import pyarrow.parquet as pq

    groups: list[tuple[int, int, int]] = []
    columns: _Columns | None = None
    parts: dict[str, list[Any]] = {"labels": [], "names": []}
    count = 0
    for number, file in enumerate(files):
        with _refusing_bad_files(file), pq.ParquetFile(file) as opened:
            own = _columns_of(file, opened.schema_arrow)
            columns = columns or own
            if own != columns:
                raise InputError(
                    f"{file}: expected the columns and classes of {files[0].name}, got others."
                )
            _require_small_groups(file, opened.metadata, own.image)
            for group in range(opened.num_row_groups):
                groups.append((number, group, count))
                count += opened.metadata.row_group(group).num_rows
            for kind, column in (("labels", own.label), ("names", own.path)):
                if column is not None:
                    parts[kind] += _values(opened, column)
    assert columns is not None
    labels, classes = _labels(where, parts["labels"], columns.classes)
    names = parts["names"]
    return ParquetSource(
        where=where,
        files=tuple(files),
        column=columns.image,
        groups=np.array(groups, np.int64).reshape(-1, 3),
        labels=labels,
        classes=classes,
        ordered=columns.classes is not None,
        names=tuple(names) if names and all(names) and len(set(names)) == len(names) else None,
        count=count,
    )


@dataclass(frozen=True)
class _Columns:
    """Paths of the columns of contents, names and labels, and the names of the classes."""

    image: str
    path: str | None
    label: str | None
    classes: tuple[str, ...] | None


def _columns_of(file: Path, schema: Any) -> _Columns:
    import pyarrow as pa

    def binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    packed = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and any(inner.name == "bytes" and binary(inner.type) for inner in field.type)
    ]
    images = packed or [field.name for field in schema if binary(field.type)]
    if len(images) != 1:
        found = listed(images or schema.names, 8)
        raise InputError(
            f"{file}: expected one column of images (binary, or the hub's {{bytes, path}}), got "
            f"{'several' if images else 'none'} among {found}."
        )
    (image,) = images
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    inner = [field.name for field in schema.field(image).type] if packed else []
    return _Columns(
        image=f"{image}.bytes" if packed else image,
        path=f"{image}.path" if "path" in inner else None,
        label=label,
        classes=_hub_classes(schema.metadata or {}, label),
    )


def _hub_classes(metadata: Mapping[bytes, bytes], label: str | None) -> tuple[str, ...] | None:
    """Return the names of the classes that the hub's own metadata give, or None."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
        names = [names[str(n)] for n in range(len(names))] if isinstance(names, dict) else names
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _require_small_groups(file: Path, metadata: Any, column: str) -> None:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for at in range(group.num_columns):
            chunk = group.column(at)
            if chunk.path_in_schema == column and chunk.total_uncompressed_size > LARGEST_GROUP:
                raise InputError(
                    f"{file}: expected row groups of at most {LARGEST_GROUP / 1e6:.0f} MB, got one "
                    f"of {chunk.total_uncompressed_size / 1e6:.0f} MB. Write it again, with "
                    "pyarrow.parquet.write_table(..., row_group_size=100)."
                )


def _values(opened: Any, column: str) -> Iterator[Any]:
    import pyarrow as pa

    for batch in opened.iter_batches(ROWS, columns=[column], use_threads=False):
        yield from pa.Table.from_batches([batch]).flatten().column(0).to_pylist()


def _labels(
    where: Path, values: list[Any], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Return labels and classes; the hub marks images without labels by -1."""
    if not values or all(value in (None, -1) for value in values):
        return None, names
    missing = sum(value in (None, -1) for value in values)
    if missing:
        raise InputError(f"{where}: expected a label for each image, got {missing:,} without one.")
    if all(isinstance(value, str) for value in values):
        classes, numbers = numbered(values)
        return numbers, classes
    if not all(isinstance(value, int) for value in values):
        odd = next(value for value in values if not isinstance(value, int))
        hint = " One-hot labels must be numbers." if isinstance(odd, list) else ""
        raise InputError(
            f"{where}: expected integers or names as labels, got {type(odd).__name__}.{hint}"
        )
    numbers = np.array(values, np.int64)
    if names is not None and (numbers.min() < 0 or numbers.max() >= len(names)):
        raise InputError(
            f"{where}: expected labels 0 to {len(names) - 1}, as its {len(names)} classes, got "
            f"{numbers.min()} to {numbers.max()}."
        )
    return numbers, names


@contextmanager
def _refusing_bad_files(file: Path) -> Iterator[None]:
    """Turn any error of Arrow about a malformed file into an `InputError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: expected a whole Parquet file, got {reason(error)}.") from error
