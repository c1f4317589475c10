"""A comparison of targets as tables, sentences and rows."""

from __future__ import annotations

from collections.abc import Sequence

from recal.report.blocks import Block, Grid
from recal.report.numbers import number, percent, points, verdict, with_interval
from recal.runs.compare import CellTest, Comparison, Difference, Pair

OVERALL = ("clean", "corrupted")


def comparison_blocks(comparison: Comparison) -> list[Block]:
    """Return the tables and sentences of `recal compare`."""
    blocks: list[Block] = []
    for pair in comparison.pairs:
        blocks += [accuracy_table(comparison.title, pair), other_metrics_table(pair)]
    blocks += [conclusion(pair) for pair in comparison.pairs]
    blocks.append(
        "Differences in percentage points with 95 % intervals of a paired bootstrap over images; "
        "beyond noise at 5 %: McNemar's exact test for one cell, Student's for each image's mean "
        "over several, corrected by Holm."
    )
    if comparison.provenance:
        blocks.append(f"Corrupted images: {comparison.provenance}.")
    return blocks


def comparison_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return one row for each pair and quantity, for CSV."""
    return [
        {"first": pair.first, "second": pair.second, "quantity": name}
        | {column: getattr(found, column) for column in Difference.__struct_fields__}
        for pair in comparison.pairs
        for name, found in pair.differences.items()
    ]


def accuracy_differences(pair: Pair) -> dict[str, Difference]:
    """Return the tested differences of accuracy: clean, corrupted, and each corruption."""
    corruptions = dict.fromkeys(cell.corruption for cell in pair.cells if cell.corruption)
    names = {name: f"{name}_accuracy" for name in (*OVERALL, *corruptions)}
    return {name: pair.differences[key] for name, key in names.items() if key in pair.differences}


def accuracy_table(title: str, pair: Pair) -> Grid:
    """Return a pair's differences of accuracy, in percent and percentage points."""
    rows = []
    for name, found in accuracy_differences(pair).items():
        cells = [cell for cell in pair.cells if cell.corruption == name]
        words = zip(_better_and_worse(cells), ("better", "worse"), strict=True)
        rows.append(
            (
                name,
                percent(found.of_first),
                percent(found.of_second),
                points(found),
                f"{'yes' if found.beyond_noise else 'no'} (p = {found.p_holm:.2g})",
                ", ".join(f"{word} in {n} of {len(cells)}" for n, word in words if n),
            )
        )
    names = f"{pair.second_label} against {pair.first_label}"
    header = (
        "accuracy", pair.first_label, pair.second_label, "difference [95 %]", "beyond noise",
        "in cells",
    )  # fmt: skip
    return Grid(f"{title}: {names} ({pair.images:,} images)", header, tuple(rows))


def other_metrics_table(pair: Pair) -> Grid:
    """Return a pair's differences of everything but accuracy."""
    rows = [
        (
            name.replace("_", " "),
            number(found.of_first),
            number(found.of_second),
            with_interval(found, "+"),
        )
        for name, found in pair.differences.items()
        if name in ("mean_corruption_error", "mce", "relative_mce")
        or (name.startswith(OVERALL) and not name.endswith("_accuracy"))
    ]
    header = ("other metrics", pair.first_label, pair.second_label, "difference [95 %]")
    return Grid("", header, tuple(rows))


def conclusion(pair: Pair) -> str:
    """Return a sentence about what the tests of a pair found."""
    names = f"{pair.second_label} against {pair.first_label}"
    if not pair.beyond_noise:
        return (
            f"{names}: no significant difference, overall or in any of the {len(pair.cells)} cells."
        )
    words = [
        f"{name} {verdict(found)}"
        for name, found in accuracy_differences(pair).items()
        if name in OVERALL
    ]
    better, worse = _better_and_worse(pair.cells)
    return (
        f"{names}: {'; '.join(words)}; better in {better} of {len(pair.cells)} cells, worse in "
        f"{worse}."
    )


def _better_and_worse(cells: Sequence[CellTest]) -> tuple[int, int]:
    """Return in how many cells the second target is better, and worse, beyond noise."""
    better = sum(cell.beyond_noise and cell.difference > 0 for cell in cells)
    return better, sum(cell.beyond_noise for cell in cells) - better
