"""Corrupting a batch of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recal.corruptions.parameters import ALL_CORRUPTIONS, PARAMETER_SETS, SEVERITIES
from recal.errors import InputError, UsageError, pick

if TYPE_CHECKING:
    from PIL import Image

    Picture = TypeVar("Picture", Image.Image, NDArray[np.uint8])


@dataclass(frozen=True)
class Corruption:
    """Corrupt one image at a time; it can be used in torchvision's `Compose`.

    Attributes:
        name: One of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: Severity, 1 to 5.
        family: Name of the parameters: `cifar`, `tiny` or `imagenet`.
        seed: Seed of the random draws, not negative.
    """

    name: str
    severity: int
    family: str
    seed: int = 0

    def __call__(self, image: Picture, index: int | None = None) -> Picture:
        """Return the corrupted image, in the type of the given one.

        Args:
            image: A PIL image of mode RGB, or uint8 (H, W, 3).
            index: Number of the image in its data set, which keys the random draws. None takes a
                hash of the pixels: the draws are the same in every worker and epoch.

        Raises:
            UsageError: The name, severity, family or seed is not a valid one.
            InputError: The image is of another type or mode, or too small.
        """
        if isinstance(image, np.ndarray):
            return self._corrupt(image, index)
        if getattr(image, "mode", None) != "RGB":
            found = getattr(image, "mode", type(image).__name__)
            raise InputError(
                f"image: expected a PIL image of mode RGB or an array, got {found}. "
                f"{_conversion(found)}"
            )
        from PIL import Image

        return Image.fromarray(self._corrupt(np.asarray(image), index))

    def _corrupt(self, pixels: NDArray[np.uint8], index: int | None) -> NDArray[np.uint8]:
        if index is None:
            digest = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8).digest()
            index = int.from_bytes(digest, "little") >> 1
        return np.asarray(corrupt(pixels[None], **asdict(self), indices=[index])[0])


def _conversion(mode: str) -> str:
    """Return how to convert a PIL image of another mode, as `decode` does for data sets."""
    if mode.startswith("I;16"):  # convert("RGB") clips: nearly every value becomes white
        high = "Image.fromarray((np.asarray(image) >> 8).astype('uint8'))"
        return f"Keep the high byte of its samples with {high}.convert('RGB')."
    if mode in ("I", "F"):
        return "Its samples have 32 bits and no known scale: make them 8 bits first."
    return "Convert it with image.convert('RGB')."


@cache
def _operations() -> Mapping[str, Callable[..., NDArray[np.uint8]]]:
    """Return the function of each corruption, which has its name.

    It takes uint8 (N, H, W, 3), the factor of all lengths in pixels, `Draws`, and the parameters of
    one severity. It returns a new array.
    """
    # imported at the first call: the kernels need numba and OpenCV, which are slow to import
    from recal.corruptions import blur, digital, elastic, frost, noise, weather

    modules = (blur, digital, elastic, frost, noise, weather)
    functions = {name: value for module in modules for name, value in vars(module).items()}
    return {name: functions[name] for name in ALL_CORRUPTIONS}


def corrupt(
    images: NDArray[np.uint8],
    name: str,
    severity: int,
    *,
    family: str,
    seed: int = 0,
    indices: Sequence[int] | NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.uint8]:
    """Corrupt images as Hendrycks and Dietterich do.

    The result for an image depends only on its pixels, `name`, `severity`, `family`, `seed` and its
    index. The batch, its order and the thread make no difference.

    Args:
        images: uint8 (N, H, W, 3), RGB, 0 to 255; left unchanged.
        name: One of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: Severity, 1 to 5.
        family: Name of the parameters: `cifar` (for 32 pixels), `tiny` (64) or `imagenet` (224).
            For images of another size, lengths are multiplied by the shorter side over that one.
        seed: Seed of the random draws, not negative.
        indices: Numbers of the images in their data set, not negative, (N,); 0 to N - 1 if None.

    Returns:
        uint8 (N, H, W, 3), newly allocated.

    Raises:
        UsageError: `name`, `severity`, `family` or `seed` is not a valid one.
        InputError: The images are another array or too small, `indices` do not fit them, or the
            textures that frost needs are missing.

    Source: Hendrycks and Dietterich (arXiv 1903.12261).
    """
    pick(name, ALL_CORRUPTIONS, "corruption")
    pick(family, PARAMETER_SETS, "family of corruptions")
    _check_number(severity, "severity", SEVERITIES[0], SEVERITIES[-1])
    _check_number(seed, "seed", 0, None)
    _check_images(images)
    numbers = _check_indices(indices, len(images))

    from recal.corruptions.random import Draws, derive_key

    parameters = PARAMETER_SETS[family].severities[name][severity - 1]
    scale = min(images.shape[1:3]) / PARAMETER_SETS[family].side
    draws = Draws(derive_key(int(seed), name, int(severity)), numbers)
    return _operations()[name](np.ascontiguousarray(images), scale, draws, *parameters)


def _check_number(value: Any, what: str, least: int, most: int | None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        expected = f"an integer from {least}" + (f" to {most}" if most is not None else " on")
        raise UsageError(f"{what}: expected {expected}, got {value!r}.")


def _check_images(images: Any) -> None:
    if not isinstance(images, np.ndarray):
        raise InputError(f"images: expected a NumPy array, got {type(images).__name__}.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        got = f"{images.dtype} {images.shape}"
        raise InputError(f"images: expected uint8 (N, H, W, 3), got {got}.{_hint(images)}")
    if min(images.shape[1:3]) < 1:
        raise InputError(f"images: expected at least one pixel, got {images.shape}.")


def _hint(images: NDArray[Any]) -> str:
    if images.dtype != np.uint8:
        return " Scale to 0..255 and convert."
    if images.ndim == 3 and images.shape[2] == 3:
        return " Pass image[None] for a single image."
    if images.ndim == 3 or images.shape[3:] == (1,):
        return " Repeat grey images over three channels."
    if images.shape[3:] == (4,):
        return " Drop the alpha channel: images[..., :3]."
    if images.ndim == 4 and images.shape[1] == 3:
        return " Put the channels last: images.transpose(0, 2, 3, 1)."
    return ""


def _check_indices(indices: Any, count: int) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(count, dtype=np.int64)
    numbers = np.asarray(indices)
    whole = np.issubdtype(numbers.dtype, np.integer) or numbers.size == 0
    if not whole or numbers.shape != (count,):
        raise InputError(
            f"indices: expected {count} integers, one per image, "
            f"got {numbers.dtype} {numbers.shape}."
        )
    if count and (numbers.min() < 0 or numbers.max() >= 2**63):
        raise InputError(f"indices: expected 0 to 2^63 - 1, got {numbers.min()}.")
    return np.ascontiguousarray(numbers, np.int64)
