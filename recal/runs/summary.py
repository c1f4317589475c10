"""The results of a run as classes, and the files in its folder that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from recal.errors import InputError
from recal.files import csv_text, write_whole
from recal.runs.compare import Difference
from recal.runs.metrics import METRICS
from recal.runs.statistics import Interval
from recal.runs.store import open_run
from recal.schema import Record, read_json_file, to_json


class CellRow(Record, frozen=True, kw_only=True):
    """The metrics of a target in a cell; fractions, but nll in nats and brier from 0 to 2.

    Attributes:
        target: Name of the target.
        corruption: The cell's corruption; None for clean images.
        severity: Its severity; None for clean images.
        n: Number of images.
        intervals: 95 % intervals of the metrics, by name.
    """

    target: str
    corruption: str | None
    severity: int | None
    n: int
    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float
    intervals: dict[str, Interval]


class PartRow(Record, frozen=True, kw_only=True):
    """The mean metrics of a target over a corruption, a kind of corruptions, or a severity.

    Attributes:
        target: Name of the target.
        by: What the cells have in common: corruption, group or severity.
        part: Name of the group of cells, such as `fog`, `weather` or `severity_3`.
        intervals: 95 % intervals of the metrics, by name.
    """

    target: str
    by: str
    part: str
    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float
    intervals: dict[str, Interval]


class ClassRow(Record, frozen=True, kw_only=True, rename={"label": "class"}):
    """The metrics of a target on the images of one class.

    Attributes:
        target: Name of the target.
        part: `clean`, or `corrupted` for the mean over the suite's corrupted cells.
        label: Number of the class; `class` in CSV.
        n: Number of images.
        intervals: 95 % intervals of the metrics, by name.
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
        target: Name of the target.
        label: Its label.
        adaptation: How it was adapted to the test images; None if it never saw them.
        intervals: 95 % intervals, by name of the quantity.
        clean_difference: Difference of the clean accuracy from the first target's.
        corrupted_difference: Difference of the mean accuracy over corrupted cells.
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
        suite: Name of the suite.
        title: Title of the suite.
        provenance: Origin of the corrupted images; None for a clean suite.
        reference: Source of the errors that mCE is relative to, or None.
        images: Number of images of the largest cell.
        cells_done: Number of different cells that any target has.
        cells_of_suite: Number of cells of the whole suite.
        cells: One row for each target and cell.
        parts: One row for each target and group of corrupted cells.
        targets: One row for each target; `summary` in JSON.
        execution: How networks were run, for people.
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
    execution: str = ""
    warnings: tuple[str, ...] = ()


# the quantities of a target's row
HEADLINES = tuple(
    name
    for name in TargetRow.__struct_fields__
    if name.startswith(("clean_", "corrupted_", "mean_", "mce", "relative_"))
    and not name.endswith("_difference")
)


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


def flat(row: Record) -> dict[str, object]:
    """Return a row as columns of numbers and text: intervals and differences become columns."""
    columns: dict[str, object] = {}
    intervals: Mapping[str, Interval] | None = getattr(row, "intervals", None)
    for name, key in zip(row.__struct_fields__, row.__struct_encode_fields__, strict=True):
        value = getattr(row, name)
        if name == "intervals":
            continue
        if name.endswith("_difference"):
            columns[key] = None if value is None else value.value
            for end in ("low", "high", "p_holm"):
                columns[f"{key}_{end}"] = None if value is None else getattr(value, end)
            continue
        columns[key] = value
        if intervals is not None and name in (*METRICS, *HEADLINES):
            columns[f"{key}_low"], columns[f"{key}_high"] = intervals.get(name, (None, None))
    return columns
