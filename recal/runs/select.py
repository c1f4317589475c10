"""Choosing a target of a run: on one half of the images, reported on the other."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError, RecalError, UsageError
from recal.runs.bootstrap import Measured, measure
from recal.runs.expressions import Limit, parse_limit, parse_sum
from recal.runs.quantities import Quantity, quantities_of
from recal.runs.store import RunTarget, SavedRun, open_run
from recal.schema import Record


class Estimate(Record, frozen=True, kw_only=True):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class HalfSizes(Record, frozen=True, kw_only=True):
    """Number of images of the half that the choice is made on, and of the reported half."""

    choosing: int
    reporting: int


class Candidate(Record, frozen=True, kw_only=True):
    """A target that could be chosen.

    Attributes:
        target: Name of the target.
        label: Its label.
        adaptation: How it was adapted to the test images; None if it never saw them.
        allowed: Whether every limit holds on the half that the choice is made on.
        chosen: Whether it is the choice, or on the Pareto front.
        share: Share of the bootstrap resamples of that half in which it would be chosen.
        choosing: Objectives and limited quantities on that half, by their text.
        reporting: The same quantities and the accuracies on the other half, with intervals.
    """

    target: str
    label: str
    adaptation: str | None
    allowed: bool
    chosen: bool
    share: float
    choosing: dict[str, float]
    reporting: dict[str, Estimate]


class Selection(Record, frozen=True, kw_only=True):
    """A choice among the targets of a run.

    Attributes:
        suite: Name of the suite.
        title: Title of the suite.
        provenance: Origin of the corrupted images; None for a clean suite.
        maximize: The objectives.
        subject_to: The limits.
        pareto: Whether the Pareto front of all objectives was requested.
        images: Number of images of each half.
        chosen: Name of the choice, or names on the front in the order of the first objective.
        limits_hold_on_reporting: For a single choice, whether each limit also holds on the other
            half.
        none_allowed_share: Share of resamples in which no target keeps to the limits.
        targets: Every candidate, in the run's order.
    """

    suite: str
    title: str
    provenance: str | None
    maximize: tuple[str, ...]
    subject_to: tuple[str, ...]
    pareto: bool
    images: HalfSizes
    chosen: tuple[str, ...]
    limits_hold_on_reporting: dict[str, bool]
    none_allowed_share: float
    targets: tuple[Candidate, ...]

    @property
    def winners(self) -> tuple[Candidate, ...]:
        """The chosen candidates, in the order of `chosen`."""
        by_name = {candidate.target: candidate for candidate in self.targets}
        return tuple(by_name[name] for name in self.chosen)


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

    The best of several looks better than it is on the images by which it was chosen. So one half
    of the images, stratified by class, makes the choice, and the numbers come from the other half.

    Args:
        folder: The folder of a run, or the run that `evaluate` returned.
        maximize: A quantity (`clean`, `corrupted`, `fog`, `clean_nll`, ...) or a weighted sum such
            as `0.5*clean + 0.5*corrupted`; with `pareto`, two or more of them.
        subject_to: Limits such as `mean_corruption_error <= 0.25`, in fractions.
        pareto: Return all targets that no other one beats in every objective.
        targets: Names or labels; by default all of the run's.
        seed: Seed of the halves and of the bootstrap.

    Raises:
        InputError: The folder is no run, or a target has no cells.
        RecalError: No target keeps to the limits.
        UsageError: An expression is malformed, or names a quantity that the run does not have.
    """
    objectives = (maximize,) if isinstance(maximize, str) else tuple(maximize)
    texts = (subject_to,) if isinstance(subject_to, str) else tuple(subject_to)
    _check_number(objectives, pareto)
    run = open_run(Path(folder))
    chosen_from = run.pick(targets)
    choosing, reporting = (_measure_all(run, chosen_from, half, seed) for half in (0, 1))
    known = quantities_of(run, choosing[0].cells)
    sums = [parse_sum(text, known, "maximize") for text in objectives]
    limits = [parse_limit(text, known, "subject to") for text in texts]

    judged = _Judged(sums, limits, [m.value for m in choosing])
    if not judged.allowed.any():
        raise RecalError(_closest(choosing, limits))
    resampled = _Judged(sums, limits, [m.resampled for m in choosing])
    winners, shares = judged.winners()[:, 0], resampled.winners().mean(axis=1)
    shown = dict(zip(objectives, sums, strict=True)) | {li.left_text: li.left for li in limits}
    accuracies = {name: known.get(f"{name}_accuracy") for name in ("clean", "corrupted")}
    reported = shown | {name: q for name, q in accuracies.items() if q is not None}
    candidates = tuple(
        Candidate(
            target=target.name,
            label=target.label,
            adaptation=target.adaptation,
            allowed=bool(judged.allowed[i, 0]),
            chosen=bool(winners[i]),
            share=float(shares[i]),
            choosing={text: float(q.of(choosing[i].value)[0]) for text, q in shown.items()},
            reporting={text: _estimate(q, reporting[i]) for text, q in reported.items()},
        )
        for i, target in enumerate(chosen_from)
    )
    best = reporting[int(np.argmax(winners))]
    front = sorted((c for c in candidates if c.chosen), key=lambda c: -c.choosing[objectives[0]])
    return Selection(
        suite=run.record.suite,
        title=run.record.title,
        provenance=run.record.provenance,
        maximize=objectives,
        subject_to=texts,
        pareto=pareto,
        images=HalfSizes(choosing=max(choosing[0].images), reporting=max(reporting[0].images)),
        chosen=tuple(candidate.target for candidate in front),
        limits_hold_on_reporting={}
        if pareto
        else {limit.text: bool(limit.holds(limit.margin.of(best.value))[0]) for limit in limits},
        none_allowed_share=float(1 - resampled.allowed.any(axis=0).mean()),
        targets=candidates,
    )


class _Judged:
    """Objectives (T, O, R) of T targets in R resamples, and which keep to the limits (T, R)."""

    def __init__(
        self,
        sums: Sequence[Quantity],
        limits: Sequence[Limit],
        measured: Sequence[NDArray[np.float64]],
    ) -> None:
        self.objectives = np.array([[q.of(m) for q in sums] for m in measured])
        self.allowed = np.ones((len(measured), len(measured[0])), bool)
        for limit in limits:
            self.allowed &= limit.holds(np.array([limit.margin.of(m) for m in measured]))

    def winners(self) -> NDArray[np.bool_]:
        """Return which targets are chosen, (T, R): none is better, or equal and earlier."""
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
    run: SavedRun, targets: Sequence[RunTarget], half: int, seed: int
) -> list[Measured]:
    """Return the metrics of every target over the cells that all of them have."""
    measured = []
    for target in targets:
        found = measure(run, target, seed=seed, half=half)
        if found is None:
            raise InputError(
                f"{run.folder}: expected cells of {target.label}, got none. Run `recal eval` "
                "for it again, or name the other targets."
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
            f"maximize: expected one objective, got {len(objectives)}. Weight them in one sum, or "
            "request the Pareto front."
        )


def _closest(measured: Sequence[Measured], limits: Sequence[Limit]) -> str:
    """Return a message that names the target closest to the limits."""
    found = np.array([[limit.margin.of(m.value)[0] for limit in limits] for m in measured])
    nearest = int(np.argmax(found.min(axis=1)))
    missed = [
        f"{limit.left.of(measured[nearest].value)[0]:.4f} for {limit.text}"
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


def _estimate(quantity: Quantity, measured: Measured) -> Estimate:
    low, high = quantity.interval(measured)
    return Estimate(value=float(quantity.of(measured.value)[0]), low=low, high=high)
