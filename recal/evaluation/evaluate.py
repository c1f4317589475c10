"""Evaluating targets over a suite into a run."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import nn

from recal.calibration.hooks import device_of
from recal.checkpoint.checkpoint import Checkpoint
from recal.distributed import ALONE
from recal.errors import InputError, UsageError, printable
from recal.evaluation.adaptation import adapted
from recal.evaluation.cells import Progress, Work, compute_cells
from recal.evaluation.execution import choose_execution
from recal.evaluation.sanity import odd_preparation, odd_results
from recal.evaluation.targets import Target, resolve_targets
from recal.files import locked, write_whole
from recal.runs.metrics import score, summarise
from recal.runs.store import csv_text, declared, json_digest, sweep, write_json
from recal.runs.summary import class_rows, flat, summarise_run
from recal.suites.locate import check_pixels, open_suite_images
from recal.suites.suite import Cell, Suite, load_suite, usual_suite
from recal.variant.variant import Variant
from recal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from recal.distributed import World
    from recal.evaluation.adaptation import Adaptation
    from recal.runs.store import Columns


# what is taken as a target
Given = str | Path | Checkpoint | Variant


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished evaluation.

    Attributes:
        folder: Where its cells and summaries are.
        document: What `summary.json` and `--json` say.
        failures: What went wrong with single cells, one line each; the others are whole.
    """

    folder: Path
    document: dict[str, Any] = field(repr=False)
    failures: tuple[str, ...]

    def __fspath__(self) -> str:
        """Return the folder: a run can be given wherever a run's folder can."""
        return str(self.folder)


@overload
def evaluate(source: nn.Module, batches: Iterable[Any]) -> dict[str, float]: ...


@overload
def evaluate(
    source: Given | Sequence[Given],
    *,
    suite: str | Suite | None = ...,
    data: str | Path | None = ...,
    output: str | Path | None = ...,
    checkpoint: str | Path | Checkpoint | None = ...,
    corruptions: Sequence[str] = ...,
    severities: Sequence[int] = ...,
    limit: int | None = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    threads: int | None = ...,
    autocast: torch.dtype | None = ...,
    device: str = ...,
    backend: str = ...,
    adaptation: Adaptation | None = ...,
    progress: Callable[[int, int], None] | None = ...,
    on_cell: Callable[[Cell, dict[str, Columns]], None] | None = ...,
    world: World = ...,
    reading: Mapping[str, Any] | None = ...,
    **asked: Any,
) -> Run: ...


def evaluate(source: Any, batches: Any = None, **options: Any) -> Any:
    """Evaluate networks.

    With a module and batches of normalised images and labels ((N, 3, H, W) float32 and (N,) int64
    tensors), returns the metrics over all of them: `accuracy`,
    `top5_accuracy`, `nll`, `brier`, `ece`. The module's mode is put back afterwards.

    With targets, evaluates them over a suite into a run folder. Cells that are already
    there for the same weights, data, suite and preprocessing are not computed again.

    Args:
        source: A module, or targets: `CHECKPOINT`, `CHECKPOINT:BRANCH`, a branch of `checkpoint`, a
            variant file, an .onnx file; also a `Checkpoint` (its main branch) or `Variant` in
            memory. One or several; none stands for every branch of `checkpoint`.
        batches: With a module, pairs of images and labels.
        **options: With targets: `suite` (a name, a .toml file or a `Suite`; by default the clean
            one of the network's family); `data` (a folder or file; by default looked for in the
            usual places); `output` (the run's folder; by default `runs/<suite>-<hash of the
            request>`); `checkpoint`; `corruptions` and `severities` (a part of the suite); `limit`
            (a seeded stratified sample of so many images); `seed` (of that sample and of
            corruptions made on the fly); `batch_size` and `threads` (chosen for the networks'
            input size and the machine); `device`; `backend` (auto, onnxruntime, torch);
            `adaptation` (an `Adaptation` to the test images of each cell); `autocast` (a
            `torch.dtype`, to which torch may go down where it holds that to be safe); `progress`
            (called with cell images done and in total); `on_cell` (called with each cell that is
            done and its columns by target name); `world` (several processes: only the leading one
            writes, and has a document); `reading` (options of `load_checkpoint`); fields of
            `ModelSpec` that the files do not give.

    Raises:
        InputError: A file or folder is not what it should be; nothing has been computed then.
        UsageError: An unknown suite, branch, corruption or backend.
    """
    if isinstance(source, nn.Module):
        return _evaluate_module(source, batches)
    if batches is not None:
        raise TypeError(f"expected a module with batches, got {type(source).__name__}")
    one = isinstance(source, (str, Path, Checkpoint, Variant))
    return _evaluate_targets([source] if one else list(source), **options)


