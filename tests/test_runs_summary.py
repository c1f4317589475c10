"""Every metric of a run, recomputed from its cells alone."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recal.corruptions.parameters import CORRUPTIONS
from recal.errors import InputError, UsageError
from recal.runs.metrics import measure
from recal.runs.store import cell_file, open_run, read_cell, write_cell
from recal.runs.summary import flat, summarise_run
from recal.suites.suite import Cell, load_suite
from tests.saved_runs import columns_of, simulated, write_run

# Correct answers of 5,000, severities 1 to 5, as RobustBench publishes them for its subset of
# ImageNet-C (model_info/imagenet/corruptions/unaggregated_results.csv, 2025). Its mCE of the two,
# in percent: 76.38 and 47.61.
RESNET50 = {
    "gaussian_noise": (3010, 2439, 1562, 711, 144),
    "shot_noise": (2914, 2243, 1428, 513, 176),
    "impulse_noise": (2427, 1931, 1452, 565, 122),
    "defocus_blur": (2957, 2577, 1904, 1376, 912),
    "glass_blur": (2681, 1987, 854, 653, 517),
    "motion_blur": (3180, 2671, 1877, 1079, 726),
    "zoom_blur": (2629, 2151, 1780, 1422, 1097),
    "snow": (2734, 1560, 1747, 1172, 825),
    "frost": (3053, 2183, 1532, 1432, 1129),
    "fog": (3046, 2800, 2337, 2012, 1180),
    "brightness": (3680, 3611, 3479, 3248, 2943),
    "contrast": (3214, 2912, 2330, 1049, 271),
    "elastic_transform": (3342, 2257, 2728, 2061, 851),
    "pixelate": (3190, 3217, 2299, 1465, 1044),
    "jpeg_compression": (3322, 3117, 3002, 2393, 1627),
}
DEIT_S = {
    "gaussian_noise": (3758, 3736, 3690, 3497, 3052),
    "shot_noise": (3790, 3742, 3694, 3444, 3112),
    "impulse_noise": (3716, 3688, 3636, 3451, 3040),
    "defocus_blur": (3480, 3307, 2851, 2325, 1797),
    "glass_blur": (3550, 3265, 2240, 1933, 1517),
    "motion_blur": (3721, 3457, 2958, 2262, 1783),
    "zoom_blur": (3183, 2772, 2423, 2065, 1651),
    "snow": (3586, 3060, 3121, 2725, 2691),
    "frost": (3728, 3502, 3215, 3191, 2981),
    "fog": (3524, 3252, 3051, 2888, 2442),
    "brightness": (3880, 3863, 3804, 3740, 3609),
    "contrast": (3749, 3731, 3661, 3226, 2125),
    "elastic_transform": (3658, 2672, 3523, 3201, 2219),
    "pixelate": (3752, 3664, 3442, 2837, 1943),
    "jpeg_compression": (3684, 3596, 3523, 3296, 2953),
}
ALEXNET = load_suite("robustbench-imagenetc").reference
REFERENCE = {
    "source": ALEXNET.source,
    "clean_error": ALEXNET.clean_error,
    "errors": dict(ALEXNET.errors),
}


def published(counts, clean):
    """Columns with so many right answers of 5,000."""
    right = np.arange(5000)
    cells = {"clean": columns_of(right < clean)}
    for name, row in counts.items():
        cells |= {f"{name}-{s}": columns_of(right < k) for s, k in enumerate(row, 1)}
    return cells


@pytest.fixture(scope="module")
def imagenet_c(tmp_path_factory):
    """Summary of a run with two networks' published counts; clean accuracies 76.72, 79.76 %."""
    columns = {"resnet50": published(RESNET50, 3836), "deit_s": published(DEIT_S, 3988)}
    folder = tmp_path_factory.mktemp("imagenet_c")
    summary, _ = summarise_run(write_run(folder, columns, reference=REFERENCE))
    return summary


@pytest.mark.slow
def test_mce_is_what_robustbench_publishes(imagenet_c):
    resnet50, deit_s = imagenet_c.targets
    assert round(100 * resnet50.mce, 2) == 76.38
    assert round(100 * deit_s.mce, 2) == 47.61
    assert round(100 * resnet50.corrupted_accuracy, 2) == 39.48
    assert round(100 * deit_s.corrupted_accuracy, 2) == 62.91
    assert resnet50.mean_corruption_error == pytest.approx(1 - resnet50.corrupted_accuracy)


def test_relative_mce_is_its_formula(imagenet_c):
    for row, counts in zip(imagenet_c.targets, (RESNET50, DEIT_S), strict=True):
        clean = 1 - row.clean_accuracy
        terms = [
            sum(1 - count / 5000 - clean for count in counts[name])
            / sum(ALEXNET.errors[name] - 0.4376 for _ in range(5))
            for name in counts
        ]
        assert row.relative_mce == pytest.approx(np.mean(terms))
        low, high = row.intervals["relative_mce"]
        assert low < row.relative_mce < high


