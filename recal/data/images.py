"""Sources of images: decoding, fingerprints, images that cannot be decoded, and random draws."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from recal.data.sampling import in_batches, seeded_batches
from recal.errors import BrokenImageError, InputError, listed
from recal.machine import available_cores
from recal.progress import Progress, silent

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
)


class ImageSource(Protocol):
    """A sequence of images, with or without labels."""

    @property
    def where(self) -> Path:
        """The folder or file that it was read from, for messages."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The labels, int64 (N,), or None."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes' names in the order of the labels, or None where they have none."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the classes is the data's own, not that of their sorted names."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The path of each image below `where`, with slashes, or None for rows of arrays."""

    @property
    def answers(self) -> NDArray[np.int64] | None:
        """All right answers of each image, int64 (N, A), or None: see `LabelledImages`."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (H, W, 3), or of an array's own number of channels."""

    def name(self, index: int) -> str:
        """Return the name of image `index` in messages."""

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in one array or memory map, uint8 (N, H, W, C), or (N, H, W) for grey."""

    where: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    names: None = None
    answers: None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        image = np.asarray(self.images[index])
        return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image

    def name(self, index: int) -> str:
        """Return the file's path and the image's number in it."""
        return f"{self.where}: image {index}"

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' contents and labels, in hexadecimal."""
        digest = hashlib.sha256(repr(self.images.shape[1:]).encode())
        for some in in_batches(np.array(indices, np.int64), 1024):
            digest.update(self.images[some].tobytes())
        if self.labels is not None:
            digest.update(self.labels[list(indices)].astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FileSource:
    """Images in files of their own: an `ImageSource`."""

    where: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None = None
    ordered: bool = False
    answers: None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each file below the folder, with slashes."""
        return tuple(path.relative_to(self.where).as_posix() for path in self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return decode(self.paths[index], self.name(index))

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.paths[index])

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""
        paths = [self.paths[index] for index in indices]
        names = [path.relative_to(self.where).as_posix() for path in paths]
        return fingerprint_files(names, map(Path.read_bytes, paths), self.labels, indices)


def with_channels(image: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    """Return an image, uint8 (H, W, C'), with the number of channels that a network takes.

    Colour becomes grey as Pillow makes it (0.299 R + 0.587 G + 0.114 B, ITU-R 601), which leaves
    the values of grey images in RGB as they are. Grey becomes RGB by repetition.

    Raises:
        InputError: The image has another number of channels, and is neither grey nor RGB.
    """
    own = image.shape[2]
    if own == channels:
        return image
    if own == 3 and channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    if own == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    raise InputError(
        f"{name}: expected {channels} channels, which the network takes, got {own}. Give arrays, "
        f"uint8 (N, H, W, {channels}) in an .npy or .npz file."
    )


def numbered(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes in order, and their numbers, int64 (N,), from each image's class."""
    classes = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, np.array([numbers[name] for name in names], np.int64)


def is_image_name(name: str) -> bool:
    """Whether a path with slashes has an image's suffix and no hidden part."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a part of a path with slashes begins with a dot, as files of the system do."""
    return any(part.startswith(".") for part in name.split("/"))


def decode(file: Path | bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image as evaluation practice does: as RGB, ignoring its EXIF orientation.

    Transparency is dropped, not blended. 16-bit samples are reduced to their high byte, as Pillow
    does for colour images; it would clip grey ones.

    Args:
        file: The image's path or content.
        name: Name of the image in messages.

    Returns:
        uint8 (H, W, 3).

    Raises:
        BrokenImageError: It is no whole image, is too large, or has samples of 32 bits.
    """
    opened: Path | IO[bytes] = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        with Image.open(opened) as image:
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError("samples of 32 bits")
            image.info.pop("transparency", None)  # Pillow warns of what is dropped
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's own words are the path again, or the address of a buffer
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenImageError(
            f"{name}: expected an image, got a file that cannot be decoded ({reason}). "
            "Replace or remove it."
        ) from error


def fingerprint_files(
    names: Iterable[str],
    contents: Iterable[bytes],
    labels: NDArray[np.int64] | None,
    indices: Sequence[int],
) -> str:
    """Return a hash of the names, contents and labels of a source's images, in hexadecimal.

    Names are paths below the source, with slashes. `labels` are those of all its images.
    """
    digest = hashlib.sha256()
    for index, name, content in zip(indices, names, contents, strict=True):
        label = -1 if labels is None else int(labels[index])
        digest.update(f"{name}\0{label}\0".encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def image_hashes(source: ImageSource, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the hash of each of these images, uint8 (n, 32): of its name, content and label."""
    hashes = [bytes.fromhex(source.fingerprint([index])) for index in indices.tolist()]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)


# images that are decoded between two reports of progress
DECODED_AT_ONCE = 512


def without_broken(
    source: ImageSource, indices: NDArray[np.int64], progress: Progress = silent
) -> tuple[NDArray[np.int64], list[str]]:
    """Decode images, int64 (n,), once and leave out those that cannot be decoded.

    Returns:
        The indices of the images that can be decoded, in the given order, int64, and the names of
        the broken ones.
    """
    if isinstance(source, ArraySource):  # nothing to decode
        return indices, []

    def decodes(index: int) -> bool:
        try:
            source[index]
        except BrokenImageError:
            return False
        return True

    decoded: list[bool] = []
    with ThreadPoolExecutor(min(available_cores(), 16)) as pool:
        for block in in_batches(indices, DECODED_AT_ONCE):
            decoded += pool.map(decodes, block.tolist())
            progress(len(decoded), len(indices))
    kept = np.array(decoded, bool)
    return indices[kept], [source.name(index) for index in indices[~kept].tolist()]


@contextmanager
def counting_broken(
    source: ImageSource, indices: NDArray[np.int64], progress: Progress = silent
) -> Iterator[None]:
    """If the block meets a broken image among these, raise one error about all that are broken."""
    try:
        yield
    except BrokenImageError as error:
        _, broken = without_broken(source, indices, progress)
        raise BrokenImageError(
            f"{source.where}: expected images, got {len(broken):,} out of {len(indices):,} that "
            f"cannot be decoded: {listed(broken)}. Replace or remove them, or leave them out with "
            "--skip-broken."
        ) from error


# fewer images tell next to nothing about a channel's variance
MIN_IMAGES = 8


def usable_batches(
    source: ImageSource,
    samples: int | None,
    batch_size: int,
    seed: int,
    *,
    min_images: int = MIN_IMAGES,
    skip_broken: bool = False,
    ask_once: Callable[[Callable[[], Any]], Any] = lambda ask: ask(),
    progress: Progress = silent,
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Draw images and cut them into batches, or raise an `InputError` if there are too few.

    Args:
        source: The images.
        samples: Number of images at most; None for all.
        batch_size: Images per batch.
        seed: Seed of the random draw.
        min_images: Least number of images.
        skip_broken: Whether to leave out images that cannot be decoded.
        ask_once: Function that returns the result of its argument in all processes of a job,
            computed in one of them.
        progress: Called with the number of images decoded and in total, with `skip_broken`.

    Returns:
        The indices of each batch, and the names of the images left out, below the source's folder.
    """
    broken: list[str] = []
    batches = seeded_batches(len(source), samples or len(source), batch_size, seed)
    if skip_broken and batches:
        order = np.concatenate(batches)
        kept, broken = ask_once(lambda: without_broken(source, order, progress))
        batches = in_batches(kept, batch_size)
    count = sum(map(len, batches))
    if count < max(1, min_images):
        raise InputError(
            f"{source.where}: expected at least {min_images} images, got {count}. Give more, or "
            "lower --min-samples."
        )
    # a variant's record must not reveal the folders of this machine
    return batches, tuple(name.removeprefix(str(source.where)).lstrip("/: ") for name in broken)
