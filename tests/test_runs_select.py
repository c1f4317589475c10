"""The choice among targets, and the language in which it is asked for."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recal import select
from recal.errors import InputError, RecalError, UsageError
from recal.runs.expressions import parse_limit, parse_sum
from recal.runs.metrics import halves
from recal.runs.quantities import Quantity
from tests.saved_runs import columns_of, simulated, write_run

KNOWN = {
    "clean_accuracy": Quantity(np.array([[1.0, 0.0]])),
    "clean_nll": Quantity(np.array([[0.0, 1.0]])),
    "fog_accuracy": Quantity(np.array([[0.0, 0.5]])),
}


@pytest.mark.parametrize(
    ("text", "weights", "constant"),
    [
        ("clean", {"clean_accuracy": 1}, 0),
        ("-clean_nll", {"clean_nll": -1}, 0),
        ("0.5*clean + .5 * fog", {"clean_accuracy": 0.5, "fog_accuracy": 0.5}, 0),
        ("(clean+fog)/2 - 1e-1", {"clean_accuracy": 0.5, "fog_accuracy": 0.5}, -0.1),
        ("2*(clean - 3*(fog - 1))", {"clean_accuracy": 2, "fog_accuracy": -6}, 6),
        ("clean - clean_nll - fog", {"clean_accuracy": 1, "clean_nll": -1, "fog_accuracy": -1}, 0),
        ("clean/2/5", {"clean_accuracy": 0.1}, 0),
        ("fog*2*3", {"fog_accuracy": 6}, 0),
    ],
)
def test_sums_are_read_as_written(text, weights, constant):
    found = parse_sum(text, KNOWN, "here")
    expected = sum(weight * KNOWN[name].weights for name, weight in weights.items())
    assert found.weights == pytest.approx(expected)
    assert found.constant == pytest.approx(constant)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "clen",
            r"expected one of clean, fog, or such as clean_nll, got 'clen'\. Did you mean 'cl",
        ),
        ("mce", "the run has no mce: that is of a whole suite with reference errors"),
        ("clean*fog", "expected a weighted sum, got 'clean\\*fog'"),
        ("1/clean", "expected a weighted sum"),
        ("clean/0", "by one other than 0"),
        ("2", "expected a quantity of the run, got '2'"),
        ("", r"expected numbers, names and \+ - \* / \( \) <= >=, got ''"),
        ("clean +", "names and .* got 'clean \\+'"),
        ("(clean", r"names and .* got '\(clean'"),
        ("clean fog", "names and .* got 'clean fog'"),
        ("clean; import os", "names and .* got 'clean; import os'"),
        ("__import__('os')", "names and"),
        ("clean.__class__", "names and"),
        ("clean**2", "names and"),
        ("clean if fog else 2", "names and"),
        ("True*clean", "names and"),
        ("2j*clean", "names and"),
        ("\0", "names and"),
        ("(" * 400 + "clean", "names and"),
        ("-" * 900 + "clean", "names and"),
        ("clean" + "+1" * 300, "names and"),
        ("clean" * 300, "at most 1000 characters"),
        ("1e999*clean", "expected finite numbers, got '1e999"),
        ("1e200*1e200*clean", "expected finite numbers"),
        ("1e200*(1e200*clean)", "expected finite numbers"),
        ("9" * 400 + "*clean", "expected finite numbers"),
        ("clean >= 1", "names and"),
    ],
)
def test_what_is_no_weighted_sum_is_refused(text, message):
    with pytest.raises(UsageError, match="^here: .*" + message):
        parse_sum(text, KNOWN, "here")


@given(st.text(alphabet="clean fog_l0123.*/+-()<>= e", max_size=30))
def test_any_text_is_read_or_refused(text):
    for parse in (parse_sum, parse_limit):
        with contextlib.suppress(UsageError):
            found = parse(text, KNOWN, "here")
            quantity = found if parse is parse_sum else found.margin
            assert np.isfinite(quantity.weights).all()


@pytest.mark.parametrize(
    ("text", "at_half"),
    [
        ("clean >= 0.5", True),
        ("clean > 0.5", False),
        ("clean <= 0.5", True),
        ("clean < 0.5", False),
        ("0.4 <= clean", True),
        ("clean + fog <= 0.7", True),
        ("clean <= fog", False),
    ],
)
def test_limits_hold_as_they_say(text, at_half):
    limit = parse_limit(text, KNOWN, "here")
    # clean 0.5; 0.4 as the other metric, so that fog is 0.2
    measured = np.array([[[0.5, 0.4]]])
    assert limit.holds(measured)[0] == at_half


@pytest.mark.parametrize("text", ["clean", "clean = 1", "1 <= 2", "clean <= 1 <= 2", "clean >="])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError, match="here: "):
        parse_limit(text, KNOWN, "here")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.integers(0, 99))
def test_halves_are_even_over_classes_and_hold_every_image_once(labels, seed):
    labels = np.array(labels)
    first, second = halves(labels, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert abs(len(first) - len(second)) <= 1
    counts = [np.bincount(labels[half], minlength=6) for half in (first, second)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three targets: one better on clean images, one on corrupted ones, one on neither."""
    n = 2000
    hard = np.random.default_rng(0).random(n)
    shares = {"bright": (0.9, 0.5), "sturdy": (0.8, 0.7), "poor": (0.7, 0.4)}
    columns = {
        name: {
            "clean": columns_of(hard < clean),
            **{f"fog-{s}": columns_of(hard < fog - 0.05 * s, seed=s) for s in (1, 2)},
        }
        for name, (clean, fog) in shares.items()
    }
    return write_run(tmp_path_factory.mktemp("choice"), columns)


