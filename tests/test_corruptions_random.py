"""Random words: known answers, and the distributions that are made of them."""

import numpy as np
import pytest
from scipy import special, stats

from recal.corruptions.elastic import _affine_maps
from recal.corruptions.random import Draws, derive_key, fill_words, normal, uniform, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_philox(counter, key, expected):
    """The known answers of Random123, the authors' own library."""
    words = np.empty(4, np.uint32)
    first, part, low, high = counter
    fill_words(words, np.array(key, np.uint32), low | high << 32, part, first)
    assert tuple(words) == expected


def test_words_do_not_depend_on_how_many_are_asked_for_at_once():
    key = derive_key(1, "fog", 2)
    whole, half = np.empty(64, np.uint32), np.empty(32, np.uint32)
    fill_words(whole, key, 5, 0, 0)
    fill_words(half, key, 5, 0, 8)
    np.testing.assert_array_equal(whole.reshape(4, 16)[:, 8:], half.reshape(4, 8))


def test_keys_differ_by_each_of_their_parts():
    keys = {
        tuple(derive_key(seed, name, severity))
        for seed in (0, 1, 11)
        for name in ("fog", "snow")
        for severity in (1, 2, 3, 4, 5)
    }
    assert len(keys) == 30


def test_uniforms_are_uniform_over_images_and_places():
    draws = Draws(derive_key(0, "fog", 1), np.arange(20_000))
    firsts = uniforms(draws, 1)[:, 0]
    words = np.empty(20_000, np.uint32)
    fill_words(words, draws.key, 3, 0, 0)
    inside = np.array([uniform(word) for word in words])
    for sample in (firsts, inside, (firsts + uniforms(draws, 1, 1)[:, 0]) % 1):
        assert sample.min() > 0
        assert sample.max() < 1
        assert stats.kstest(sample, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.03


def test_normals_are_the_quantile_function():
    """Against SciPy's, down to the smallest share that a word can give."""
    words = np.unique(np.round(np.geomspace(1, 2**32 - 1, 4000)).astype(np.uint64)).astype(
        np.uint32
    )
    shares = (np.concatenate([words, ~words, [0, 2**32 - 1]]).astype(np.float64) + 0.5) / 2**32
    got = np.array([normal(share) for share in shares])
    np.testing.assert_allclose(got, special.ndtri(shares), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(32, 32, 2.56), (224, 224, 48.8), (60, 90, 5)]
)
def test_elastic_points_move_uniformly(height, width, reach):
    """The map takes three points back from where they moved by U(-reach, reach) along each axis."""
    maps = _affine_maps(Draws(derive_key(0, "elastic", 1), np.arange(2000)), height, width, reach)
    size = min(height, width) // 3
    points = np.array([width // 2, height // 2]) + size * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = np.linalg.solve(maps[:, None, :, :2], (points - maps[:, None, :, 2])[..., None])[..., 0]
    moves = (moved - points) / reach
    assert np.abs(moves).max() <= 1 + 1e-9
    for point in range(3):
        for axis in range(2):
            sample = (moves[:, point, axis] + 1) / 2
            assert stats.kstest(sample, "uniform").pvalue > 1e-4
    together = np.corrcoef(moves.reshape(2000, 6).T) - np.eye(6)
    assert np.abs(together).max() < 0.1
