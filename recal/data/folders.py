"""Opening a data set: in the given place, or in the usual places."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from recal.data.arrays import cifar_pickles, mnist_files, packed_arrays, plain_array
from recal.data.images import FileSource, ImageSource, numbered
from recal.data.labels import labelled, with_found_labels
from recal.data.parquet import PARQUET_SUFFIX, open_parquet
from recal.data.shards import expanded, shards_of_split
from recal.data.splits import (
    TEST,
    choose_folders,
    find_splits,
    images_below,
    outermost_split,
    shard_word,
    split_word,
)
from recal.data.tars import TAR_SUFFIX, TarSource, open_tars
from recal.errors import InputError, listed
from recal.files import cache_folder, data_folders, read_text
from recal.schema import Record, read_toml

# Tiny-ImageNet's list of images and their classes
ANNOTATIONS = "val_annotations.txt"
DESCRIPTION = ".toml"
# archives that cannot be read in place
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")


class DataDescription(Record, frozen=True, kw_only=True):
    """The content of a .toml file that describes a data set. Paths are relative to the file.

    Attributes:
        images: Folder or file of the images.
        labels: File of labels, which override those of the images: see `read_labels`; empty for
            none.
        classes: File with the names of the classes in order: see `read_classes`; empty for none.
        synsets: The `meta.mat` of ImageNet's development kit, which names the ids of its ground
            truth; empty if it lies beside the labels.
    """

    images: str
    labels: str = ""
    classes: str = ""
    synsets: str = ""


def open_images(folder: Path, split: str, *, archives: bool = True) -> ImageSource:
    """Open one split of the images in a folder or file, whatever its layout.

    Args:
        folder: A folder that holds CIFAR-10's or CIFAR-100's own pickles; `<split>.npz` (arrays
            `images` and `labels`); `<split>_images.npy` or `<split>/images.npy`, with labels in a
            file named `labels`; MNIST's idx files; Tiny-ImageNet's own `val/`; class folders, below
            `train/` and `test/` (or `val/`) or directly; images; tar files of such folders; or tar
            or Parquet files with labels (WebDataset, Hugging Face). It may also be an .npy, .npz,
            .tar or .parquet file, the names of several tar or Parquet files with braces, or a
            .toml file: see `DataDescription`. Labels and classes may lie beside the images: see
            `with_found_labels`.
        split: `train` or `test`. A data set without splits is used for either.
        archives: Whether to read tar and Parquet files that lie in the folder.

    Raises:
        InputError: The folder does not exist, holds no images, or its content is malformed.
    """
    if folder.suffix.lower() == DESCRIPTION and folder.is_file():
        return _described(folder, split)
    if (files := expanded(folder)) != [folder]:
        return with_found_labels(_of_shards(folder, files, split))
    if not folder.exists():
        raise InputError(f"{folder}: expected a folder of images, but it does not exist.")
    if not folder.is_dir() and folder.suffix.lower() not in FILES:
        packed = folder.name.lower().endswith(COMPRESSED)
        hint = " Unpack it and name the folder." if packed else ""
        raise InputError(
            f"{folder}: expected a folder of images, or a file of {', '.join(FILES)}, got another "
            f"file.{hint}"
        )
    for read in READERS if folder.is_dir() else (FILES[folder.suffix.lower()],):
        source = read(folder, split) if archives or read not in (_tars, _parquet_files) else None
        if source is not None:
            if not len(source):
                raise InputError(f"{folder}: expected images, got none.")
            return with_found_labels(source)
    if archives and (others := _splits_in(folder)):
        raise InputError(
            f"{folder}: expected images for '{split}', got only {listed(others)}. To use these, "
            "name their folder, or their tar or Parquet files with braces; unpack one inside a tar."
        )
    raise InputError(
        f"{folder}: expected images for '{split}', got none. It may hold CIFAR's own files, "
        f".npy or .npz arrays, MNIST's idx files, class folders (also below {split}/), plain "
        "images, tar files of them, WebDataset shards, or Parquet files."
        f"{compressed_in(folder) if folder.is_dir() else ''}"
    )


def _splits_in(data: Path) -> list[str]:
    """Return folders of splits, in tar files too, and words for splits in names of shards."""
    files = [data] if data.is_file() else list(data.rglob("*"))
    tars = [path for path in files if path.suffix == TAR_SUFFIX]
    words = (shard_word(path.stem) for path in files if path.suffix in (TAR_SUFFIX, PARQUET_SUFFIX))
    inside = map(outermost_split, open_tars(data, tars).names) if tars else ()
    folders = find_splits(data)[0] if data.is_dir() else ()
    return sorted({*folders, *filter(None, words), *filter(None, inside)})


def _of_shards(where: Path, files: Sequence[Path], split: str) -> ImageSource:
    """Read files that were named one by one, all of them."""
    source: ImageSource | None = None
    if all(file.suffix == PARQUET_SUFFIX for file in files):
        source = open_parquet(where, files)
    elif all(file.suffix == TAR_SUFFIX for file in files):
        source = _tar_files(where, files, split)
    else:
        raise InputError(f"{where}: expected names of .tar files or of .parquet files, got others.")
    if source is None or not len(source):
        raise InputError(f"{where}: expected images, got none.")
    return source


def _described(path: Path, split: str) -> ImageSource:
    described = read_toml(path, DataDescription)

    def place(name: str) -> Path | None:
        return path.parent / Path(name).expanduser() if name else None

    images = place(described.images)
    if images is None or images.suffix.lower() == DESCRIPTION:
        raise InputError(f"{path}: images: expected a folder or file of images.")
    return labelled(
        open_images(images, split),
        labels=place(described.labels),
        classes=place(described.classes),
        synsets=place(described.synsets),
    )


def _arrays(folder: Path, split: str) -> ImageSource | None:
    packed = folder / f"{split}.npz"
    if packed.is_file():
        return packed_arrays(packed, split)
    for stem in (f"{split}_", f"{split}/", ""):
        path = folder / f"{stem}images.npy"
        if path.is_file():
            return plain_array(path, split)
    return None


def _annotated(folder: Path, split: str) -> ImageSource | None:
    """Read Tiny-ImageNet's own `val/`, whose labels are in a file."""
    path = folder / "val" / ANNOTATIONS
    if split != TEST or not path.is_file():
        return None
    rows = [line.split("\t") for line in read_text(path).splitlines() if line]
    if not rows or any(len(row) < 2 for row in rows):
        raise InputError(f"{path}: expected lines of an image and a class with a tab between.")
    rows.sort(key=lambda row: (row[1], row[0]))
    paths = tuple(path.parent / "images" / Path(row[0]).name for row in rows)
    classes, labels = numbered([row[1] for row in rows])
    return FileSource(path.parent, paths, labels, classes)


