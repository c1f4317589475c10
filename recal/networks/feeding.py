"""How a network is fed: who says it, what the authors of layouts use, and words for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from recal.data.normalise import Normalisation
from recal.networks.wrappers import Channels
from recal.schema import Record

# where mean and std come from, the surest first
InputSource = Literal["given", "as-assumed", "file", "architecture", "layout", "family"]
AsAssumed = Literal["as-assumed"]
AS_ASSUMED: AsAssumed = "as-assumed"
SOURCES: dict[InputSource, str] = {
    "given": "given",
    "as-assumed": "assumed, and used as asked",
    "file": "in the file",
    "architecture": "of the architecture's configuration; the file names none",
    "layout": "the convention of the layout's authors; the file names none",
    "family": "the default of the family; the file names none",
}


class Convention(Record, frozen=True, kw_only=True):
    """The mean and std that the authors of a layout use.

    Attributes:
        mean: Mean of each channel of RGB images in [0, 1].
        std: What each channel is divided by.
        families: Families of data that they use it for; empty for all.
    """

    mean: Channels
    std: Channels
    families: tuple[str, ...] = ()


def first_told(
    told: Mapping[InputSource, object], name: Literal["mean", "std"]
) -> tuple[Channels, InputSource] | None:
    """Return the mean or std of the first source that tells it, and the source, or None."""
    for source, values in told.items():
        found = getattr(values, name)
        if found is not None and found != AS_ASSUMED:
            return found, source
    return None


def for_each(values: Channels, channels: int) -> Channels:
    """Return a number for each channel, from one for all of them or as they are."""
    return values * channels if len(values) == 1 else values


def describe_input(normalisation: Normalisation) -> str:
    """Return mean, std and channel order as a phrase, such as `mean 0.5, std 0.5`."""
    mean, std = map(format_channels, (normalisation.mean, normalisation.std))
    order = ", channels in the order BGR" if normalisation.channel_order == "bgr" else ""
    return f"mean {mean}, std {std}{order}"


def format_channels(values: Sequence[float]) -> str:
    """Return numbers as options take them: one if all are equal, 1/255 as such."""
    texts = ["1/255" if abs(value - 1 / 255) < 1e-9 else f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
