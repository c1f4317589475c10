"""A checkpoint: shared weights and the BatchNorm branches that go with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recal.checkpoint.branches import take_apart
from recal.checkpoint.detect import check_layout, recognise
from recal.checkpoint.layouts import choose_layout, parse_roles
from recal.checkpoint.reading import read_weight_file
from recal.errors import InputError, UsageError
from recal.networks.spec import ModelSpec, complete_spec
from recal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.checkpoint.layouts import Layout


SHOWN = 3


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
        notes: What was unwrapped, chosen or left out while reading, for people.
        doubts: What was assumed and could be otherwise; commands show these as warnings.
    """

    path: Path
    layout: Layout
    weights: Mapping[str, torch.Tensor]
    branches: Mapping[str, Mapping[str, torch.Tensor]]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    doubts: tuple[str, ...] = ()

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
        return complete_spec(asked, self.facts, {**self.weights, **self.branches["main"]})


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
        layout: Name of a layout or a .toml file that describes one; told from the keys if None.
        roles: Which position is which branch, as `main=1,aux0=0` or a dictionary.
        ema: Take the moving average of the weights that the file holds, not the weights.

    Raises:
        InputError: It is no checkpoint, or holds no BatchNorm with running statistics, or is of a
            layout that cannot be used.
        UsageError: The layout cannot be told, or does not fit, or neither do the roles.
    """
    path = Path(path)
    where = str(path)
    file = read_weight_file(path, ema=ema)
    if layout is None:
        chosen = recognise(file.tensors, where)
    else:
        chosen = choose_layout(layout) if isinstance(layout, str) else layout
    check_layout(file.tensors, chosen, where)
    positions = None if roles is None else parse_roles(roles)
    weights, branches, shared = take_apart(file.tensors, chosen, positions, where)
    if not branches["main"]:
        raise InputError(
            f"{path}: expected a network with BatchNorm, got {len(file.tensors)} tensors and no "
            "running_mean among them. recal can do nothing for networks without BatchNorm."
        )
    notes = list(file.notes)
    if shared:
        more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
        notes.append(f"one BatchNorm for all branches at {', '.join(shared[:SHOWN])}{more}")
    if positions is not None:
        notes.append("roles as given: " + ", ".join(f"{k} = {v}" for k, v in positions.items()))
    doubts: tuple[str, ...] = ()
    if chosen.doubt and layout is None and positions is None:
        doubts = (
            f"the roles are in doubt: {chosen.doubt}. Branches are named by position; score them "
            "on clean images (recal inspect --data) and, if need be, swap them with --roles "
            "main=1,aux0=0",
        )
    return Checkpoint(
        path=path, layout=chosen, weights=weights, branches=branches, facts=file.facts,
        notes=tuple(notes), doubts=doubts,
    )  # fmt: skip
