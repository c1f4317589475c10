"""A checkpoint: shared weights and the BatchNorm branches that go with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recal.checkpoint.layouts import LEAVES, Layout, recognise
from recal.checkpoint.reading import read_weight_file
from recal.checkpoint.spec import ModelSpec, complete_spec
from recal.declared import did_you_mean
from recal.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of weights, taken apart into what branches share and the branches.

    Attributes:
        path: The file.
        layout: How the file spells its branches.
        weights: All tensors that belong to no BatchNorm layer, under plain names.
        branches: For each branch, `main` first, its tensors under plain names
            (`<layer>.running_mean` and so on).
        facts: What the file says of the network beside its weights.
        notes: What was unwrapped or left out while reading, for people.
    """

    path: Path
    layout: Layout
    weights: Mapping[str, torch.Tensor]
    branches: Mapping[str, Mapping[str, torch.Tensor]]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the non-BatchNorm tensors: names, dtypes, shapes and little-endian bytes."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            tensor = self.weights[name].detach().contiguous()
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def layers(self) -> list[str]:
        """The plain paths of the BatchNorm layers, in the file's order."""
        suffix = ".running_mean"
        return [n.removesuffix(suffix) for n in self.branches["main"] if n.endswith(suffix)]

    def branch(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return a branch's tensors.

        Raises:
            UsageError: There is no such branch.
        """
        if name not in self.branches:
            raise UsageError(
                f"{self.path}: expected a branch out of {', '.join(self.branches)}, got '{name}'."
                f"{did_you_mean(name, self.branches)}"
            )
        return self.branches[name]

    def spec(self, **asked: Any) -> ModelSpec:
        """Return architecture and preprocessing, `asked` going before what the file says."""
        return complete_spec(asked, self.facts, self.weights)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and recognise its branches.

    Args:
        path: A .pth or .safetensors file. No code in it is run.

    Raises:
        InputError: It is no checkpoint, or holds no BatchNorm with running statistics.
    """
    path = Path(path)
    file = read_weight_file(path)
    layout, found = recognise(file.tensors)
    if not found:
        raise InputError(
            f"{path}: expected a network with BatchNorm, got {len(file.tensors)} tensors and no "
            "running_mean among them. recal can do nothing for networks without BatchNorm."
        )
    weights = dict(file.tensors)
    branches: dict[str, dict[str, torch.Tensor]] = {}
    for old, (layer, branch) in found.items():
        for leaf in LEAVES:
            tensor = weights.pop(f"{old}.{leaf}", None)
            if tensor is not None:
                branches.setdefault(branch, {})[f"{layer}.{leaf}"] = tensor
    _check_branches(path, branches)
    ordered = {name: branches[name] for name in sorted(branches, key=_branch_order)}
    return Checkpoint(
        path=path, layout=layout, weights=weights, branches=ordered, facts=file.facts,
        notes=file.notes,
    )  # fmt: skip


def _branch_order(name: str) -> tuple[bool, int]:
    return name != "main", int(name.removeprefix("aux")) if name != "main" else 0


def _check_branches(path: Path, branches: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    main = branches.get("main", {})
    for name, tensors in branches.items():
        essential = {key for key in tensors if not key.endswith(".num_batches_tracked")}
        expected = {key for key in main if not key.endswith(".num_batches_tracked")}
        if essential != expected:
            odd = sorted(essential ^ expected)[0]
            raise InputError(
                f"{path}: expected the same BatchNorm layers in every branch, got '{odd}' in only "
                f"one of main and {name}. The file may be of a layout that recal does not know."
            )
        for key in essential:
            tensor = tensors[key]
            if (
                tensor.ndim != 1
                or tensor.shape != main[key].shape
                or not tensor.is_floating_point()
            ):
                raise InputError(
                    f"{path}: {name}: {key}: expected a vector of {tuple(main[key].shape)} floats, "
                    f"got {tensor.dtype} {tuple(tensor.shape)}."
                )
