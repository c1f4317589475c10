"""`corrupt`: its contract for every corruption."""

import subprocess
import sys

import numpy as np
import pytest

from recal.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from recal.corruptions.parameters import FAMILIES
from recal.corruptions.table import OPERATIONS
from recal.errors import InputError, UsageError

ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)


def photographs(count=4, side=32, seed=0):
    """Smooth random colours with edges and texture, as photographs have."""
    rng = np.random.default_rng(seed)
    grid = np.mgrid[:side, :side] / side
    images = []
    for _ in range(count):
        waves = rng.normal(size=(6, 2, 3)) * np.array([1, 2, 3, 5, 8, 13])[:, None, None]
        phases = np.einsum("wdc,dyx->wyxc", waves, grid) * 3 + rng.uniform(0, 6, (6, 1, 1, 3))
        image = (np.sin(phases) / np.array([1, 2, 3, 4, 6, 9])[:, None, None, None]).sum(0)
        image += 1.2 * (np.hypot(*(grid - rng.uniform(0.2, 0.8, (2, 1, 1)))) < 0.25)[..., None]
        images.append(image)
    low, high = np.percentile(images, [1, 99])
    return (np.clip((np.array(images) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_result_of_an_image_does_not_depend_on_its_batch(name):
    """The same bytes alone, in a batch, and in another order."""
    images = photographs()
    numbers = np.array([7, 3, 10_000, 2**40])
    whole = corrupt(images, name, 4, family="cifar", seed=5, indices=numbers)
    for order in ([0], [2], [3, 1], [2, 0, 3, 1]):
        part = corrupt(
            images[order], name, 4, family="cifar", seed=5, indices=numbers[order].tolist()
        )
        np.testing.assert_array_equal(part, whole[order])
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    assert not np.array_equal(whole, images)


def test_images_are_left_unchanged_and_any_strides_do():
    images = photographs()
    before = images.copy()
    turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    turned.setflags(write=False)
    for name in OPERATIONS:
        np.testing.assert_array_equal(
            corrupt(turned, name, 2, family="cifar"), corrupt(images, name, 2, family="cifar")
        )
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_images_give_no_images(name):
    assert corrupt(np.empty((0, 32, 32, 3), np.uint8), name, 1, family="cifar").shape[0] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_there_for_every_corruption_and_severity(family):
    assert sorted(FAMILIES[family].severities) == sorted(ALL)
    assert all(len(rows) == 5 for rows in FAMILIES[family].severities.values())


@pytest.mark.parametrize("severity", [0, 6, 2.5, True, "3", None])
def test_severity_outside_1_to_5_is_refused(severity):
    with pytest.raises(UsageError, match="severity: expected an integer from 1 to 5, got"):
        corrupt(photographs(), "contrast", severity, family="cifar")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'gaussian_noise'"):
        corrupt(photographs(), "gausian_noise", 1, family="cifar")
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        corrupt(photographs(), "contrast", 1, family="imagenet1k")
    with pytest.raises(UsageError, match="seed: expected an integer from 0 on"):
        corrupt(photographs(), "contrast", 1, family="cifar", seed=-1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3)), "got float64 .* Scale to 0..255"),
        (np.zeros((32, 32, 3), np.uint8), r"image\[None\]"),
        (np.zeros((2, 32, 32), np.uint8), "Repeat grey"),
        (np.zeros((2, 32, 32, 1), np.uint8), "Repeat grey"),
        (np.zeros((2, 32, 32, 4), np.uint8), "alpha"),
        (np.zeros((2, 3, 32, 32), np.uint8), "channels last"),
        (np.zeros((2, 0, 32, 3), np.uint8), "at least one pixel"),
        ([[1]], "expected a NumPy array, got list"),
    ],
)
def test_other_arrays_are_refused_with_what_to_do(images, message):
    with pytest.raises(InputError, match=message):
        corrupt(images, "contrast", 1, family="cifar")


@pytest.mark.parametrize("indices", [[0, 1], [0.5] * 4, [-1, 0, 1, 2], [[0, 1, 2, 3]]])
def test_indices_that_do_not_fit_are_refused(indices):
    with pytest.raises(InputError, match="indices: expected"):
        corrupt(photographs(), "contrast", 1, family="cifar", indices=indices)


def test_importing_is_light():
    """Neither torch nor timm, and numba and OpenCV only when first needed."""
    heavy = ("torch", "timm", "numba", "cv2", "scipy", "PIL")
    code = f"import sys, recal.corruptions; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
