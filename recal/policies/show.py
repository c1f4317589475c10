"""A picture of what a policy does to images."""

from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from recal.data.contact_sheet import write_sheet
from recal.data.folders import open_images
from recal.data.sampling import seeded_batches, undisturbed_draws
from recal.data.splits import TRAIN
from recal.files import sample_images
from recal.policies.families import load_family, nearest_family
from recal.policies.policy import Policy, load_policy, resolve_policy
from recal.policies.prepared import PreparedImages

DRAWS = 8


@dataclass(frozen=True, kw_only=True)
class PolicyPicture:
    """A picture that was written.

    Attributes:
        policy: The policy that it shows.
        width: Width of the picture, in pixels.
        height: Height of the picture, in pixels.
    """

    policy: Policy
    width: int
    height: int


def show_policy(
    name: str,
    output: Path,
    *,
    data: Path | None = None,
    family: str | None = None,
    samples: int = 6,
    seed: int = 0,
) -> PolicyPicture:
    """Draw images as a policy's family prepares them, and as the policy changes them.

    Args:
        name: Name of a policy, or a policy's file.
        output: The picture, in the format of its suffix.
        data: Folder of images; None uses the bundled ones.
        family: Family of the policy; None uses the one that fits the size of the images.
        samples: Number of images, one in each row.
        seed: Seed of the choice of images, and of the first of eight random draws.
    """
    source = open_images(data or sample_images(), TRAIN)
    chosen = [int(index) for index in seeded_batches(len(source), samples, samples, seed)[0]]
    first = source[chosen[0]]
    if family is None:
        family = "sample" if data is None else nearest_family(min(first.shape[:2]))
    policy = resolve_policy(name, family)
    network = load_family(family).preparation
    with undisturbed_draws():
        shown = PreparedImages(source, policy, seed, network).apply(chosen[0], first)
    network = replace(network, size=max(shown.shape[:2]))
    drawn = [PreparedImages(source, policy, seed + draw, network) for draw in range(DRAWS)]
    # a policy without random ops is itself how images are prepared
    prepares = load_policy(family, "clean") if policy.draws else policy
    clean = PreparedImages(source, prepares, seed, network)
    rows = [
        (
            source.name(index).removeprefix(f"{source.where}/"),
            [clean.read(index), *(images.read(index) for images in drawn)],
        )
        for index in chosen
    ]
    width, height = write_sheet(
        output,
        f"{policy.name} ({family}): {policy.summary}",
        ["clean", *(f"seed {images.seed}" for images in drawn)],
        rows,
    )
    return PolicyPicture(policy=policy, width=width, height=height)
