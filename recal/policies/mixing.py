"""Mixing pairs of images: the part of a policy that concerns more than one image."""

from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from recal.schema import Record

Alpha = Annotated[float, Meta(gt=0, le=100)]


class Mix(Record, frozen=True, kw_only=True, tag_field="method"):
    """A way to mix an image with another one of the images that are read.

    In the papers one share is drawn for a batch, and the partners are the batch in another order.
    Here both are drawn for each image, so that an image does not depend on its batch.

    Attributes:
        alpha: Both parameters of the beta distribution that the image's own share is drawn from.
    """

    alpha: Alpha = 1.0

    def shares(self, height: int, width: int) -> NDArray[np.float64]:
        """Draw the image's own share of each pixel, (height, width, 1), from NumPy's generator."""
        raise NotImplementedError

    def mixed(
        self, own: NDArray[np.uint8], other: NDArray[np.uint8], shares: NDArray[np.float64]
    ) -> NDArray[np.uint8]:
        """Return the two images mixed and rounded to levels, uint8 (H, W, C)."""
        return np.rint(shares * own + (1 - shares) * other).astype(np.uint8)


class Mixup(Mix, frozen=True, kw_only=True, tag="mixup"):
    """Weighted mean of the two images.

    Source: Zhang et al., arXiv 1710.09412.
    """

    def shares(self, height: int, width: int) -> NDArray[np.float64]:
        """Draw one share for all pixels."""
        return np.full((height, width, 1), np.random.beta(self.alpha, self.alpha))


class CutMix(Mix, frozen=True, kw_only=True, tag="cutmix"):
    """A rectangle of the other image in its place, with a share of 1 - lambda of the area.

    Its centre is uniform over the image; what is outside is cut off.

    Source: Yun et al., arXiv 1905.04899, appendix A.
    """

    def shares(self, height: int, width: int) -> NDArray[np.float64]:
        """Draw a rectangle: shares are 0 within and 1 without."""
        side = np.sqrt(1 - np.random.beta(self.alpha, self.alpha))
        shares = np.ones((height, width, 1))
        cuts = []
        for length in (height, width):
            half, centre = int(length * side) // 2, np.random.randint(length)
            cuts.append(slice(max(0, centre - half), centre + half))
        shares[cuts[0], cuts[1]] = 0
        return shares


AnyMix: TypeAlias = Mixup | CutMix
