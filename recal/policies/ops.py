"""The augmentation operations that a policy file may name.

Each builds a transform from PIL RGB image to PIL RGB image out of torchvision's or timm's own, or
out of Pillow alone where nothing is drawn, so that images are prepared without torch too. To
add one: write the function (keyword-only arguments, which are the TOML keys, annotated with what
they may be) and add one line to the table at the foot.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from recal.errors import InputError
from recal.wording import check_keys, check_type, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both included; with `items`, a list of so many of them."""

    low: float
    high: float
    items: int | None = None

    def __str__(self) -> str:
        numbers = f"{self.low:g} to {self.high:g}"
        return numbers if self.items is None else f"{self.items} numbers of {numbers}"


Side = Annotated[int, Between(1, 16384)]
Pixels = Annotated[int, Between(0, 16384)]
Share = Annotated[float, Between(0, 1)]
Colour = Annotated[list[int], Between(0, 255, items=3)]


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that a keyword-only function does not take as its annotations say.

    Args:
        function: Annotated with plain types, `Literal` of strings, or `Annotated` with a `Between`.
        given: The arguments by name.
        where: For messages.

    Raises:
        InputError: One is unknown or missing, of another type or out of its range.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    defaults = function.__kwdefaults__ or {}
    check_keys(given, list(hints), where, [name for name in hints if name not in defaults])
    for name, value in given.items():
        _check(value, hints[name], f"{where}: {name}")


