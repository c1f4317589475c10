"""The augmentation operations that a policy file may name.

Each is a record: its fields are the keys that the file gives, its annotations what they accept. Its
`transform` method builds a function from PIL image to PIL image, RGB or grey, for the preparation
of one network, out of torchvision's or timm's own, or out of Pillow alone where nothing is random,
so that images are prepared without torch too. Sizes that a file leaves out are the network's. To
add one: write the class and add one line to the table at the foot.
"""

import math
from collections.abc import Callable
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from msgspec import UNSET, Meta, UnsetType
from PIL import Image, ImageOps

from recal.errors import InputError
from recal.policies.preparation import Colour, Interpolation, Preparation, Side
from recal.schema import Record

Transform: TypeAlias = Callable[[Image.Image], Image.Image]

Length = Annotated[int, Meta(ge=0, le=16384)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Magnitude = Annotated[int, Meta(ge=0, le=10)]
Deviation = Annotated[float, Meta(ge=0, le=100)]
Factor = Annotated[float, Meta(ge=0, le=10)]
Filter = Literal[Interpolation, "network"]

# timm shifts by at most this share of the image's side
SHIFT = 0.45


class Op(Record, frozen=True, kw_only=True, tag_field="name"):
    """An operation on images.

    Attributes:
        random: Whether it draws from the global generators; those that do need torch.
        geometric: Whether it moves and cuts pixels alone, so that it can be applied to one channel
            after the other.
    """

    random: ClassVar[bool] = True
    geometric: ClassVar[bool] = False

    def transform(self, network: Preparation) -> Transform:
        """Build the function that applies it to an image for a network."""
        raise NotImplementedError


def _v2() -> Any:
    from torchvision.transforms import v2

    return v2


class Prepare(Op, frozen=True, kw_only=True, tag="prepare"):
    """Resize and crop as the network's test images are, by its size, crop share and crop mode."""

    random: ClassVar[bool] = False
    geometric: ClassVar[bool] = True

    def transform(self, network: Preparation) -> Transform:
        method, size = Image.Resampling[network.interpolation.upper()], network.size
        side = math.floor(size / network.crop_share)  # as timm and torchvision round

        def refuse_other_sizes(image: Image.Image) -> Image.Image:
            if image.size != (size, size):
                raise ValueError(
                    f"the network takes {size}x{size} and no other size. To resize and crop, set "
                    "--crop-mode center, or give a --policy that resizes"
                )
            return image

        def center(image: Image.Image) -> Image.Image:
            return _middle(_with_short_side(image, side, method), size)

        def squash(image: Image.Image) -> Image.Image:
            return _middle(image.resize((side, side), method), size)

        def border(image: Image.Image) -> Image.Image:
            ratio = max(image.size) / side
            width, height = (max(1, round(length / ratio)) for length in image.size)
            return _middle(image.resize((width, height), method), size, network.fill)

        modes = {"none": refuse_other_sizes, "center": center, "squash": squash, "border": border}
        return modes[network.crop_mode]


def _with_short_side(image: Image.Image, side: int, method: Image.Resampling) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    # the long side is cut, not rounded, as torchvision does
    return image.resize((int(side * width / short), int(side * height / short)), method)


def _filter(op: "Resize | RandomResizedCrop", network: Preparation) -> Interpolation:
    return network.interpolation if op.interpolation == "network" else op.interpolation


def _middle(image: Image.Image, size: int, fill: Colour = (0, 0, 0)) -> Image.Image:
    """Return the middle square; `fill` is the colour outside of the image."""
    # torchvision rounds a surplus of one pixel to even where it cuts, down where it pads
    surpluses = (length - size for length in image.size)
    left, top = (round(s / 2) if s >= 0 else -(-s // 2) for s in surpluses)
    if min(image.size) >= size:
        return image.crop((left, top, left + size, top + size))
    canvas = Image.new(image.mode, (size, size), fill if image.mode == "RGB" else fill[0])
    canvas.paste(image, (-left, -top))
    return canvas


class CenterCrop(Op, frozen=True, kw_only=True, tag="center_crop"):
    """Cut out the middle `size` x `size` pixels; pixels outside the image are black."""

    random: ClassVar[bool] = False
    geometric: ClassVar[bool] = True
    size: Side | UnsetType = UNSET

    def transform(self, network: Preparation) -> Transform:
        return lambda image: _middle(image, self.size or network.size)


class Pad(CenterCrop, frozen=True, kw_only=True, tag="pad"):
    """Pad with black, evenly on both sides, to `size` x `size` pixels."""


class Resize(Op, frozen=True, kw_only=True, tag="resize"):
    """Resize the short side to `size` pixels."""

    random: ClassVar[bool] = False
    geometric: ClassVar[bool] = True
    size: Side | UnsetType = UNSET
    interpolation: Filter = "network"

    def transform(self, network: Preparation) -> Transform:
        side = self.size or network.size
        method = Image.Resampling[_filter(self, network).upper()]
        return lambda image: _with_short_side(image, side, method)


class RandomCrop(Op, frozen=True, kw_only=True, tag="random_crop"):
    """Pad by `padding` pixels and cut out a random square."""

    geometric: ClassVar[bool] = True
    size: Side | UnsetType = UNSET
    padding: Length = 0
    padding_mode: Literal["constant", "reflect", "edge", "symmetric"] = "constant"

    def transform(self, network: Preparation) -> Transform:
        side = self.size or network.size
        return _v2().RandomCrop(side, self.padding, padding_mode=self.padding_mode)  # type: ignore[no-any-return]


class RandomResizedCrop(Op, frozen=True, kw_only=True, tag="random_resized_crop"):
    """Cut out a random share of the area, `smallest` to 1, and resize it to `size` x `size`."""

    geometric: ClassVar[bool] = True
    size: Side | UnsetType = UNSET
    smallest: Annotated[float, Meta(ge=0.001, le=1)] = 0.08
    interpolation: Filter = "network"

    def transform(self, network: Preparation) -> Transform:
        v2 = _v2()
        method = v2.InterpolationMode(_filter(self, network))
        side = self.size or network.size
        return v2.RandomResizedCrop(side, (self.smallest, 1.0), interpolation=method)  # type: ignore[no-any-return]


class RandomHorizontalFlip(Op, frozen=True, kw_only=True, tag="random_horizontal_flip"):
    """Mirror left and right with probability `p`."""

    geometric: ClassVar[bool] = True
    p: Fraction = 0.5

    def transform(self, network: Preparation) -> Transform:
        return _v2().RandomHorizontalFlip(self.p)  # type: ignore[no-any-return]


class RandAugment(Op, frozen=True, kw_only=True, tag="rand_augment"):
    """Apply timm's RandAugment: `n` ops drawn for each image, each applied with probability `p`.

    Attributes:
        n: Number of ops.
        magnitude: Strength of the ops.
        mstd: Standard deviation of the normal noise on the magnitude, which stays in 0 to 10.
        increasing: Whether to use the variants of the ops that grow with the magnitude.
        p: Probability of each op; timm's is 0.5, the paper's 1.
        translate: Largest shift in pixels (timm's `translate_const`); by default 0.45 of the size.
        fill: Colour of the area that shifts and rotations uncover.
    """

    n: Annotated[int, Meta(ge=1, le=16)] = 2
    magnitude: Magnitude = 9
    mstd: Deviation = 0.0
    increasing: bool = False
    p: Fraction = 0.5
    translate: Length | UnsetType = UNSET
    fill: Colour

    def transform(self, network: Preparation) -> Transform:
        config = f"rand-m{self.magnitude}-n{self.n}-p{self.p:.6f}"
        config += f"-mstd{self.mstd:.6f}-inc{int(self.increasing)}"
        return _timm("rand_augment_transform", config, self, network)


class AutoAugment(Op, frozen=True, kw_only=True, tag="auto_augment"):
    """Apply AutoAugment: timm's for ImageNet, torchvision's as learned on CIFAR-10 or SVHN.

    Attributes:
        policy: `original` (the paper's) and `v0` (later code's) are for ImageNet.
        mstd: Standard deviation of the noise on the magnitudes of ImageNet's policies.
        translate: Largest shift in pixels of ImageNet's policies; by default, and for the others,
            0.45 of the side.
        fill: Colour of the area that shifts and rotations uncover.
    """

    policy: Literal["original", "v0", "cifar10", "svhn"] = "original"
    mstd: Deviation = 0.0
    translate: Length | UnsetType = UNSET
    fill: Colour

    def transform(self, network: Preparation) -> Transform:
        if self.policy in ("cifar10", "svhn"):
            v2 = _v2()
            policy = v2.AutoAugmentPolicy(self.policy)
            return _filling(lambda fill: v2.AutoAugment(policy, fill=list(fill)), self.fill)
        return _timm("auto_augment_transform", f"{self.policy}-mstd{self.mstd:.6f}", self, network)


class AugMix(Op, frozen=True, kw_only=True, tag="aug_mix"):
    """Apply timm's AugMix.

    Attributes:
        magnitude: Upper end of the ops' strength, which is drawn from 0 to this.
        width: Number of chains of ops that are mixed.
        depth: Number of ops in a chain; 0 draws 1 to 3.
        translate: Largest shift in pixels; by default 0.45 of the size.
        fill: Colour of the area that shifts and rotations uncover.
    """

    magnitude: Magnitude = 3
    width: Annotated[int, Meta(ge=1, le=16)] = 3
    depth: Annotated[int, Meta(ge=0, le=16)] = 0
    translate: Length | UnsetType = UNSET
    fill: Colour

    def transform(self, network: Preparation) -> Transform:
        depth = f"-d{self.depth}" if self.depth else ""
        config = f"augmix-m{self.magnitude}-w{self.width}{depth}"
        return _timm("augment_and_mix_transform", config, self, network)


def _timm(
    build: str, config: str, given: RandAugment | AutoAugment | AugMix, network: Preparation
) -> Transform:
    from timm.data import auto_augment

    shift = int(network.size * SHIFT) if given.translate is UNSET else given.translate

    def filled(fill: tuple[int, ...]) -> Transform:
        uncovered = {"translate_const": shift, "img_mean": fill}
        transform = getattr(auto_augment, build)(config, uncovered)
        for op in getattr(transform, "ops", None) or chain(*transform.policy):
            # it calls for 0 bits, which Pillow 13 refuses
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
        return transform  # type: ignore[no-any-return]

    return _filling(filled, given.fill)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return (
        ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)
    )


def _filling(build: Callable[[tuple[int, ...]], Transform], fill: Colour) -> Transform:
    """Return a transform that fills uncovered areas with a colour, or with its grey."""
    colour = build(fill)
    grey = build((Image.new("RGB", (1, 1), fill).convert("L").getpixel((0, 0)),))  # type: ignore[arg-type]
    return lambda image: (grey if image.mode == "L" else colour)(image)


class TrivialAugment(Op, frozen=True, kw_only=True, tag="trivial_augment"):
    """Apply torchvision's TrivialAugmentWide; `fill` is the colour of uncovered areas."""

    fill: Colour

    def transform(self, network: Preparation) -> Transform:
        v2 = _v2()
        return _filling(lambda fill: v2.TrivialAugmentWide(fill=list(fill)), self.fill)


class ColorJitter(Op, frozen=True, kw_only=True, tag="color_jitter"):
    """Change brightness, contrast, saturation (factors 1 +- x) and hue (+- x of the circle)."""

    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.0

    def transform(self, network: Preparation) -> Transform:
        return _v2().ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)  # type: ignore[no-any-return]


class Cutout(Op, frozen=True, kw_only=True, tag="cutout"):
    """Blacken a random square with probability `p`; its side is `size`, or half the network's.

    Attributes:
        inside: Whether the square is inside the image. The paper's is not: its centre is uniform
            over the image, and what is outside is cut off.

    Source: DeVries and Taylor, arXiv 1708.04552.
    """

    geometric: ClassVar[bool] = True
    size: Side | UnsetType = UNSET
    p: Fraction = 1.0
    inside: bool = True

    def transform(self, network: Preparation) -> Transform:
        v2, side = _v2(), self.size or network.size // 2

        def cut(image: Image.Image) -> Image.Image:
            # the global generator, because keyed_draws() seeds it for every image
            if np.random.uniform() >= self.p:
                return image
            pixels, rows = np.array(image), []
            for length in pixels.shape[:2]:
                start = np.random.randint(length) - side // 2
                rows.append(slice(max(0, start), max(0, start + side)))
            pixels[tuple(rows)] = 0
            return Image.fromarray(pixels)

        def apply(image: Image.Image) -> Image.Image:
            if side >= min(image.size):  # torchvision would silently erase nothing
                raise InputError(
                    f"cutout: expected images of more than {side} pixels, got {image.width}x"
                    f"{image.height}."
                )
            share = side**2 / (image.width * image.height)
            erase = v2.RandomErasing(self.p, scale=(share, share), ratio=(1.0, 1.0), value=0)
            pixels = erase(v2.functional.pil_to_tensor(image))
            return v2.functional.to_pil_image(pixels)  # type: ignore[no-any-return]

        return apply if self.inside else cut


class GaussianNoise(Op, frozen=True, kw_only=True, tag="gaussian_noise"):
    """Add Gaussian noise whose standard deviation, of the range [0, 1], is U(0, `sigma`)."""

    sigma: Fraction

    def transform(self, network: Preparation) -> Transform:
        def apply(image: Image.Image) -> Image.Image:
            pixels = np.asarray(image, dtype=np.float32)
            # the global generator, because keyed_draws() seeds it for every image
            deviation = np.random.uniform(0.0, self.sigma) * 255.0
            noise = np.random.normal(0.0, deviation, pixels.shape)
            return Image.fromarray(np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8))

        return apply


AnyOp: TypeAlias = (
    Prepare
    | Pad
    | Resize
    | CenterCrop
    | RandomCrop
    | RandomResizedCrop
    | RandomHorizontalFlip
    | RandAugment
    | AutoAugment
    | AugMix
    | TrivialAugment
    | ColorJitter
    | Cutout
    | GaussianNoise
)
