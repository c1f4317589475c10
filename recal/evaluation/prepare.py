"""Before an evaluation: from a request to its work, and what that will take.

Everything wrong is reported before any work: choices (suite, corruptions, backend, ...) are checked
first, then targets, then data.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from recal.calibration.feeding import check_feeding, chosen
from recal.checkpoint.checkpoint import Checkpoint
from recal.checkpoint.layouts import AS_FOUND, ReadingOptions
from recal.data.normalise import Normalisation
from recal.data.sampling import spread
from recal.distributed import Part
from recal.errors import InputError, RecalError, UsageError, pick
from recal.evaluation.adaptation import ALL_CELLS
from recal.evaluation.attacked import attacked_cells, check_options
from recal.evaluation.cells import Work
from recal.evaluation.execution import ExecutionOptions, choose_execution
from recal.evaluation.scoring import Scorer
from recal.evaluation.targets import (
    Given,
    OnnxTarget,
    Target,
    VariantTarget,
    adapted,
    resolve_targets,
)
from recal.inspection.activations import SCORED, compare_activations
from recal.networks.feeding import AS_ASSUMED
from recal.networks.spec import ModelSpec
from recal.progress import Progress, silent
from recal.runs.store import cell_file
from recal.suites.images import SuiteImages
from recal.suites.locate import check_pixels, open_suite_images
from recal.suites.suite import Cell, Suite, kept_logits, load_suite, usual_suite
from recal.variant.resolve import doubts_about

# number of images whose mean and standard deviation are computed
LOOKED_AT = 64
# of normalised pixels: natural images are near (0, 1) if mean and std are those of their data set
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 0.6, 0.6, 1.6
# mean and std of networks that take any images as they are, or from -1 to 1
CONVENTIONS = ((0.0, 1.0), (0.5, 0.5), (0.0, 1 / 255))


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The arguments of `evaluate` that say what to evaluate targets on, and how."""

    suite: str | Suite | None = None
    data: Path | None = None
    output: Path | None = None
    checkpoint: Path | Checkpoint | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = ()
    attacked: Sequence[str] = ()
    limit: int | None = None
    seed: int = 0
    part: Part | None = None
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    reading: ReadingOptions = AS_FOUND


def prepare_work(given: Sequence[Given], request: EvaluationRequest) -> Work:
    """Find everything that an evaluation needs, and refuse what is wrong.

    Raises:
        UsageError: An unknown suite, corruption, severity or target, or options that contradict
            one another.
        InputError: A file or folder is not what it should be.
    """
    suite = load_suite(request.suite) if isinstance(request.suite, str) else request.suite
    cells = suite.cells(request.corruptions, request.severities) if suite else []
    targets = resolve_targets(given, request.checkpoint, request.reading)
    first = targets[0].spec
    if suite is None:
        suite = usual_suite(first.family, first.classes)
        cells = suite.cells(request.corruptions, request.severities)
    for target in targets:
        if target.spec.classes != suite.classes:
            raise InputError(
                f"{target.name}: expected a network of {suite.classes} classes for suite "
                f"{suite.name}, got {target.spec.classes}."
            )
    for target in targets:
        if target.spec.channels != first.channels:
            raise InputError(
                f"{target.name}: expected images of {first.channels} channels, as the first target "
                f"takes, got {target.spec.channels}. Evaluate them separately."
            )
    spec, warnings = _shared_preparation(targets)
    if request.reading.model.policy:  # what the user gives now overrides what files declare
        suite = msgspec.structs.replace(suite, policy=None)
    options = request.execution
    attacked = attacked_cells(suite, targets, request.attacked, request.seed)
    if attacked:
        check_options(suite, options)
        options, cells = replace(options, backend="torch"), [*attacked]
    if options.adaptation and options.adaptation.continual:
        cells = _in_sequence(cells, suite, request, options.adaptation.continual)
        names = tuple(cell.name for cell in cells)
        options = replace(options, adaptation=replace(options.adaptation, continual=names))
    targets = adapted(targets, options.adaptation) if options.adaptation else targets
    if options.backend == "auto" and any(map(_simulates_integers, targets)):
        options = replace(options, backend="torch")  # ONNX Runtime has no such operation
    execution = choose_execution(options, first.size)
    for target in targets:
        if isinstance(target, OnnxTarget) and execution.backend == "torch":
            raise UsageError(
                f"{target.name}: expected --backend onnxruntime, got torch. ONNX files run by "
                "onnxruntime only."
            )
    images = open_suite_images(
        suite, request.data, spec, [] if attacked else cells,
        limit=request.limit, seed=request.seed, threads=execution.threads,
    )  # fmt: skip
    if images.clean is not None:
        cells = [Cell(None, None), *cells]
    check_pixels(images, cells[:1] if attacked else cells)
    _check_feeding(images, cells[:1] if attacked else cells, targets)
    doubts = [*warnings, *_doubts(suite, images, cells, targets)]
    images.warnings = (*images.warnings, *doubts, *_misfits(images, cells, targets))
    return Work(
        suite=suite,
        cells=cells,
        targets=targets,
        images=images,
        execution=execution,
        attacked=attacked,
        output=request.output,
    )


