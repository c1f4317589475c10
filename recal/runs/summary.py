"""The results of a run as classes, computed from its cells, and the files that hold them."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError, printable
from recal.files import csv_text, write_whole
from recal.runs.compare import Difference, Pair, compare_measured
from recal.runs.metrics import METRICS, Measured, Metrics, measure_columns, per_image
from recal.runs.parts import cells_left
from recal.runs.quantities import Quantity, cell_groups, cell_metric, quantities_of
from recal.runs.statistics import Interval, bounded_mean_interval, mean_interval
from recal.runs.store import AttackedCell, Columns, RunTarget, SavedRun, open_run, write_record
from recal.schema import Record, read_json_file, to_json
from recal.suites.suite import Cell


class CellRow(Metrics, frozen=True, kw_only=True):
    """The metrics of a target in a cell; clean images have no corruption and severity."""

    target: str
    corruption: str | None
    severity: int | None
    n: int
    intervals: dict[str, Interval]


class PartRow(Metrics, frozen=True, kw_only=True):
    """The mean metrics of a target over a corruption, a kind of corruptions, or a severity.

    Attributes:
        by: What the cells have in common: corruption, group or severity.
        part: Name of the group of cells, such as `fog`, `weather` or `severity_3`.
    """

    target: str
    by: str
    part: str
    intervals: dict[str, Interval]


class ClassRow(Record, frozen=True, kw_only=True, rename={"label": "class"}):
    """The metrics of a target on the images of one class.

    Attributes:
        part: `clean`, or `corrupted` for the mean over the suite's corrupted cells.
        label: Number of the class; `class` in CSV.
    """

    target: str
    part: str
    label: int
    n: int
    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    intervals: dict[str, Interval]


class TargetRow(Record, frozen=True, kw_only=True):
    """A target over the whole run; None for quantities that its cells do not allow.

    Attributes:
        adaptation: How it was adapted to the test images; None if it never saw them.
        clean_difference, corrupted_difference: Differences of accuracy from the first target.
    """

    target: str
    label: str
    adaptation: str | None
    clean_accuracy: float | None = None
    clean_top5_accuracy: float | None = None
    clean_nll: float | None = None
    clean_brier: float | None = None
    clean_ece: float | None = None
    corrupted_accuracy: float | None = None
    corrupted_top5_accuracy: float | None = None
    corrupted_nll: float | None = None
    corrupted_brier: float | None = None
    corrupted_ece: float | None = None
    mean_corruption_error: float | None = None
    mce: float | None = None
    relative_mce: float | None = None
    intervals: dict[str, Interval] = msgspec.field(default_factory=dict)
    clean_difference: Difference | None = None
    corrupted_difference: Difference | None = None


class Summary(Record, frozen=True, kw_only=True):
    """Every metric of a run: the content of `summary.json` and of `recal eval --json`.

    Attributes:
        provenance: Origin of the corrupted images; None for a clean suite.
        reference: Source of the errors that mCE is relative to, or None.
        images: Number of images of the largest cell.
        cells_done: Number of different cells that any target has.
        cells_of_suite: Number of cells of the whole suite.
        targets: One row for each target; `summary` in JSON.
        attacks: How the images of cells were attacked; every target predicts those of each.
        execution: How networks were run, for people.
        feeding: Mean, std and channel order of each target, and where they come from, for people.
        warnings: What is odd about the images, the preprocessing or the results.
    """

    suite: str
    title: str
    provenance: str | None
    reference: str | None = None
    images: int = 0
    cells_done: int = 0
    cells_of_suite: int = 0
    cells: tuple[CellRow, ...] = ()
    parts: tuple[PartRow, ...] = ()
    targets: tuple[TargetRow, ...] = msgspec.field(name="summary", default=())
    attacks: tuple[AttackedCell, ...] = ()
    execution: str = ""
    feeding: dict[str, str] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


# the quantities of a target's row
HEADLINES = tuple(f.name for f in msgspec.structs.fields(TargetRow) if f.type == float | None)


def write_results(folder: Path, summary: Summary, classes: Sequence[ClassRow]) -> None:
    """Write `summary.json`, `summary.csv` (a row for each cell) and `classes.csv` into a folder."""
    write_whole(folder / "summary.json", to_json(summary, indent=1) + "\n")
    write_whole(folder / "summary.csv", csv_text([flat(row) for row in summary.cells]))
    write_whole(folder / "classes.csv", csv_text([flat(row) for row in classes]))


def read_summary(folder: Path) -> Summary:
    """Read the summary of a finished run.

    Raises:
        InputError: The folder is no finished run, or its `summary.json` is of another version.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: expected the folder of a finished run of `recal eval`, got no summary.json "
            "in it."
        )
    return read_json_file(path, Summary)


