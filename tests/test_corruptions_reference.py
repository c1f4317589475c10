"""Against outputs of the original generators, where the shared folder with them is present."""

from pathlib import Path

import numpy as np
import pytest

from recal.corruptions import corrupt
from recal.corruptions.motion import smear
from recal.corruptions.parameters import FAMILIES

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "reference"
SIDES = {"32": "cifar", "224": "imagenet"}
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
    parameters = FAMILIES[SIDES[side]].severities["motion_blur"]
    for severity, (radius, sigma) in enumerate(parameters):
        got = smear(images, np.full(len(images), float(angle)), int(radius), sigma)
        assert_within_a_level(got, outputs[f"motion_blur_angle{angle}_{side}"][severity])
