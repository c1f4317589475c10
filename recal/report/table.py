"""The summary of a run as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.report.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a fraction for people, with half the width of its interval."""
    if value is None:
        return "-"
    half = "" if interval is None else f" ±{50 * (interval[1] - interval[0]):.2f}"
    return f"{100 * value:.2f}{half}"


def number(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format a value that is no fraction, with half the width of its interval."""
    if value is None:
        return "-"
    half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.4f}"
    return f"{value:.4f}{half}"


def points(difference: Mapping[str, float] | None) -> str:
    """Format a difference of fractions with its interval, in percentage points."""
    if difference is None:
        return ""
    low, value, high = (100 * difference[key] for key in ("low", "value", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def extent(document: Mapping[str, Any]) -> str:
    """Say on how much of a suite a run's numbers rest."""
    done, whole = document["cells_done"], document["cells_of_suite"]
    cells = f"{done} of {whole} cells" if done < whole else f"{done} cell{'s' * (done > 1)}"
    return f"{document['images']:,} images, {cells}"


def heading(document: Mapping[str, Any]) -> str:
    """Return the title of a run's tables; it says so where the targets saw test data."""
    adapted = {row["adaptation"] for row in document["summary"]} - {None}
    mark = f"; saw test data: {', '.join(sorted(adapted))}" if adapted else ""
    return f"{document['title']} ({extent(document)}{mark})"


def summary_table(document: Mapping[str, Any]) -> Grid:
    """Lay out accuracies and mCE in percent with half the width of their intervals.

    Differences are from the first target, in percentage points.
    """
    rows = document["summary"]
    several = len(rows) > 1
    header, columns = ["target"], [[row["label"] for row in rows]]
    for part in ("clean", "corrupted"):
        if part == "corrupted" and all(row["corrupted_accuracy"] is None for row in rows):
            continue
        header.append(part)
        columns.append([value_of(row, f"{part}_accuracy") for row in rows])
        if several:
            header.append(f"vs {rows[0]['label']} [95 %]")
            columns.append([points(row[f"{part}_difference"]) for row in rows])
    for name, title in (("mce", "mCE"), ("relative_mce", "relative mCE")):
        if any(row[name] is not None for row in rows):
            header.append(title)
            columns.append([value_of(row, name) for row in rows])
    return Grid(heading(document), tuple(header), tuple(zip(*columns, strict=True)))


def calibration_table(document: Mapping[str, Any]) -> Grid:
    """Lay out how far probabilities are to be trusted: ECE in percent, NLL in nats, Brier score."""
    names = [
        f"{part}_{metric}" for part in ("clean", "corrupted") for metric in ("ece", "nll", "brier")
        if any(row[f"{part}_{metric}"] is not None for row in document["summary"])
    ]  # fmt: skip
    return Grid(
        "", ("target", *(_title(name) for name in names)),
        tuple((row["label"], *(value_of(row, name) for name in names))
              for row in document["summary"]),
    )  # fmt: skip


def value_of(row: Mapping[str, Any], name: str) -> str:
    """Format a metric of a row with half the width of its interval."""
    form = number if name.endswith(("nll", "brier")) else percent
    return form(row[name], row["intervals"].get(name))


def _title(name: str) -> str:
    part, metric = name.split("_")
    return f"{part} {metric.upper() if metric != 'brier' else 'Brier'}"


def corruption_table(document: Mapping[str, Any], by: str = "corruption") -> Grid:
    """Lay out accuracies by corruption, by group of corruptions, or by severity, in percent."""
    found: dict[str, dict[str, str]] = {}
    for row in document["parts"]:
        if row["by"] == by:
            name = row["part"].replace("severity_", "severity ")
            found.setdefault(name, {})[row["target"]] = value_of(row, "accuracy")
    targets = document["summary"]
    return Grid(
        "", (by, *(row['label'] for row in targets)),
        tuple((name, *(of.get(row["target"], "-") for row in targets))
              for name, of in found.items()),
    )  # fmt: skip


def verdicts(document: Mapping[str, Any]) -> list[str]:
    """Say of every target but the first, in a sentence, whether it differs beyond noise."""
    first, *others = document["summary"]
    return [
        f"{row['label']} against {first['label']}: {', '.join(said)}."
        for row in others
        if (said := [
            f"{part} {verdict(row[f'{part}_difference'])}" for part in ("clean", "corrupted")
            if row[f"{part}_difference"] is not None
        ])
    ]  # fmt: skip


def verdict(difference: Mapping[str, Any]) -> str:
    """Say whether a tested difference of accuracies is beyond noise."""
    p = f"p = {difference['p_holm']:.2g}"
    if not difference["beyond_noise"]:
        return f"no difference beyond noise ({p})"
    return f"{100 * difference['value']:+.2f} points, beyond noise ({p})"
