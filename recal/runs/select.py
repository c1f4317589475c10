"""Choosing a target of a run: on one half of the images, reported on the other."""

from collections.abc import Sequence
from itertools import permutations
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError, RecalError, UsageError
from recal.runs.expressions import Limit, parse_limit, parse_sum
from recal.runs.metrics import Measured, measure
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
        provenance: Origin of the corrupted images; None for a clean suite.
        images: Number of images of each half.
        chosen: Name of the choice, or names on the front in the order of the first objective.
        limits_hold_on_reporting: For a single choice, whether each limit also holds on the other
            half.
        none_allowed_share: Share of resamples in which no target keeps to the limits.
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
    if pareto and len(objectives) < 2:
        raise UsageError("pareto: expected two objectives or more, got one.")
    if not pareto and len(objectives) != 1:
        raise UsageError(
            f"maximize: expected one objective, got {len(objectives)}. Weight them in one sum, or "
            "request the Pareto front."
        )
    run = open_run(Path(folder))
    chosen_from = run.pick(targets)
    choosing, reporting = (_measure_all(run, chosen_from, half, seed) for half in (0, 1))
    known = quantities_of(run, choosing[0].cells)
    sums = [parse_sum(text, known, "maximize") for text in objectives]
    limits = [parse_limit(text, known, "subject to") for text in texts]

    allowed, winners = _judge(sums, limits, [m.value for m in choosing])
    if not allowed.any():
        raise RecalError(_closest(choosing, limits))
    often_allowed, often_chosen = _judge(sums, limits, [m.resampled for m in choosing])
    shares = often_chosen.mean(axis=1)
    shown = dict(zip(objectives, sums, strict=True)) | {li.left_text: li.left for li in limits}
    accuracies = {name: known.get(f"{name}_accuracy") for name in ("clean", "corrupted")}
    reported = shown | {name: q for name, q in accuracies.items() if q is not None}
    candidates = tuple(
        Candidate(
            target=target.name,
            label=target.label,
            adaptation=target.adaptation,
            allowed=bool(allowed[i, 0]),
            chosen=bool(winners[i, 0]),
            share=float(shares[i]),
            choosing={text: float(q.of(choosing[i].value)[0]) for text, q in shown.items()},
            reporting={
                text: Estimate(value=float(q.of(reporting[i].value)[0]), low=low, high=high)
                for text, q in reported.items()
                for low, high in [q.interval(reporting[i])]
            },
        )
        for i, target in enumerate(chosen_from)
    )
    best = reporting[int(np.argmax(winners[:, 0]))]
    held = {limit.text: bool(limit.holds(best.value)[0]) for limit in limits}
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
        limits_hold_on_reporting={} if pareto else held,
        none_allowed_share=float(1 - often_allowed.any(axis=0).mean()),
        targets=candidates,
    )


def _judge(
    sums: Sequence[Quantity], limits: Sequence[Limit], measured: Sequence[NDArray[np.float64]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which of T targets keep to the limits in R resamples, and which are chosen, (T, R).

    A target is chosen if none that is allowed is better, or equal and earlier.
    """
    objectives = np.array([[q.of(m) for q in sums] for m in measured])
    allowed = np.ones((len(measured), len(measured[0])), bool)
    for limit in limits:
        allowed &= np.array([limit.holds(m) for m in measured])
    chosen = allowed.copy()
    for (target, own), (rival, other) in permutations(enumerate(objectives), 2):
        as_good = (other >= own).all(axis=0)
        better = as_good & (other > own).any(axis=0)
        before = as_good & (rival < target) & (len(own) == 1)
        chosen[target] &= ~(allowed[rival] & (better | before))
    return allowed, chosen


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


def _closest(measured: Sequence[Measured], limits: Sequence[Limit]) -> str:
    """Return a message that names the target closest to the limits."""
    nearest = max(measured, key=lambda m: min(limit.margin.of(m.value)[0] for limit in limits))
    missed = [
        f"{limit.left.of(nearest.value)[0]:.4f} for {limit.text}"
        for limit in limits
        if not limit.holds(nearest.value)[0]
    ]
    several = "s" * (len(limits) > 1)
    return (
        f"no target keeps to the limit{several} on the half of the images that the choice is made "
        f"on ({max(nearest.images):,}); closest is {nearest.target.label} with "
        f"{' and '.join(missed)}. Loosen the limit (fractions, not percent), or evaluate more "
        "variants."
    )
