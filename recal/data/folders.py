"""Opening a data set: in the given place, or in the usual places."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from recal.data.arrays import cifar_pickles, mnist_files, packed_arrays, plain_array
from recal.data.images import FileSource, ImageSource, is_image_name, numbered
from recal.data.tars import TAR_SUFFIX, TarSource, open_tars
from recal.errors import InputError
from recal.files import cache_folder, data_folders, read_text

TRAIN, TEST = "train", "test"
# Tiny-ImageNet's list of images and their classes
ANNOTATIONS = "val_annotations.txt"
SPLIT_FOLDERS = {TRAIN: ("train",), TEST: ("test", "val", "validation")}
SPLIT_NAMES = frozenset(name for names in SPLIT_FOLDERS.values() for name in names)


def open_images(folder: Path, split: str, *, archives: bool = True) -> ImageSource:
    """Open one split of the images in a folder or file, whatever its layout.

    Args:
        folder: A folder that holds CIFAR-10's or CIFAR-100's own pickles; `<split>.npz` (arrays
            `images` and `labels`); `<split>_images.npy` or `<split>/images.npy`, with labels in a
            file named `labels`; MNIST's idx files; Tiny-ImageNet's own `val/`; class folders, below
            `train/` and `test/` (or `val/`) or directly; images; or tar files of such folders. It
            may also be an .npy, .npz or .tar file.
        split: `train` or `test`. A data set without splits is used for either.
        archives: Whether to read tar files that lie in the folder.

    Raises:
        InputError: The folder does not exist, holds no images, or its content is malformed.
    """
    if not folder.exists():
        raise InputError(f"{folder}: expected a folder of images, but it does not exist.")
    if not folder.is_dir() and folder.suffix.lower() not in FILES:
        hint = " Unpack it and name the folder." if ".tar" in folder.name else ""
        raise InputError(
            f"{folder}: expected a folder of images, or a file of {', '.join(FILES)}, got another "
            f"file.{hint}"
        )
    for read in READERS if folder.is_dir() else (FILES[folder.suffix.lower()],):
        source = read(folder, split) if archives or read is not _tars else None
        if source is not None:
            if not len(source):
                raise InputError(f"{folder}: expected images, got none.")
            return source
    others = SPLIT_NAMES & ({p.name for p in folder.iterdir()} if folder.is_dir() else set())
    found = f"only {', '.join(sorted(others))}" if others else "none"
    raise InputError(
        f"{folder}: expected images for '{split}', got {found}. It may hold CIFAR's own files, "
        f".npy or .npz arrays, MNIST's idx files, class folders (also below {split}/), plain "
        "images, or tar files of them."
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
    """Read class folders, or the images that lie in the folder where there are none."""
    base = _split_folder(folder, split)
    if base is None:
        return None
    names = sorted(path.name for path in base.iterdir() if path.is_dir())
    found = [(name, path) for name in names for path in _images(base, (base / name).rglob("*"))]
    if found:
        classes, labels = numbered([name for name, _ in found])
        return FileSource(base, tuple(path for _, path in found), labels, classes)
    plain = _images(base, base.iterdir())
    return FileSource(base, tuple(plain), None) if plain else None


def _images(base: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if is_image_name(p.relative_to(base).as_posix()) and p.is_file())


def _tars(folder: Path, split: str) -> ImageSource | None:
    base = _split_folder(folder, split)
    archives = sorted(base.glob(f"*{TAR_SUFFIX}")) if base is not None else []
    if base is None or not archives:
        return None
    source = open_tars(base, archives)
    return _split_of_tars(source, split) if base == folder else source.below("")


def _split_of_tars(source: TarSource, split: str) -> TarSource | None:
    """Return a split's images, below the folder that was packed where all lie in one folder."""
    while len(tops := source.folders()) == 1 and not tops & SPLIT_NAMES:
        inner = source.below(*tops)
        if len(inner) < len(source):
            break
        source = inner
    name = _split_name(tops, split)
    chosen = None if name is None else source.below(name)
    return chosen if chosen is not None and len(chosen) else None


def _split_folder(folder: Path, split: str) -> Path | None:
    name = _split_name({path.name for path in folder.iterdir() if path.is_dir()}, split)
    return None if name is None else folder / name


def _split_name(folders: set[str], split: str) -> str | None:
    """Return the name of the split's folder, empty without splits, None if only others exist."""
    named = [name for name in SPLIT_FOLDERS[split] if name in folders]
    if named:
        return named[0]
    return None if folders & SPLIT_NAMES else ""


Reader: TypeAlias = Callable[[Path, str], ImageSource | None]
READERS: tuple[Reader, ...] = (cifar_pickles, _arrays, mnist_files, _annotated, _image_files, _tars)
FILES: dict[str, Reader] = {
    ".npy": plain_array,
    ".npz": packed_arrays,
    TAR_SUFFIX: lambda path, split: _split_of_tars(open_tars(path), split),
}


def candidates(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folders that may hold a data set of these usual names, the likeliest first.

    They are searched below `data`, the user's choice, or below the usual places if it is None.
    """
    named = [path for path in named_places(data, names) if path.is_dir()]
    places = [data] if data is not None else data_folders()
    return [*named, *(place for place in places if place.is_dir() and place not in named)]


def named_places(data: Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folders and tar files that bear one of a data set's names: see `candidates`."""
    places = [data] if data is not None else data_folders()
    own = [data] if data is not None and data.name in names and data.is_dir() else []
    both = ((place / name, place / f"{name}{TAR_SUFFIX}") for place in places for name in names)
    return [*own, *(path for pair in both for path in pair if path.is_dir() or is_tar(path))]


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
