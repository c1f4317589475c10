"""Parts of a calibration merge to what one process estimates."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recal import Settings, calibrate_matrix, load_checkpoint
from recal.calibration.estimators import merge_found
from recal.calibration.parts import SUFFIX, _read, calibrate_part, merge_parts
from recal.distributed import Part
from recal.errors import InputError, LockedError, UsageError
from recal.files import locked
from recal.variant.variant import save_variant

SETTINGS = Settings(batch_size=7)  # 60 images: the last of nine batches has four
AFFINES, MODES = ["main", "aux0"], ["clean", "strong"]


@pytest.fixture(scope="module")
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


def make_parts(checkpoint, images, folder, count, settings=SETTINGS, modes=MODES):
    return [
        calibrate_part(
            checkpoint, AFFINES, modes, Part(n, count), folder, data=images, settings=settings
        )
        for n in range(count, 0, -1)
    ]


@pytest.fixture(scope="module")
def three(checkpoint, class_folders, tmp_path_factory):
    return make_parts(checkpoint, class_folders, tmp_path_factory.mktemp("three"), 3)


def test_three_parts_merge_to_the_bytes_of_one_process(checkpoint, class_folders, three, tmp_path):
    alone = calibrate_matrix(checkpoint, AFFINES, MODES, data=class_folders, settings=SETTINGS)
    merged = merge_parts(three)
    assert list(merged) == list(alone)
    for key, variant in alone.items():
        save_variant(variant, tmp_path / "alone")
        save_variant(merged[key], tmp_path / "merged")
        assert (tmp_path / "merged").read_bytes() == (tmp_path / "alone").read_bytes(), key


def test_moments_of_parts_are_those_of_the_batches_in_float64(
    checkpoint, class_folders, three, tmp_path
):
    """Against NumPy: sums over batches of n, of n * mean and of squared deviations."""
    (one,) = make_parts(checkpoint, class_folders, tmp_path, 1)
    for number, of in enumerate(_read(one).moments):
        merged = merge_found(_read(path).moments[number] for path in three)
        for name, whole in of.items():
            assert merged[name].images == whole.images == 60
            for value in ("mean", "variance"):
                np.testing.assert_allclose(
                    getattr(merged[name], value), getattr(whole, value), rtol=1e-12, atol=1e-14
                )
            parts = [_read(path).moments[number][name] for path in three]
            n = np.array([part.count for part in parts], np.float64)[:, None]
            means = np.stack([part.mean.numpy() for part in parts])
            variances = np.stack([part.variance.numpy() for part in parts])
            mean = (n * means).sum(0) / n.sum()
            variance = (n * (variances + (means - mean) ** 2)).sum(0) / n.sum()
            np.testing.assert_allclose(merged[name].mean, mean, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(merged[name].variance, variance, rtol=1e-10)


def test_a_part_is_missing_twice_there_or_of_another_calibration(
    checkpoint, class_folders, three, tmp_path
):
    with pytest.raises(InputError, match="expected 3 parts, got none of 3/3"):
        merge_parts(sorted(three)[:2])
    with pytest.raises(InputError, match="got one of them twice"):
        merge_parts([*three, three[0]])
    other = make_parts(
        checkpoint, class_folders, tmp_path, 3, Settings(batch_size=7, seed=1), ["clean"]
    )
    with pytest.raises(InputError, match="expected a part of the same calibration"):
        merge_parts([*three[:2], other[2]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="Name another folder with -o"):
        make_parts(checkpoint, class_folders, tmp_path, 3)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_part_of_other_images_overwrites_nothing(checkpoint, class_folders, tmp_path):
    make_parts(checkpoint, class_folders, tmp_path, 2, Settings(batch_size=7), ["clean"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    images = np.random.default_rng(5).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path.parent / "images.npy", images)
    fewer = Settings(batch_size=7, samples=50)
    for data, settings in (
        (class_folders, fewer),
        (tmp_path.parent / "images.npy", Settings(batch_size=7)),
    ):
        with pytest.raises(InputError, match=r"set of images or option\. Name another"):
            make_parts(checkpoint, data, tmp_path, 2, settings, ["clean"])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_jobs_of_one_part_are_one_error(checkpoint, class_folders, tmp_path):
    with locked(tmp_path, ".2-of-2.lock"), pytest.raises(LockedError, match="part 2/2"):
        make_parts(checkpoint, class_folders, tmp_path, 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Settings(estimator="consistent"), "got consistent"),
        (Settings(estimator="ema"), "got ema"),
        (Settings(tolerance=0.1), "got --tolerance"),
        (Settings(batch_size=30), "expected at most 2 parts"),
    ],
)
def test_what_needs_all_images_at_once_is_refused(
    checkpoint, class_folders, tmp_path, settings, named
):
    with pytest.raises(UsageError, match=named):
        make_parts(checkpoint, class_folders, tmp_path, 3, settings, ["clean"])


@pytest.mark.parametrize("fault", ["truncated", "other", "places", "shape", "nan"])
def test_a_damaged_part_is_one_error(three, tmp_path, fault):
    path = tmp_path / three[0].name
    content = three[0].read_bytes()
    if fault == "truncated":
        path.write_bytes(content[:-10])
    elif fault == "other":
        save_file({"x": np.zeros(3)}, path)
    else:
        from safetensors import safe_open

        with safe_open(three[0], "np") as file:
            metadata = file.metadata()
        tensors = load_file(three[0])
        name = next(name for name in tensors if "/sums/" in name)
        if fault == "places":
            tensors["places"] = tensors["places"] + 1000
        elif fault == "shape":
            tensors[name] = tensors[name][:3]
        else:
            tensors[name] = np.full_like(tensors[name], np.nan)
        save_file(tensors, path, metadata=metadata)
    with pytest.raises(InputError):
        merge_parts([path, *three[1:]])


def test_commands_write_parts_and_merge_them(recal, split_checkpoint, class_folders, tmp_path):
    words = [
        "calibrate",
        split_checkpoint,
        "--data",
        class_folders,
        "--batch-size",
        7,
        "--workers",
        0,
    ]
    for number in (2, 1):
        status, out, err = recal(*words, "--part", f"{number}/2", "-o", "parts")
        assert status == 0, err
        assert (
            f"Wrote parts/{number}-of-2{SUFFIX}. When all parts are there: recal merge parts" in out
        )
    status, out, err = recal("merge", "parts")
    assert status == 0, err
    assert "Wrote parts/main-weak.safetensors." in out
    assert recal(*words, "-o", "alone.safetensors")[0] == 0
    alone = (tmp_path / "alone.safetensors").read_bytes()
    assert (tmp_path / "parts" / "main-weak.safetensors").read_bytes() == alone
    assert recal("merge", f"parts/1-of-2{SUFFIX}")[0] == 3
    status, _, err = recal("merge", "alone.safetensors")
    assert (status, "recal calibrate --part" in err) == (3, True)
    status, _, err = recal("inspect", f"parts/1-of-2{SUFFIX}")
    assert status != 0
    assert err.count("\n") == 1
