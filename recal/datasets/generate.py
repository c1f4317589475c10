"""Regenerating a corrupted data set from the clean one, in the layout of the published one."""

import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np

from recal.corruptions.parameters import ALL_CORRUPTIONS, CORRUPTIONS, PARAMETER_SETS, SEVERITIES
from recal.datasets.catalogue import PROVENANCE, SUMS, Provenance, read_provenance, write_provenance
from recal.datasets.download import hash_file, require_room
from recal.datasets.fetch import format_sum
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
from recal.errors import InputError, RecalError, UsageError, pick
from recal.files import locked, whole_file, write_whole
from recal.progress import Progress
from recal.version import __version__

LIBRARIES = ("numpy", "scipy", "numba", "opencv-python-headless", "opencv-python", "pillow")


@dataclass(frozen=True)
class GeneratedSet:
    """A data set that can be regenerated.

    Attributes:
        family: Name of the corruption parameters, which determine the side of the images.
        arrays: Whether each corruption is one .npy file; otherwise every image is a JPEG file.
        image_bytes: Approximate size of a corrupted image on disk.
    """

    family: str
    arrays: bool
    image_bytes: int

    @property
    def write(self) -> Callable[[Task], int]:
        """The function that does a task, and returns the number of its images."""
        return write_array if self.arrays else write_folders


GENERATED = {
    "cifar10c": GeneratedSet("cifar", arrays=True, image_bytes=32 * 32 * 3),
    "cifar100c": GeneratedSet("cifar", arrays=True, image_bytes=32 * 32 * 3),
    "tinyimagenetc": GeneratedSet("tiny", arrays=False, image_bytes=4_500),
    "imagenetc": GeneratedSet("imagenet", arrays=False, image_bytes=30_000),
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
) -> Provenance:
    """Write a corrupted set from clean test images.

    If the process is killed, the same call continues its work: only whole files have their final
    names. The result does not depend on `workers`.

    Args:
        name: Name of the published set, a key of `GENERATED`.
        source: Folder of the clean images, in any layout that recal reads.
        out: Folder of the new set, made if needed. It must not hold anything else.
        progress: Called with the number of corrupted images that are there and in total.
        corruptions: Names of the corruptions, in any order.
        seed: Seed of the random draws.
        workers: Number of processes.

    Returns:
        The content of PROVENANCE.json.

    Raises:
        UsageError: A name is unknown, or the folder was begun with other arguments.
        InputError: The images have another size or no labels, the folder holds something else, or
            frost's textures are missing (raised after all other corruptions are done).
        RecalError: The disk is full, a worker died, or another process writes to the folder.
    """
    wanted = GENERATED[pick(name, GENERATED, "data set to generate")]
    forget_images()
    chosen = {pick(corruption, ALL_CORRUPTIONS, "corruption") for corruption in corruptions}
    names = [corruption for corruption in ALL_CORRUPTIONS if corruption in chosen]
    clean = open_clean(source)
    missing_textures = None
    if "frost" in names:
        from recal.corruptions.frost import find_textures

        try:
            find_textures()
        except InputError as error:
            missing_textures = error
            names.remove("frost")
    request = _request(name, wanted, source, seed)
    _check_folder(out, request)
    needed = len(names) * len(SEVERITIES) * len(clean) * wanted.image_bytes
    require_room(out, max(0, needed - _bytes_there(out, wanted, names)))
    with locked(out):
        for partial in out.glob(".*.partial"):  # left by a process that was killed
            partial.unlink()
        before = read_provenance(out) or request
        present = [c for c in ALL_CORRUPTIONS if c in {*before.corruptions, *names}]
        record = msgspec.structs.replace(request, corruptions=tuple(present))
        write_provenance(out, record)
        _run(wanted, _cut(wanted, source, out, names, len(clean), seed), progress, workers)
        assert clean.labels is not None
        if wanted.arrays:
            with whole_file(out / "labels.npy") as partial, partial.open("wb") as file:
                np.save(file, np.tile(clean.labels, len(SEVERITIES)).astype(np.uint8))
            paths = [out / f"{name}.npy" for name in sorted([*present, "labels"])]
            sums = [format_sum(hash_file(p, "sha256"), p.name) for p in paths if p.is_file()]
            write_whole(out / SUMS, "".join(sums))
        record = msgspec.structs.replace(record, complete=True)
        write_provenance(out, record)
    if missing_textures:
        raise missing_textures
    return record


def _request(name: str, wanted: GeneratedSet, source: Path, seed: int) -> Provenance:
    """Return everything that the bytes of a set depend on, without its corruptions."""
    clean = open_clean(source)
    if not wanted.arrays:
        places = {place_of(clean, index) for index in range(len(clean))}
        if len(places) < len(clean):
            raise InputError(f"{source}: expected images of a class to have different names.")
    versions = {"recal": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return Provenance(
        set=name,
        family=wanted.family,
        side=PARAMETER_SETS[wanted.family].side,
        severities=SEVERITIES,
        seed=seed,
        images=len(clean),
        source_sha256=clean.fingerprint(range(len(clean))),
        jpeg_quality=None if wanted.arrays else JPEG_QUALITY,
        versions=versions,
    )


def _check_folder(out: Path, request: Provenance) -> None:
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
    for key in request.__struct_fields__:
        old, new = getattr(before, key), getattr(request, key)
        if old != new and key not in ("corruptions", "complete"):
            raise UsageError(
                f"{out}: was begun with {key} {old}, now it is {new}. Choose another folder, or "
                "remove this one."
            )


def _bytes_there(out: Path, wanted: GeneratedSet, names: list[str]) -> int:
    if wanted.arrays:
        paths = [out / f"{name}.npy" for name in names]
        return sum(path.stat().st_size for path in paths if path.is_file())
    return wanted.image_bytes * sum(1 for name in names for _ in (out / name).rglob("*.JPEG"))


def _cut(
    wanted: GeneratedSet, source: Path, out: Path, names: list[str], count: int, seed: int
) -> list[Task]:
    """Return the tasks: whole files of one corruption, or all corruptions of a few images."""
    groups, step = ([(n,) for n in names], count) if wanted.arrays else ([tuple(names)], CHUNK)
    task = Task(source=source, out=out, family=wanted.family, seed=seed)
    return [
        replace(task, corruptions=group, start=start, stop=min(start + step, count))
        for start in range(0, count, step)
        for group in groups
    ]


def _run(wanted: GeneratedSet, tasks: list[Task], progress: Progress, workers: int) -> None:
    total, done = sum(task.size for task in tasks), 0
    progress(0, total)
    if workers <= 1:
        for task in tasks:
            done += wanted.write(task)
            progress(done, total)
        return
    # started afresh: a fork would copy locks that other threads of this process hold
    with ProcessPoolExecutor(workers, get_context("spawn"), begin_worker) as pool:
        futures = [pool.submit(wanted.write, task) for task in tasks]
        try:
            for future in as_completed(futures):
                done += future.result()
                progress(done, total)
        except BrokenProcessPool as error:
            raise RecalError(
                "a worker process died, perhaps for lack of memory. Whole files are kept; run the "
                "command again with fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
