"""`recal compare`, as people and programs call it."""

import csv
import io
import json

import pytest

from tests.saved_runs import simulated, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", simulated({"a": 0.8, "b": 0.6, "c": 0.8}, 500))


def test_differences_beyond_noise_are_named_and_drawn(recal, run):
    status, out, _ = recal("compare", run, "a", "b")
    assert status == 0
    assert "By hand: b against a (500 images)" in out
    lines = [line.split() for line in out.splitlines()]
    clean = next(line for line in lines if line[:1] == ["clean"])
    assert clean[3].startswith("-")
    assert clean[-4] == "yes"
    assert any(line[:1] == ["fog"] and "worse" in line for line in lines)
    assert "b against a: clean -" in out
    assert (run / "comparison.png").read_bytes()[1:4] == b"PNG"


def test_no_difference_beyond_noise_is_said(recal, run):
    status, out, _ = recal("compare", run, "a", "c", "-o", run / "other.png")
    assert status == 0
    assert "c against a: no significant difference, overall or in any of the 7 cells." in out
    assert (run / "other.png").is_file()
    assert not (run / "comparison.png").exists()


def test_all_pairs_are_compared_on_request(recal, run):
    _, out, _ = recal("compare", run)
    assert out.count(" against a (500 images)") == 2
    _, out, _ = recal("compare", run, "--all-pairs", "--format", "markdown")
    assert out.count(" (500 images)**") == 3
    assert "| clean |" in out
    assert out.count("- c against b: ") == 1


def test_programs_get_one_document_or_table(recal, run):
    _, out, _ = recal("compare", run, "--json")
    (first, _) = json.loads(out)["pairs"]
    assert (first["first"], first["second"]) == ("a", "b")
    clean = first["differences"]["clean_accuracy"]
    assert clean["low"] < clean["value"] < clean["high"] < 0
    assert clean["p"] <= clean["p_holm"] < 0.05
    assert len(first["cells"]) == 7
    assert first["cells"][0]["corruption"] is None
    assert {"only_first", "only_second", "p", "p_holm", "beyond_noise"} < set(first["cells"][1])
    _, out, _ = recal("compare", run, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    row = next(r for r in rows if (r["second"], r["quantity"]) == ("b", "clean_accuracy"))
    assert float(row["value"]) == clean["value"]
    assert {r["first"] for r in rows} == {"a"}


def test_wrong_requests_end_in_one_line(recal, run, tmp_path):
    status, _, err = recal("compare", tmp_path / "nothing")
    assert status == 3
    assert "expected the folder of a run of `recal eval`" in err
    status, _, err = recal("compare", run, "a", "d")
    assert status == 2
    assert "expected one of a, b, c, got 'd'" in err
    status, _, err = recal("compare", run, "a")
    assert status == 2
    assert "expected two targets or more" in err
    status, _, err = recal("compare", run, "-o", run / "x.jpg")
    assert status == 2
    assert "expected a name that ends in .png or .svg" in err
    status, _, err = recal("compare", run, "-o", run / "run.json" / "x.png")
    assert status == 1
    assert "cannot be written" in err
    assert "Traceback" not in err
