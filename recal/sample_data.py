"""What ships with recal to try it on: two checkpoints and a sample of Fashion-MNIST."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.resources import sample_folder

if TYPE_CHECKING:
    from pathlib import Path

FASHION_MNIST_CHECKPOINT = "fashion_mnist_wrn10_1_splitbn.pth"
CIFAR10_CHECKPOINT = "cifar10_wrn16_1_splitbn_noise.pth"


def sample_checkpoint(family: str = "sample") -> Path:
    """Return the bundled checkpoint for a family, `sample` (Fashion-MNIST) or `cifar`."""
    name = CIFAR10_CHECKPOINT if family == "cifar" else FASHION_MNIST_CHECKPOINT
    return sample_folder() / name


def sample_images() -> Path:
    """Return the folder with the bundled images, `train.npz` and `test.npz`."""
    return sample_folder() / "fashion-mnist"
