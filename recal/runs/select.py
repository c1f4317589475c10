"""Choosing a target of a run: on one half of the images, reported on the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recal.errors import InputError, RecalError, UsageError
from recal.runs.bootstrap import measure
from recal.runs.expressions import parse_limit, parse_sum
from recal.runs.quantities import quantities_of
from recal.runs.store import open_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import NDArray

    from recal.runs.bootstrap import Measured
    from recal.runs.expressions import Limit
    from recal.runs.quantities import Quantity
    from recal.runs.statistics import Interval
    from recal.runs.store import SavedRun, SavedTarget


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target that could be chosen.

    Attributes:
        target: The target.
        allowed: Whether every limit holds on the half that the choice is made on.
        chosen: Whether it is the choice, or on the Pareto front.
        share: Of bootstrap resamples of that half, those in which it would be.
        choosing: Objectives and limited quantities on that half, by their text.
        reporting: The same on the other half, and the accuracies, with 95 % intervals.
    """

    target: SavedTarget
    allowed: bool
    chosen: bool
    share: float
    choosing: Mapping[str, float]
    reporting: Mapping[str, tuple[float, Interval]]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A choice among the targets of a run.

    Attributes:
        run: The run.
        maximize: The objectives.
        limits: What the choice is subject to.
        pareto: Whether the front of all objectives was asked for.
        images: Images of the half that the choice is made on, and of the other.
        none_allowed: Share of resamples in which no target keeps to the limits.
        candidates: Every target, in the run's order.
        held: Of a single choice: whether each limit also holds on the other half.
    """

    run: SavedRun
    maximize: tuple[str, ...]
    limits: tuple[str, ...]
    pareto: bool
    images: tuple[int, int]
    none_allowed: float
    candidates: tuple[Candidate, ...]
    held: Mapping[str, bool]

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The choice, or the front in the order of the first objective."""
        found = [candidate for candidate in self.candidates if candidate.chosen]
        return tuple(sorted(found, key=lambda c: -c.choosing[self.maximize[0]]))

    def document(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "suite": self.run.suite,
            "title": self.run.title,
            "provenance": self.run.provenance,
            "maximize": list(self.maximize),
            "subject_to": list(self.limits),
            "pareto": self.pareto,
            "images": {"choosing": self.images[0], "reporting": self.images[1]},
            "chosen": [candidate.target.name for candidate in self.chosen],
            "limits_hold_on_reporting": dict(self.held),
            "none_allowed_share": self.none_allowed,
            "targets": [
                {
                    "target": c.target.name,
                    "label": c.target.label,
                    "adaptation": c.target.adaptation,
                    "allowed": c.allowed,
                    "chosen": c.chosen,
                    "share": c.share,
                    "choosing": dict(c.choosing),
                    "reporting": {
                        name: {"value": value, "low": low, "high": high}
                        for name, (value, (low, high)) in c.reporting.items()
                    },
                }
                for c in self.candidates
            ],
        }


def select(
    folder: str | PathLike[str],
    maximize: str | Sequence[str],
    *,
    subject_to: str | Sequence[str] = (),
    pareto: bool = False,
    targets: Sequence[str] = (),
    seed: int = 0,
) -> Selection:
    """Choose a target of a run.

    The best of several looks better than it is on the images by which it was chosen. So half of
    them, even over the classes, make the choice, and the numbers come from the other half.

    Args:
        folder: The run's, or the run that `evaluate` returned.
        maximize: A quantity (`clean`, `corrupted`, `fog`, `clean_nll`, ...) or a weighted sum such
            as `0.5*clean + 0.5*corrupted`; with `pareto`, two or more of them.
        subject_to: Limits such as `mean_corruption_error <= 0.25`.
        pareto: Return all targets that no other beats in every objective.
        targets: Names or labels; all of the run's by default.
        seed: Of the halves and the bootstrap.

    Raises:
        InputError: The folder is no run, or a target has no cells.
        RecalError: No target keeps to the limits.
        UsageError: An expression is none, or names what the run does not have.
    """
    run = open_run(Path(folder))
    chosen_from = run.pick(targets)
    choosing, reporting = (_measure_all(run, chosen_from, half, seed) for half in (0, 1))
    known = quantities_of(run, choosing[0].cells)
    objectives = (maximize,) if isinstance(maximize, str) else tuple(maximize)
    texts = (subject_to,) if isinstance(subject_to, str) else tuple(subject_to)
    _check_number(objectives, pareto)
    sums = [parse_sum(text, known, "maximize").quantity(known) for text in objectives]
    limits = [parse_limit(text, known, "subject to") for text in texts]
    margins = [limit.margin.quantity(known) for limit in limits]

    values = _Judged(sums, margins, limits, [m.value for m in choosing])
    if not values.allowed.any():
        raise RecalError(_closest(choosing, limits, margins, known))
    drawn = _Judged(sums, margins, limits, [m.resampled for m in choosing])
    shown = dict(zip(objectives, sums, strict=True)) | {
        limit.left_text: limit.left.quantity(known) for limit in limits
    }
    accuracies = {name: known.get(f"{name}_accuracy") for name in ("clean", "corrupted")}
    reported = shown | {name: q for name, q in accuracies.items() if q is not None}
    winners, shares = values.winners()[:, 0], drawn.winners().mean(axis=1)
    candidates = tuple(
        Candidate(
            target=target, allowed=bool(values.allowed[i, 0]), chosen=bool(winners[i]),
            share=float(shares[i]),
            choosing={text: float(q.of(choosing[i].value)[0]) for text, q in shown.items()},
            reporting={text: _with_interval(q, reporting[i]) for text, q in reported.items()},
        )
        for i, target in enumerate(chosen_from)
    )  # fmt: skip
    best = int(np.argmax(winners))
    return Selection(
        run=run, maximize=objectives, limits=texts, pareto=pareto,
        images=(max(choosing[0].images), max(reporting[0].images)),
        none_allowed=float(1 - drawn.allowed.any(axis=0).mean()), candidates=candidates,
        held={} if pareto else {
            limit.text: bool(limit.holds(margin.of(reporting[best].value))[0])
            for limit, margin in zip(limits, margins, strict=True)
        },
    )  # fmt: skip