def chosen(selection):
    return list(selection.chosen)


def test_the_best_that_keeps_to_the_limits_is_chosen(run):
    assert chosen(select(run, "clean")) == ["bright"]
    limited = select(run, "clean", subject_to="mean_corruption_error <= 0.45")
    assert chosen(limited) == ["sturdy"]
    assert [c.allowed for c in limited.targets] == [False, True, False]
    assert limited.limits_hold_on_reporting == {"mean_corruption_error <= 0.45": True}
    assert limited.targets[1].share > 0.99
    assert chosen(select(run, "0.5*clean + 0.5*corrupted")) == ["sturdy"]
    assert chosen(select(run, "-clean")) == ["poor"]
    assert chosen(select(run, "clean", targets=["poor", "sturdy"])) == ["sturdy"]


def test_numbers_come_from_the_half_that_did_not_choose(run):
    from recal.runs.store import read_cell

    selection = select(run, "clean", seed=4)
    first, second = halves(np.arange(2000) % 10, 4)
    right = read_cell(next((run / "cells").iterdir()) / "clean.parquet")["rank"] == 0
    candidates = {round(c.choosing["clean"], 6): c for c in selection.targets}
    found = candidates[round(right[first].mean(), 6)]
    reported = found.reporting["clean"]
    assert reported.value == pytest.approx(right[second].mean())
    assert reported.low < reported.value < reported.high
    assert (selection.images.choosing, selection.images.reporting) == (1000, 1000)


def test_stability_is_the_share_of_resamples(tmp_path):
    n = 400
    right = np.arange(n) < 300
    columns = {"a": {"clean": columns_of(right)}, "b": {"clean": columns_of(np.roll(right, 7))}}
    selection = select(write_run(tmp_path, columns), "clean")
    shares = [candidate.share for candidate in selection.targets]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0.05
    columns["b"] = columns["a"]
    selection = select(write_run(tmp_path / "equal", columns), "clean")
    assert [c.share for c in selection.targets] == [1, 0], "of equals the first"


def test_the_pareto_front_leaves_out_what_another_beats(run):
    front = select(run, ["clean", "corrupted"], pareto=True)
    assert chosen(front) == ["bright", "sturdy"]
    assert [round(c.share, 2) for c in front.targets] == [1, 1, 0]
    limited = select(run, ["clean", "corrupted"], pareto=True, subject_to=["clean < 0.85"])
    assert chosen(limited) == ["sturdy"]
    with pytest.raises(UsageError, match="expected two objectives or more"):
        select(run, ["clean"], pareto=True)
    with pytest.raises(UsageError, match="expected one objective, got 2"):
        select(run, ["clean", "corrupted"])


def test_limits_that_nothing_keeps_to_name_the_closest(run):
    message = r"closest is sturdy with 0\.\d+ for mean_corruption_error<=0.1\."
    with pytest.raises(RecalError, match=message) as caught:
        select(run, "clean", subject_to=["mean_corruption_error<=0.1", "clean>0.1"])
    assert caught.value.exit_code == 1


def test_resamples_without_any_allowed_target_are_counted(run):
    value = select(run, "clean", targets=["sturdy"]).targets[0].choosing["clean"]
    selection = select(run, "clean", subject_to=f"clean >= {value}", targets=["sturdy"])
    assert 0.3 < selection.none_allowed_share < 0.7
    assert selection.targets[0].share == pytest.approx(1 - selection.none_allowed_share)


def test_a_target_without_cells_is_named(tmp_path):
    columns = simulated({"a": 0.8}, 40)
    columns["b"] = {}
    run = write_run(tmp_path, columns)
    with pytest.raises(InputError, match="expected cells of b, got none"):
        select(run, "clean")
    assert chosen(select(run, "clean", targets=["a"])) == ["a"]
    columns = {"a": {"clean": columns_of([True])}}
    with pytest.raises(InputError, match="two images or more"):
        select(write_run(tmp_path / "one", columns), "clean")
