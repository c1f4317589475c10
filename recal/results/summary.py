"""From a run's folder to the document that people and programs read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.results.comparison import compare_measured
from recal.results.intervals import normal_interval, percentile_interval, wilson_interval
from recal.results.measured import measure
from recal.results.metrics import METRICS
from recal.results.pairs import difference_document
from recal.results.quantities import parts_of, quantities_of
from recal.results.saved import open_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.results.intervals import Interval
    from recal.results.measured import Measured
    from recal.results.pairs import Pair
    from recal.results.quantities import Quantity
    from recal.results.saved import SavedRun, SavedTarget

# of a target, in the summary; those that a run does not allow are null there
HEADLINES = (
    *(f"{part}_{metric}" for part in ("clean", "corrupted") for metric in METRICS),
    "mean_corruption_error",
    "mce",
    "relative_mce",
)


def summarise_run(folder: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Compute every metric of a run from its cells; nothing but its folder is needed.

    Args:
        folder: The run's.
        seed: Of the bootstrap.

    Returns:
        The document of `summary.json` and `recal eval --json`: `cells`, one row a target and cell;
        `parts`, one row a target and corruption, group of corruptions or severity; `summary`, one
        row a target, with the differences from the first over the cells that both have. Values are
        fractions (nll in nats, brier 0 to 2); `intervals` holds their 95 % intervals by name.

    Raises:
        InputError: The folder is no run.
    """
    run = open_run(Path(folder))
    measured = {t.name: found for t in run.targets if (found := measure(run, t, seed=seed))}
    first = measured.get(run.targets[0].name)
    others = [m for m in list(measured.values()) if first is not None and m is not first]
    pairs: dict[str, Pair] = {}
    if first is not None:
        comparable = [m for m in others if set(m.cells) & set(first.cells)]
        found_pairs = compare_measured(run, [(first, m) for m in comparable])
        pairs = {pair.second.name: pair for pair in found_pairs}
    rows = [row for m in measured.values() for row in _cell_rows(m)]
    return {
        "suite": run.suite,
        "title": run.title,
        "provenance": run.provenance,
        "reference": None if run.reference is None else run.reference.source,
        "images": max((max(m.images) for m in measured.values()), default=0),
        "cells_done": len({(row["corruption"], row["severity"]) for row in rows}),
        "cells_of_suite": len(run.standard) + 1,
        "cells": rows,
        "parts": [row for m in measured.values() for row in _part_rows(run, m)],
        "summary": [_summary_row(run, t, measured.get(t.name), pairs) for t in run.targets],
    }


def flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows for a table of numbers: intervals and differences become columns of their own."""
    flattened = []
    for row in rows:
        plain: dict[str, Any] = {}
        intervals = row.get("intervals", {})
        for name, value in row.items():
            if name == "intervals":
                continue
            if name.endswith("_difference"):
                found = value or {}
                plain |= {name: found.get("value")}
                plain |= {f"{name}_{end}": found.get(end) for end in ("low", "high", "p_holm")}
                continue
            plain[name] = value
            if name in METRICS or name in HEADLINES:
                low, high = intervals.get(name, (None, None))
                plain |= {f"{name}_low": low, f"{name}_high": high}
        flattened.append(plain)
    return flattened


def _cell_rows(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for i, cell in enumerate(measured.cells):
        values = measured.value[0, i].tolist()
        rows.append(
            {
                "target": measured.target.name,
                "corruption": cell.corruption,
                "severity": cell.severity,
                "n": measured.images[i],
                **dict(zip(METRICS, values, strict=True)),
                "intervals": {
                    name: list(
                        _interval(name, value, measured.resampled[:, i, k], measured.images[i])
                    )
                    for k, (name, value) in enumerate(zip(METRICS, values, strict=True))
                },
            }
        )
    return rows


def _interval(name: str, value: float, resampled: Any, images: int) -> Interval:
    if name.endswith("accuracy"):
        return wilson_interval(value, images)
    if name == "ece":
        low, high = normal_interval(value, resampled)
        return max(low, 0.0), high
    return percentile_interval(resampled)


def _part_rows(run: SavedRun, measured: Measured) -> list[dict[str, Any]]:
    quantities = quantities_of(run, measured.cells)
    rows = []
    for part in parts_of(run, measured.cells):
        if part.by in ("clean", "corrupted"):
            continue  # they are in the summary
        found = {metric: quantities[f"{part.name}_{metric}"] for metric in METRICS}
        rows.append(
            {
                "target": measured.target.name,
                "by": part.by,
                "part": part.name,
                **_values(found, measured),
            }
        )
    return rows


def _values(quantities: Mapping[str, Quantity], measured: Measured) -> dict[str, Any]:
    values = {name: float(q.of(measured.value)[0]) for name, q in quantities.items()}
    intervals = {
        name: list(q.interval(measured.value, measured.resampled, measured.images))
        for name, q in quantities.items()
    }
    return {**values, "intervals": intervals}


def _summary_row(
    run: SavedRun, target: SavedTarget, measured: Measured | None, pairs: Mapping[str, Pair]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "target": target.name,
        "label": target.label,
        "adaptation": target.adaptation,
        **dict.fromkeys(HEADLINES),
        "intervals": {},
    }
    if measured is not None:
        quantities = quantities_of(run, measured.cells)
        row |= _values({n: quantities[n] for n in HEADLINES if n in quantities}, measured)
    differences = pairs[target.name].differences if target.name in pairs else {}
    for part in ("clean", "corrupted"):
        difference = differences.get(f"{part}_accuracy")
        row[f"{part}_difference"] = difference and difference_document(difference)
    return row
