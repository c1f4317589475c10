"""How numbers with their intervals are written for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recal.runs.compare import Difference
    from recal.runs.select import Estimate
    from recal.runs.statistics import Interval
    from recal.runs.summary import PartRow, TargetRow


def percent(value: float | None, interval: Interval | None = None) -> str:
    """Format a fraction in percent, with half the width of its interval."""
    if value is None:
        return "-"
    half = "" if interval is None else f" ±{50 * (interval[1] - interval[0]):.2f}"
    return f"{100 * value:.2f}{half}"


def number(value: float | None, interval: Interval | None = None) -> str:
    """Format a value that is no fraction, with half the width of its interval."""
    if value is None:
        return "-"
    half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.4f}"
    return f"{value:.4f}{half}"


def points(difference: Difference | None) -> str:
    """Format a difference of fractions with its interval, in percentage points."""
    if difference is None:
        return ""
    low, value, high = (100 * x for x in (difference.low, difference.value, difference.high))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def with_interval(found: Difference | Estimate, sign: str = "") -> str:
    """Format a value with the ends of its interval; `sign` is `+` to show the sign always."""
    low, value, high = (f"{x:{sign}.4f}" for x in (found.low, found.value, found.high))
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
