"""Policies: declared augmentations, read from TOML."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from recal.attacks.attack import Pgd
from recal.errors import InputError, pick, shown
from recal.files import read_text, shipped
from recal.policies.families import FAMILY_FILE
from recal.policies.mixing import AnyMix
from recal.policies.ops import AnyOp, Prepare
from recal.policies.preparation import Preparation
from recal.schema import Record, json_schema, parse_toml

Apply: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

# a file's keys before its tables begin with this one
SUMMARY_LINE = re.compile(r"^summary\s*=", re.MULTILINE)


class PolicyPart(Record, frozen=True, kw_only=True):
    """A policy that another one mixes.

    Attributes:
        policy: Name of a policy file in the same folder, without `.toml`.
        share: Probability that an image gets it.
    """

    policy: str
    share: Annotated[float, Meta(ge=0, le=1)]


class PolicyFile(Record, frozen=True, kw_only=True):
    """The content of a policy file.

    Attributes:
        summary: One line for people.
        op: Operations, applied in order.
        part: Policies to mix, in place of operations.
        mix: How the image is mixed with another one afterwards, or None.
        attack: The attack on the network that statistics are estimated for, or None; it comes last.
    """

    summary: str
    op: tuple[AnyOp, ...] = ()
    part: tuple[PolicyPart, ...] = ()
    mix: AnyMix | None = None
    attack: Pgd | None = None

    def __post_init__(self) -> None:
        if self.op and self.part:
            raise ValueError("expected [[op]] or [[part]], got both. Mix whole policies.")
        if self.part and abs(sum(part.share for part in self.part) - 1) > 1e-6:
            raise ValueError("expected shares >= 0 of sum 1.")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A declared augmentation, from uint8 RGB image to uint8 RGB image of the network's size.

    Attributes:
        name: The file's name without `.toml`.
        summary: One line for people.
        ops: The operations, in order.
        parts: In place of ops: other policies, of which one is drawn for each image, and the
            probability of each.
        mix: How the image is mixed with another one afterwards, or None.
        attack: The attack that makes adversarial images of the result, or None. It needs a network,
            so calibration alone can apply it.
        text: The file's text followed by those of its parts, which a variant's record carries.
    """

    name: str
    summary: str
    ops: tuple[AnyOp, ...] = ()
    parts: tuple[tuple[Policy, float], ...] = ()
    mix: AnyMix | None = None
    attack: Pgd | None = None
    text: str

    @classmethod
    def from_text(cls, name: str, text: str) -> Policy:
        """Read a policy from the text that a variant's record carries: see `text`.

        It is an `InputError` if the text is no policy, or has parts too few or too many.
        """
        where = f"policy {shown(name)}"
        begins = [match.start() for match in SUMMARY_LINE.finditer(text)][1:]
        ends = [begin - len("\n") for begin in begins]
        own, *rest = (text[slice(*cut)] for cut in zip([0, *begins], [*ends, None], strict=True))
        file = parse_toml(own, PolicyFile, where)
        if len(rest) != len(file.part):
            raise InputError(
                f"{where}: expected the texts of {len(file.part)} parts, got {len(rest)}."
            )
        names = [part.policy for part in file.part]
        return _policy(name, file, text, list(map(cls.from_text, names, rest)))

    @property
    def sha256(self) -> str:
        """The hash of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def draws(self) -> bool:
        """Whether anything in it is random."""
        return bool(self.parts) or self.mix is not None or any(op.random for op in self.ops)

    @property
    def prepares(self) -> bool:
        """Whether it resizes and crops as the network's preparation says."""
        own = any(isinstance(op, Prepare) for op in self.ops)
        return own or any(part.prepares for part, _ in self.parts)

    def keeps(self, network: Preparation) -> bool:
        """Return whether images of the network's size stay as they are, and others are refused."""
        as_they_are = network.crop_mode == "none" and all(isinstance(o, Prepare) for o in self.ops)
        return as_they_are and not self.parts and self.mix is None and self.attack is None

    @property
    def not_geometric(self) -> tuple[str, ...]:
        """Names of the ops that change colours, so that they need RGB or grey images."""
        ops = (*self.ops, *(op for policy, _ in self.parts for op in policy.ops))
        return tuple(str(op.__struct_config__.tag) for op in ops if not op.geometric)

    def transform(self, network: Preparation) -> Apply:
        """Build the transform for a network, uint8 (H, W, 3) -> uint8 (H', W', 3); grey has no 3.

        It draws from the global generators: call it inside `recal.data.sampling.keyed_draws`.
        """
        transforms = [op.transform(network) for op in self.ops]
        parts = [policy.transform(network) for policy, _ in self.parts]
        shares = [share for _, share in self.parts]

        def draw(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            # the global generator, because keyed_draws() seeds it for every image
            return parts[np.random.choice(len(parts), p=shares)](pixels)

        def apply(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            image = Image.fromarray(pixels)
            for transform in transforms:
                image = transform(image)
            return np.asarray(image)

        return draw if parts else apply


def policy_names(family: str) -> list[str]:
    """Return the names of a family's shipped policies."""
    paths = (shipped("policies") / family).glob("*.toml")
    return sorted(path.stem for path in paths if path.name != FAMILY_FILE)


def resolve_policy(given: str | Path | Policy, family: str) -> Policy:
    """Return the policy that the user means: a policy, a .toml file, or one of the family's."""
    if isinstance(given, Policy):
        return given
    if isinstance(given, Path) or given.endswith(".toml"):
        return read_policy(Path(given))
    return load_policy(family, given)


def load_policy(family: str, mode: str) -> Policy:
    """Read a shipped policy; a name that the family does not have is a `UsageError`."""
    mode = pick(mode, policy_names(family), f"--mode (family {family})")
    return read_policy(shipped("policies") / family / f"{mode}.toml")


def read_policy(path: Path) -> Policy:
    """Read a policy file, and the files beside it that it mixes; faults are an `InputError`."""
    text = read_text(path)
    file = parse_toml(text, PolicyFile, str(path))
    parts = []
    for number, part in enumerate(file.part, start=1):
        where = f"{path}: part {number}"
        beside = path.parent / f"{part.policy}.toml"
        if Path(part.policy).name != part.policy or beside == path:
            raise InputError(f"{where}: expected the name of another policy beside this one.")
        part_text = read_text(beside)
        part_file = parse_toml(part_text, PolicyFile, str(beside))
        if part_file.part or part_file.mix or part_file.attack:
            raise InputError(f"{where}: expected a policy of ops alone, got '{part.policy}'.")
        parts.append(_policy(part.policy, part_file, part_text))
    return _policy(path.stem, file, "\n".join([text, *(part.text for part in parts)]), parts)


def _policy(name: str, file: PolicyFile, text: str, parts: Sequence[Policy] = ()) -> Policy:
    mixed = tuple(zip(parts, (part.share for part in file.part), strict=True))
    return Policy(
        name=name,
        summary=file.summary,
        ops=file.op,
        parts=mixed,
        mix=file.mix,
        attack=file.attack,
        text=text,
    )


def policy_schema() -> dict[str, Any]:
    """Return the JSON schema of policy files, by which editors complete and check them."""
    return json_schema(PolicyFile)
