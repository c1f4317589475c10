"""Computing the cells that a run does not hold yet: each batch is read once for all targets."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from recal.errors import InputError, RecalError
from recal.evaluation.backends import make_predictors
from recal.evaluation.metrics import score
from recal.evaluation.runs import cell_file, json_digest, read_cell, write_cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recal.evaluation.backends import Predictor
    from recal.evaluation.images import SuiteImages
    from recal.evaluation.runs import Columns
    from recal.evaluation.suites import Cell
    from recal.evaluation.targets import Target

# goes into every cell's key: raise it when a change of this code changes a number
EVALUATION_VERSION = 1


def compute_cells(
    cells: Sequence[Cell],
    targets: Sequence[Target],
    images: SuiteImages,
    *,
    folder: Path,
    backend: str,
    device: str,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[tuple[str, Cell], Columns], list[str]]:
    """Find every (target, cell) in the run's folder, or compute and write it there.

    Args:
        cells: In the order of the work.
        targets: All of the same input size and number of classes.
        images: Where the cells' images come from, and which are used.
        folder: The run's.
        backend: `onnxruntime` or `torch`.
        device: For torch.
        batch_size: Images a batch.
        progress: Called with cell images done and in total.

    Returns:
        The columns by target name and cell, and a line for each cell that failed.

    Raises:
        RecalError: Every cell failed.
    """
    columns: dict[tuple[str, Cell], Columns] = {}
    failures: list[str] = []
    predictors: dict[str, Predictor] = {}
    total = len(cells) * len(images.indices)
    for number, cell in enumerate(cells):
        done = number * len(images.indices)
        try:
            data = images.fingerprint(cell)
            missing: dict[str, str] = {}
            for target in targets:
                key = _cell_key(target, cell, data, images.indices, backend)
                found = read_cell(cell_file(folder, target.sha256, cell.name), key)
                if found is None:
                    missing[target.name] = key
                else:
                    columns[target.name, cell] = found
            if missing and not predictors:
                made = make_predictors(targets, backend, device)
                predictors = {t.name: made[i] for i, t in enumerate(targets)}
            wanted = {name: predictors[name] for name in missing}
            scores = _Scores(wanted, images.labels, images.suite.classes)
            if missing:
                for batch, pixels in _read_ahead(images, cell, batch_size):
                    scores.add(batch, pixels)
                    progress(done + scores.images, total)
        except InputError as error:
            failures.append(f"{cell.name}: {error}")
            continue
        for target in targets:
            if target.name in scores.wrong:
                failures.append(f"{target.label}, {cell.name}: {scores.wrong[target.name]}")
            elif target.name in missing:
                result = scores.columns(target.name)
                path = cell_file(folder, target.sha256, cell.name)
                write_cell(path, result, missing[target.name])
                columns[target.name, cell] = result
        progress(done + len(images.indices), total)
    if failures and not columns:
        raise RecalError("every cell failed. " + " ".join(failures[:3]))
    return columns, failures


def _cell_key(
    target: Target, cell: Cell, data: str, indices: NDArray[np.int64], backend: str
) -> str:
    return json_digest(
        {
            "version": EVALUATION_VERSION,
            "target": target.sha256,
            "cell": cell.name,
            "data": data,
            "images": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
            "backend": backend,
        }
    )


class _Scores:
    """The scores of several targets on one cell, gathered batch by batch."""

    def __init__(
        self, predictors: Mapping[str, Predictor], labels: NDArray[np.int64], classes: int
    ) -> None:
        self._predictors = predictors
        self._labels = labels
        self._classes = classes
        self._parts: dict[str, list[Columns]] = {name: [] for name in predictors}
        self.wrong: dict[str, str] = {}
        self.images = 0

    def add(self, batch: NDArray[np.int64], pixels: NDArray[np.uint8]) -> None:
        """Score a batch; a target whose logits cannot be right is left out from then on."""
        labels = self._labels[batch]
        for name, predict in self._predictors.items():
            if name in self.wrong:
                continue
            logits = predict(pixels)
            finite = np.isfinite(logits).all(axis=1)
            if not finite.all():
                self.wrong[name] = f"NaN or infinite logits, first for image {batch[~finite][0]}."
            elif logits.shape[1] != self._classes:
                self.wrong[name] = f"expected {self._classes} logits, got {logits.shape[1]}."
            else:
                identity = {"index": batch.astype(np.int32), "label": labels.astype(np.int32)}
                self._parts[name].append({**identity, **score(logits, labels)})
        self.images += len(batch)

    def columns(self, name: str) -> Columns:
        """Return all that was gathered for a target."""
        parts = self._parts[name]
        return {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}


def _read_ahead(
    images: SuiteImages, cell: Cell, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield the batches of a cell; the next one is read and corrupted while one is in use."""
    starts = range(0, len(images.indices), batch_size)
    batches = [images.indices[start : start + batch_size] for start in starts]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(images.read, cell, batches[0])
        for i, batch in enumerate(batches):
            pixels = ahead.result()
            if i + 1 < len(batches):
                ahead = pool.submit(images.read, cell, batches[i + 1])
            yield batch, pixels
