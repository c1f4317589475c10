"""Parts of a calibration: moments of a share of the batches, in files that are merged later.

A part's file is safetensors with one metadata key. It holds the variants to make, for each of them
and each layer the moments of `pooled` in float64, and hashes of the part's images. Merging gives
the statistics of one process: sums are added together with their rounding errors.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recal.calibration.calibrate import prepare_calibration, with_estimates
from recal.calibration.estimators import Estimate, merge_found
from recal.calibration.moments import TENSORS, Moments
from recal.calibration.rounds import Settings, check_finite
from recal.checkpoint.checkpoint import Checkpoint
from recal.data.images import ImageSource, image_hashes
from recal.data.sampling import spread
from recal.distributed import Part
from recal.errors import InputError, UsageError, listed
from recal.files import locked, write_whole
from recal.policies.policy import Policy
from recal.progress import Progress, silent
from recal.schema import Record, read_json, to_json
from recal.variant.variant import Variant, VariantRecord

METADATA_KEY = "recal.part"
# images whose contents tell data sets of equal size apart, before all of them are read
LOOKED_AT = 16
SUFFIX = ".moments.safetensors"
Count = Annotated[int, Meta(ge=0)]


class LayerCounts(Record, frozen=True, kw_only=True):
    """The integers of a layer's `Moments`; its tensors are in the file."""

    images: Count
    count: Count
    square_count: Count
    pairs: Count


COUNTS = LayerCounts.__struct_fields__


class MomentsRecord(Record, frozen=True, kw_only=True):
    """What the file of a part says beside its tensors.

    Attributes:
        number: Number of the part, 1 to count.
        count: Number of parts.
        data_sha256: SHA-256 of the number of images asked for, of the number there are, and of
            some of them.
        images: Number of images of all parts.
        skipped: Names of images of all parts that were left out.
        variants: The variants to make; their statistics are not estimated yet.
        layers: For each variant, the counts of every layer that saw data, by path.
    """

    format: Literal[1] = 1
    number: Annotated[int, Meta(ge=1)]
    count: Annotated[int, Meta(ge=1)]
    data_sha256: str
    images: Annotated[int, Meta(ge=1)]
    skipped: tuple[str, ...]
    variants: Annotated[tuple[VariantRecord, ...], Meta(min_length=1)]
    layers: tuple[dict[str, LayerCounts], ...]

    @property
    def part(self) -> Part:
        """The part."""
        return Part(self.number, self.count)

    @property
    def request(self) -> tuple[str, str]:
        """What all parts of a calibration share: the variants to make, and the images."""
        return to_json(self.variants), self.data_sha256


@dataclass(frozen=True, kw_only=True)
class CalibrationPart:
    """A part of a calibration.

    Attributes:
        record: What it is a part of.
        drafts: The variants to make, with the statistics that layers without data keep.
        moments: For each variant, the moments of every layer that saw data, by path.
        places: Places of the part's images among those of all parts, int64 (n,).
        hashes: Hashes of the part's images, uint8 (n, 32).
    """

    record: MomentsRecord
    drafts: tuple[Variant, ...]
    moments: tuple[dict[str, Moments], ...]
    places: NDArray[np.int64]
    hashes: NDArray[np.uint8]


