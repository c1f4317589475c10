"""What an evaluation will take, as facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.report.blocks import Facts

if TYPE_CHECKING:
    from recal.evaluation.cells import Work
    from recal.evaluation.plan import Plan
    from recal.report.blocks import Block


def plan_blocks(work: Work, plan: Plan) -> list[Block]:
    """Return the cells, images, bytes and time that an evaluation will take."""
    rows = [("cells", f"{plan.cells} of each of {plan.targets} targets")]
    if plan.kept:
        rows.append(("", f"{plan.kept} of {plan.cells * plan.targets} are in {work.folder}"))
    rows += [
        ("images", f"{plan.images:,}, each read once; {plan.forwards:,} forward passes"),
        ("bytes", _size(plan.bytes)),
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


def _size(count: int) -> str:
    if not count:
        return "only the clean images; corrupted images are made during the evaluation"
    return f"about {count / 1e9:,.1f} GB" if count >= 1e8 else f"about {count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