def test_without_reference_or_a_whole_suite_nothing_is_called_mce(tmp_path):
    columns = simulated({"a": 0.8}, 60)
    (row,) = summarise_run(write_run(tmp_path, columns))[0].targets
    assert row.mce is None
    assert row.relative_mce is None
    assert row.mean_corruption_error is not None
    whole = [*columns["a"], "snow-1"][1:]
    errors = dict.fromkeys(("fog", "contrast", "gaussian_noise", "snow"), 0.5)
    reference = {"source": "x", "clean_error": 0.1, "errors": errors}
    write_run(tmp_path, columns, standard=whole, reference=reference)
    (row,) = summarise_run(tmp_path)[0].targets
    assert row.mean_corruption_error is None
    assert row.mce is None
    assert row.corrupted_accuracy is not None


def test_extra_corruptions_are_in_no_mean(tmp_path):
    columns = simulated({"a": 0.8}, 60, corruptions=("fog", "spatter"))
    columns["a"]["spatter-1"] = columns_of(np.zeros(60))
    write_run(tmp_path, columns, standard=["fog-1", "fog-2"])
    summary, _ = summarise_run(tmp_path)
    fog = np.mean([np.mean(columns["a"][f"fog-{s}"]["rank"] == 0) for s in (1, 2)])
    row = summary.targets[0]
    assert row.corrupted_accuracy == pytest.approx(fog)
    assert row.mean_corruption_error == pytest.approx(1 - fog)
    parts = {part.part: part for part in summary.parts}
    assert parts["weather"].accuracy == pytest.approx(fog)
    assert "spatter" in parts


def ece(columns):
    """Fifteen bins (lo, hi], each written out."""
    confidence = columns["confidence"].astype(np.float64)
    right, total = columns["rank"] == 0, 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


PLAIN = {
    "accuracy": lambda c: np.mean(c["rank"] == 0),
    "top5_accuracy": lambda c: np.mean(c["rank"] < 5),
    "nll": lambda c: np.mean(c["nll"].astype(np.float64)),
    "brier": lambda c: np.mean(
        c["sum_p2"].astype(np.float64) - 2 * np.exp(-c["nll"].astype(np.float64)) + 1
    ),
    "ece": ece,
}


def test_every_part_is_the_mean_of_its_cells(tmp_path):
    columns = simulated({"a": 0.8, "b": 0.7}, 2500)
    summary, _ = summarise_run(write_run(tmp_path, columns))
    cells = {
        "fog": ["fog-1", "fog-2"],
        "severity_2": ["fog-2", "contrast-2", "gaussian_noise-2"],
        "weather": ["fog-1", "fog-2"],
        "digital": ["contrast-1", "contrast-2"],
        "noise": ["gaussian_noise-1", "gaussian_noise-2"],
    }
    found = {(row.target, row.part): row for row in summary.parts}
    for target, of in columns.items():
        for name, value in PLAIN.items():
            for part, names in cells.items():
                expected = np.mean([value(of[cell]) for cell in names])
                assert getattr(found[target, part], name) == pytest.approx(expected, abs=1e-9)
                low, high = found[target, part].intervals[name]
                assert low <= expected <= high
            row = next(row for row in summary.targets if row.target == target)
            assert getattr(row, f"clean_{name}") == pytest.approx(value(of["clean"]), abs=1e-9)
            expected = np.mean([value(of[cell]) for cell in of if cell != "clean"])
            assert getattr(row, f"corrupted_{name}") == pytest.approx(expected, abs=1e-9)
    assert {row.by for row in summary.parts} == {"corruption", "group", "severity"}


def test_clean_images_may_be_others_than_the_corrupted_ones(tmp_path):
    columns = simulated({"a": 0.8, "b": 0.6}, 300)
    for name, of in columns.items():
        of["clean"] = columns_of(np.arange(500) % 10 < (8 if name == "a" else 6))
    summary, _ = summarise_run(write_run(tmp_path, columns))
    row = summary.targets[1]
    assert summary.images == 500
    assert row.clean_accuracy == pytest.approx(0.6)
    assert row.clean_difference.value == pytest.approx(-0.2)
    assert row.corrupted_difference.beyond_noise


def test_resamples_are_paired_even_where_a_target_lacks_a_cell(tmp_path):
    columns = simulated({"a": 0.8, "b": 0.6}, 300)
    columns["b"] = {name: of for name, of in columns["a"].items() if name != "clean"}
    run = open_run(write_run(tmp_path, columns))
    a, b = (measure(run, target) for target in run.targets)
    assert np.array_equal(a.over(b.cells).resampled, b.resampled)
    summary, _ = summarise_run(tmp_path)
    assert summary.targets[1].clean_difference is None
    assert summary.targets[1].corrupted_difference.high == 0


