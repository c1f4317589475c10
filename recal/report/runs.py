"""Evaluations as tables, sentences and rows: their plan, summary, comparison and selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from recal.report.blocks import Block, Facts, Grid
from recal.runs.compare import CellTest, Comparison, Difference, Pair
from recal.runs.select import Estimate, Selection
from recal.runs.statistics import Interval
from recal.runs.summary import PartRow, Summary, TargetRow

if TYPE_CHECKING:
    from recal.evaluation.cells import Work
    from recal.evaluation.prepare import Plan


def percent(value: float | None, interval: Interval | None = None) -> str:
    """Format a fraction in percent, with half the width of its interval."""
    return number(value, interval, scale=100, digits=2)


def number(
    value: float | None, interval: Interval | None = None, *, scale: float = 1, digits: int = 4
) -> str:
    """Format a value, times `scale`, with half the width of its interval."""
    if value is None:
        return "-"
    half = f" ±{scale * (interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""
    return f"{scale * value:.{digits}f}{half}"


def points(difference: Difference | None) -> str:
    """Format a difference of fractions with its interval, in percentage points."""
    return "" if difference is None else with_interval(difference, "+.2f", 100)


def with_interval(found: Difference | Estimate, form: str = ".4f", scale: float = 1) -> str:
    """Format a value, times `scale`, with the ends of its interval."""
    low, value, high = (f"{scale * x:{form}}" for x in (found.low, found.value, found.high))
    return f"{value} [{low}, {high}]"


def value_of(row: TargetRow | PartRow, name: str) -> str:
    """Format a metric of a row with half the width of its interval."""
    form = number if name.endswith(("nll", "brier")) else percent
    return form(getattr(row, name), row.intervals.get(name))


def verdict(difference: Difference) -> str:
    """Return in words whether a tested difference of accuracies is beyond noise."""
    p = f"p = {difference.p_holm:.2g}"
    if not difference.beyond_noise:
        return f"no significant difference ({p})"
    return f"{100 * difference.value:+.2f} points, beyond noise ({p})"


def plan_blocks(work: Work, plan: Plan) -> list[Block]:
    """Return the cells, images, bytes and time that an evaluation will take."""
    size = "only the clean images; corrupted images are made during the evaluation"
    if plan.bytes:
        amount = plan.bytes
        size = f"about {amount / 1e9:,.1f} GB" if amount >= 1e8 else f"about {amount / 1e6:,.1f} MB"
    rows = [("cells", f"{plan.cells} of each of {plan.targets} targets")]
    if plan.kept:
        rows.append(("", f"{plan.kept} of {plan.cells * plan.targets} are in {work.folder}"))
    rows += [
        ("images", f"{plan.images:,}, each read once; {plan.forwards:,} forward passes"),
        ("bytes", size),
        ("by", f"{work.execution.describe()}, {plan.processes} process(es)"),
    ]
    if plan.rates:
        slowest = sorted(plan.rates.items(), key=lambda item: item[1])
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in slowest[:3])
        rows += [
            ("images/s", f"{rates}; fastest: {slowest[-1][0]} {slowest[-1][1]:,.0f}"),
            ("time", f"about {_duration(plan.seconds)}, estimated from a few batches timed now"),
        ]
    rows.append(("folder", str(work.folder)))
    return [Facts(tuple(rows), f"{work.suite.title}: nothing has been evaluated yet.")]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def summary_blocks(summary: Summary) -> list[Block]:
    """Return the tables and sentences of `recal eval`."""
    grids = [summary_table(summary), calibration_table(summary), part_table(summary, "corruption")]
    return [
        *(grid for grid in grids if grid.rows),
        *attack_sentences(summary),
        *verdicts(summary),
        "Accuracies and ECE in percent, NLL in nats; ± half the width of the 95 % interval. "
        f"Computed by {summary.execution}.",
        *_feeding(summary),
        *_origin(summary),
    ]


def _feeding(summary: Summary) -> list[Block]:
    """Return a sentence for each way in which networks were fed."""
    ways: dict[str, list[str]] = {}
    for label, way in summary.feeding.items():
        ways.setdefault(way, []).append(label)
    return [
        f"Input of {', '.join(labels) if len(ways) > 1 else 'the networks'}: {way}."
        for way, labels in ways.items()
    ]


def extent(summary: Summary) -> str:
    """Return on how much of a suite the numbers are based."""
    done, whole = summary.cells_done, summary.cells_of_suite
    cells = f"{done} of {whole} cells" if done < whole else f"{done} cell{'s' * (done > 1)}"
    return f"{summary.images:,} images, {cells}"


def summary_table(summary: Summary) -> Grid:
    """Return accuracies and mCE in percent, and differences from the first target in points.

    The title says where the targets saw test data.
    """
    rows = summary.targets
    columns = [("target", [row.label for row in rows])]
    for part in ("clean", "corrupted"):
        if part == "corrupted" and all(row.corrupted_accuracy is None for row in rows):
            continue
        columns.append((part, [value_of(row, f"{part}_accuracy") for row in rows]))
        if len(rows) > 1:
            differences = [points(getattr(row, f"{part}_difference")) for row in rows]
            columns.append((f"vs {rows[0].label} [95 %]", differences))
    for name, title in (("mce", "mCE"), ("relative_mce", "relative mCE")):
        if any(getattr(row, name) is not None for row in rows):
            columns.append((title, [value_of(row, name) for row in rows]))
    adapted = sorted({row.adaptation for row in rows if row.adaptation is not None})
    mark = f"; saw test data: {', '.join(adapted)}" if adapted else ""
    header, texts = zip(*columns, strict=True)
    return Grid(
        f"{summary.title} ({extent(summary)}{mark})", header, tuple(zip(*texts, strict=True))
    )


def calibration_table(summary: Summary) -> Grid:
    """Return how well calibrated probabilities are: ECE in percent, NLL in nats, Brier score."""
    titles = {
        f"{part}_{metric}": f"{part} {title}"
        for part in ("clean", "corrupted")
        for metric, title in (("ece", "ECE"), ("nll", "NLL"), ("brier", "Brier"))
        if any(getattr(row, f"{part}_{metric}") is not None for row in summary.targets)
    }
    rows = [(row.label, *(value_of(row, name) for name in titles)) for row in summary.targets]
    return Grid("", ("target", *titles.values()), tuple(rows))


def part_table(summary: Summary, by: str) -> Grid:
    """Return accuracies in percent, a column a target; `by` is corruption, group or severity."""
    found: dict[str, dict[str, str]] = {}
    for row in summary.parts:
        if row.by == by:
            name = row.part.replace("severity_", "severity ")
            found.setdefault(name, {})[row.target] = value_of(row, "accuracy")
    targets = summary.targets
    rows = [(name, *(of.get(row.target, "-") for row in targets)) for name, of in found.items()]
    labels = [row.label for row in targets]
    if summary.attacks and by == "corruption":
        header = ("attack.attacked", *(f"{label} predicts" for label in labels))
        return Grid("Robust accuracy: a row attacks one network", header, tuple(rows))
    return Grid("", (by, *labels), tuple(rows))


def attack_sentences(summary: Summary) -> list[str]:
    """Return every attack in words, and how many images each network gets right under its own."""
    labels = {row.target: row.label for row in summary.targets}
    accuracies = {
        (row.target, f"{row.corruption}-{row.severity}"): row.accuracy for row in summary.cells
    }
    own: dict[tuple[str, str], list[str]] = {}
    for attacked in summary.attacks:
        accuracy = accuracies.get((attacked.target, attacked.cell))
        name = attacked.cell.partition(".")[0]
        own.setdefault((name, attacked.attack), []).append(
            f"{labels[attacked.target]} {percent(accuracy)} %"
        )
    return [
        f"{name}: {attack}. Under the attack of its own: {', '.join(words)}."
        for (name, attack), words in own.items()
    ]


def verdicts(summary: Summary) -> list[str]:
    """Return a sentence for every target but the first: whether it differs beyond noise."""
    sentences = []
    for row in summary.targets[1:]:
        differences = {"clean": row.clean_difference, "corrupted": row.corrupted_difference}
        words = [f"{part} {verdict(found)}" for part, found in differences.items() if found]
        if words:
            label = summary.targets[0].label
            sentences.append(f"{row.label} against {label}: {', '.join(words)}.")
    return sentences


OVERALL = ("clean", "corrupted")


def comparison_blocks(comparison: Comparison) -> list[Block]:
    """Return the tables and sentences of `recal compare`."""
    title, pairs = comparison.title, comparison.pairs
    return [
        *(table for p in pairs for table in (accuracy_table(title, p), other_metrics_table(p))),
        *map(conclusion, pairs),
        "Differences in percentage points with 95 % intervals of a paired bootstrap over images; "
        "beyond noise at 5 %: McNemar's exact test for one cell, Student's for each image's mean "
        "over several, corrected by Holm.",
        *_origin(comparison),
    ]


def comparison_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return one row for each pair and quantity, for CSV."""
    return [
        {"first": pair.first, "second": pair.second, "quantity": name} | asdict(found)
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
        tested = f"{'yes' if found.beyond_noise else 'no'} (p = {found.p_holm:.2g})"
        in_cells = ", ".join(f"{word} in {n} of {len(cells)}" for n, word in words if n)
        values = percent(found.of_first), percent(found.of_second), points(found)
        rows.append((name, *values, tested, in_cells))
    labels = pair.first_label, pair.second_label
    header = ("accuracy", *labels, "difference [95 %]", "beyond noise", "in cells")
    return Grid(f"{title}: {_names(pair)} ({pair.images:,} images)", header, tuple(rows))


def other_metrics_table(pair: Pair) -> Grid:
    """Return a pair's differences of everything but accuracy."""
    values = {
        name: (number(found.of_first), number(found.of_second), with_interval(found, "+.4f"))
        for name, found in pair.differences.items()
        if name in ("mean_corruption_error", "mce", "relative_mce")
        or (name.startswith(OVERALL) and not name.endswith("_accuracy"))
    }
    header = ("other metrics", pair.first_label, pair.second_label, "difference [95 %]")
    return Grid("", header, tuple((name.replace("_", " "), *of) for name, of in values.items()))


def conclusion(pair: Pair) -> str:
    """Return a sentence about what the tests of a pair found."""
    names, cells = _names(pair), len(pair.cells)
    if not pair.beyond_noise:
        return f"{names}: no significant difference, overall or in any of the {cells} cells."
    found = accuracy_differences(pair)
    words = [f"{name} {verdict(found[name])}" for name in OVERALL if name in found]
    better, worse = _better_and_worse(pair.cells)
    return f"{names}: {'; '.join(words)}; better in {better} of {cells} cells, worse in {worse}."


def _names(pair: Pair) -> str:
    return f"{pair.second_label} against {pair.first_label}"


def _better_and_worse(cells: Sequence[CellTest]) -> tuple[int, int]:
    """Return in how many cells the second target is better, and worse, beyond noise."""
    better = sum(cell.beyond_noise and cell.difference > 0 for cell in cells)
    return better, sum(cell.beyond_noise for cell in cells) - better


# share of resamples below which a choice is called uncertain
CERTAIN = 0.9


def selection_blocks(selection: Selection) -> list[Block]:
    """Return the table and sentences of `recal select`."""
    return [selection_table(selection), *selection_sentences(selection), *_origin(selection)]


def _origin(result: Summary | Comparison | Selection) -> list[str]:
    return [f"Corrupted images: {result.provenance}."] if result.provenance else []


def selection_rows(selection: Selection) -> list[dict[str, object]]:
    """Return one row for each target, for CSV."""
    names = ("target", "label", "allowed", "chosen", "share")
    ends = {"": "value", " low": "low", " high": "high"}
    return [
        {name: getattr(candidate, name) for name in names}
        | {f"choosing {name}": value for name, value in candidate.choosing.items()}
        | {
            f"reporting {name}{end}": getattr(found, attribute)
            for name, found in candidate.reporting.items()
            for end, attribute in ends.items()
        }
        for candidate in selection.targets
    ]


def selection_table(selection: Selection) -> Grid:
    """Return every target's numbers on both halves of the images."""
    title = (
        f"{selection.title}: chosen on {selection.images.choosing:,} images, reported on the other "
        f"{selection.images.reporting:,}"
    )
    header = ["target", "on the front" if selection.pareto else "chosen"]
    header += [f"{name}, first half" for name in selection.targets[0].choosing]
    header += ["limits"] * bool(selection.subject_to) + ["in resamples"]
    header += [f"{name} [95 %], other half" for name in selection.targets[0].reporting]
    rows = []
    for candidate in selection.targets:
        row = [candidate.label, "yes" if candidate.chosen else ""]
        row += [number(value) for value in candidate.choosing.values()]
        row += ["kept" if candidate.allowed else "broken"] * bool(selection.subject_to)
        row.append(f"{100 * candidate.share:.0f} %")
        row += [with_interval(found) for found in candidate.reporting.values()]
        rows.append(tuple(row))
    return Grid(title, tuple(header), tuple(rows))


def selection_sentences(selection: Selection) -> list[str]:
    """Return what was chosen, how stable that is, and whether limits hold on the other half."""
    labels = ", ".join(candidate.label for candidate in selection.winners)
    if selection.pareto:
        sentences = [f"On the Pareto front of {' and '.join(selection.maximize)}: {labels}."]
    else:
        share = selection.winners[0].share
        sentences = [
            f"Chosen: {labels}, as in {100 * share:.0f} % of bootstrap resamples"
            + ("." if share >= CERTAIN else ": more images would be needed to be sure of it.")
        ]
    for limit, held in selection.limits_hold_on_reporting.items():
        word = "holds" if held else "DOES NOT HOLD"
        sentences.append(f"{limit} {word} on the half that it was not chosen on.")
    if selection.none_allowed_share > 0:
        sentences.append(
            f"In {100 * selection.none_allowed_share:.0f} % of resamples no target keeps to the "
            "limits."
        )
    return sentences