def find_network(folder: Path, sha256: str) -> tuple[Summary, TargetRow]:
    """Return the summary of a finished run, and the row of the network with this hash.

    Raises:
        InputError: The folder is no finished run, or the network was not evaluated in it.
    """
    run, summary = open_run(folder), read_summary(folder)
    names = [target.name for target in run.targets if target.sha256 == sha256]
    for row in summary.targets:
        if row.target in names:
            return summary, row
    known = ", ".join(target.name for target in run.targets)
    raise InputError(
        f"{folder}: expected a run of the variant that is exported, got one of {known}. Evaluate "
        "it, or omit --run."
    )


def flat(row: CellRow | ClassRow | TargetRow) -> dict[str, object]:
    """Return a row as columns of numbers and text: intervals and differences become columns."""
    columns: dict[str, object] = {}
    keys = dict(zip(row.__struct_fields__, row.__struct_encode_fields__, strict=True))
    for name in sorted(keys, key=METRICS.__contains__):  # what the row is of comes first
        key, value = keys[name], getattr(row, name)
        if name in (*METRICS, *HEADLINES):
            columns[key] = value
            columns[f"{key}_low"], columns[f"{key}_high"] = row.intervals.get(name, (None, None))
        elif name.endswith("_difference"):
            columns[key] = getattr(value, "value", None)
            for end in ("low", "high", "p_holm"):
                columns[f"{key}_{end}"] = getattr(value, end, None)
        elif name != "intervals":
            columns[key] = value
    return columns


# the calibration error is not among the metrics of a class: how often a network is right on images
# of one class is its recall, which its confidence does not estimate
OF_A_CLASS = METRICS[:4]
SHARES = ("accuracy", "top5_accuracy")


def summarise_run(
    folder: str | PathLike[str], *, seed: int = 0
) -> tuple[Summary, tuple[ClassRow, ...]]:
    """Compute every metric of a run from its cells, each of which is read once and not kept.

    Args:
        folder: The folder of a run; nothing else is needed.
        seed: Seed of the bootstrap.

    Returns:
        The summary, and one row for each target, part (`clean` or `corrupted`) and class.

    Raises:
        InputError: The folder is no run, or a cell is damaged.
    """
    run = open_run(Path(folder))
    record = run.record
    measured: dict[str, Measured] = {}
    classes: list[ClassRow] = []
    for target in run.targets:
        sums: dict[str, list[Any]] = {}
        found = measure_columns(target, _read_cells(run, target, sums), seed=seed)
        if found is not None:
            measured[target.name] = found
        for part in ("clean", "corrupted"):
            if part in sums:
                labels, total, cells = sums[part]
                classes += _class_rows(target.name, part, labels, total / cells)
    pairs = _pairs_with_the_first(run, measured)
    cells = tuple(
        CellRow(
            target=name,
            corruption=cell.corruption,
            severity=cell.severity,
            n=images,
            **_means(m, [cell]),
        )
        for name, m in measured.items()
        for cell, images in zip(m.cells, m.images, strict=True)
    )
    summary = Summary(
        suite=record.suite,
        title=record.title,
        provenance=record.provenance,
        reference=None if record.reference is None else record.reference.source,
        images=max((max(m.images) for m in measured.values()), default=0),
        cells_done=len({cell for m in measured.values() for cell in m.cells}),
        cells_of_suite=len(run.standard or record.attacks) + 1,
        attacks=record.attacks,
        feeding={target.label: target.model.feeding for target in record.targets},
        cells=cells,
        parts=tuple(
            PartRow(target=name, by=group.by, part=group.name, **_means(m, group.cells))
            for name, m in measured.items()
            for group in cell_groups(run, m.cells)
            if group.by not in ("clean", "corrupted")  # these are in the target's row
        ),
        targets=tuple(
            _target_row(run, target, measured.get(target.name), pairs.get(target.name))
            for target in run.targets
        ),
        warnings=tuple(_guesses(run, cells)),
    )
    return summary, tuple(classes)


def finish_run(folder: Path, *, execution: str, warnings: Sequence[str]) -> Summary:
    """Summarise a run, and write the results into its folder.

    Args:
        folder: The folder of a run.
        execution: How networks were run, for people.
        warnings: What is odd about the images and the preprocessing.
    """
    summary, classes = summarise_run(folder)
    warnings = tuple(dict.fromkeys(map(printable, (*warnings, *summary.warnings))))
    summary = msgspec.structs.replace(summary, execution=execution, warnings=warnings)
    write_results(folder, summary, classes)
    return summary


