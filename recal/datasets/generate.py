"""Regenerating a corrupted data set from the clean one, in the layout of the published one."""

from __future__ import annotations

import json
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.corruptions.parameters import ALL_CORRUPTIONS, CORRUPTIONS, PARAMETER_SETS, SEVERITIES
from recal.datasets.catalogue import SUMS
from recal.datasets.fetch import format_sum, hash_file, require_room
from recal.datasets.regenerate import (
    CHUNK,
    JPEG_QUALITY,
    Task,
    begin_worker,
    forget_images,
    open_clean,
    place_of,
    write_array,
    write_folders,
)
from recal.errors import InputError, RecalError, UsageError, VerificationError
from recal.files import locked, whole_file, write_whole
from recal.version import __version__
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from recal.progress import Progress


PROVENANCE = "PROVENANCE.json"
REGENERATED = "regenerated: not comparable digit for digit with the published set"


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder of regenerated data, or None where there is none.

    Raises:
        InputError: There is a record that cannot be read.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, got {error}. Generate the set again.") from error
    if not isinstance(record, dict) or "label" not in record:
        raise InputError(f"{path}: expected a record with a label. Generate the set again.")
    return record


def write_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a folder, whole or not at all."""
    write_whole(folder / PROVENANCE, json.dumps(dict(record), indent=1) + "\n")


def label_of(folder: Path) -> str | None:
    """Return the label that results made from a folder must show, or None for published data."""
    record = read_provenance(folder)
    return None if record is None else str(record["label"])


LIBRARIES = ("numpy", "scipy", "numba", "opencv-python-headless", "opencv-python", "pillow")


@dataclass(frozen=True)
class Layout:
    """How a regenerated set is laid out.

    Attributes:
        family: Whose parameters, and with it the images' side.
        write: Does a task.
        arrays: Whether each corruption is one .npy file; else every image is a JPEG file.
        bytes_an_image: About what a corrupted image takes.
    """

    family: str
    write: Callable[[Task], int]
    arrays: bool
    bytes_an_image: int


GENERATED = {
    "cifar10c": Layout("cifar", write_array, True, 32 * 32 * 3),
    "cifar100c": Layout("cifar", write_array, True, 32 * 32 * 3),
    "tinyimagenetc": Layout("tiny", write_folders, False, 4_500),
    "imagenetc": Layout("imagenet", write_folders, False, 30_000),
}


def generate(
    name: str,
    source: Path,
    out: Path,
    progress: Progress,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
    workers: int = 1,
) -> dict[str, Any]:
    """Write a corrupted set from clean test images.

    Killed at any moment, the same call goes on: every file is either whole, with its name, or
    partial, without it. The result does not depend on `workers`.

    Args:
        name: A key of `GENERATED`.
        source: The folder of the clean images, in any layout that recal reads.
        out: The folder of the set, made if needed; must not hold anything else.
        progress: Told how many corrupted images are there, and how many there will be.
        corruptions: Which ones, in any order.
        seed: Of the draws.
        workers: Processes.

    Returns:
        The content of PROVENANCE.json.

    Raises:
        UsageError: An unknown name, or a folder that was begun with another request.
        InputError: The images are not what they have to be, the folder holds something else, or
            frost's textures are not there (raised when all the other ones are done).
        RecalError: The disk is full, a worker died, or another process is at work there.
    """
    layout = GENERATED[pick(name, GENERATED, "data set to generate")]
    forget_images()
    names = [
        c
        for c in ALL_CORRUPTIONS
        if c in {pick(wanted, ALL_CORRUPTIONS, "corruption") for wanted in corruptions}
    ]
    clean = open_clean(source)
    missing_textures = _textures_missing(names)
    if missing_textures:
        names.remove("frost")
    asked = _request(name, layout, source, seed)
    _check_folder(out, asked)
    needed = len(names) * len(SEVERITIES) * len(clean) * layout.bytes_an_image
    require_room(out, max(0, needed - _bytes_there(out, layout, names)))
    with locked(out):
        for left in out.glob(".*.partial"):  # of a process that was killed
            left.unlink()
        before = read_provenance(out) or {}
        listed = [c for c in ALL_CORRUPTIONS if c in {*before.get("corruptions", ()), *names}]
        record = {**asked, "corruptions": listed, "complete": False}
        write_provenance(out, record)
        tasks = _cut(layout, source, out, names, len(clean), seed)
        _run(layout, tasks, progress, workers)
        assert clean.labels is not None
        if layout.arrays:
            _write_labels(out / "labels.npy", clean.labels)
            _write_sums(out, [*(f"{c}.npy" for c in listed), "labels.npy"])
        record["complete"] = True
        write_provenance(out, record)
    if missing_textures:
        raise missing_textures
    return record


def _textures_missing(names: list[str]) -> InputError | None:
    if "frost" in names:
        from recal.corruptions.frost import find_textures

        try:
            find_textures()
        except InputError as error:
            return error
    return None


def _request(name: str, layout: Layout, source: Path, seed: int) -> dict[str, Any]:
    """Return what the bytes of a set depend on, apart from which corruptions it has."""
    clean = open_clean(source)
    if not layout.arrays:
        places = {place_of(clean, index) for index in range(len(clean))}
        if len(places) < len(clean):
            raise InputError(f"{source}: expected a name of its own for every image of a class.")
    versions = {"recal": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "label": REGENERATED,
        "set": name,
        "family": layout.family,
        "side": PARAMETER_SETS[layout.family].side,
        "severities": list(SEVERITIES),
        "seed": seed,
        "images": len(clean),
        "source_sha256": clean.fingerprint(range(len(clean))),
        "jpeg_quality": None if layout.arrays else JPEG_QUALITY,
        "versions": versions,
    }


def _check_folder(out: Path, asked: dict[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, got a file.")
    before = read_provenance(out)
    if before is None:
        if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
            raise InputError(
                f"{out}: expected an empty folder, or one that was begun here ({PROVENANCE}). "
                "Published and regenerated files are not to be mixed."
            )
        return
    for key, value in asked.items():
        if before.get(key) != value:
            raise UsageError(
                f"{out}: was begun with {key} {before.get(key)}, now it is {value}. Choose another "
                "folder, or remove this one."
            )


def _bytes_there(out: Path, layout: Layout, names: list[str]) -> int:
    if layout.arrays:
        paths = [out / f"{name}.npy" for name in names]
        return sum(path.stat().st_size for path in paths if path.is_file())
    there = sum(1 for name in names for _ in (out / name).rglob("*.JPEG"))
    return there * layout.bytes_an_image


def _cut(
    layout: Layout, source: Path, out: Path, names: list[str], count: int, seed: int
) -> list[Task]:
    """Return the tasks: whole files of one corruption, or all corruptions of a few images."""
    groups = [(name,) for name in names] if layout.arrays else [tuple(names)]
    step = count if layout.arrays else CHUNK
    return [
        Task(source=source, out=out, family=layout.family, seed=seed, corruptions=some,
             start=start, stop=min(start + step, count))
        for start in range(0, count, step)
        for some in groups
    ]  # fmt: skip


def _run(layout: Layout, tasks: list[Task], progress: Progress, workers: int) -> None:
    total, done = sum(task.size for task in tasks), 0
    progress(0, total)
    if workers <= 1:
        for task in tasks:
            done += layout.write(task)
            progress(done, total)
        return
    # started afresh: a fork would copy locks that other threads of this process hold
    with ProcessPoolExecutor(workers, get_context("spawn"), begin_worker) as pool:
        futures = [pool.submit(layout.write, task) for task in tasks]
        try:
            for future in as_completed(futures):
                done += future.result()
                progress(done, total)
        except BrokenProcessPool as error:
            raise RecalError(
                "a worker process died, perhaps for want of memory. What is whole is kept; run it "
                "again, with fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_labels(path: Path, labels: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, np.tile(labels, len(SEVERITIES)).astype(np.uint8))


def _write_sums(out: Path, names: list[str]) -> None:
    there = [name for name in sorted(names) if (out / name).is_file()]
    write_whole(
        out / SUMS, "".join(format_sum(hash_file(out / name, "sha256"), name) for name in there)
    )


def verify_folders(out: Path, record: dict[str, Any]) -> int:
    """Count the images of a regenerated set of folders.

    Returns:
        The number of files.

    Raises:
        VerificationError: It is not complete, or a cell has another number of images.
    """
    if not record.get("complete"):
        raise VerificationError(f"{out}: is not complete. Give `recal data generate` again.")
    count = 0
    for name in record["corruptions"]:
        for severity in record["severities"]:
            cell = out / name / str(severity)
            there = sum(1 for path in cell.rglob("*.JPEG") if path.stat().st_size > 0)
            if there != record["images"]:
                raise VerificationError(
                    f"{cell}: expected {record['images']} images, got {there}. Give `recal data "
                    "generate` again."
                )
            count += there
    return count
