"""A run as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recal.files import write_whole
from recal.report.plots import has_trade_off, to_svg, trade_off_figure
from recal.report.tables import (
    calibration_table,
    corruption_table,
    extent,
    summary_table,
    verdicts,
)
from recal.resources import PACKAGE
from recal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


PARTS = ("corruption", "group", "severity")


def write_report(document: Mapping[str, Any], path: Path) -> None:
    """Write the page: summary, trade-off, calibration, accuracy by corruption, group and severity.

    Args:
        document: A run's summary.
        path: The HTML file; it needs no other file and no network.
    """
    environment = Environment(
        loader=FileSystemLoader(PACKAGE / "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    # the SVG is matplotlib's, which escapes the labels in it
    svg = Markup(to_svg(trade_off_figure(document))) if has_trade_off(document) else None  # noqa: S704
    html = environment.get_template("page.html.j2").render(
        document=document,
        extent=extent(document),
        summary=summary_table(document),
        verdicts=verdicts(document),
        calibration=calibration_table(document),
        parts=[grid for by in PARTS if (grid := corruption_table(document, by)).rows],
        adapted=any(row["adaptation"] for row in document["summary"]),
        svg=svg,
        version=__version__,
    )
    write_whole(path, html)
