"""Against figures of the original generators and golden outputs, both kept beside the tests.

`corruption_figures.json` was made by `benchmarks/corruption_figures.py` from the generators of
Hendrycks and Dietterich on the images of `corruption_images.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from recal.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from recal.corruptions.parameters import PARAMETER_SETS
from tests.corruption_images import figures_of, photographs, sampled, write_textures

FIGURES = json.loads(
    (Path(__file__).parent / "corruption_figures.json").read_text(encoding="utf-8")
)
GOLDEN = Path(__file__).parent / "corruption_golden.npz"
IMAGES = {"cifar": 6, "tiny": 4, "imagenet": 2}
DRAWS = {"cifar": 30, "tiny": 15, "imagenet": 8}
ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
EXACT = sorted({key.split("/")[0] for key, row in FIGURES.items() if "values" in row})
RANDOM = sorted({key.split("/")[0] for key, row in FIGURES.items() if "mean" in row})


@pytest.fixture(scope="module", autouse=True)
def textures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_textures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAL_DATA", str(folder))
        yield


def test_figures_cover_every_corruption_family_and_severity():
    assert sorted(FIGURES) == sorted(
        f"{name}/{family}/{severity}"
        for name in ALL
        for family in PARAMETER_SETS
        for severity in range(1, 6)
    )


@pytest.mark.parametrize("family", PARAMETER_SETS)
@pytest.mark.parametrize("name", EXACT)
def test_what_draws_nothing_equals_the_original(name, family):
    """Within one level: 96 values of each severity."""
    images = photographs(IMAGES[family], PARAMETER_SETS[family].side)
    for severity in range(1, 6):
        expected = np.frombuffer(
            bytes.fromhex(FIGURES[f"{name}/{family}/{severity}"]["values"]), np.uint8
        )
        got = sampled(corrupt(images, name, severity, family=family))
        assert np.abs(got.astype(int) - expected).max() <= 1
        assert (got == expected).mean() > 0.85  # and most of them exactly


@pytest.mark.parametrize("family", PARAMETER_SETS)
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_has_the_originals_distribution(name, family):
    """RMSE to clean, channel means and spectrum, mean and spread, within sampling error."""
    images = photographs(IMAGES[family], PARAMETER_SETS[family].side)
    draws = DRAWS[family]
    batch = np.tile(images, (draws, 1, 1, 1))
    for severity in range(1, 6):
        theirs = FIGURES[f"{name}/{family}/{severity}"]
        outputs = corrupt(batch, name, severity, family=family, seed=severity)
        mine = figures_of(outputs.reshape(draws, *images.shape), images)
        count, their_count = len(batch), theirs["draws"]
        spread, their_spread = np.array(mine["deviation"]), np.array(theirs["deviation"])
        pooled = np.sqrt((spread**2 + their_spread**2) / 2)
        error = pooled * np.sqrt(1 / count + 1 / their_count)
        difference = np.array(mine["mean"]) - np.array(theirs["mean"])
        # figures are rounded to five digits; shares of power are to 1e-3
        slack = np.array([5e-3] * 4 + [1e-3] * 4) + 1e-4 * np.abs(theirs["mean"])
        np.testing.assert_array_less(np.abs(difference), 5 * error + slack, str(severity))
        free = min(count - len(images), their_count - len(images))
        ratio = np.log((spread + slack) / (their_spread + slack))
        # deviations of skewed figures scatter more than those of normal ones, twice as much here
        np.testing.assert_array_less(np.abs(ratio), 2 * 5 / np.sqrt(2 * free), str(severity))


@pytest.mark.parametrize("name", ALL)
def test_golden_outputs_are_reproduced(name):
    """Processors and library versions differ in the last bit: one level on 99.99 % of values."""
    with np.load(GOLDEN) as golden:
        images = golden["images"]
        for severity in (2, 4):
            got = corrupt(images, name, severity, family="cifar", seed=7, indices=[11])
            difference = np.abs(got.astype(int) - golden[f"{name}_{severity}"])
            assert (difference <= 1).mean() >= 0.9999


def test_noise_is_reproduced_to_the_bit():
    """It is integer arithmetic but for its tables."""
    with np.load(GOLDEN) as golden:
        for name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"):
            got = corrupt(golden["images"], name, 4, family="cifar", seed=7, indices=[11])
            assert (got == golden[f"{name}_4"]).mean() >= 0.9999
