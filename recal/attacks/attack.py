"""Attacks as files declare them."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from recal.schema import Record

# 1/255 of the range of pixels is a level: an L2 radius of 0.5 is 127.5 of them
LEVELS = 255
Levels = Annotated[float, Meta(gt=0, le=65536)]
Norm: TypeAlias = Literal["linf", "l2"]
AutoAttackPart: TypeAlias = Literal["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]


class Pgd(Record, frozen=True, kw_only=True, tag="pgd", tag_field="method"):
    """Projected gradient descent on the cross-entropy, in the pixels' range [0, 1].

    Attributes:
        norm: Norm that limits the change of an image: `linf` or `l2`.
        radius: Largest change, in levels.
        step: Length of a step, in levels.
        steps: Number of steps; one step of the radius's length without a random start is FGSM.
        random_start: Whether to start at a random point: for `linf` uniform in the cube, for `l2`
            in a uniform direction at a uniform share of the radius.

    Source: Madry et al., arXiv 1706.06083; FGSM: Goodfellow et al., arXiv 1412.6572.
    """

    norm: Norm
    radius: Levels
    step: Levels
    steps: Annotated[int, Meta(ge=1, le=100_000)]
    random_start: bool = True

    @property
    def text(self) -> str:
        """A description for people."""
        start = "random start" if self.random_start else "no random start"
        steps = f"{self.steps} step{'s' * (self.steps > 1)} of {self.step:g}/255"
        return f"PGD, {ball(self.norm, self.radius)}, {steps}, {start}"


class AutoAttack(Record, frozen=True, kw_only=True, tag="autoattack", tag_field="method"):
    """AutoAttack, by the package of that name; only images that are classified right are attacked.

    Its random draws depend on the batch that an image is in, so the size of batches counts.

    Attributes:
        norm: Norm that limits the change of an image: `linf` or `l2`.
        radius: Largest change, in levels.
        attacks: The attacks of the ensemble, in order; the default is the standard ensemble.

    Source: Croce and Hein, arXiv 2003.01690.
    """

    norm: Norm
    radius: Levels
    attacks: Annotated[tuple[AutoAttackPart, ...], Meta(min_length=1)] = (
        "apgd-ce", "apgd-t", "fab-t", "square",
    )  # fmt: skip

    @property
    def text(self) -> str:
        """A description for people."""
        return f"AutoAttack ({', '.join(self.attacks)}), {ball(self.norm, self.radius)}"


AnyAttack: TypeAlias = Pgd | AutoAttack


def ball(norm: Norm, radius: float) -> str:
    """Return the limit of the change of an image, for people."""
    if norm == "linf":
        return f"L-inf radius {radius:g}/255"
    return f"L2 radius {radius / LEVELS:g}"
