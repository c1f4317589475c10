"""A choice among targets as a table and sentences for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: One line above it; may be empty.
        header: Names of the columns; the first column stands left, the others right.
        rows: As many texts each.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def plain(grid: Grid) -> str:
    """Lay out a table with spaces, for a terminal or an e-mail."""
    lines = (grid.header, *grid.rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    laid = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(([grid.title] if grid.title else []) + laid)


def markdown(grid: Grid) -> str:
    """Lay out a table for GitHub and its like; the title is bold."""
    rule = "|" + "|".join([" --- ", *[" ---: "] * (len(grid.header) - 1)]) + "|"
    lines = [_markdown_row(grid.header), rule, *(_markdown_row(row) for row in grid.rows)]
    title = [f"**{grid.title}**", ""] if grid.title else []
    return "\n".join(title + lines)


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True)
class Layout:
    """How a text with tables is laid out.

    Attributes:
        table: Lays out a table.
        bullet: What stands before each of several sentences.
    """

    table: Callable[[Grid], str]
    bullet: str


LAYOUTS = {"plain": Layout(plain, ""), "markdown": Layout(markdown, "- ")}


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


def selection_table(document: Mapping[str, Any]) -> Grid:
    """Lay out every target's numbers on both halves of the images."""
    targets = document["targets"]
    shown = list(targets[0]["choosing"])
    reported = list(targets[0]["reporting"])
    word = "on the front" if document["pareto"] else "chosen"
    images = document["images"]
    title = (
        f"{document['title']}: chosen on {images['choosing']:,} images, reported on the other "
        f"{images['reporting']:,}"
    )
    header = (
        "target", word, *(f"{name}, first half" for name in shown), "limits", "in resamples",
        *(f"{name} [95 %], other half" for name in reported),
    )  # fmt: skip
    rows = tuple(
        (
            t["label"],
            "yes" if t["chosen"] else "",
            *(number(t["choosing"][name]) for name in shown),
            "kept" if t["allowed"] else "broken",
            f"{100 * t['share']:.0f} %",
            *(_with_interval(t["reporting"][name]) for name in reported),
        )
        for t in targets
    )
    if not document["subject_to"]:
        place = header.index("limits")
        header = header[:place] + header[place + 1 :]
        rows = tuple(row[:place] + row[place + 1 :] for row in rows)
    return Grid(title, header, rows)


def selection_sentences(document: Mapping[str, Any]) -> list[str]:
    """Say what was chosen, how stable that is, and whether limits hold where they were not used."""
    chosen = [t for t in document["targets"] if t["target"] in document["chosen"]]
    order = {name: i for i, name in enumerate(document["chosen"])}
    chosen.sort(key=lambda t: order[t["target"]])
    if document["pareto"]:
        said = [f"On the Pareto front of {' and '.join(document['maximize'])}: "
                + ", ".join(t["label"] for t in chosen) + "."]  # fmt: skip
    else:
        share = chosen[0]["share"]
        said = [
            f"Chosen: {chosen[0]['label']}, as in {100 * share:.0f} % of bootstrap resamples"
            + ("." if share >= STABLE else ": more images would be needed to be sure of it.")
        ]
    for limit, held in document["limits_hold_on_reporting"].items():
        word = "holds" if held else "DOES NOT HOLD"
        said.append(f"{limit} {word} on the half that it was not chosen on.")
    if document["none_allowed_share"] > 0:
        said.append(
            f"In {100 * document['none_allowed_share']:.0f} % of resamples no target keeps to the "
            "limits."
        )
    return said


def _with_interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


# of resamples: below it, a choice is called uncertain
STABLE = 0.9
