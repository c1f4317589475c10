"""Tables and sentences that are printed."""

import pytest

from recal.report.page import write_report
from recal.report.plots import trade_off_figure
from recal.report.tables import LAYOUTS, Grid, markdown, percent, plain, summary_table
from recal.report.text import run_text
from recal.runs.summary import summarise_run
from tests.saved_runs import simulated, write_run

GRID = Grid("Title", ("target", "x|y"), (("a", "1.00"), ("longer", "")))


def test_plain_tables_align():
    assert plain(GRID) == "Title\ntarget   x|y\na       1.00\nlonger"


def test_markdown_tables_keep_their_columns():
    assert markdown(GRID).splitlines() == [
        "**Title**", "", "| target | x\\|y |", "| --- | ---: |", "| a | 1.00 |", "| longer |  |",
    ]  # fmt: skip


def test_percent_gives_half_the_width():
    assert percent(0.9, (0.88, 0.91)) == "90.00 ±1.50"
    assert percent(None) == "-"


@pytest.fixture
def document(tmp_path):
    def make(**options):
        columns = simulated({"main": 0.8, "<b>aux": 0.7}, 300)
        found = summarise_run(write_run(tmp_path, columns, **options))
        return {**found, "execution": "onnxruntime", "warnings": []}

    return make


def test_every_number_of_the_summary_has_an_interval(document):
    for row in summary_table(document()).rows:
        assert all("±" in cell or "[" in cell or not cell for cell in row[1:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_says_what_differs_beyond_noise(document, layout):
    text = run_text(document(), LAYOUTS[layout])
    assert "<b>aux against main: clean -" in text
    assert "beyond noise (p = " in text


def test_mce_stands_in_the_table_where_there_is_a_reference(document):
    errors = dict.fromkeys(("fog", "contrast", "gaussian_noise"), 0.5)
    reference = {"source": "a network", "clean_error": 0.1, "errors": errors}
    assert "mCE" in summary_table(document(reference=reference)).header
    assert "mCE" not in summary_table(document()).header


def test_adaptation_is_said_in_text_and_page(document, tmp_path):
    adapted = document(adaptation="batch statistics, batches of 20")
    assert "saw test data: batch statistics, batches of 20)" in run_text(adapted, LAYOUTS["plain"])
    write_report(adapted, tmp_path / "report.html")
    assert "These targets saw test data" in (tmp_path / "report.html").read_text()
    write_report(document(), tmp_path / "report.html")
    assert "saw test data" not in (tmp_path / "report.html").read_text()


def test_page_escapes_names_and_holds_every_table(document, tmp_path):
    write_report(document(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<b>aux" not in page
    for part in ("Calibration", "Accuracy by corruption", "by group", "by severity", "severity 2"):
        assert part in page


def test_bars_are_of_own_accuracies_and_of_differences(document):
    axes = trade_off_figure(document()).axes[0]
    # two targets: their own bars, and one with differences; each has two directions
    assert len(axes.containers) == 4
    assert len(axes.get_legend().get_texts()) == 2
