"""From a request to the work of an evaluation; everything wrong is reported before any work.

Choices (suite, corruptions, backend, ...) are checked first, then targets, then data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recal.checkpoint.layouts import AS_FOUND
from recal.errors import InputError, UsageError
from recal.evaluation.cells import Work
from recal.evaluation.execution import ExecutionOptions, choose_execution
from recal.evaluation.sanity import preparation_warnings
from recal.evaluation.targets import OnnxTarget, adapted, resolve_targets
from recal.runs.store import ImageDigests, RunRecord, RunTarget, images_digest
from recal.schema import to_json
from recal.suites.locate import check_pixels, open_suite_images
from recal.suites.suite import Cell, Suite, load_suite, usual_suite
from recal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.checkpoint.layouts import ReadingOptions
    from recal.evaluation.execution import Execution
    from recal.evaluation.targets import Given, Target
    from recal.suites.images import ChosenImages, SuiteImages


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """The arguments of `evaluate` that say what to evaluate targets on, and how.

    Attributes:
        execution: How networks are run.
        reading: How checkpoints are read.
    """

    suite: str | Suite | None = None
    data: Path | None = None
    output: Path | None = None
    checkpoint: Path | Checkpoint | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = ()
    limit: int | None = None
    seed: int = 0
    execution: ExecutionOptions = field(default_factory=ExecutionOptions)
    reading: ReadingOptions = AS_FOUND


def prepare_work(given: Sequence[Given], request: EvaluationRequest) -> Work:
    """Find everything that an evaluation needs, and refuse what is wrong.

    Args:
        given: The targets, as `evaluate` takes them.
        request: What to evaluate them on, and how.

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
    _check_targets(targets, suite)
    options = request.execution
    targets = adapted(targets, options.adaptation) if options.adaptation else targets
    execution = choose_execution(options, first.size)
    _check_backend(targets, execution)
    images = open_suite_images(
        suite, request.data, first.size, cells,
        limit=request.limit, seed=request.seed, threads=execution.threads,
    )  # fmt: skip
    if images.clean is not None:
        cells = [Cell(None, None), *cells]
    check_pixels(images, cells)
    images.warnings = (*images.warnings, *preparation_warnings(images, cells, targets))
    record = _record(suite, cells, targets, images, execution)
    digest = hashlib.sha256(to_json(record).encode()).hexdigest()
    return Work(
        suite=suite,
        cells=cells,
        targets=targets,
        images=images,
        execution=execution,
        folder=request.output or Path("runs") / f"{suite.name}-{digest[:12]}",
        record=record,
    )


def _check_targets(targets: Sequence[Target], suite: Suite) -> None:
    for target in targets:
        if target.spec.classes != suite.classes:
            raise InputError(
                f"{target.name}: expected a network of {suite.classes} classes for suite "
                f"{suite.name}, got {target.spec.classes}."
            )
        if target.spec.size != targets[0].spec.size:
            raise InputError(
                f"{target.name}: expected the input size of the first target "
                f"({targets[0].spec.size}), got {target.spec.size}. Evaluate them separately."
            )


def _check_backend(targets: Sequence[Target], execution: Execution) -> None:
    for target in targets:
        if isinstance(target, OnnxTarget) and execution.backend == "torch":
            raise UsageError(
                f"{target.name}: expected --backend onnxruntime, got torch. ONNX files run by "
                "onnxruntime only."
            )


def _record(
    suite: Suite,
    cells: Sequence[Cell],
    targets: Sequence[Target],
    images: SuiteImages,
    execution: Execution,
) -> RunRecord:
    adaptation = execution.adaptation
    return RunRecord(
        suite=suite.name,
        suite_sha256=hashlib.sha256(suite.text.encode()).hexdigest(),
        title=suite.title,
        provenance=images.provenance,
        reference=suite.reference,
        standard=tuple(cell.name for cell in suite.cells()),
        cells=tuple(cell.name for cell in cells),
        images=ImageDigests(clean=_digest(images.of_clean), corrupted=_digest(images.of_corrupted)),
        seed=images.seed,
        execution=execution.identity,
        targets=tuple(
            RunTarget(
                name=target.name,
                label=target.label,
                sha256=target.sha256,
                adaptation=None if adaptation is None else adaptation.text,
                model=target.spec,
            )
            for target in targets
        ),
        versions={"recal": __version__, "torch": str(torch.__version__)},
    )


def _digest(chosen: ChosenImages | None) -> str | None:
    if chosen is None:
        return None
    return images_digest(chosen.indices, chosen.labels[chosen.indices])
