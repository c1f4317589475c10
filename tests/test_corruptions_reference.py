"""Against outputs of the original generators, where the shared folder with them is present."""

import json
from pathlib import Path

import numpy as np
import pytest

from recal.corruptions import corrupt
from recal.corruptions.blur import smear
from recal.corruptions.parameters import PARAMETER_SETS
from tests.corruption_images import figures_of

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"
SIDES = {"32": "cifar", "224": "imagenet"}
REPEATS = {"32": 12, "224": 8}
RANDOM = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "spatter",
)
EXACT = (
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "contrast",
    "brightness",
    "saturate",
    "jpeg_compression",
    "pixelate",
)


def reference(name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="module")
def outputs():
    with np.load(reference("corruptions_exact.npz")) as arrays:
        return dict(arrays)


def assert_within_a_level(got, expected):
    difference = np.abs(got.astype(int) - expected.astype(int))
    assert (difference <= 1).mean() >= 0.999


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", EXACT)
def test_deterministic_corruptions_equal_the_originals(outputs, name, side):
    """Within one level on at least 99.9 % of the values."""
    for severity in range(1, 6):
        got = corrupt(outputs[f"input_{side}"], name, severity, family=SIDES[side])
        assert_within_a_level(got, outputs[f"{name}_{side}"][severity - 1])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("angle", [20, -33])
def test_motion_at_a_held_angle_equals_the_original(outputs, angle, side):
    """The kernel is ImageMagick's."""
    images = outputs[f"input_{side}"]
    parameters = PARAMETER_SETS[SIDES[side]].severities["motion_blur"]
    for severity, (radius, sigma) in enumerate(parameters):
        got = smear(images, np.full(len(images), float(angle)), int(radius), sigma)
        assert_within_a_level(got, outputs[f"motion_blur_angle{angle}_{side}"][severity])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", RANDOM)
def test_random_corruptions_have_the_originals_figures(outputs, name, side, monkeypatch):
    """RMSE to clean, channel means and spectrum at every severity, within sampling error."""
    monkeypatch.setenv("RECAL_DATA", str(FOLDER.parent / "data"))
    if name == "frost":
        reference("../data/frost/frost1.png")
    figures = json.loads(reference("corruptions_random.json").read_text(encoding="utf-8"))
    images = outputs[f"input_{side}"]
    many = np.tile(images, (REPEATS[side], 1, 1, 1))
    for severity in range(1, 6):
        theirs = figures[f"{name}/{side}/{severity}"]
        got = corrupt(many, name, severity, family=SIDES[side], seed=1)
        mine = np.array(figures_of(got.reshape(-1, *images.shape), images)["mean"])
        mean = [theirs["rmse_mean"], *theirs["shift_mean"], *theirs["band_mean"]]
        # their deviations include the spread between images, which both share
        deviation = np.array([theirs["rmse_sd"], *theirs["shift_sd"], *theirs["band_sd"]])
        error = deviation * np.sqrt(1 / len(many) + 1 / theirs["draws"])
        np.testing.assert_array_less(np.abs(mine - mean), 4 * error + 1e-3, str(severity))
