"""Detecting the layout of a file from its keys."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from recal.checkpoint.layouts import BY_NAME, LAYOUTS, LEAVES, Layout, Site, find_sites, marked
from recal.errors import InputError, UsageError
from recal.wording import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    Tensors = Mapping[str, torch.Tensor]


def recognise(tensors: Tensors, where: str) -> Layout:
    """Return the layout of a file, detected from its tensors.

    Args:
        tensors: The tensors of the file by name.
        where: Name of the file, for messages.

    Raises:
        UsageError: Several layouts fit and assign the tensors differently.
        InputError: The layout cannot be used, or its branches are incomplete.
    """
    fits: list[Layout] = []
    doubtful: list[Layout] = []
    for layout in LAYOUTS:
        verdict = _verdict(tensors, layout, where)
        if verdict == "fits":
            fits.append(layout)
        elif verdict == "doubtful":
            doubtful.append(layout)
    candidates = fits + doubtful
    if doubtful or len(fits) > 1:
        raise UsageError(
            f"{where}: the keys allow several layouts: "
            f"{', '.join([*(c.name for c in candidates), 'plain'])}. "
            f"{_how_to_tell(tensors, candidates)} Say which with --layout."
        )
    return fits[0] if fits else BY_NAME["plain"]


def check_layout(tensors: Tensors, layout: Layout, where: str) -> None:
    """Refuse a layout that cannot be used, or whose branches are incomplete in the file.

    Raises:
        InputError: The layout does not fit. The message names the first layer that does not.
    """
    if layout.refused:
        raise InputError(f"{where}: layout {layout.name} ({layout.writer}): {layout.refused}.")
    branched = marked(find_sites(tensors, layout))
    if not branched and layout.name != "plain":
        raise InputError(
            f"{where}: expected branches of layout {layout.name}, such as "
            f"{layout.places[0].key.format(layer='bn1', index=0, leaf='running_mean')}, got none. "
            "Leave out --layout, or name another."
        )
    problem = problem_of(tensors, branched, layout) if layout.name != "plain" else ""
    if problem:
        raise InputError(
            f"{where}: layout {layout.name}: {problem}. The file is incomplete, or of a layout "
            "that recal does not know: describe it in a file and give that with --layout."
        )


def _verdict(tensors: Tensors, layout: Layout, where: str) -> str:
    """Return `fits`, `doubtful` or `no`."""
    branched = marked(find_sites(tensors, layout))
    if not branched or not layout.automatic or not _is_meant(tensors, branched, layout):
        return "no"
    if not layout.common:
        if layout.name == "acl-legacy" and problem_of(tensors, branched, layout):
            return "no"  # a name that ends in _adv proves nothing
        check_layout(tensors, layout, where)
        return "fits"
    sites = {layer: site for layer, site in branched.items() if _is_numbered(site)}
    return _verdict_of_common(tensors, sites, layout, where) if sites else "no"


def _verdict_of_common(
    tensors: Tensors, sites: Mapping[str, Site], layout: Layout, where: str
) -> str:
    """Return the verdict on a list of BatchNorms, which ordinary networks may have, too."""
    ordered = sorted(tensors)
    alone = [_is_alone(_below(ordered, layer), layer, site) for layer, site in sites.items()]
    unequal = any(_shapes(tensors, site) > 1 for site in sites.values())
    if unequal or layout.name == "slimmable":
        if layout.name == "slimmable" and unequal and all(alone):
            check_layout(tensors, layout, where)
        # convolutions of unequal shapes are the layers of a block
        suspect = unequal and any(alone) and layout.name in ("slimmable", "domain")
        return "doubtful" if suspect else "no"
    if all(alone):
        return "fits"
    lists = [
        _has_parallel_list(tensors, _below(ordered, layer), layer, site)
        for layer, site in sites.items()
    ]
    return "no" if all(lists) else "doubtful"


def _is_meant(tensors: Tensors, branched: Mapping[str, Site], layout: Layout) -> bool:
    """Return whether a layout is meant, among several with the same places."""
    several = max(len(site) for site in branched.values())
    instance_norm = any(f"{layer.removesuffix('BN')}IN.weight" in tensors for layer in branched)
    embedded = any(f"{layer}.embed.weight" in tensors for layer in branched)
    heads = any({2, 3} & site.keys() for site in branched.values())
    conditions = {
        "dubn": not instance_norm,
        "dubin": instance_norm,
        "sandwich": embedded,
        "acl": not embedded and several <= 2,
        "advcl": not embedded and several >= 3,
        "det-advprop": not any(".bn_cls." in key or ".bn_box." in key for key in tensors),
        "det-advprop-heads": heads,
        "subbn": any(1 in site for site in branched.values()),
    }
    return conditions.get(layout.name, True)


def problem_of(tensors: Tensors, branched: Mapping[str, Site], layout: Layout) -> str:
    """Return why the branches of a file are incomplete, or an empty string if they are complete."""
    least, most = layout.branches
    count = max((len(site) for site in branched.values()), default=0)
    positions = set(range(max(count, least)))
    problems = (
        problem
        for layer, site in branched.items()
        for problem in _problems(tensors, layer, site, layout, positions, most)
    )
    return next(problems, "")


def _problems(
    tensors: Tensors, layer: str, site: Site, layout: Layout, positions: set[int], most: int
) -> Iterator[str]:
    if None in site:
        yield f"{layer} has a plain BatchNorm and branches"
    if positions - site.keys():
        yield f"{layer} lacks branch {min(positions - site.keys())}"
    if len(site) > most:
        yield f"{layer} has {len(site)} branches"
    if _shapes(tensors, site) > 1 and not layout.chunks:
        yield f"the branches of {layer} have different numbers of channels"
    if layout.affine == "own" and len({_leaves(tensors, prefix) for prefix in site.values()}) > 1:
        yield f"the branches of {layer} do not hold the same tensors"


def _shapes(tensors: Tensors, site: Site) -> int:
    return len({tuple(tensors[f"{prefix}running_mean"].shape) for prefix in site.values()})


def _leaves(tensors: Tensors, prefix: str) -> frozenset[str]:
    return frozenset(leaf for leaf in LEAVES[:4] if f"{prefix}{leaf}" in tensors)


def _is_numbered(site: Site) -> bool:
    """Return whether BatchNorms are numbered 0, 1 ... without a gap, as branches are."""
    numbers = site.keys() - {None}
    return len(numbers) >= 2 and numbers == set(range(len(numbers)))


def _below(ordered: list[str], layer: str) -> list[str]:
    """Return the keys that begin with a layer's path, among sorted keys."""
    return ordered[bisect_left(ordered, f"{layer}.") : bisect_left(ordered, f"{layer}/")]


