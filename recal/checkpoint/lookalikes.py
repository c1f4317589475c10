"""BatchNorm layers that look like branches of one layer, in a layout that recal does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from recal.checkpoint.layouts import LEAVES

Signature = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Lookalikes:
    """Modules of equal tensors under one parent, of which a forward pass may use one alone.

    Attributes:
        parent: Path of the module that holds them; empty for the network itself.
        names: Names of the modules below `parent`.
    """

    parent: str
    names: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the modules, from the network."""
        return tuple(f"{self.parent}.{name}" if self.parent else name for name in self.names)

    @property
    def keys(self) -> tuple[str, ...]:
        """Patterns of their tensors' names for a file that describes the layout."""
        first, *others = sorted(self.names, key=len)
        if others and all(name.startswith(first) for name in others):  # as bn1 and bn1_adv
            ends = (name.removeprefix(first) for name in self.names)
            return tuple(f"{{layer}}{end}.{{leaf}}" for end in ends)
        return tuple(f"{{layer}}.{name}.{{leaf}}" for name in self.names)


def find_lookalikes(tensors: Mapping[str, torch.Tensor]) -> tuple[Lookalikes, ...]:
    """Return the groups of BatchNorm layers that are too many for their place.

    In ordinary networks, a module has at least as many layers with weights as BatchNorm layers of
    one size, or a list of them beside its list of BatchNorm layers, as in Res2Net.
    """
    children: dict[str, dict[str, list[str]]] = {}
    for key in tensors:
        parts = key.split(".")[:-1]
        for depth, name in enumerate(parts):
            parent = ".".join(parts[:depth])
            children.setdefault(parent, {}).setdefault(name, []).append(key)
    found = []
    for parent, modules in children.items():
        signatures: dict[Signature, list[str]] = {}
        others = 0
        for name, keys in modules.items():
            path = f"{parent}.{name}." if parent else f"{name}."
            if (signature := _of_batch_norm(keys, path, tensors)) is not None:
                signatures.setdefault(signature, []).append(name)
            else:
                others += any(tensors[key].ndim >= 2 for key in keys)
        norms = sum(map(len, signatures.values()))
        for names in signatures.values():
            if len(names) > 1 and norms > others and not _has_list_beside(parent, names, children):
                found += [Lookalikes(parent=parent, names=part) for part in _divided(names)]
    # lists whose parts are lookalikes themselves are told once
    inside = {path for group in found for path in group.paths}
    return tuple(group for group in found if group.parent not in inside)


def _divided(names: list[str]) -> list[tuple[str, ...]]:
    """Divide names such as bn1, bn1_adv, bn2, bn2_adv by what they begin with, if they do."""
    known = set(names)
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=len):
        starts = (name[:end] for end, sign in enumerate(name) if sign == "_")
        base = next((start for start in starts if start in known), name)
        groups.setdefault(base, []).append(name)
    several = [tuple(group) for group in groups.values() if len(group) > 1]
    return several or [tuple(names)]


def _of_batch_norm(
    keys: Iterable[str], path: str, tensors: Mapping[str, torch.Tensor]
) -> Signature | None:
    """Return names and shapes below a path, if all of them are of BatchNorm layers."""
    inside = frozenset((key.removeprefix(path), tuple(tensors[key].shape)) for key in keys)
    if not any(name.endswith("running_mean") for name, _ in inside):
        return None
    only = all(name.rpartition(".")[2] in LEAVES and len(shape) < 2 for name, shape in inside)
    return inside if only else None


def _has_list_beside(
    parent: str, names: list[str], children: Mapping[str, Mapping[str, list[str]]]
) -> bool:
    """Return whether a numbered list of BatchNorms goes with a list of other layers beside it."""
    holder, _, own = parent.rpartition(".")
    if not all(name.isdigit() for name in names):
        return False
    siblings = (name for name in children.get(holder, {}) if name != own)
    paths = (f"{holder}.{name}" if holder else name for name in siblings)
    wanted = set(names)
    return any(wanted <= children.get(path, {}).keys() for path in paths)
