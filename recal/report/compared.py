"""A comparison of targets as tables and sentences for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.report.grid import Grid
from recal.report.table import number, percent, points, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADLINES = ("clean", "corrupted")


def compared_parts(pair: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the differences of accuracy that are shown: clean, corrupted, and each corruption.

    Each has besides a text, `said`: whether it is beyond noise, and in how many cells.
    """
    corruptions = dict.fromkeys(cell["corruption"] for cell in pair["cells"])
    parts = {}
    for part in (*HEADLINES, *(name for name in corruptions if name is not None)):
        difference = pair["differences"].get(f"{part}_accuracy")
        if difference is None:
            continue
        said = f"{'yes' if difference['beyond_noise'] else 'no'} (p = {difference['p_holm']:.2g})"
        cells = [cell for cell in pair["cells"] if cell["corruption"] == part]
        parts[part] = {**difference, "said": said, "cells": _of_cells(cells)}
    return parts


def comparison_table(document: Mapping[str, Any], pair: Mapping[str, Any]) -> Grid:
    """Lay out a pair's differences of accuracy, in percent and percentage points."""
    rows = tuple(
        (
            part,
            percent(found["of_first"]),
            percent(found["of_second"]),
            points(found),
            found["said"],
            found["cells"],
        )
        for part, found in compared_parts(pair).items()
    )
    title = (
        f"{document['title']}: {pair['second_label']} against {pair['first_label']} "
        f"({pair['images']:,} images)"
    )
    header = (
        "accuracy", pair["first_label"], pair["second_label"], "difference [95 %]",
        "beyond noise", "in cells",
    )  # fmt: skip
    return Grid(title, header, rows)


def other_metrics_table(pair: Mapping[str, Any]) -> Grid:
    """Lay out a pair's differences of everything but accuracy."""
    names = [
        name for name in pair["differences"]
        if name in ("mean_corruption_error", "mce", "relative_mce")
        or (name.startswith(HEADLINES) and not name.endswith("_accuracy"))
    ]  # fmt: skip
    rows = []
    for name in names:
        found = pair["differences"][name]
        low, value, high = (found[key] for key in ("low", "value", "high"))
        rows.append(
            (
                name.replace("_", " "),
                number(found["of_first"]),
                number(found["of_second"]),
                f"{value:+.4f} [{low:+.4f}, {high:+.4f}]",
            )
        )
    header = ("other metrics", pair["first_label"], pair["second_label"], "difference [95 %]")
    return Grid("", header, tuple(rows))


def conclusion(pair: Mapping[str, Any]) -> str:
    """Say in a sentence what a pair's tests found."""
    names = f"{pair['second_label']} against {pair['first_label']}"
    better, worse = _found(pair["cells"])
    if not pair["beyond_noise"]:
        return f"{names}: no difference beyond noise, in none of {len(pair['cells'])} cells either."
    said = [
        f"{part} {verdict(pair['differences'][f'{part}_accuracy'])}"
        for part in HEADLINES
        if part in compared_parts(pair)
    ]
    cells = f"better in {better} of {len(pair['cells'])} cells, worse in {worse}"
    return f"{names}: {'; '.join(said)}; {cells}."


def _found(cells: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Return in how many cells the second target is better, and worse, beyond noise."""
    better = sum(cell["beyond_noise"] and cell["difference"] > 0 for cell in cells)
    return better, sum(cell["beyond_noise"] for cell in cells) - better


def _of_cells(cells: Sequence[Mapping[str, Any]]) -> str:
    words = zip(_found(cells), ("better", "worse"), strict=True)
    return ", ".join(f"{word} in {count} of {len(cells)}" for count, word in words if count)
