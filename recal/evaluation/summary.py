"""From the cells of a run to the document that people and programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from recal.evaluation.comparison import paired_difference
from recal.evaluation.metrics import summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.evaluation.runs import Columns
    from recal.evaluation.suites import Cell, Suite
    from recal.evaluation.targets import Target


def summarise_targets(
    suite: Suite,
    cells: Sequence[Cell],
    targets: Sequence[Target],
    columns: Mapping[tuple[str, Cell], Columns],
    provenance: str | None,
) -> dict[str, Any]:
    """Return the document of `summary.json` and `recal eval --json`.

    `mean_corruption_error` is there only where every corruption and severity of the suite is;
    `corrupted_accuracy` is the mean over the corrupted cells that are there. Differences are from
    the first target, over the cells that both have, with 95 % intervals.
    """
    clean = [cell for cell in cells if cell.corruption is None]
    corrupted = [cell for cell in cells if cell.corruption is not None]
    complete = len(corrupted) == len(suite.cells())
    found = [(t, c, columns[t.name, c]) for t in targets for c in cells if (t.name, c) in columns]
    rows: list[dict[str, Any]] = [
        {
            "target": target.name,
            "corruption": cell.corruption,
            "severity": cell.severity,
            "n": len(scores["label"]),
            **summarise(scores),
        }
        for target, cell, scores in found
    ]
    accuracy = {(r["target"], r["corruption"], r["severity"]): r["accuracy"] for r in rows}
    summary = []
    for target in targets:
        values = [
            accuracy[key]
            for cell in corrupted
            if (key := (target.name, cell.corruption, cell.severity)) in accuracy
        ]
        mean = float(np.mean(values)) if values else None
        whole = complete and corrupted and len(values) == len(corrupted)
        summary.append(
            {
                "target": target.name,
                "label": target.label,
                "clean_accuracy": accuracy.get((target.name, None, None)),
                "corrupted_accuracy": mean,
                "mean_corruption_error": 1.0 - mean if whole and mean is not None else None,
                "clean_difference": _difference(targets[0], target, clean, columns),
                "corrupted_difference": _difference(targets[0], target, corrupted, columns),
            }
        )
    return {
        "suite": suite.name,
        "title": suite.title,
        "provenance": provenance,
        "images": max((row["n"] for row in rows), default=0),
        "cells_done": len({(row["corruption"], row["severity"]) for row in rows}),
        "cells_of_suite": len(suite.cells()) + 1,
        "cells": rows,
        "summary": summary,
    }


def _difference(
    first: Target,
    target: Target,
    cells: Sequence[Cell],
    columns: Mapping[tuple[str, Cell], Columns],
) -> dict[str, Any] | None:
    shared = [c for c in cells if (first.name, c) in columns and (target.name, c) in columns]
    if target.name == first.name or not shared:
        return None
    right = [
        [columns[name, cell]["rank"] == 0 for cell in shared] for name in (first.name, target.name)
    ]
    difference = paired_difference(*right)
    return {"value": difference.value, "low": difference.low, "high": difference.high}