def allowed(hint: Any) -> str:
    """Return what an annotation allows, for people."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is Annotated:
        return str(typing.get_args(hint)[1])
    return "true, false" if hint is bool else str(hint.__name__)


def _check(value: Any, hint: Any, where: str) -> None:
    if typing.get_origin(hint) is Literal:
        check_type(value, str, where)
        names = typing.get_args(hint)
        if value not in names:
            raise InputError(
                f"{where}: expected one of {allowed(hint)}, got '{value}'."
                f"{did_you_mean(value, names)}"
            )
    elif typing.get_origin(hint) is Annotated:
        kind, bounds = typing.get_args(hint)
        check_type(value, typing.get_origin(kind) or kind, where)
        numbers = value if bounds.items is not None else [value]
        if bounds.items is not None:
            (number,) = typing.get_args(kind)
            for each in numbers:
                check_type(each, number, where)
        if len(numbers) != (bounds.items or 1) or not all(
            bounds.low <= each <= bounds.high for each in numbers
        ):
            raise InputError(f"{where}: expected {bounds}, got {value!r}.")
    else:
        check_type(value, hint, where)


Transform: TypeAlias = Callable[[Image.Image], Image.Image]
Magnitude = Annotated[int, Between(0, 10)]
Factor = Annotated[float, Between(0, 10)]


def pad(*, size: Side) -> Transform:
    """Pad with black, evenly on both sides, to `size` x `size` pixels."""
    return center_crop(size=size)


def resize(
    *, size: Side, interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
) -> Transform:
    """Resize the short side to `size` pixels."""
    method = Image.Resampling[interpolation.upper()]

    def apply(image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # the long side is cut, not rounded, as torchvision does
        return image.resize((int(size * width / short), int(size * height / short)), method)

    return apply


def center_crop(*, size: Side) -> Transform:
    """Cut out the middle `size` x `size` pixels; what lies outside the image is black."""

    def apply(image: Image.Image) -> Image.Image:
        left, top = (_middle(length, size) for length in image.size)
        return image.crop((left, top, left + size, top + size))

    return apply


def _middle(length: int, size: int) -> int:
    # torchvision rounds a surplus of one pixel to even where it cuts, and down where it pads
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def random_crop(
    *,
    size: Side,
    padding: Pixels = 0,
    padding_mode: Literal["constant", "reflect", "edge", "symmetric"] = "constant",
) -> Transform:
    """Pad by `padding` pixels and cut out a random square."""
    from torchvision.transforms import v2

    return v2.RandomCrop(size, padding, padding_mode=padding_mode)  # type: ignore[no-any-return]


def random_resized_crop(
    *, size: Side, smallest: Annotated[float, Between(0.001, 1)] = 0.08
) -> Transform:
    """Cut out a random share of the area, `smallest` to 1, and resize it to `size` x `size`."""
    from torchvision.transforms import InterpolationMode, v2

    return v2.RandomResizedCrop(  # type: ignore[no-any-return]
        size, scale=(smallest, 1.0), interpolation=InterpolationMode.BICUBIC
    )


def random_horizontal_flip(*, p: Share = 0.5) -> Transform:
    """Mirror left and right with probability `p`."""
    from torchvision.transforms import v2

    return v2.RandomHorizontalFlip(p)  # type: ignore[no-any-return]


def rand_augment(
    *,
    n: Annotated[int, Between(1, 16)] = 2,
    magnitude: Magnitude = 9,
    mstd: Annotated[float, Between(0, 100)] = 0.0,
    increasing: bool = False,
    translate: Pixels,
    fill: Colour,
) -> Transform:
    """Apply timm's RandAugment: `n` ops drawn for each image, each applied with probability 0.5.

    Args:
        n: How many ops.
        magnitude: How strong they are.
        mstd: Standard deviation of the normal noise on the magnitude, which stays in 0 to 10.
        increasing: Use the variants of the ops that grow with the magnitude throughout.
        translate: The largest shift in pixels (timm's `translate_const`, 0.45 of the size there).
        fill: The colour of what shifts and rotations uncover.
    """
    from timm.data.auto_augment import rand_augment_transform

    transform = rand_augment_transform(
        f"rand-m{magnitude}-n{n}-mstd{mstd:.6f}-inc{int(increasing)}",
        {"translate_const": translate, "img_mean": tuple(fill)},
    )
    _mend(transform.ops)
    return transform  # type: ignore[no-any-return]


def auto_augment(
    *,
    policy: Literal["original", "v0", "cifar10", "svhn"] = "original",
    mstd: Annotated[float, Between(0, 100)] = 0.0,
    translate: Pixels,
    fill: Colour,
) -> Transform:
    """Apply AutoAugment: timm's for ImageNet, torchvision's as learned on CIFAR-10 or SVHN.

    Args:
        policy: `original` (the paper's) and `v0` (later code's) are for ImageNet.
        mstd: As of `rand_augment`, for ImageNet's policies; the others draw no magnitudes.
        translate: As of `rand_augment`; the others shift by up to 0.45 of the side.
        fill: The colour of what shifts and rotations uncover.
    """
    if policy in ("cifar10", "svhn"):
        from torchvision.transforms import AutoAugmentPolicy, v2

        return v2.AutoAugment(AutoAugmentPolicy(policy), fill=fill)  # type: ignore[no-any-return]
    from timm.data.auto_augment import auto_augment_transform

    transform = auto_augment_transform(
        f"{policy}-mstd{mstd:.6f}", {"translate_const": translate, "img_mean": tuple(fill)}
    )
    for ops in transform.policy:
        _mend(ops)
    return transform  # type: ignore[no-any-return]


def aug_mix(
    *,
    magnitude: Magnitude = 3,
    width: Annotated[int, Between(1, 16)] = 3,
    depth: Annotated[int, Between(0, 16)] = 0,
    translate: Pixels,
    fill: Colour,
) -> Transform:
    """Apply timm's AugMix.

    Args:
        magnitude: The ops' strength is drawn from 0 to this.
        width: How many chains of ops are mixed.
        depth: How many ops a chain has; 0 draws 1 to 3.
        translate: As of `rand_augment`.
        fill: Likewise.
    """
    from timm.data.auto_augment import augment_and_mix_transform

    transform = augment_and_mix_transform(
        f"augmix-m{magnitude}-w{width}" + (f"-d{depth}" if depth else ""),
        {"translate_const": translate, "img_mean": tuple(fill)},
    )
    _mend(transform.ops)
    return transform  # type: ignore[no-any-return]


def _mend(ops: Iterable[Any]) -> None:
    """Let timm's posterize keep no bit at all, as it asks for: Pillow 13 refuses to do that."""
    for op in ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new("RGB", image.size)


def trivial_augment(*, fill: Colour) -> Transform:
    """Apply torchvision's TrivialAugmentWide; `fill` is the colour of what is uncovered."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide(fill=fill)  # type: ignore[no-any-return]


def color_jitter(
    *,
    brightness: Factor = 0.0,
    contrast: Factor = 0.0,
    saturation: Factor = 0.0,
    hue: Annotated[float, Between(0, 0.5)] = 0.0,
) -> Transform:
    """Change brightness, contrast, saturation (factors 1 +- x) and hue (+- x of the circle)."""
    from torchvision.transforms import v2

    return v2.ColorJitter(brightness, contrast, saturation, hue)  # type: ignore[no-any-return]


def cutout(*, size: Side, p: Share = 1.0) -> Transform:
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


def gaussian_noise(*, sigma: Share) -> Transform:
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
