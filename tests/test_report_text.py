"""Tables and sentences that are printed."""

import msgspec
import pytest

from recal.errors import InputError, RecalError, UsageError
from recal.report.blocks import MARKUPS, Grid, markdown, plain
from recal.report.page import write_report
from recal.report.plots import save_figure, trade_off_figure
from recal.report.runs import percent, summary_blocks, summary_table
from recal.runs.summary import read_summary, summarise_run, write_results
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
def summary(tmp_path):
    def make(**options):
        columns = simulated({"main": 0.8, "<b>aux": 0.7}, 300)
        summary, _ = summarise_run(write_run(tmp_path, columns, **options))
        return msgspec.structs.replace(summary, execution="onnxruntime")

    return make


def test_every_number_of_the_summary_has_an_interval(summary):
    for row in summary_table(summary()).rows:
        assert all("±" in cell or "[" in cell or not cell for cell in row[1:])


@pytest.mark.parametrize("form", MARKUPS)
def test_text_says_what_differs_beyond_noise(summary, form):
    text = MARKUPS[form].text(summary_blocks(summary()))
    assert "<b>aux against main: clean -" in text
    assert "beyond noise (p = " in text


def test_mce_stands_in_the_table_where_there_is_a_reference(summary):
    errors = dict.fromkeys(("fog", "contrast", "gaussian_noise"), 0.5)
    reference = {"source": "a network", "clean_error": 0.1, "errors": errors}
    assert "mCE" in summary_table(summary(reference=reference)).header
    assert "mCE" not in summary_table(summary()).header


def test_adaptation_is_said_in_text_and_page(summary, tmp_path):
    adapted = summary(adaptation="batch statistics, batches of 20")
    text = MARKUPS["plain"].text(summary_blocks(adapted))
    assert "saw test data: batch statistics, batches of 20)" in text
    write_report(adapted, tmp_path / "report.html")
    assert "These targets saw test data" in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(summary(), tmp_path / "report.html")
    assert "saw test data" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_escapes_names_and_holds_every_table(summary, tmp_path):
    write_report(summary(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>aux" not in page
    for part in ("Calibration", "Accuracy by corruption", "by group", "by severity", "severity 2"):
        assert part in page


def test_bars_are_of_own_accuracies_and_of_differences(summary):
    axes = trade_off_figure(summary()).axes[0]
    # two targets: their own bars, and one with differences; each has two directions
    assert len(axes.containers) == 4
    assert len(axes.get_legend().get_texts()) == 2


def test_pictures_are_whole_and_equal_for_equal_figures(summary, tmp_path):
    figure = trade_off_figure(summary())
    for name in ("a.png", "b.svg"):
        save_figure(figure, tmp_path / name)
        once = (tmp_path / name).read_bytes()
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes() == once
    assert sorted(path.suffix for path in tmp_path.glob("[ab].*")) == [".png", ".svg"]


def test_pictures_that_cannot_be_written_are_one_error(summary, tmp_path, monkeypatch):
    figure = trade_off_figure(summary())
    with pytest.raises(UsageError, match=r"x\.jpg: expected a name that ends in \.png or \.svg"):
        save_figure(figure, tmp_path / "x.jpg")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecalError, match="cannot be written"):
        save_figure(figure, tmp_path / "file" / "x.png")
    (tmp_path / "x.png").write_bytes(b"before")

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(RecalError, match="No space left on device"):
        save_figure(figure, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == b"before"
    assert not list(tmp_path.glob(".x.png*"))


def test_report_can_be_made_of_a_folder_alone(summary, tmp_path):
    found = summary()
    write_results(tmp_path, found, ())
    assert read_summary(tmp_path) == found
    write_report(read_summary(tmp_path), tmp_path / "report.html")
    (tmp_path / "summary.json").write_text('{"suite": 3}', encoding="utf-8")
    with pytest.raises(InputError, match=r"summary\.json: .*title.*missing"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(InputError, match=r"got no summary\.json in it"):
        read_summary(tmp_path)