def _simulates_integers(target: Target) -> bool:
    return isinstance(target, VariantTarget) and target.checkpoint.simulates_integers


def _in_sequence(
    cells: list[Cell], suite: Suite, request: EvaluationRequest, names: tuple[str, ...]
) -> list[Cell]:
    """Return the corrupted cells in the order in which a continual adaptation sees them."""
    if not suite.corrupted.corruptions:
        raise UsageError(f"--continual: expected a suite of several cells, got {suite.name}.")
    if names == ALL_CELLS:
        return cells
    if request.corruptions or request.severities:
        raise UsageError(
            "--continual: expected no --corruptions or --severities with the names of cells, which "
            "say which ones and in which order. For the suite's order, give --continual all."
        )
    known = {cell.name: cell for cell in suite.cells()}
    found = [known[pick(name, known, f"--continual (suite {suite.name})")] for name in names]
    if len({*found}) < len(found):
        raise UsageError("--continual: expected each cell once, got one twice.")
    return found


def _doubts(
    suite: Suite, images: SuiteImages, cells: Sequence[Cell], targets: Sequence[Target]
) -> list[str]:
    """Return what is in doubt about the targets' checkpoints, scored on the images where it can."""
    found = []
    variants = [target for target in targets if isinstance(target, VariantTarget)]
    for checkpoint in {id(target.checkpoint): target.checkpoint for target in variants}.values():
        some = {t.label: t.variant for t in variants if t.checkpoint is checkpoint}
        for doubt in doubts_about(checkpoint, list(some.values())):
            sentence = doubt.sentence
            if doubt is checkpoint.lost_activations:
                chosen = images.chosen(cells[0])
                indices = chosen.indices[spread(len(chosen.indices), SCORED)]
                right = chosen.labels[:, None] if chosen.answers is None else chosen.answers
                pixels, kept = images.read(cells[0], indices), kept_logits(suite)
                scored = compare_activations(checkpoint, some, pixels, right[indices], kept)
                sentence = scored.sentence
            found.append(f"{checkpoint.path.name}: {sentence}")
    return found


def _shared_preparation(targets: Sequence[Target]) -> tuple[ModelSpec, list[str]]:
    """Return the specification by which the images of all targets are prepared, and warnings.

    Targets that accept no other size than the network's, or that record no policy, take what the
    others record.
    """
    first = targets[0].spec
    spec = next((t.spec for t in targets if t.spec.crop_mode != "none"), first)
    policy = next((t.spec.policy for t in targets if t.spec.policy), "")
    for target in targets:
        own = target.spec
        if own.size != first.size:
            raise InputError(
                f"{target.name}: expected the input size of the first target ({first.size}), got "
                f"{own.size}. Evaluate them separately."
            )
        if own.crop_mode != "none" and own.preparation != spec.preparation:
            raise InputError(
                f"{target.name}: expected the preparation of the other targets "
                f"({spec.preparation.words}), got {own.preparation.words}. Evaluate them "
                "separately, or give --crop-share, --interpolation and --crop-mode for all."
            )
        if own.policy not in ("", policy):
            raise InputError(
                f"{target.name}: expected the policy that another target records for test images, "
                "got another one. Evaluate them separately, or give --policy for all."
            )
    shared = msgspec.structs.replace(spec, policy=policy)
    others = [t.label for t in targets if t.spec.how_prepared != shared.how_prepared]
    told = f"{', '.join(others)}: images are prepared as the other targets record: "
    return shared, [f"{told}{shared.how_prepared}."] if others else []


def _check_feeding(images: SuiteImages, cells: Sequence[Cell], targets: Sequence[Target]) -> None:
    """Raise an error for a checkpoint whose statistics do not fit the images as they are fed."""
    pixels = None
    seen: set[tuple[int, Normalisation]] = set()
    for target in targets:
        if isinstance(target, OnnxTarget) or target.spec.input_from == AS_ASSUMED:
            continue
        key = id(target.checkpoint), target.spec.normalisation
        if key not in seen:
            seen.add(key)
            pixels = _mildest(images, cells) if pixels is None else pixels
            check_feeding(target.checkpoint, target.spec, pixels)