def _is_alone(below: list[str], layer: str, site: Site) -> bool:
    """Return whether a module holds only its branches and the tensors of a BatchNorm."""
    own = {f"{layer}.{leaf}" for leaf in LEAVES}
    prefixes = tuple(site.values())
    return all(key in own or key.startswith(prefixes) for key in below)


def _has_parallel_list(tensors: Tensors, below: list[str], layer: str, site: Site) -> bool:
    """Return whether a module has a list of convolutions or linear layers beside the BatchNorms."""
    rivals: dict[str, set[str]] = {}
    for key in below:
        if key.endswith(".weight") and tensors[key].ndim >= 2:
            name, _, rest = key.removeprefix(f"{layer}.").partition(".")
            rivals.setdefault(name, set()).add(rest.partition(".")[0])
    numbers = {str(position) for position in site if position is not None}
    return any(numbers <= found for found in rivals.values())


def _how_to_tell(tensors: Tensors, candidates: list[Layout]) -> str:
    layers = list(marked(find_sites(tensors, candidates[0])))
    ways = "; ".join(f"{layout.name}: {layout.roles} ({layout.writer})" for layout in candidates)
    return (
        f"Seen at {listed(layers)}. {ways}; plain: every one of them is a layer of its "
        "own, used one after the other in every forward pass, as in Res2Net."
    )
