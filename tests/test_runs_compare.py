"""Whether targets differ: intervals, tests and their correction, computed independently."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recal import compare
from recal.errors import InputError, UsageError
from recal.runs.statistics import holm, mcnemar, paired_mean
from tests.saved_runs import columns_of, simulated, write_run
from tests.simulated_networks import coverage, levels


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=5))
def test_mcnemar_is_the_exact_binomial_test(counts):
    b, c = np.array(counts).T
    expected = [
        stats.binomtest(int(x), int(x + y), 0.5).pvalue if x + y else 1.0
        for x, y in zip(b, c, strict=True)
    ]
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_step_by_step(p):
    p = np.array(p)
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.3):
        # as Holm wrote it: the smallest against level / m, the next against level / (m - 1), ...
        rejected = np.zeros(len(p), bool)
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] > level / (len(p) - step):
                break
            rejected[i] = True
        clear = np.abs(adjusted - level) > 1e-12
        assert np.array_equal((adjusted <= level)[clear], rejected[clear])
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()


def test_paired_mean_is_students_test():
    d = np.random.default_rng(0).normal(0.05, 1, 500)
    assert paired_mean(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_paired_mean_of_few_images_claims_no_more_than_signs_could():
    assert paired_mean(np.zeros(100)) == 1
    assert paired_mean(np.ones(3)) == 0.25
    assert paired_mean(np.ones(1)) == 1
    few = np.zeros(1000)
    few[:4] = 1
    assert paired_mean(few) == 0.125


def test_differences_are_paired_over_images(tmp_path):
    columns = simulated({"a": 0.7, "b": 0.75}, 3000)
    (pair,) = compare(write_run(tmp_path, columns)).pairs
    cells = [name for name in columns["a"] if name != "clean"]
    right = {t: np.stack([of[c]["rank"] == 0 for c in cells]) for t, of in columns.items()}
    change = right["b"].mean(axis=0) - right["a"].mean(axis=0)
    found = pair.differences["corrupted_accuracy"]
    half = 1.96 * change.std() / np.sqrt(3000)
    assert found.value == pytest.approx(change.mean())
    assert found.of_second - found.of_first == pytest.approx(found.value)
    # 2,000 resamples of 2,000 groups: the ends are known to within some percent of the width
    assert found.low == pytest.approx(change.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(change.mean() + half, abs=0.15 * half)
    assert found.p == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    clean = [of["clean"]["rank"] == 0 for of in columns.values()]
    b, c = np.sum(clean[0] & ~clean[1]), np.sum(clean[1] & ~clean[0])
    found = pair.differences["clean_accuracy"]
    assert found.p == pytest.approx(stats.binomtest(int(b), int(b + c)).pvalue)
    assert (pair.cells[0].only_first, pair.cells[0].only_second) == (b, c)
    assert pair.cells[0].difference == pytest.approx((c - b) / 3000)
    assert pair.beyond_noise


def test_targets_that_answer_alike_do_not_differ(tmp_path):
    columns = simulated({"a": 0.7}, 200)
    columns["b"] = columns["a"]
    (pair,) = compare(write_run(tmp_path, columns)).pairs
    assert not pair.beyond_noise
    assert {d.value for d in pair.differences.values()} == {0}
    assert all(d.low == d.high == 0 for d in pair.differences.values())
    assert all(test.p == 1 for test in pair.cells)


def test_all_against_the_first_or_each_against_each(tmp_path):
    run = write_run(tmp_path, simulated({"a": 0.7, "b": 0.8, "c": 0.6}, 400))
    first = compare(run)
    assert [(p.first, p.second) for p in first.pairs] == [("a", "b"), ("a", "c")]
    each = compare(run, every_pair=True)
    assert len(each.pairs) == 3
    # more tests, a stronger correction
    assert each.pairs[0].cells[0].p == first.pairs[0].cells[0].p
    assert each.pairs[0].cells[-1].p_holm >= first.pairs[0].cells[-1].p_holm
    backwards = compare(run, ["b", "a"]).pairs[0]
    assert backwards.differences["clean_accuracy"].value == pytest.approx(
        -first.pairs[0].differences["clean_accuracy"].value
    )
    tests = [test.p for pair in first.pairs for test in pair.cells]
    found = [test.p_holm for pair in first.pairs for test in pair.cells]
    assert found == pytest.approx(holm(np.array(tests)).tolist())


def test_each_family_of_tests_is_corrected_for_itself(tmp_path):
    columns = simulated({"a": 0.7, "b": 0.72, "c": 0.69}, 600)
    pairs = compare(write_run(tmp_path, columns), every_pair=True).pairs
    families = (["clean", "corrupted"], ["fog", "contrast", "gaussian_noise"])
    for family in families:
        found = [pair.differences[f"{name}_accuracy"] for pair in pairs for name in family]
        expected = holm(np.array([difference.p for difference in found]))
        assert [difference.p_holm for difference in found] == pytest.approx(expected.tolist())
    right = [np.stack([columns[t][f"fog-{s}"]["rank"] == 0 for s in (1, 2)]) for t in "ab"]
    change = right[1].mean(axis=0) - right[0].mean(axis=0)
    fog = pairs[0].differences["fog_accuracy"]
    assert fog.p == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    assert pairs[0].differences["clean_nll"].p is None


def test_one_target_or_none_is_refused(tmp_path):
    columns = simulated({"a": 0.7, "b": 0.8}, 30)
    run = write_run(tmp_path, columns)
    with pytest.raises(UsageError, match="expected two targets or more to compare, got 1"):
        compare(run, ["a"])
    columns["b"] = {}
    with pytest.raises(InputError, match="got none of b"):
        compare(write_run(tmp_path / "without", columns))
    columns["b"] = {"snow-1": columns_of(np.ones(30))}
    with pytest.raises(InputError, match="expected cells of both a and b, got none"):
        compare(write_run(tmp_path / "apart", columns))


def test_no_network_is_needed_to_compare_and_select(tmp_path):
    run = write_run(tmp_path, simulated({"a": 0.7, "b": 0.8}, 30))
    program = (
        "import sys; from recal import compare, select\n"
        f"compare({str(run)!r}); select({str(run)!r}, 'clean')\n"
        "print(*{'torch', 'timm', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.slow
def test_levels_and_coverage_hold_in_simulation():
    """A short run of what benchmarks/intervals.py does, whose long one is in docs/evidence.md."""
    found = levels(trials=2000, images=200, cells=4, seed=0)
    # 2,000 trials: a standard deviation of 0.0049 at 0.05
    for name in ("McNemar, one cell", "any cell of two pairs (Holm)"):
        assert found[name] <= 0.05 + 3 * 0.0049, name
    for name in ("paired mean over cells", "any headline of two pairs (Holm)"):
        assert 0.01 < found[name] <= 0.05 + 3 * 0.0049, name
    assert found["any cell of two pairs (no correction)"] > 0.2, "or the simulation tests nothing"
    covered = coverage(trials=120, images=150, cells=2, seed=0)
    for name, share in covered.items():
        if not name.endswith("of all images"):
            assert share > 0.95 - 3.5 * 0.0199, name
