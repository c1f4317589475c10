"""A run as one self-contained HTML page."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recal.files import PACKAGE, write_whole
from recal.report.plots import to_svg, trade_off_figure, with_both
from recal.report.runs import calibration_table, extent, part_table, summary_table, verdicts
from recal.runs.summary import Summary
from recal.version import __version__

PARTS = ("corruption", "group", "severity")


def write_report(summary: Summary, path: Path) -> None:
    """Write a run as one HTML file, which needs no other file and no network.

    Raises:
        RecalError: The file cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(PACKAGE / "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # the SVG is matplotlib's, which escapes the labels in it
    svg = Markup(to_svg(trade_off_figure(summary))) if with_both(summary) else None  # noqa: S704
    html = environment.get_template("page.html.j2").render(
        summary=summary,
        extent=extent(summary),
        table_of_targets=summary_table(summary),
        verdicts=verdicts(summary),
        calibration=calibration_table(summary),
        parts=[grid for by in PARTS if (grid := part_table(summary, by)).rows],
        adapted=any(row.adaptation for row in summary.targets),
        svg=svg,
        version=__version__,
    )
    write_whole(path, html)
