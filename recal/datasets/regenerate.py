"""One task of regenerating a corrupted set, as a worker process does it."""

import os
import signal
import threading
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recal.corruptions import corrupt
from recal.corruptions.parameters import PARAMETER_SETS, SEVERITIES
from recal.data.folders import open_images
from recal.data.images import FileSource, ImageSource
from recal.data.splits import TEST
from recal.errors import InputError, RecalError
from recal.files import whole_file
from recal.policies.ops import Prepare
from recal.policies.preparation import Preparation

CHUNK = 64  # images of a task of folders
STEP = 512  # images corrupted at a time in a task of arrays
JPEG_QUALITY = 85
# ImageNet-C's own: the short side to 256 pixels, then the middle 224
GENERATOR = Preparation(
    size=PARAMETER_SETS["imagenet"].side,
    crop_share=0.875,
    interpolation="bilinear",
    crop_mode="center",
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of one process at a time: some images under some corruptions, all severities.

    Attributes:
        source: Folder of the clean images.
        out: Folder of the new set.
        family: Name of the corruption parameters.
        seed: Seed of the random draws.
        corruptions: Names of the corruptions.
        start: Number of the first image.
        stop: Number after the last image.
    """

    source: Path
    out: Path
    family: str
    seed: int
    corruptions: tuple[str, ...] = ()
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """The number of corrupted images of the task."""
        return len(self.corruptions) * len(SEVERITIES) * (self.stop - self.start)


@lru_cache(maxsize=4)
def open_clean(folder: Path) -> ImageSource:
    """Open the labelled clean test images, in the order whose numbers key the random draws."""
    source = open_images(folder, TEST)
    if source.labels is None:
        raise InputError(
            f"{folder}: expected labelled images (class folders, or CIFAR's own files), got images "
            "without labels."
        )
    return source


def read_prepared(source: ImageSource, index: int, family: str) -> NDArray[np.uint8]:
    """Read an image at the side that a family's parameters are for, uint8 (side, side, 3).

    Images for ImageNet's parameters are resized to 256 pixels at the shorter side and cropped in
    the middle, as the generators do. All others must have the right side already.
    """
    image, side = source[index], PARAMETER_SETS[family].side
    if family == "imagenet":
        prepare = Prepare().transform(GENERATOR)
        return np.asarray(prepare(Image.fromarray(image)))
    if image.shape[:2] != (side, side):
        raise InputError(
            f"{source.where}: image {index}: expected {side}x{side} pixels, got "
            f"{image.shape[1]}x{image.shape[0]}."
        )
    return image


@lru_cache(maxsize=1)
def _read(folder: Path, family: str, start: int, stop: int) -> NDArray[np.uint8]:
    """Read some images: small sets are decoded once a process, not once a corruption."""
    source = open_clean(folder)
    return np.stack([read_prepared(source, index, family) for index in range(start, stop)])


def forget_images() -> None:
    """Forget the images that were opened, because their files may have changed since."""
    open_clean.cache_clear()
    _read.cache_clear()


def write_array(task: Task) -> int:
    """Write `<corruption>.npy`, uint8 (5 N, H, W, 3), severity after severity.

    The number of corrupted images that are there now is returned.
    """
    side, count = PARAMETER_SETS[task.family].side, task.stop - task.start
    clean = _read(task.source, task.family, task.start, task.stop)
    for name in task.corruptions:
        path = task.out / f"{name}.npy"
        if path.is_file():  # only whole files have this name
            continue
        with whole_file(path) as partial, partial.open("wb") as file:
            shape = (len(SEVERITIES) * count, side, side, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for severity in SEVERITIES:
                for start in range(task.start, task.stop, STEP):
                    some = clean[start - task.start : start - task.start + STEP]
                    file.write(_corrupted(task, name, severity, some, start).tobytes())
    return task.size


def write_folders(task: Task) -> int:
    """Write `<corruption>/<severity>/<class>/<name>.JPEG` for a few images.

    Existing files are kept, because only whole files have their final names. The number of
    corrupted images that are there now is returned.
    """
    source = open_clean(task.source)
    names = [place_of(source, index) for index in range(task.start, task.stop)]
    for name in task.corruptions:
        for severity in SEVERITIES:
            paths = [task.out / name / str(severity) / place for place in names]
            if not all(path.is_file() for path in paths):
                images = _read(task.source, task.family, task.start, task.stop)
                _write_jpegs(paths, _corrupted(task, name, severity, images, task.start))
    return task.size


def place_of(source: ImageSource, index: int) -> str:
    """Return the class folder and name of an image in the published layout."""
    assert source.labels is not None
    label = int(source.labels[index])
    folder = source.classes[label] if source.classes is not None else f"{label:04d}"
    stem = source.paths[index].stem if isinstance(source, FileSource) else f"{index:08d}"
    return f"{folder}/{stem}.JPEG"


def _corrupted(
    task: Task, name: str, severity: int, images: NDArray[np.uint8], start: int
) -> NDArray[np.uint8]:
    numbers = np.arange(start, start + len(images))
    return corrupt(images, name, severity, family=task.family, seed=task.seed, indices=numbers)


def _write_jpegs(paths: list[Path], images: NDArray[np.uint8]) -> None:
    """Write all, sync all, rename all, because syncing one by one waits for the disk each time."""
    partials = [path.with_suffix(".partial") for path in paths]
    try:
        for partial, image in zip(partials, images, strict=True):
            partial.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(partial, "JPEG", quality=JPEG_QUALITY, optimize=True)
        for partial in partials:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
    except OSError as error:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise RecalError(
            f"{paths[0].parent}: cannot be written ({error.strerror or error}). Whole files are "
            "kept; make room and run the command again."
        ) from error


def begin_worker() -> None:
    """Make a worker process end with its parent, even if that is killed, but not by Ctrl-C."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too
    parent = parent_process()

    def end_with_parent() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end_with_parent, daemon=True).start()