def calibrate_part(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    modes: Sequence[str | Path | Policy],
    part: Part,
    folder: Path,
    *,
    data: str | Path | ImageSource | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Path:
    """Take the moments of a part of a calibration's batches, and write them into a folder.

    `merge_parts` makes the variants of all parts, those of `calibrate_matrix` with the same
    arguments.

    Args:
        checkpoint: The checkpoint with the weights.
        affines: Branches that weight and bias come from.
        modes: Policies, .toml files, or names of policies of the network's family.
        part: The part; of n parts, part i has the batches i, i + n, ...
        folder: The folder of all parts.
        data: Images as for `calibrate`.
        settings: How to estimate: by `pooled` and without a tolerance.
        progress: Called with the numbers of image passes done and expected.

    Returns:
        The part's file.

    Raises:
        UsageError: The settings need all images at once, or there are more parts than batches.
        InputError: The folder has parts of another calibration, or as for `calibrate`.
        LockedError: Another process is at work on this part.
    """
    settings = settings or Settings()
    if settings.estimator != "pooled" or settings.tolerance is not None:
        what = "--tolerance" if settings.tolerance is not None else settings.estimator
        raise UsageError(
            f"--part: expected the estimator pooled without --tolerance, got {what}, which needs "
            "all images at once. Use torchrun for it."
        )
    path = folder / f"{part.name}{SUFFIX}"
    calibration = prepare_calibration(checkpoint, affines, modes, data, settings)
    drafts = tuple(calibration.drafts.values())
    data_sha256 = _data_sha256(calibration.images.source, settings)
    request = (to_json(tuple(draft.record for draft in drafts)), data_sha256)
    world = settings.world

    def compute() -> Path:
        found = calibration.estimate(part=part, progress=progress)
        if not world.leads:
            return path
        ends = np.cumsum([len(batch) for batch in found.batches])
        places = [np.arange(end - len(b), end) for b, end in zip(found.batches, ends, strict=True)]
        own = np.concatenate(part.share(found.batches))
        moments = tuple(
            {name: layer.moments for name, layer in found.layers[key].items()}
            for key in calibration.drafts
        )
        record = MomentsRecord(
            number=part.number,
            count=part.count,
            data_sha256=data_sha256,
            images=int(ends[-1]),
            skipped=found.skipped,
            variants=tuple(draft.record for draft in drafts),
            layers=tuple(
                {name: LayerCounts(**{c: getattr(m, c) for c in COUNTS}) for name, m in of.items()}
                for of in moments
            ),
        )
        _write(
            path,
            CalibrationPart(
                record=record,
                drafts=drafts,
                moments=moments,
                places=np.concatenate(part.share(places)),
                hashes=image_hashes(calibration.images.source, own),
            ),
        )
        return path

    if not world.leads:
        return compute()
    with locked(folder, f".{part.name}.lock", what=f"part {part}"):
        for other in sorted(folder.glob(f"*{SUFFIX}")):
            if _read_record(other).request != request:
                raise InputError(
                    f"{other}: expected a part of the same calibration, got one of another "
                    "checkpoint, policy, set of images or option. Name another folder with -o."
                )
        return compute()


def merge_parts(paths: Sequence[Path]) -> dict[tuple[str, str], Variant]:
    """Make the variants of a calibration from the files of all of its parts.

    Returns:
        The variants by branch and policy name.

    Raises:
        InputError: A file is no part, parts are of different calibrations, or one is missing.
    """
    parts = [_read(path) for path in paths]
    if not parts:
        raise InputError("merge: expected the files of parts, got none.")
    first = parts[0].record
    for path, part in zip(paths, parts, strict=True):
        shared = [(p.request, p.count, p.images, p.skipped) for p in (first, part.record)]
        if shared[0] != shared[1]:
            raise InputError(
                f"{path}: expected a part of the same calibration as {paths[0]}, got one of "
                "another checkpoint, policy, set of images, option or number of parts."
            )
    parts.sort(key=lambda part: part.record.number)
    numbers = [part.record.number for part in parts]
    missing = [Part(n, first.count) for n in range(1, first.count + 1) if n not in numbers]
    if missing or len(numbers) > first.count:
        what = f"none of {listed(missing)}" if missing else "one of them twice"
        raise InputError(f"merge: expected {first.count} parts, got {what}.")
    hashes = np.zeros((first.images, 32), np.uint8)
    times = np.zeros(first.images, np.int64)
    for part in parts:
        hashes[part.places] = part.hashes
        np.add.at(times, part.places, 1)
    if (times != 1).any():
        raise InputError("merge: expected every image in one part, got others. Were files changed?")
    variants = {}
    for number, draft in enumerate(parts[0].drafts):
        merged = merge_found(part.moments[number] for part in parts)
        layers = {name: Estimate.of(moments) for name, moments in merged.items()}
        check_finite(layers)
        variant = with_estimates(draft, layers, hashes, first.skipped)
        variants[draft.affine, draft.estimated.policy] = variant
    return variants


def _data_sha256(source: ImageSource, settings: Settings) -> str:
    looked_at = spread(len(source), LOOKED_AT).tolist()
    text = f"{settings.samples} of {len(source)}: {source.fingerprint(looked_at)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, part: CalibrationPart) -> None:
    tensors: dict[str, NDArray[Any]] = {"places": part.places, "hashes": part.hashes}
    for number, (draft, moments) in enumerate(zip(part.drafts, part.moments, strict=True)):
        for name, tensor in draft.tensors.items():
            tensors[f"{number}/stored/{name}"] = np.ascontiguousarray(tensor)
        for name, found in moments.items():
            for leaf in TENSORS:
                tensors[f"{number}/{leaf}/{name}"] = getattr(found, leaf).numpy()
    write_whole(path, save(tensors, metadata={METADATA_KEY: to_json(part.record)}))


def _read_record(path: Path) -> MomentsRecord:
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a part of a calibration, got another file.") from error
    if text is None:
        raise InputError(
            f"{path}: expected a part of a calibration, as `recal calibrate --part` writes it, got "
            "other safetensors."
        )
    return read_json(text, MomentsRecord, str(path))


def _read(path: Path) -> CalibrationPart:
    record = _read_record(path)
    with safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return CalibrationPart(
            record=record,
            drafts=tuple(_draft(n, v, tensors) for n, v in enumerate(record.variants)),
            moments=tuple(_moments(n, of, tensors) for n, of in enumerate(record.layers)),
            places=_checked(tensors["places"], np.int64, (None,), record.images),
            hashes=_checked(tensors["hashes"], np.uint8, (len(tensors["places"]), 32)),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: expected a whole part, got a damaged one ({error}).") from error


def _checked(
    array: NDArray[Any], dtype: type, shape: tuple[int | None, ...], end: int | None = None
) -> NDArray[Any]:
    """Return an array of this type and shape, with values below an end, or raise ValueError."""
    fits = array.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise ValueError(f"an array of {array.dtype} {array.shape}")
    if end is not None and len(array) and not 0 <= array.min() <= array.max() < end:
        raise ValueError(f"a number that is not from 0 to {end - 1}")
    return array


def _draft(number: int, record: VariantRecord, tensors: Mapping[str, NDArray[Any]]) -> Variant:
    prefix = f"{number}/stored/"
    stored = {
        name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)
    }
    return Variant(
        tensors={name: _checked(tensor, np.float32, (None,)) for name, tensor in stored.items()},
        weights_sha256=record.weights_sha256,
        spec=record.model,
        affine=record.affine,
        statistics=record.statistics,
        versions=record.versions,
    )


def _moments(
    number: int, layers: Mapping[str, LayerCounts], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, Moments]:
    found = {}
    for name, counts in layers.items():
        channels = tensors[f"{number}/stored/{name}.running_mean"].shape
        shapes = (channels, (7, *channels), (7, *channels), (2,))
        read = (tensors[f"{number}/{leaf}/{name}"] for leaf in TENSORS)
        pivot, sums, lost, pair_squares = (
            torch.from_numpy(_checked(array, np.float64, shape))
            for array, shape in zip(read, shapes, strict=True)
        )
        found[name] = Moments(
            images=counts.images,
            count=counts.count,
            square_count=counts.square_count,
            pivot=pivot,
            sums=sums,
            lost=lost,
            pairs=counts.pairs,
            pair_squares=pair_squares,
        )
    return found
