"""Folders: shipped declarations, the bundled sample, the user's cache, and data sets."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """Return the folder of shipped declarations.

    Args:
        kind: `policies` or `evals`.

    Returns:
        `recal/_data/<kind>` in an installed wheel, or the folder beside the package in a checkout.
    """
    installed = PACKAGE / "_data" / kind
    return installed if installed.is_dir() else PACKAGE.parent / kind


def sample_folder() -> Path:
    """Return the folder of the bundled checkpoints and images."""
    return PACKAGE / "sample"


def cache_folder() -> Path:
    """Return recal's folder in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "recal"


def data_folders() -> list[Path]:
    """Return the folders that are searched for data sets without `--data`, in order."""
    environment = os.environ.get("RECAL_DATA")
    named = [Path(environment)] if environment else []
    return [*named, Path("data"), cache_folder() / "data", sample_folder()]


FASHION_MNIST_CHECKPOINT = "fashion_mnist_wrn10_1_splitbn.pth"
CIFAR10_CHECKPOINT = "cifar10_wrn16_1_splitbn_noise.pth"


def sample_checkpoint(family: str = "sample") -> Path:
    """Return the bundled checkpoint for a family, `sample` (Fashion-MNIST) or `cifar`."""
    name = CIFAR10_CHECKPOINT if family == "cifar" else FASHION_MNIST_CHECKPOINT
    return sample_folder() / name


def sample_images() -> Path:
    """Return the folder with the bundled images, `train.npz` and `test.npz`."""
    return sample_folder() / "fashion-mnist"
