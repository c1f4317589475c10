"""A checkpoint: shared weights and the BatchNorm branches that go with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from recal.checkpoint.branches import check_layout, recognise, take_apart
from recal.checkpoint.layouts import Layout, ReadingOptions, choose_layout, parse_roles
from recal.checkpoint.reading import read_weight_file
from recal.errors import InputError, UsageError, did_you_mean, listed, printable
from recal.networks.spec import NOTHING_GIVEN, ModelOverrides, ModelSpec, complete_spec
from recal.schema import convert


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a checkpoint that is wrong or doubtful.

    Attributes:
        kind: A word for programs, such as `never-trained`.
        branch: The branch, or None if it concerns the whole file.
        layers: The plain paths of the layers concerned.
        what: What was found.
        follows: What follows from it, as a sentence.
    """

    kind: str
    branch: str | None = None
    layers: tuple[str, ...] = ()
    what: str
    follows: str

    @property
    def sentence(self) -> str:
        """What was found and what follows from it, for people."""
        return printable(f"{f'{self.branch}: ' if self.branch else ''}{self.what}. {self.follows}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of weights, separated into shared weights and branches.

    Attributes:
        path: The file.
        layout: How the file names the tensors of its branches.
        weights: All tensors that belong to no BatchNorm layer, under plain names.
        branches: For each branch, `main` first, its tensors under plain names
            (`<layer>.running_mean` and so on).
        facts: What the file says about the network beside its weights.
        overrides: What the user said about the network, which overrides `facts`.
        notes: Notes for people on what was unwrapped, chosen or left out while reading.
        doubts: Assumptions that may be wrong, which commands show as warnings.
    """

    path: Path
    layout: Layout
    weights: Mapping[str, torch.Tensor]
    branches: Mapping[str, Mapping[str, torch.Tensor]]
    facts: ModelOverrides
    overrides: ModelOverrides = NOTHING_GIVEN
    notes: tuple[str, ...]
    doubts: tuple[Finding, ...] = ()

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the non-BatchNorm tensors: names, dtypes, shapes and little-endian bytes."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            tensor = self.weights[name].detach().contiguous()
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def layers(self) -> list[str]:
        """Plain paths of the BatchNorm layers, in the order of the file."""
        suffix = ".running_mean"
        return [n.removesuffix(suffix) for n in self.branches["main"] if n.endswith(suffix)]

    def branch(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a branch by plain name; another branch is a `UsageError`."""
        if name not in self.branches:
            raise UsageError(
                f"{self.path}: expected a branch out of {', '.join(self.branches)}, got '{name}'."
                f"{did_you_mean(name, self.branches)}"
            )
        return self.branches[name]

    def overridden(
        self,
        *,
        arch: str | None = None,
        classes: int | None = None,
        family: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
    ) -> Checkpoint:
        """Return this checkpoint with another description of its network than the file's.

        Arguments that are None keep what the file, or an earlier call, says.

        Args:
            arch: Name of the architecture: `wrn16_1`, `timm:resnet50`, `python:FILE.py:CALLABLE`.
            classes: Number of classes, K.
            family: Family of policies that suits the network, such as `cifar`.
            mean: Mean of each channel of RGB images in [0, 1], 3 numbers.
            std: Standard deviation of each channel, 3 numbers.
            size: Side of the square input, in pixels.

        Raises:
            InputError: A value is of the wrong type or out of its range.
        """
        given = {
            "arch": arch, "classes": classes, "family": family,
            "mean": mean, "std": std, "size": size,
        }  # fmt: skip
        overrides = convert(given, ModelOverrides, str(self.path))
        return replace(self, overrides=overrides.over(self.overrides))

    @cached_property
    def spec(self) -> ModelSpec:
        """Architecture and preprocessing, completed from the overrides, the file and its family.

        Raises:
            UsageError: The architecture or the number of classes cannot be determined.
            InputError: A value is out of its range.
        """
        tensors = {**self.weights, **self.branches["main"]}
        return complete_spec(self.overrides, self.facts, tensors, str(self.path))


def load_checkpoint(
    path: str | Path,
    *,
    layout: str | Layout | None = None,
    roles: str | Mapping[str, int] | None = None,
    ema: bool = False,
) -> Checkpoint:
    """Read a checkpoint and recognise its branches.

    Args:
        path: A .pth or .safetensors file. No code in it is run.
        layout: Name of a layout or a .toml file that describes one; None to detect it.
        roles: Which position is which branch, as `main=1,aux0=0` or a dictionary.
        ema: Whether to take the moving average of the weights instead of the weights.

    Raises:
        InputError: The file is not a checkpoint, has no BatchNorm with running statistics, or has a
            layout that cannot be used.
        UsageError: The layout cannot be determined, or the given layout or roles do not fit.
    """
    return read_checkpoint(Path(path), ReadingOptions(layout=layout, roles=roles, ema=ema))


def read_checkpoint(path: Path, options: ReadingOptions) -> Checkpoint:
    """Read a checkpoint as `load_checkpoint` does, with its arguments as one object."""
    where, layout = str(path), options.layout
    file = read_weight_file(path, ema=options.ema)
    if layout is None:
        layout = recognise(file.tensors, where)
    elif isinstance(layout, str):
        layout = choose_layout(layout)
    check_layout(file.tensors, layout, where)
    roles = None if options.roles is None else parse_roles(options.roles)
    weights, branches, shared = take_apart(file.tensors, layout, roles, where)
    if not branches["main"]:
        raise InputError(
            f"{path}: expected a network with BatchNorm, got {len(file.tensors)} tensors and no "
            "running_mean among them. recal can do nothing for networks without BatchNorm."
        )
    notes = list(file.notes)
    if shared:
        notes.append(f"one BatchNorm for all branches at {listed(shared)}")
    if roles is not None:
        notes.append("roles as given: " + ", ".join(f"{k} = {v}" for k, v in roles.items()))
    doubts = []
    if layout.doubt and options.layout is None and roles is None:
        finding = Finding(
            kind="roles",
            what=f"the roles are in doubt: {layout.doubt}",
            follows="Branches are named by position. Score them on clean images (recal inspect "
            "--data) and, if need be, swap them with --roles main=1,aux0=0.",
        )
        doubts.append(finding)
    return Checkpoint(
        path=path, layout=layout, weights=weights, branches=branches, facts=file.facts,
        overrides=options.model, notes=tuple(notes), doubts=tuple(doubts),
    )  # fmt: skip
