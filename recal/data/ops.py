"""The augmentation operations that a policy file may name.

Each builds a transform from PIL RGB image to PIL RGB image out of torchvision's or timm's own. To
add one: write the function (keyword-only arguments, all annotated: they are the TOML keys) and add
one line to the table at the foot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image

Transform: TypeAlias = Callable[[Image.Image], Image.Image]


def pad(*, size: int) -> Transform:
    """Pad with black, evenly on both sides, to `size` x `size` pixels."""
    from torchvision.transforms import v2

    return v2.CenterCrop(size)  # type: ignore[no-any-return]


def resize(*, size: int, interpolation: str = "bicubic") -> Transform:
    """Resize the short side to `size` pixels (`bicubic`, `bilinear` or `nearest`)."""
    from torchvision.transforms import InterpolationMode, v2

    return v2.Resize(size, InterpolationMode(interpolation))  # type: ignore[no-any-return]


def center_crop(*, size: int) -> Transform:
    """Cut out the middle `size` x `size` pixels."""
    from torchvision.transforms import v2

    return v2.CenterCrop(size)  # type: ignore[no-any-return]


def random_crop(*, size: int, padding: int = 0, padding_mode: str = "constant") -> Transform:
    """Pad by `padding` pixels (`constant`, `reflect` or `edge`) and cut out a random square."""
    from torchvision.transforms import v2

    return v2.RandomCrop(size, padding, padding_mode=padding_mode)  # type: ignore[no-any-return]


def random_resized_crop(*, size: int, smallest: float = 0.08) -> Transform:
    """Cut out a random share of the area, `smallest` to 1, and resize it to `size` x `size`."""
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomResizedCrop(  # type: ignore[no-any-return]
        size, scale=(smallest, 1.0), interpolation=InterpolationMode.BICUBIC
    )


def random_horizontal_flip(*, p: float = 0.5) -> Transform:
    """Mirror left and right with probability `p`."""
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip(p)  # type: ignore[no-any-return]


def rand_augment(*, config: str, translate: int, fill: list[int]) -> Transform:
    """Apply timm's RandAugment.

    Args:
        config: timm's description, such as `rand-m9-n2-mstd0.5`.
        translate: The largest shift in pixels (timm's `translate_const`, 0.45 of the size there).
        fill: The colour, 0 to 255 a channel, of what shifts and rotations uncover.
    """
    from timm.data.auto_augment import rand_augment_transform

    hparams = {"translate_const": translate, "img_mean": tuple(fill)}
    return rand_augment_transform(config, hparams)  # type: ignore[no-any-return]


def gaussian_noise(*, sigma: float) -> Transform:
    """Add Gaussian noise of standard deviation U(0, `sigma`) an image, of the range [0, 1]."""

    def transform(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32)
        # the global generator, because keyed_draws() seeds it for every image
        deviation = np.random.uniform(0.0, sigma) * 255.0
        noise = np.random.normal(0.0, deviation, pixels.shape)
        return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))

    return transform


OPS: dict[str, Callable[..., Transform]] = {
    "pad": pad,
    "resize": resize,
    "center_crop": center_crop,
    "random_crop": random_crop,
    "random_resized_crop": random_resized_crop,
    "random_horizontal_flip": random_horizontal_flip,
    "rand_augment": rand_augment,
    "gaussian_noise": gaussian_noise,
}
