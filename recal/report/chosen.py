"""A choice among targets as a table and sentences for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.report.grid import Grid
from recal.report.table import number

if TYPE_CHECKING:
    from collections.abc import Mapping


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