class _Judged:
    """Objectives (T, O, R) of T targets in R resamples, and who keeps to the limits (T, R)."""

    def __init__(
        self,
        sums: Sequence[Quantity],
        margins: Sequence[Quantity],
        limits: Sequence[Limit],
        measured: Sequence[NDArray[np.float64]],
    ) -> None:
        self.objectives = np.array([[q.of(m) for q in sums] for m in measured])
        self.allowed = np.ones((len(measured), len(measured[0])), bool)
        for limit, margin in zip(limits, margins, strict=True):
            self.allowed &= limit.holds(np.array([margin.of(m) for m in measured]))

    def winners(self) -> NDArray[np.bool_]:
        """Return who is chosen, (T, R): no allowed target is better, or as good and before it."""
        chosen = self.allowed.copy()
        for target, own in enumerate(self.objectives):
            for rival, other in enumerate(self.objectives):
                if rival == target:
                    continue
                as_good = (other >= own).all(axis=0)
                better = as_good & (other > own).any(axis=0)
                before = as_good & (rival < target) & (len(own) == 1)
                chosen[target] &= ~(self.allowed[rival] & (better | before))
        return chosen


def _measure_all(
    run: SavedRun, targets: Sequence[SavedTarget], half: int, seed: int
) -> list[Measured]:
    """Return the metrics of every target over the cells that all of them have."""
    measured = []
    for target in targets:
        found = measure(run, target, seed=seed, half=half)
        if found is None:
            raise InputError(
                f"{run.folder}: expected cells of {target.label}, got none. Say its `recal eval` "
                "again, or name the other targets."
            )
        measured.append(found)
    shared = [cell for cell in run.cells if all(cell in m.cells for m in measured)]
    if not shared:
        raise InputError(f"{run.folder}: expected cells that all targets share, got none.")
    return [m.over(shared) for m in measured]


def _check_number(objectives: Sequence[str], pareto: bool) -> None:
    if pareto and len(objectives) < 2:
        raise UsageError("pareto: expected two objectives or more, got one.")
    if not pareto and len(objectives) != 1:
        raise UsageError(
            f"maximize: expected one objective, got {len(objectives)}. Weigh them in one sum, or "
            "ask for the Pareto front."
        )


def _closest(
    measured: Sequence[Measured],
    limits: Sequence[Limit],
    margins: Sequence[Quantity],
    known: Mapping[str, Quantity],
) -> str:
    """Say which target comes closest to the limits."""
    found = np.array([[q.of(m.value)[0] for q in margins] for m in measured])
    nearest = int(np.argmax(found.min(axis=1)))
    missed = [
        f"{limit.left.quantity(known).of(measured[nearest].value)[0]:.4f} for {limit.text}"
        for limit, margin in zip(limits, found[nearest], strict=True)
        if not limit.holds(margin)
    ]
    several = "s" * (len(limits) > 1)
    return (
        f"no target keeps to the limit{several} on the half of the images that the choice is made "
        f"on ({max(measured[0].images):,}); closest is {measured[nearest].target.label} with "
        f"{' and '.join(missed)}. Loosen the limit (fractions, not percent), or evaluate more "
        "variants."
    )


def _with_interval(quantity: Quantity, measured: Measured) -> tuple[float, Interval]:
    value = float(quantity.of(measured.value)[0])
    return value, quantity.interval(measured.value, measured.resampled, measured.images)
