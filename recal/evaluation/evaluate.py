"""Evaluating targets over a suite into a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import nn

from recal import __version__
from recal.errors import InputError, RecalError
from recal.evaluation.backends import Predictor, choose_backend, make_predictors
from recal.evaluation.images import SuiteImages, open_suite_images, stratified_sample
from recal.evaluation.metrics import score, summarise
from recal.evaluation.runs import (
    Columns,
    cell_file,
    locked_run,
    read_cell,
    write_cell,
    write_csv,
    write_json,
)
from recal.evaluation.suites import Cell, Suite, load_suite, usual_suite
from recal.evaluation.summary import summarise_targets
from recal.evaluation.targets import Target, resolve_targets

if TYPE_CHECKING:
    from numpy.typing import NDArray

# goes into every cell's key: raise it when a change of this code changes a number
EVALUATION_VERSION = 1
DEFAULT_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished evaluation.

    Attributes:
        folder: Where its cells and summaries are.
        document: What `summary.json` and `--json` say.
        failures: What went wrong with single cells, one line each; the others are whole.
    """

    folder: Path
    document: dict[str, Any]
    failures: tuple[str, ...]


@overload
def evaluate(source: nn.Module, batches: Iterable[Any]) -> dict[str, float]: ...


@overload
def evaluate(
    source: Sequence[str],
    *,
    suite: str | Suite | None = ...,
    data: Path | None = ...,
    output: Path | None = ...,
    checkpoint: Path | None = ...,
    corruptions: Sequence[str] = ...,
    severities: Sequence[int] = ...,
    limit: int | None = ...,
    seed: int = ...,
    batch_size: int = ...,
    device: str = ...,
    backend: str = ...,
    progress: Callable[[int, int], None] | None = ...,
    **asked: Any,
) -> Run: ...


def evaluate(source: Any, batches: Any = None, **options: Any) -> Any:
    """Evaluate networks.

    With a module and batches of normalised images and labels ((N, 3, H, W) float32 and (N,) int64
    tensors on the module's device), returns the metrics over all of them: `accuracy`,
    `top5_accuracy`, `nll`, `brier`, `ece`. The module's mode is put back afterwards.

    With the names of targets, evaluates them over a suite into a run folder. Cells that are already
    there for the same weights, data, suite and preprocessing are not computed again.

    Args:
        source: A module, or targets: `CHECKPOINT`, `CHECKPOINT:BRANCH`, a branch of `checkpoint`, a
            variant file, an .onnx file; none stands for every branch of `checkpoint`.
        batches: With a module, pairs of images and labels.
        **options: With targets: `suite` (by default the clean one of the network's family); `data` (a folder; by default looked for in the usual places);
            `output` (the run's folder; by default `runs/<suite>-<hash of the request>`); `checkpoint`;
            `corruptions` and `severities` (a part of the suite); `limit` (a seeded stratified sample of
            so many images); `seed` (of that sample and of corruptions made on the fly); `batch_size`;
            `device`; `backend` (auto, onnxruntime, torch); `progress` (called with cell images done and in
            total); fields of `ModelSpec` that the files do not give.

    Raises:
        InputError: A file or folder is not what it should be; nothing has been computed then.
        UsageError: An unknown suite, branch, corruption or backend.
    """
    if isinstance(source, nn.Module):
        return _evaluate_module(source, batches)
    return _evaluate_targets(source, **options)


