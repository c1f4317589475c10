"""Images under a policy, as arrays. Policies without random ops need no torch."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ImageSource, with_channels
from recal.data.sampling import seed_draws, undisturbed_draws
from recal.errors import InputError, UsageError
from recal.policies.policy import Policy
from recal.policies.preparation import Preparation

# part of the key of the draws that mix an image, which are apart from those of its ops
MIXING = 1
USED_WHOLE = (
    "all images have the size of prepared ones, and are used whole. To resize and crop them again, "
    "give a --policy that does."
)


class PreparedImages:
    """The images of a source under a policy, as arrays, with draws keyed by (seed, image index).

    Images of other than 3 channels go through the policy channel by channel, with the same draws.

    Args:
        source: The images.
        policy: The policy. A random one needs torch, because its ops are torchvision's and timm's;
            if torch is not installed, a `UsageError` is raised.
        seed: Key of the random draws, together with an image's index.
        network: How images become the network's input; it is fitted to the source. With other than
            1 and 3 channels, a policy that changes colours is a `UsageError`.
        partners: Indices of the images that a policy mixes others with; by default all.
    """

    def __init__(
        self,
        source: ImageSource,
        policy: Policy,
        seed: int,
        network: Preparation,
        partners: NDArray[np.int64] | None = None,
    ) -> None:
        self.source, self.policy, self.seed = source, policy, seed
        self.partners = partners
        self.network, self.size = network.fitted(source), network.size
        self.channels = network.channels
        if self.channels not in (1, 3) and policy.not_geometric:
            raise UsageError(
                f"policy '{policy.name}': expected ops that move and cut alone for images of "
                f"{self.channels} channels, got {policy.not_geometric[0]}, which needs 1 or 3. Use "
                "--mode clean or weak, or a --policy of your own."
            )
        try:
            self._transform = policy.transform(self.network)
            if policy.draws:
                import torch  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"policy '{policy.name}': expected torch and torchvision, which its random ops "
                f"need, got none ({error}). Use --mode clean, or install them."
            ) from error

    def __len__(self) -> int:
        return len(self.source)

    @property
    def whole(self) -> bool:
        """Whether the images were cropped before, so that the policy keeps all of each."""
        return self.network.published is None and self.policy.prepares

    def __reduce__(self) -> tuple[Any, ...]:
        # the transform is built anew where loaders start their workers with pickles
        return type(self), (self.source, self.policy, self.seed, self.network, self.partners)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (size, size, C): see `batch`."""
        image: NDArray[np.uint8] = self.batch([index])[0]
        return image

    def decoded(self, index: int) -> NDArray[np.uint8]:
        """Return image `index` as it is before the policy, uint8 (H, W, C)."""
        return with_channels(self.source[index], self.channels, self.source.name(index))

    def batch(self, indices: Iterable[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return several images, uint8 (N, size, size, C); any other size is an `InputError`.

        So is a policy of adversarial images, which need a network.
        """
        if self.policy.attack is not None:
            raise UsageError(
                f"policy '{self.policy.name}': expected a policy without [attack], whose images "
                "are made for a network: `recal calibrate` alone can use it."
            )
        (images,) = _read_all(self.source, [self], indices)
        return images

    def apply(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return image `index` under the policy, of any size, from its decoded pixels, uint8.

        Random policies seed the global generators, which `undisturbed_draws` restores. Adversarial
        images are made later, of the result.
        """
        image, mix = self._under_ops(index, pixels), self.policy.mix
        if mix is None:
            return image
        seed_draws(self.seed, index, MIXING)
        shares = mix.shares(*image.shape[:2])
        drawn = np.random.randint(len(self.source) if self.partners is None else len(self.partners))
        other = drawn if self.partners is None else int(self.partners[drawn])
        partner = self._under_ops(other, self.source[other])
        if partner.shape != image.shape:
            raise InputError(
                f"{self.source.name(index)}: expected images of one size to mix, got "
                f"{self.source.name(other)} of another. Put an op that crops into the policy."
            )
        return mix.mixed(image, partner, shares)

    def _under_ops(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if pixels.shape[2] != self.channels:
            pixels = with_channels(pixels, self.channels, self.source.name(index))
        try:
            if self.channels == 3:
                return self._applied(index, pixels)
            planes = [self._applied(index, plane) for plane in np.moveaxis(pixels, 2, 0)]
            return np.stack(planes, axis=2)
        except ValueError as error:  # torchvision's, of a crop larger than the image and the like
            height, width = pixels.shape[:2]
            raise InputError(
                f"{self.source.name(index)}: expected an image that the policy "
                f"'{self.policy.name}' can be applied to, got {width}x{height} pixels: {error}."
            ) from error

    def prepare(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return image `index` in the network's size, as `apply` does."""
        image = self.apply(index, pixels)
        if image.shape[:2] != (self.size, self.size):
            height, width = image.shape[:2]
            raise InputError(
                f"{self.source.name(index)}: expected {self.size}x{self.size} pixels after "
                f"the policy '{self.policy.name}', got {width}x{height}. Set --size, or "
                "leave sizes out of the policy, so that they are the network's."
            )
        return image

    def _applied(self, index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.policy.draws:
            seed_draws(self.seed, index)
        return self._transform(np.ascontiguousarray(pixels))


class PreparedTogether:
    """The images of a source under several policies, each image decoded once.

    Each policy gives the same images as it does alone, in `PreparedImages`, which explains the
    arguments.
    """

    def __init__(
        self, source: ImageSource, policies: Sequence[Policy], seed: int, network: Preparation
    ) -> None:
        self.source, self.size, fitted = source, network.size, network.fitted(source)
        self.channels = network.channels
        self.each = tuple(PreparedImages(source, policy, seed, fitted) for policy in policies)

    def mixing_with(self, partners: NDArray[np.int64]) -> Self:
        """Return the same with the indices of the images that policies mix others with."""
        if all(images.policy.mix is None for images in self.each):
            return self
        found = copy.copy(self)
        found.each = tuple(
            PreparedImages(i.source, i.policy, i.seed, i.network, partners) for i in self.each
        )
        return found

    def __len__(self) -> int:
        return len(self.source)

    @property
    def policy_count(self) -> int:
        """The number of policies."""
        return len(self.each)

    def batch_all(self, indices: Iterable[int] | NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Return several images under every policy, each uint8 (N, size, size, C)."""
        return _read_all(self.source, self.each, indices)


def _read_all(
    source: ImageSource, each: Sequence[PreparedImages], indices: Iterable[int] | NDArray[np.int64]
) -> list[NDArray[np.uint8]]:
    rows = []
    with undisturbed_draws() if any(images.policy.draws for images in each) else nullcontext():
        for index in map(int, indices):
            pixels = source[index]
            rows.append([images.prepare(index, pixels) for images in each])
    return [np.stack(column) for column in zip(*rows, strict=True)]