def finish_parts(run: SavedRun) -> Summary:
    """Summarise what the parts of a run have done so far, and write the results into its folder.

    If none of its cells is left to do, the run is then finished.
    """
    summary = finish_run(
        run.folder,
        execution="; ".join(dict.fromkeys(part.execution for part in run.parts)),
        warnings=[text for part in run.parts for text in part.warnings],
    )
    if not cells_left(run.record.cells, run.parts):
        write_record(run.folder, run.record)
    return summary


# standard deviations above chance, of a target that is better
CLEARLY = 3.0


def _guesses(run: SavedRun, rows: Sequence[CellRow]) -> Iterator[str]:
    """Yield a warning for every target that is no better than chance.

    The clean cell decides where a target has one, otherwise all of its cells together.
    """
    chance = 1 / run.record.classes
    for target in run.targets:
        cells = [row for row in rows if row.target == target.name]
        cells = [cell for cell in cells if cell.corruption is None] or cells
        if not cells:
            continue
        accuracy = np.average([cell.accuracy for cell in cells], weights=[cell.n for cell in cells])
        noise = np.sqrt(chance * (1 - chance) / cells[0].n)
        if accuracy < chance + CLEARLY * noise:
            yield (
                f"{target.label}: accuracy {accuracy:.1%} is that of guessing ({chance:.1%}). Are "
                "the labels, the class order and the preprocessing right?"
            )


def _read_cells(
    run: SavedRun, target: RunTarget, sums: dict[str, list[Any]]
) -> Iterator[tuple[Cell, Columns]]:
    """Yield the cells of a target one after the other, and add up the metrics of each image.

    `sums` holds for `clean` and `corrupted` the labels, the sums (N, 4) and the number of cells.
    """
    for cell in run.cells:
        columns = run.columns(target, cell)
        if columns is None:
            continue
        if cell.corruption is None or cell in run.standard:
            part = "clean" if cell.corruption is None else "corrupted"
            _, total, cells = sums.get(part, (None, 0.0, 0))
            sums[part] = [columns["label"], total + per_image(columns), cells + 1]
        yield cell, columns


def _class_rows(
    target: str, part: str, labels: NDArray[Any], means: NDArray[np.float64]
) -> Iterator[ClassRow]:
    order = np.argsort(labels, kind="stable")
    numbers, starts = np.unique(labels[order], return_index=True)
    for label, of_class in zip(numbers, np.split(means[order], starts[1:]), strict=True):
        columns = dict(zip(OF_A_CLASS, np.ascontiguousarray(of_class.T), strict=True))
        intervals = {
            name: bounded_mean_interval(x) if name in SHARES else mean_interval(x)
            for name, x in columns.items()
        }
        values = {name: float(x.mean()) for name, x in columns.items()}
        yield ClassRow(
            target=target,
            part=part,
            label=int(label),
            n=len(of_class),
            intervals=intervals,
            **values,
        )


def _pairs_with_the_first(run: SavedRun, measured: Mapping[str, Measured]) -> dict[str, Pair]:
    """Compare every target with the run's first one, by the name of the other target."""
    first = measured.get(run.targets[0].name)
    if first is None:
        return {}
    others = [m for m in measured.values() if m is not first and set(m.cells) & set(first.cells)]
    pairs = compare_measured(run, [(first, other) for other in others])
    return {pair.second: pair for pair in pairs}


def _target_row(
    run: SavedRun, target: RunTarget, measured: Measured | None, pair: Pair | None
) -> TargetRow:
    known = {} if measured is None else quantities_of(run, measured.cells)
    quantities = {name: known[name] for name in HEADLINES if name in known}
    differences = {} if pair is None else pair.differences
    return TargetRow(
        target=target.name,
        label=target.label,
        adaptation=target.adaptation,
        clean_difference=differences.get("clean_accuracy"),
        corrupted_difference=differences.get("corrupted_accuracy"),
        **({} if measured is None else _values(quantities, measured)),
    )


def _means(measured: Measured, cells: Sequence[Cell]) -> dict[str, Any]:
    return _values({m: cell_metric(measured.cells, cells, m) for m in METRICS}, measured)


def _values(quantities: Mapping[str, Quantity], measured: Measured) -> dict[str, Any]:
    """Return values by name, and their intervals as `intervals`."""
    return {name: float(q.of(measured.value)[0]) for name, q in quantities.items()} | {
        "intervals": {name: q.interval(measured) for name, q in quantities.items()}
    }
