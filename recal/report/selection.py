"""A choice among targets as a table, sentences and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.report.blocks import Block, Grid
from recal.report.numbers import number, with_interval

if TYPE_CHECKING:
    from recal.runs.select import Selection

# share of resamples below which a choice is called uncertain
CERTAIN = 0.9


def selection_blocks(selection: Selection) -> list[Block]:
    """Return the table and sentences of `recal select`."""
    blocks: list[Block] = [selection_table(selection), *selection_sentences(selection)]
    if selection.provenance:
        blocks.append(f"Corrupted images: {selection.provenance}.")
    return blocks


def selection_rows(selection: Selection) -> list[dict[str, object]]:
    """Return one row for each target, for CSV."""
    rows = []
    for candidate in selection.targets:
        names = ("target", "label", "allowed", "chosen", "share")
        row: dict[str, object] = {name: getattr(candidate, name) for name in names}
        row |= {f"choosing {name}": value for name, value in candidate.choosing.items()}
        for name, found in candidate.reporting.items():
            row |= {
                f"reporting {name}": found.value,
                f"reporting {name} low": found.low,
                f"reporting {name} high": found.high,
            }
        rows.append(row)
    return rows


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