def _image_files(folder: Path, split: str) -> ImageSource | None:
    """Read class folders, or the images that lie in the folder where there are none.

    Of several folders of the split, such as `test/` and `val/`, the first with labels is read.
    """
    if any(next(folder.glob(f"{place}*{PARQUET_SUFFIX}"), None) for place in ("", "data/")):
        return None  # pictures beside these illustrate the data set
    splits, beside = find_splits(folder)
    if not splits:
        return _class_folders(folder, sorted(beside, key=lambda name: name.split("/")))
    bases = choose_folders(splits, split, folder, beside=next(iter(beside), ""))
    if bases and "/" in bases[0]:  # the data set lies deeper, in a layout of its own
        return open_images((folder / bases[0]).parent, split)
    return _first_labelled(
        _class_folders(folder / base, images_below(folder / base)) for base in bases
    )


def _class_folders(base: Path, names: Sequence[str]) -> FileSource | None:
    """Return images, whose folders are their classes; images beside class folders are left out."""
    inside = [name for name in names if "/" in name] or names
    paths = tuple(base / name for name in inside)
    if not paths or "/" not in inside[0]:
        return FileSource(base, paths, None) if paths else None
    classes, labels = numbered([name.partition("/")[0] for name in inside])
    if classes == ("images",):  # the folder of all images is no class
        return FileSource(base, paths, None)
    return FileSource(base, paths, labels, classes)


def _tars(folder: Path, split: str) -> ImageSource | None:
    splits = [path.name for path in folder.iterdir() if path.is_dir() and split_word(path.name)]
    bases = choose_folders(splits, split, folder) if splits else [""]
    groups = [
        group
        for base in bases
        for group in shards_of_split(sorted((folder / base).glob(f"*{TAR_SUFFIX}")), split, folder)
    ]
    return _first_labelled(_tar_files(group[0].parent, group, split) for group in groups)


def _parquet_files(folder: Path, split: str) -> ImageSource | None:
    """Read Parquet files of one folder, or below folders of splits in it, as the hub keeps them."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{PARQUET_SUFFIX}")):
        place = path.relative_to(folder).as_posix()
        files.setdefault(outermost_split(place) or place.rpartition("/")[0], []).append(path)
    named = [place for place in files if split_word(place.rpartition("/")[2])]
    beside = next((place for place in files if place not in named), None)
    if len(files) > 1 and not (named and beside is None):
        places = listed((f"'{place or '.'}'" for place in files), 4)
        raise InputError(
            f"{folder}: expected the Parquet files of one data set, got some in {places}. Name one "
            "of these folders."
        )
    if named:
        chosen = [files[place] for place in choose_folders(named, split, folder)]
        return _first_labelled(open_parquet(folder, part) for part in chosen)
    groups = (shards_of_split(part, split, folder) for part in files.values())
    return _first_labelled(open_parquet(folder, group) for part in groups for group in part)


def _first_labelled(sources: Iterable[ImageSource | None]) -> ImageSource | None:
    """Return the first source with labels, or the first if none has."""
    found = [with_found_labels(source) for source in sources if source is not None]
    return next((source for source in found if source.labels is not None), next(iter(found), None))


def _tar_files(where: Path, archives: Sequence[Path], split: str) -> TarSource | None:
    source = open_tars(where, archives)
    return source if source.labels is not None else _split_of_tars(source, split)


def _split_of_tars(source: TarSource, split: str) -> TarSource | None:
    """Return a split's images; without splits, those below the folder that was packed."""
    found = {outermost_split(name): name for name in source.names}
    beside = found.pop(None, "")
    if found:
        chosen = choose_folders(map(str, found), split, source.where, beside=beside)
        return source.below(chosen[0]) if chosen else None
    while len(tops := source.folders()) == 1:
        inner = source.below(*tops)
        if len(inner) < len(source):
            break
        source = inner
    return source.below("") if len(source) else None


