"""Draws of images, random or evenly apart, and generators that are keyed by (seed, image index)."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from recal.errors import InputError

# statistics of this many images are within about 2 %; all images of a large set take long
DEFAULT_SAMPLES = 10_000


@contextmanager
def keyed_draws(*key: int) -> Iterator[None]:
    """Seed the global generators of `random`, NumPy and torch from a key, inside the block only.

    torchvision's and timm's transforms draw from these three and take no generator as an argument.
    Keys are non-negative integers; equal keys give equal draws.
    """
    with undisturbed_draws():
        seed_draws(*key)
        yield


@contextmanager
def undisturbed_draws() -> Iterator[None]:
    """Restore the states of the three global generators after the block, also after an error.

    This takes several times as long as seeding them: for many images, enter the block once and call
    `seed_draws` for each image.
    """
    import torch

    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


def seed_draws(*key: int) -> None:
    """Seed the three global generators as `keyed_draws` does, without restoring them."""
    import torch

    first, second, third = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)


def seeded_batches(count: int, samples: int, batch_size: int, seed: int) -> list[NDArray[np.int64]]:
    """Draw `samples` of `count` images without replacement and cut them into batches.

    The order is random, because files often come sorted by class; it is fixed by the seed. The
    last batch may be smaller.
    """
    return in_batches(np.random.default_rng(seed).permutation(count)[:samples], batch_size)


def stratified_sample(labels: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of `limit` images, spread evenly over the classes, in rising order."""
    if limit is None:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(even_over_classes(order, labels, limit))


def in_batches(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut the indices of images into batches; the last one may be smaller."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def even_over_classes(
    order: NDArray[np.int64], labels: NDArray[np.int64] | None, count: int
) -> NDArray[np.int64]:
    """Return `count` indices out of `order`, spread over the classes as evenly as possible.

    The first ones of each class are taken; without labels, the first ones of all.
    """
    if labels is None or count >= len(order):
        return order[:count]
    own = labels[order]
    # the n-th image of its class comes in round n: whole rounds first
    by_class = np.argsort(own, kind="stable")
    starts = np.searchsorted(own[by_class], own[by_class])
    rounds = np.empty(len(own), np.int64)
    rounds[by_class] = np.arange(len(own)) - starts
    return order[np.argsort(rounds, kind="stable")[:count]]


def spread(available: int, count: int) -> NDArray[np.int64]:
    """Return at most `count` numbers from 0 to `available` - 1, evenly apart.

    Raises:
        InputError: There is nothing to choose from.
    """
    if not available:
        raise InputError("expected images, got none.")
    return np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64))
