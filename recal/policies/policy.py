"""Policies: declared augmentations, read from TOML and bound to the ops that they name."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from recal.errors import InputError
from recal.policies.ops import DETERMINISTIC, OPS, check_arguments
from recal.resources import shipped
from recal.wording import check_keys, check_type, did_you_mean, pick, read_toml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray


FAMILY_FILE = "family.toml"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What holds for a family of data sets, unless a checkpoint or an option says otherwise.

    Attributes:
        name: `cifar`, `imagenet` or `sample`.
        mean: Mean of the channels of RGB images in [0, 1].
        std: Standard deviation of the channels, likewise.
        size: Side of the network's square input, in pixels.
        classes: Number of classes, or None where the family's data sets differ in it.
        folders: The usual folder names of its data sets, by their number of classes.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    classes: int | None
    folders: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A declared augmentation, from uint8 RGB image to uint8 RGB image of the network's size.

    Attributes:
        name: The file's name without `.toml`.
        family: The family that it belongs to; None for a user's own file.
        summary: One line for people.
        ops: Name and arguments of each operation, in order.
        parts: In place of ops: other policies, of which one is drawn for each image, and the share
            of the images that each gets.
        text: The file's text, and its parts', which a variant's record carries.
    """

    name: str
    family: str | None
    summary: str
    ops: tuple[tuple[str, Mapping[str, Any]], ...]
    parts: tuple[tuple[Policy, float], ...] = ()
    text: str

    @property
    def sha256(self) -> str:
        """The hash of the file's text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def draws(self) -> bool:
        """Whether anything in it is random."""
        return bool(self.parts) or any(name not in DETERMINISTIC for name, _ in self.ops)

    def transform(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        """Build the transform, uint8 (H, W, 3) -> uint8 (H', W', 3).

        It draws from the global generators: call it inside `recal.data.sampling.keyed_draws`.
        """
        if self.parts:
            return self._drawn_part()
        if not self.ops:
            return lambda pixels: pixels
        transforms = [OPS[name](**arguments) for name, arguments in self.ops]

        def apply(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            image = Image.fromarray(pixels)
            for transform in transforms:
                image = transform(image)
            return np.asarray(image)

        return apply

    def _drawn_part(self) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        transforms = [policy.transform() for policy, _ in self.parts]
        shares = [share for _, share in self.parts]

        def apply(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            # the global generator, because keyed_draws() seeds it for every image
            return transforms[np.random.choice(len(transforms), p=shares)](pixels)

        return apply


def family_names() -> list[str]:
    """Return the names of the shipped families."""
    return sorted(path.parent.name for path in shipped("policies").glob(f"*/{FAMILY_FILE}"))


def load_family(name: str) -> Family:
    """Read a shipped family.

    Raises:
        UsageError: There is none of this name.
    """
    path = shipped("policies") / pick(name, family_names(), "--family") / FAMILY_FILE
    table = read_toml(path)
    required = ("mean", "std", "size", "folders")
    check_keys(table, (*required, "classes"), str(path), required)
    return Family(
        name=name,
        mean=tuple(table["mean"]),
        std=tuple(table["std"]),
        size=table["size"],
        classes=table.get("classes"),
        folders={int(count): tuple(names) for count, names in table["folders"].items()},
    )


def nearest_family(side: int) -> str:
    """Return the family whose input is nearest in size to images of `side` pixels.

    The sample's is left out: its images are known, and as large as CIFAR's.
    """
    sizes = {name: load_family(name).size for name in family_names() if name != "sample"}
    return min(sizes, key=lambda name: abs(math.log(side / sizes[name])))


def policy_names(family: str) -> list[str]:
    """Return the names of a family's shipped policies."""
    paths = (shipped("policies") / family).glob("*.toml")
    return sorted(path.stem for path in paths if path.name != FAMILY_FILE)


def load_policy(family: str, mode: str) -> Policy:
    """Read a shipped policy.

    Raises:
        UsageError: The family has no policy of this name.
    """
    mode = pick(mode, policy_names(family), f"--mode (family {family})")
    return read_policy(shipped("policies") / family / f"{mode}.toml", family=family)


def read_policy(path: Path, *, family: str | None = None) -> Policy:
    """Read a policy file.

    Raises:
        InputError: It cannot be read, or names an unknown op or argument.
    """
    table = read_toml(path)
    check_keys(table, ("summary", "op", "part"), str(path), ("summary",))
    entries = table.get("op", [])
    check_type(entries, list, f"{path}: op")
    ops = tuple(_read_op(entry, f"{path}: op {i}") for i, entry in enumerate(entries, start=1))
    parts = _read_parts(table.get("part", []), path, family)
    if ops and parts:
        raise InputError(f"{path}: expected [[op]] or [[part]], got both. Mix whole policies.")
    texts = [path.read_text(encoding="utf-8"), *(policy.text for policy, _ in parts)]
    return Policy(
        name=path.stem,
        family=family,
        summary=table["summary"],
        ops=ops,
        parts=parts,
        text="\n".join(texts),
    )


def _read_parts(entries: Any, path: Path, family: str | None) -> tuple[tuple[Policy, float], ...]:
    """Read the policies that a policy mixes: files beside it, by name."""
    check_type(entries, list, f"{path}: part")
    parts = []
    for i, entry in enumerate(entries, start=1):
        where = f"{path}: part {i}"
        check_type(entry, dict, where)
        check_keys(entry, ("policy", "share"), where, ("policy", "share"))
        check_type(entry["policy"], str, f"{where}: policy")
        check_type(entry["share"], float, f"{where}: share")
        beside = path.parent / f"{entry['policy']}.toml"
        if Path(entry["policy"]).name != entry["policy"] or beside == path:
            raise InputError(f"{where}: expected the name of another policy beside this one.")
        policy = read_policy(beside, family=family)
        if policy.parts:
            raise InputError(f"{where}: expected a policy of ops, got a mix, '{policy.name}'.")
        parts.append((policy, float(entry["share"])))
    if parts and (min(s for _, s in parts) < 0 or abs(sum(s for _, s in parts) - 1) > 1e-6):
        raise InputError(f"{path}: expected shares >= 0 of sum 1.")
    return tuple(parts)


def _read_op(entry: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    check_type(entry, dict, where)
    arguments = dict(entry)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in OPS:
        hint = did_you_mean(str(name), OPS)
        raise InputError(f"{where}: expected a name out of {', '.join(OPS)}, got {name!r}.{hint}")
    check_arguments(OPS[name], arguments, f"{where}: {name}")
    return name, arguments