Reader: TypeAlias = Callable[[Path, str], ImageSource | None]
READERS: tuple[Reader, ...] = (
    cifar_pickles, _arrays, mnist_files, _annotated, _image_files, _tars, _parquet_files,
)  # fmt: skip
FILES: dict[str, Reader] = {
    ".npy": plain_array,
    ".npz": packed_arrays,
    TAR_SUFFIX: lambda path, split: _tar_files(path, [path], split),
    PARQUET_SUFFIX: lambda path, _split: open_parquet(path, [path]),
}


def candidates(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folders that may hold a data set of these usual names, the likeliest first.

    They are searched below `data`, the user's choice, or below the usual places if it is None. A
    usual place that holds data sets in folders is none itself.
    """
    named = [path for path in named_places(data, names) if path.is_dir()]
    places = [p for p in data_folders() if p.is_dir() and not _holds_sets(p)]
    places = [data] if data is not None else places
    return [*named, *(place for place in places if place.is_dir() and place not in named)]


def _holds_sets(place: Path) -> bool:
    """Whether a usual place holds data sets in folders of their own: it may be huge."""
    inside = list(place.iterdir())
    return not any(path.is_file() or split_word(path.name) for path in inside)


def named_places(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folders and tar files that bear one of a data set's names: see `candidates`.

    Exact names come first. Others are alike in their letters and digits: mirrors rename
    `CIFAR-10-C-Bar` to `CIFAR10-c-bar`.
    """
    places = [data] if data is not None else data_folders()
    own = [data] if data is not None and data.is_dir() and _alike(data.name, names) else []
    both = ((place / name, place / f"{name}{TAR_SUFFIX}") for place in places for name in names)
    exact = [path for pair in both for path in pair if path.is_dir() or is_tar(path)]
    near = [
        path
        for path in _entries_alike(places, names, ("", TAR_SUFFIX))
        if path.is_dir() or is_tar(path)
    ]
    return list(dict.fromkeys([*own, *exact, *near]))


def packed_places(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the compressed archives that bear one of a data set's names: they must be unpacked."""
    return _entries_alike([data] if data is not None else data_folders(), names, COMPRESSED)


def compressed_in(folder: Path) -> str:
    """Return a sentence that asks to unpack the compressed archives in a folder, if it has any."""
    found = [p.name for p in sorted(folder.iterdir()) if p.name.lower().endswith(COMPRESSED)]
    return f" Unpack {listed(found)}." if found else ""


def _entries_alike(places: Sequence[Path], names: Sequence[str], ends: Sequence[str]) -> list[Path]:
    """Return what lies in the places under names that are alike, with one of the ends."""
    return [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if any(
            path.name.lower().endswith(end)
            and _alike(path.name[: len(path.name) - len(end)], names)
            for end in ends
        )
    ]


def _alike(name: str, names: Sequence[str]) -> bool:
    return _plain(name) in map(_plain, names)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def is_tar(path: Path) -> bool:
    """Whether a path is a file that is named as a tar archive."""
    return path.suffix == TAR_SUFFIX and path.is_file()


def find_images(data: Path | None, names: Sequence[str], split: str, what: str) -> ImageSource:
    """Open a split of a data set, or raise an `InputError` that calls the images `what`.

    Args:
        data: The user's choice, or None to look in the usual places.
        names: Usual folder names of the data set.
        split: `train` or `test`.
        what: Name of the images in messages.
    """
    if data is not None and not data.is_dir():  # a file, or nothing
        return open_images(data, split)  # says what is wrong with it
    problem = None
    for folder in candidates(data, names):
        # a place for data sets may hold archives of any: only those of a named folder are meant
        named = data is not None or folder.name in names
        try:
            return open_images(folder, split, archives=named)
        except InputError as error:
            problem = error
    if data is not None and problem is not None:
        raise problem
    raise InputError(f"{what}: expected images, got none. {places_searched(data)}")


def places_searched(data: Path | None) -> str:
    """Return a sentence on where data were looked for and how to name another place."""
    if data is not None:
        return f"Looked in {data}."
    environment = os.environ.get("RECAL_DATA")
    return (
        f"Looked in --data (not given), recal.toml ([data] data: not given), $RECAL_DATA "
        f"({environment or 'not set'}), ./data and {cache_folder() / 'data'}. "
        "Put the data set into one of these, or name its folder with --data."
    )
