"""`recal select`, as people and programs call it."""

import csv
import io
import json

import pytest

from tests.saved_runs import simulated, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", simulated({"good": 0.9, "bad": 0.6}, 600))


def test_the_choice_is_shown_with_its_stability_and_the_other_half(recal, run):
    status, out, _ = recal("select", run, "--subject-to", "mean_corruption_error<=0.5")
    assert status == 0
    assert "chosen on 300 images, reported on the other 300" in out
    good = next(line for line in out.splitlines() if line.startswith("good"))
    assert good.split()[1] == "yes"
    assert "Chosen: good, as in 100 % of bootstrap resamples." in out
    assert "mean_corruption_error<=0.5 holds on the half that it was not chosen on." in out


def test_the_front_is_of_clean_and_corrupted_accuracy_by_default(recal, run):
    _, out, _ = recal("select", run, "--pareto", "--format", "markdown")
    assert "- On the Pareto front of clean and corrupted: good." in out
    assert "| bad |  |" in out


def test_programs_get_one_document_or_table(recal, run):
    _, out, _ = recal("select", run, "--maximize", "-clean_nll + 0*clean", "--json")
    document = json.loads(out)
    assert document["images"] == {"choosing": 300, "reporting": 300}
    assert len(document["chosen"]) == 1
    assert sum(t["share"] for t in document["targets"]) == pytest.approx(1)
    _, out, _ = recal("select", run, "--maximize", "fog", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["chosen"] for row in rows] == ["True", "False"]
    assert float(rows[0]["reporting fog low"]) < float(rows[0]["reporting fog high"])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--subject-to", "corrupted>=0.99"], 1, "closest is good with 0."),
        (["--subject-to", "corrupted"], 2, "expected such as 'corrupted>=0.7'"),
        (["--maximize", "claen"], 2, "Did you mean 'clean'?"),
        (["--maximize", "mce"], 2, "the run has no mce"),
        (["--maximize", "clean", "--maximize", "fog"], 2, "Weight them in one sum"),
        (["--pareto", "--maximize", "clean"], 2, "expected two objectives or more"),
        (["missing"], 2, "expected one of good, bad, got 'missing'"),
    ],
)
def test_wrong_requests_end_in_one_line(recal, run, arguments, status, message):
    found, out, err = recal("select", run, *arguments)
    assert found == status
    assert message in err
    assert out == ""
    assert "Traceback" not in err