@torch.inference_mode()
def _evaluate_module(module: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    training = {m: m.training for m in module.modules()}
    module.eval()
    try:
        scored = [
            score(module(images).float().cpu().numpy(), labels.cpu().numpy())
            for images, labels in batches
        ]
    finally:
        for m, mode in training.items():
            m.training = mode
    if not scored:
        raise InputError("evaluate: expected at least one batch, got none.")
    return summarise({name: np.concatenate([s[name] for s in scored]) for name in scored[0]})


def _evaluate_targets(
    names: Sequence[str],
    *,
    suite: str | Suite | None = None,
    data: Path | None = None,
    output: Path | None = None,
    checkpoint: Path | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    device: str = "cpu",
    backend: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> Run:
    suite = load_suite(suite) if isinstance(suite, str) else suite
    targets = resolve_targets(names, checkpoint, asked)
    suite = suite or usual_suite(targets[0].spec.family, targets[0].spec.classes)
    cells = suite.cells(corruptions, severities)
    _check_classes(targets, suite)
    images = open_suite_images(suite, data, targets[0].spec.size, cells)
    if images.clean is not None:
        cells = [Cell(None, None), *cells]
    indices = stratified_sample(images.labels, limit, seed)
    backend = choose_backend(backend, device)
    request = {
        "suite": suite.name,
        "suite_sha256": hashlib.sha256(suite.text.encode()).hexdigest(),
        "cells": [cell.name for cell in cells],
        "images": len(indices),
        "seed": seed,
        "provenance": images.provenance,
        "backend": backend,
        "targets": [
            {"name": t.name, "label": t.label, "sha256": t.sha256, "model": t.spec.to_json()}
            for t in targets
        ],
        "versions": {"recal": __version__, "torch": torch.__version__},
    }
    folder = output or Path("runs") / f"{suite.name}-{_digest(request)[:12]}"
    with locked_run(folder):
        write_json(folder / "run.json", request)
        work = _Work(folder, images, indices, seed, backend, device, batch_size, progress)
        failures = work.run(cells, targets)
        columns = work.columns
        document = summarise_targets(suite, cells, targets, columns, images.provenance)
        write_json(folder / "summary.json", document)
        write_csv(folder / "summary.csv", document["cells"])
    return Run(folder=folder, document=document, failures=tuple(failures))


class _Work:
    """The computing of a run's missing cells."""

    def __init__(
        self,
        folder: Path,
        images: SuiteImages,
        indices: NDArray[np.int64],
        seed: int,
        backend: str,
        device: str,
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.folder = folder
        self.images = images
        self.indices = indices
        self.seed = seed
        self.backend = backend
        self.device = device
        self.batch_size = batch_size
        self.progress = progress
        self.columns: dict[tuple[str, Cell], Columns] = {}

    def run(self, cells: Sequence[Cell], targets: Sequence[Target]) -> list[str]:
        """Find or compute every cell; return one line for each that failed."""
        failures: list[str] = []
        predictors: dict[str, Predictor] = {}
        for number, cell in enumerate(cells):
            try:
                data = self.images.fingerprint(cell, self.indices, self.seed)
                keys = {target.name: self._key(target, cell, data) for target in targets}
                missing = [t for t in targets if not self._found(t, cell, keys[t.name])]
                if missing and not predictors:
                    made = make_predictors(targets, self.backend, self.device)
                    predictors = dict(zip((t.name for t in targets), made, strict=True))
                for target, result in self._compute(cell, missing, predictors, number, len(cells)):
                    if isinstance(result, str):
                        failures.append(f"{target.label}, {cell.name}: {result}")
                        continue
                    path = cell_file(self.folder, target.sha256, cell.name)
                    write_cell(path, result, keys[target.name])
                    self.columns[target.name, cell] = result
            except InputError as error:
                failures.append(f"{cell.name}: {error}")
            self._advance((number + 1) * len(self.indices), len(cells))
        if failures and not self.columns:
            raise RecalError("every cell failed. " + " ".join(failures[:3]))
        return failures

    def _found(self, target: Target, cell: Cell, key: str) -> bool:
        columns = read_cell(cell_file(self.folder, target.sha256, cell.name), key)
        if columns is not None:
            self.columns[target.name, cell] = columns
        return columns is not None

    def _key(self, target: Target, cell: Cell, data: str) -> str:
        return _digest(
            {
                "version": EVALUATION_VERSION,
                "target": target.sha256,
                "cell": cell.name,
                "data": data,
                "images": hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest(),
                "backend": self.backend,
            }
        )

    def _compute(
        self,
        cell: Cell,
        targets: Sequence[Target],
        predictors: dict[str, Predictor],
        number: int,
        cells: int,
    ) -> Iterator[tuple[Target, Columns | str]]:
        """Feed every target the same batches; yield its columns, or what went wrong."""
        if not targets:
            return
        labels = self.images.labels
        parts: dict[str, list[Columns]] = {target.name: [] for target in targets}
        wrong: dict[str, str] = {}
        done = number * len(self.indices)
        for batch, pixels in self._batches(cell):
            for target in targets:
                if target.name in wrong:
                    continue
                logits = predictors[target.name](pixels)
                if not np.isfinite(logits).all():
                    first = batch[~np.isfinite(logits).all(axis=1)][0]
                    wrong[target.name] = f"NaN or infinite logits, first for image {first}."
                elif logits.shape[1] != self.images.suite.classes:
                    wrong[target.name] = (
                        f"expected {self.images.suite.classes} logits, got {logits.shape[1]}."
                    )
                else:
                    identity = {"index": batch.astype(np.int32), "label": labels[batch].astype(np.int32)}
                    parts[target.name].append({**identity, **score(logits, labels[batch])})
            done += len(batch)
            self._advance(done, cells)
        for target in targets:
            found = parts[target.name]
            yield target, wrong.get(target.name) or {
                name: np.concatenate([part[name] for part in found]) for name in found[0]
            }

    def _batches(self, cell: Cell) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield batches of a cell; the next one is read and corrupted while one is in use."""
        starts = range(0, len(self.indices), self.batch_size)
        batches = [self.indices[start : start + self.batch_size] for start in starts]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.images.read, cell, batches[0], self.seed)
            for i, batch in enumerate(batches):
                pixels = ahead.result()
                if i + 1 < len(batches):
                    ahead = pool.submit(self.images.read, cell, batches[i + 1], self.seed)
                yield batch, pixels

    def _advance(self, done: int, cells: int) -> None:
        if self.progress is not None:
            self.progress(done, cells * len(self.indices))


def _check_classes(targets: Sequence[Target], suite: Suite) -> None:
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


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