def _mildest(images: SuiteImages, cells: Sequence[Cell]) -> NDArray[np.uint8] | None:
    """Return some clean images, or else some of all corruptions at the lowest severity."""
    lowest = min((cell.severity or 0 for cell in cells), default=0)
    mild = [cell for cell in cells if (cell.severity or 0) == lowest]
    read = []
    for number, cell in enumerate(mild):
        indices = images.chosen(cell).indices
        some = indices[chosen(len(indices), images.network.size)][number :: len(mild)]
        try:
            read.append(images.read(cell, some))
        except InputError:
            continue  # which the evaluation of the cell reports
    return np.concatenate(read) if read else None


def _misfits(images: SuiteImages, cells: Sequence[Cell], targets: Sequence[Target]) -> list[str]:
    """Return a warning for every target whose mean and std do not fit the clean images."""
    if images.of_clean is None or not cells:
        return []
    indices = images.of_clean.indices
    pixels = images.read(cells[0], indices[spread(len(indices), LOOKED_AT)]) / 255.0
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    warnings = []
    for target in targets:
        own = np.array([target.spec.mean, target.spec.std])
        shift, scale = np.abs(mean - own[0]) / own[1], std / own[1]
        usual = any(np.abs(own.T - convention).max() < 0.003 for convention in CONVENTIONS)
        fits = (
            shift.max() <= LARGEST_MEAN
            and SMALLEST_STD <= scale.min() <= scale.max() <= LARGEST_STD
        )
        if not usual and not fits:
            warnings.append(
                f"{target.label}: mean {_numbers(own[0])} and std {_numbers(own[1])} do not fit "
                f"these images, whose pixels have {_numbers(mean)} and {_numbers(std)}."
            )
    return warnings


def _numbers(values: NDArray[np.float64]) -> str:
    return ",".join(f"{value:.3g}" for value in values)


# number of batches that are timed, after one that is not
TIMED = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an evaluation will take.

    Attributes:
        cells: Number of cells of each target.
        images: Number of images in all cells together, each read once for all targets.
        forwards: Number of forward passes: images times networks; targets with equal tensors and
            preprocessing are one network.
        bytes: About how much is read from the disk; 0 if everything is made of clean images.
        kept: Number of cells of all targets that the folder has already, if nothing has changed.
        rates: Images per second of one process, for `clean` and every corruption.
        faults: Why a corruption or all targets would fail, by what was timed.
        seconds: Time for all of it by `processes` processes like this one.
    """

    targets: int
    cells: int
    images: int
    forwards: int
    bytes: int
    kept: int
    rates: dict[str, float]
    faults: dict[str, str]
    seconds: float
    processes: int


def make_plan(work: Work, *, processes: int = 1, progress: Progress = silent) -> Plan:
    """Count an evaluation's work, and time a few batches of each corruption on this machine.

    Nothing is written. Failures are collected, and their time is not counted. `processes` is the
    number of processes that will share the work. `progress` is called with the number of
    corruptions timed and in total.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in work.cells:
        groups.setdefault(cell.corruption or "clean", []).append(cell)
    scorer = work.scorer()
    rates: dict[str, float] = {}
    faults: dict[str, str] = {}
    for number, (name, cells) in enumerate(groups.items(), start=1):
        try:
            rates[name] = _rate(scorer, cells[len(cells) // 2], [*work.networks])
        except RecalError as error:
            faults[name] = str(error)
        progress(number, len(groups))
    images = {name: sum(map(work.count, cells)) for name, cells in groups.items()}
    files = [
        cell_file(work.folder, target.sha256, cell)
        for target in work.targets
        for cell in work.cells
    ]
    return Plan(
        targets=len(work.targets),
        cells=len(work.cells),
        images=sum(images.values()),
        forwards=sum(images.values()) * len(work.networks),
        bytes=sum(work.images.size_in_bytes(work.read_from(cell)) for cell in work.cells),
        kept=sum(path.is_file() for path in files),
        rates=rates,
        faults=faults,
        seconds=sum(images[name] / rate for name, rate in rates.items()) / processes,
        processes=processes,
    )


def _rate(scorer: Scorer, cell: Cell, networks: Sequence[str]) -> float:
    """Return the images per second at which a cell is read, corrupted and scored."""
    batches, started = scorer.batches(cell)[: 1 + TIMED], 0.0
    timed = batches[1:] or batches
    for some in (batches[:1], timed):
        started = time.perf_counter()
        share = scorer.score(cell, networks, dict(enumerate(some)))
        if share.unreadable or len(share.wrong) == len(networks):
            raise RecalError(share.unreadable or next(iter(share.wrong.values())))
    return sum(map(len, timed)) / (time.perf_counter() - started)
