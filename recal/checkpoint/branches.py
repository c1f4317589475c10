"""Separating the tensors of a file into shared weights and branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from recal.checkpoint.layouts import LEAVES, Layout, Site, find_sites, marked
from recal.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


AFFINE = ("weight", "bias")


def branch_names(count: int) -> tuple[str, ...]:
    """Return `main`, `aux0`, `aux1` ..."""
    return ("main", *(f"aux{i}" for i in range(count - 1)))


def take_apart(
    tensors: Mapping[str, torch.Tensor],
    layout: Layout,
    roles: Mapping[str, int] | None,
    where: str,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], tuple[str, ...]]:
    """Separate shared weights from branches.

    Args:
        tensors: Every tensor of the file.
        layout: Layout of the file, already checked.
        roles: Positions of some branches by name; the other branches get the remaining positions in
            order.
        where: Name of the file, for messages.

    Returns:
        The shared weights, the tensors of each branch under plain names, and the layers that have
        one BatchNorm for all branches.

    Raises:
        InputError: Tensors of a branch are missing or have the wrong shape.
        UsageError: The roles do not fit.
    """
    sites = find_sites(tensors, layout)
    branched = marked(sites)
    count = _count(tensors, branched, layout)
    by_position: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    used: set[str] = set()
    for layer, site in sites.items():
        for position, leaves in enumerate(_layer(tensors, layer, site, layout, count, used, where)):
            by_position[position] |= {f"{layer}.{leaf}": tensor for leaf, tensor in leaves.items()}
    names = branch_names(count)
    positions = assign_roles(names, roles, layout.order, where)
    branches = {name: by_position[position] for name, position in positions.items()}
    _check(branches, where)
    weights = {key: tensor for key, tensor in tensors.items() if key not in used}
    shared = tuple(layer for layer in sites if branched and layer not in branched)
    return weights, branches, shared


def assign_roles(
    names: tuple[str, ...], roles: Mapping[str, int] | None, order: tuple[int, ...], where: str
) -> dict[str, int]:
    """Return the position of each branch, by name, in the order of the names.

    Raises:
        UsageError: A name or position does not exist, or a position is given twice.
    """
    if roles is None:
        return dict(zip(names, order or range(len(names)), strict=True))
    for name, position in roles.items():
        if name not in names or not 0 <= position < len(names):
            raise UsageError(
                f"{where}: --roles: expected {', '.join(names)} with positions 0 to "
                f"{len(names) - 1}, got {name}={position}."
            )
    if len(set(roles.values())) != len(roles):
        raise UsageError(f"{where}: --roles: expected each position once, got {dict(roles)}.")
    left = iter(position for position in range(len(names)) if position not in roles.values())
    return {name: roles[name] if name in roles else next(left) for name in names}


def _count(
    tensors: Mapping[str, torch.Tensor], branched: Mapping[str, Site], layout: Layout
) -> int:
    if not branched:
        return 1
    site = next(iter(branched.values()))
    if not layout.chunks:
        return len(site)
    main, split = (tensors[f"{site[position]}running_mean"].numel() for position in (0, 1))
    return 1 + (split // main if main else 0)


def _layer(
    tensors: Mapping[str, torch.Tensor],
    layer: str,
    site: Site,
    layout: Layout,
    count: int,
    used: set[str],
    where: str,
) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of one layer by position and leaf, and add the keys used to a set."""

    def take(prefix: str, leaves: tuple[str, ...] = LEAVES) -> dict[str, torch.Tensor]:
        found = {leaf: tensors[prefix + leaf] for leaf in leaves if prefix + leaf in tensors}
        used.update(prefix + leaf for leaf in found)
        return found

    if set(site) == {None}:
        return [take(site[None]) for _ in range(count)]
    if layout.chunks:
        aggregated, splits = take(site[0]), take(site[1])
        shape = aggregated["running_mean"].shape
        statistics = [aggregated, *_chunks(splits, count - 1, shape, f"{where}: {layer}")]
    else:
        statistics = [take(site[position]) for position in range(count)]
    if layout.affine == "shared":
        shared = take(f"{layer}.", AFFINE)
        return [shared | own for own in statistics]
    if layout.affine == "sandwich":
        used.add(f"{layer}.embed.weight")
        embedding = tensors.get(f"{layer}.embed.weight")
        return [
            own
            | _sandwich(f"{where}: {layer}", embedding, position, own["running_mean"].shape, count)
            for position, own in enumerate(statistics)
        ]
    return statistics


def _chunks(
    splits: Mapping[str, torch.Tensor], parts: int, shape: torch.Size, where: str
) -> list[dict[str, torch.Tensor]]:
    result: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)]
    for leaf, tensor in splits.items():
        if tensor.ndim and (not parts or tensor.numel() != parts * shape.numel()):
            raise InputError(
                f"{where}: {leaf} of the splits: expected {max(parts, 1)} times {shape.numel()} "
                f"channels, got {tensor.numel()}."
            )
        for part, own in enumerate(result):
            own[leaf] = tensor if tensor.ndim == 0 else tensor.reshape(parts, *shape)[part]
    return result


def _sandwich(
    where: str, embedding: torch.Tensor | None, position: int, shape: torch.Size, count: int
) -> dict[str, torch.Tensor]:
    """Return one affine for the shared affine followed by a branch's own."""
    channels = shape[0] if len(shape) == 1 else -1
    if embedding is None or embedding.shape != (count + 1, 2 * channels):
        found = None if embedding is None else tuple(embedding.shape)
        raise InputError(
            f"{where}.embed.weight: expected shape {(count + 1, 2 * channels)}, got {found}."
        )
    gamma, beta = embedding.to(torch.promote_types(embedding.dtype, torch.float32)).chunk(2, 1)
    shared = count
    return {
        "weight": gamma[shared] * gamma[position],
        "bias": beta[shared] * gamma[position] + beta[position],
    }


def _check(branches: Mapping[str, Mapping[str, torch.Tensor]], where: str) -> None:
    main = branches["main"]
    for name, tensors in branches.items():
        for key, tensor in tensors.items():
            if key.endswith(".num_batches_tracked"):
                if tensor.numel() != 1:
                    raise InputError(
                        f"{where}: {name}: {key}: expected one number, got {tuple(tensor.shape)}."
                    )
                continue
            layer = key.rpartition(".")[0]
            expected = main[f"{layer}.running_mean"].shape
            if tensor.ndim != 1 or tensor.shape != expected or not tensor.is_floating_point():
                raise InputError(
                    f"{where}: {name}: {key}: expected a vector of {tuple(expected)} floats, got "
                    f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}."
                )
        essential, other = _essential(tensors), _essential(main)
        if essential != other:
            odd = sorted(essential ^ other)[0]
            raise InputError(
                f"{where}: expected the same tensors in every branch, got '{odd}' in only one of "
                f"main and {name}."
            )


def _essential(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    return {key for key in tensors if not key.endswith(".num_batches_tracked")}