@torch.inference_mode()
def _evaluate_module(module: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    training, device = {m: m.training for m in module.modules()}, device_of([module])
    module.eval()
    try:
        scored = [
            score(module(images.to(device)).float().cpu().numpy(), labels.cpu().numpy())
            for images, labels in batches
        ]
    finally:
        for m, mode in training.items():
            m.training = mode
    if not scored:
        raise InputError("evaluate: expected at least one batch, got none.")
    return summarise({name: np.concatenate([s[name] for s in scored]) for name in scored[0]})


def _evaluate_targets(
    given: Sequence[Given],
    *,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_cell: Callable[[Cell, dict[str, Columns]], None] | None = None,
    world: World = ALONE,
    **options: Any,
) -> Run:
    work, request = prepare_work(given, output=output, **options)
    adaptation = work.execution.adaptation
    if adaptation and adaptation.kind == "ema" and world.size > 1:
        raise UsageError("--adapt ema: expected one process, because batches follow each other.")
    told = Progress(progress or Progress.images, on_cell or Progress.cell)
    with locked(work.folder) if world.leads else nullcontext():
        if world.leads:
            sweep(work.folder)
            write_json(work.folder / "run.json", request)
        results = compute_cells(work, told, world)
        document: dict[str, Any] = {}
        if world.leads:
            request["held"] = {
                target.name: [c.name for c in work.cells if (target.name, c) in results.columns]
                for target in work.targets
            }
            write_json(work.folder / "run.json", request)
            document = summarise_run(work.folder)
            document["execution"] = work.execution.describe()
            odd = (*work.images.warnings, *odd_results(work, results.columns))
            document["warnings"] = [printable(warning) for warning in odd]
            write_json(work.folder / "summary.json", document)
            write_whole(work.folder / "summary.csv", csv_text(flat(document["cells"])))
            write_whole(work.folder / "classes.csv", csv_text(class_rows(work.folder)))
    return Run(folder=work.folder, document=document, failures=tuple(results.failures))


def prepare_work(
    given: Sequence[Given],
    *,
    suite: str | Suite | None = None,
    data: str | Path | None = None,
    output: str | Path | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int | None = None,
    autocast: torch.dtype | None = None,
    device: str = "cpu",
    backend: str = "auto",
    adaptation: Adaptation | None = None,
    reading: Mapping[str, Any] | None = None,
    **asked: Any,
) -> tuple[Work, dict[str, Any]]:
    """Find all that an evaluation needs, and refuse what is wrong before anything is computed.

    Arguments and errors are those of `evaluate`.

    Returns:
        The work, and the content of the run's `run.json`.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    data, output = _path(data), _path(output)
    checkpoint = Path(checkpoint) if isinstance(checkpoint, str) else checkpoint
    targets = resolve_targets(given, checkpoint, asked, reading)
    suite = suite or usual_suite(targets[0].spec.family, targets[0].spec.classes)
    cells = suite.cells(corruptions, severities)
    _check_targets(targets, suite)
    targets = adapted(targets, adaptation) if adaptation else targets
    execution = choose_execution(
        backend, device, targets[0].spec.size,
        batch_size=batch_size, threads=threads, autocast=autocast, adaptation=adaptation,
    )  # fmt: skip
    images = open_suite_images(
        suite, data, targets[0].spec.size, cells,
        limit=limit, seed=seed, threads=execution.threads,
    )  # fmt: skip
    if images.clean is not None:
        cells = [Cell(None, None), *cells]
    check_pixels(images, cells)
    images.warnings = (*images.warnings, *odd_preparation(images, cells, targets))
    request = {
        "suite": suite.name,
        "suite_sha256": hashlib.sha256(suite.text.encode()).hexdigest(),
        "cells": [cell.name for cell in cells],
        "declared": declared(suite, images),
        "images": len(images.chosen(cells[0]).indices),
        "seed": seed,
        "provenance": images.provenance,
        "backend": execution.identity,
        "targets": [
            {
                "name": t.name,
                "label": t.label,
                "sha256": t.sha256,
                "adaptation": adaptation and adaptation.text,
                "model": t.spec.to_json(),
            }
            for t in targets
        ],
        "versions": {"recal": __version__, "torch": torch.__version__},
    }
    folder = output or Path("runs") / f"{suite.name}-{json_digest(request)[:12]}"
    work = Work(
        suite=suite, cells=cells, targets=targets, images=images, execution=execution,
        folder=folder,
    )  # fmt: skip
    return work, request


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


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
                f"({targets[0].spec.size}), got {target.spec.size}. Evaluate them apart."
            )