def test_cells_of_other_images_are_not_of_the_run(tmp_path):
    run = open_run(write_run(tmp_path, simulated({"a": 0.8}, 60)))
    path = cell_file(tmp_path, run.targets[0].sha256, Cell("fog", 1))
    columns = read_cell(path)
    write_cell(path, {name: column[:50] for name, column in columns.items()}, "other")
    summary, _ = summarise_run(tmp_path)
    assert ("fog", 1) not in {(row.corruption, row.severity) for row in summary.cells}
    assert summary.cells_done == 6


def test_numbers_alone_make_a_flat_table(tmp_path):
    summary, _ = summarise_run(write_run(tmp_path, simulated({"a": 0.8, "b": 0.7}, 60)))
    first, second = map(flat, summary.targets)
    assert list(first) == list(second)
    low, high = summary.targets[0].intervals["clean_ece"]
    assert (first["clean_ece_low"], first["clean_ece_high"]) == (low, high)
    assert first["clean_difference"] is None
    assert second["clean_difference_low"] < second["clean_difference"]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder of a run of `recal eval`"):
        summarise_run(tmp_path)
    run = write_run(tmp_path, simulated({"a": 0.8}, 20))
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del content["title"]
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="Run the same `recal eval` again"):
        summarise_run(run)
    (run / "run.json").write_text("[" * 50, encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json: expected JSON"):
        summarise_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cells", ["../../clean-1"]),
        ("cells", ["fog"]),
        ("cells", 3),
        ("targets", []),
        ("targets", [{"name": "a"}]),
        ("targets", [{"name": [], "label": "a", "adaptation": None, "sha256": "0" * 64}]),
        ("held", 3),
        ("held", {"a": None}),
        ("held", {"a": [5]}),
        ("cells", ["fog-1\n"]),
        ("standard", ["/etc/fog-1"]),
        ("images", {}),
        ("images", {"clean": "../x", "corrupted": None}),
        ("reference", {}),
        ("reference", {"source": "x", "clean_error": None, "errors": {"contrast": 0.5}}),
        ("reference", {"source": "x", "clean_error": None, "errors": {"fog": 0}}),
        ("seed", 1.5),
    ],
)
def test_run_files_that_lead_elsewhere_or_nowhere_are_refused(tmp_path, key, value):
    run = write_run(tmp_path, simulated({"a": 0.8}, 20))
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (target,) = content["targets"]
    (run / "run.json").write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(InputError, match="Run the same `recal eval` again"):
        summarise_run(run)
    target["sha256"] = "../" * 22
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"targets 1: sha256: .* Run the same `recal eval` again"):
        summarise_run(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": None}, "expected a cell of a run, got no rank in it"),
        ({"nll": np.full(20, np.nan, np.float32)}, "expected finite numbers as nll, got others"),
        ({"confidence": np.array(["x"] * 20)}, "expected finite numbers as confidence, got others"),
    ],
)
def test_cells_that_are_none_are_refused(tmp_path, change, message):
    columns = simulated({"a": 0.8}, 20)
    columns["a"]["clean"] |= change
    columns["a"]["clean"] = {k: v for k, v in columns["a"]["clean"].items() if v is not None}
    with pytest.raises(InputError, match=message):
        summarise_run(write_run(tmp_path, columns))


def test_classes_have_the_metrics_of_their_images(tmp_path):
    columns = simulated({"a": 0.8, "b": 0.6}, 500)
    _, rows = summarise_run(write_run(tmp_path, columns))
    assert len(rows) == 2 * 2 * 10
    found = {(row.target, row.part, row.label): row for row in rows}
    for target, of in columns.items():
        for part in ("clean", "corrupted"):
            cells = [of[name] for name in of if (name == "clean") == (part == "clean")]
            for label in range(10):
                row = found[target, part, label]
                own = [{k: v[c["label"] == label] for k, v in c.items()} for c in cells]
                assert row.n == 50
                for name in ("accuracy", "top5_accuracy", "nll", "brier"):
                    expected = np.mean([PLAIN[name](c) for c in own])
                    low, high = row.intervals[name]
                    assert getattr(row, name) == pytest.approx(expected, abs=1e-9)
                    assert low <= expected <= high


def test_targets_are_picked_by_name_or_label(tmp_path):
    run = open_run(write_run(tmp_path, simulated({"a": 0.8, "b": 0.7}, 20)))
    assert [t.name for t in run.pick(["b", "a"])] == ["b", "a"]
    assert run.pick([]) == run.targets
    with pytest.raises(UsageError, match="expected one of a, b, got 'c'"):
        run.pick(["c"])


@given(st.sampled_from(CORRUPTIONS), st.integers(0, 9999))
def test_names_of_cells_are_read_back(corruption, severity):
    for cell in (Cell(corruption, severity), Cell(None, None)):
        assert Cell.parse(cell.name) == cell


@pytest.mark.parametrize(
    "name", ["", "fog", "-1", "../fog-1", "fog-1/../x-2", "fog-1\n", "/fog-1", "fog-x"]
)
def test_names_that_are_no_cells_are_refused(name):
    with pytest.raises(ValueError, match="expected the name of a cell"):
        Cell.parse(name)
