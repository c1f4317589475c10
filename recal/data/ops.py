"""The augmentation operations that a policy file may name.

Each builds a transform from PIL RGB image to PIL RGB image out of torchvision's or timm's own, or
out of Pillow alone where nothing is drawn, so that images are prepared without torch too. To
add one: write the function (keyword-only arguments, all annotated: they are the TOML keys) and add
one line to the table at the foot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from PIL import Image

from recal.errors import InputError

Transform: TypeAlias = Callable[[Image.Image], Image.Image]


def pad(*, size: int) -> Transform:
    """Pad with black, evenly on both sides, to `size` x `size` pixels."""
    return center_crop(size=size)


def resize(*, size: int, interpolation: str = "bicubic") -> Transform:
    """Resize the short side to `size` pixels (`bicubic`, `bilinear` or `nearest`)."""
    method = Image.Resampling[interpolation.upper()]

    def apply(image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # the long side is cut, not rounded, as torchvision does
        return image.resize((int(size * width / short), int(size * height / short)), method)

    return apply


def center_crop(*, size: int) -> Transform:
    """Cut out the middle `size` x `size` pixels; what lies outside the image is black."""

    def apply(image: Image.Image) -> Image.Image:
        left, top = (_middle(length, size) for length in image.size)
        return image.crop((left, top, left + size, top + size))

    return apply


def _middle(length: int, size: int) -> int:
    # torchvision rounds a surplus of one pixel to even where it cuts, and down where it pads
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


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


def auto_augment(*, config: str, translate: int, fill: list[int]) -> Transform:
    """Apply timm's AutoAugment; `config` such as `original-mstd0.5`, else as `rand_augment`."""
    from timm.data.auto_augment import auto_augment_transform

    hparams = {"translate_const": translate, "img_mean": tuple(fill)}
    return auto_augment_transform(config, hparams)  # type: ignore[no-any-return]


def aug_mix(*, config: str, translate: int, fill: list[int]) -> Transform:
    """Apply timm's AugMix; `config` such as `augmix-m3-w3`, else as `rand_augment`."""
    from timm.data.auto_augment import augment_and_mix_transform

    hparams = {"translate_const": translate, "img_mean": tuple(fill)}
    return augment_and_mix_transform(config, hparams)  # type: ignore[no-any-return]


def trivial_augment(*, fill: list[int]) -> Transform:
    """Apply torchvision's TrivialAugmentWide; `fill` is the colour of what is uncovered."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide(fill=fill)  # type: ignore[no-any-return]


def color_jitter(
    *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Transform:
    """Change brightness, contrast, saturation (factors 1 +- x) and hue (+- x of the circle)."""
    from torchvision.transforms import v2

    return v2.ColorJitter(brightness, contrast, saturation, hue)  # type: ignore[no-any-return]


def cutout(*, size: int, p: float = 1.0) -> Transform:
    """Blacken a random square of `size` x `size` pixels with probability `p`."""
    from torchvision.transforms import v2

    def transform(image: Image.Image) -> Image.Image:
        if size >= min(image.size):  # torchvision would silently erase nothing
            raise InputError(
                f"cutout: expected images of more than {size} pixels, got {image.width}x"
                f"{image.height}."
            )
        share = size**2 / (image.width * image.height)
        erase = v2.RandomErasing(p, scale=(share, share), ratio=(1.0, 1.0), value=0)
        return v2.functional.to_pil_image(  # type: ignore[no-any-return]
            erase(v2.functional.pil_to_tensor(image))
        )

    return transform


def gaussian_noise(*, sigma: float) -> Transform:
    """Add Gaussian noise of standard deviation U(0, `sigma`) an image, of the range [0, 1]."""

    def transform(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float32)
        # the global generator, because keyed_draws() seeds it for every image
        deviation = np.random.uniform(0.0, sigma) * 255.0
        noise = np.random.normal(0.0, deviation, pixels.shape)
        return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))

    return transform


# those that draw nothing, and need no torch
DETERMINISTIC = frozenset({"pad", "resize", "center_crop"})

OPS: dict[str, Callable[..., Transform]] = {
    "pad": pad,
    "resize": resize,
    "center_crop": center_crop,
    "random_crop": random_crop,
    "random_resized_crop": random_resized_crop,
    "random_horizontal_flip": random_horizontal_flip,
    "rand_augment": rand_augment,
    "auto_augment": auto_augment,
    "aug_mix": aug_mix,
    "trivial_augment": trivial_augment,
    "color_jitter": color_jitter,
    "cutout": cutout,
    "gaussian_noise": gaussian_noise,
}
