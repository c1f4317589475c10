"""From the tensors of a file to shared weights and branches: detection, then separation."""

from bisect import bisect_left
from collections.abc import Mapping

import torch

from recal.checkpoint.layouts import BY_NAME, LAYOUTS, LEAVES, Layout, Site, find_sites, marked
from recal.errors import InputError, UsageError, listed

AFFINE = ("weight", "bias")
COUNTER = ".num_batches_tracked"

Tensors = Mapping[str, torch.Tensor]


def recognise(tensors: Tensors, where: str) -> Layout:
    """Return the layout of a file, detected from its tensors.

    It is a `UsageError` if several layouts fit and assign the tensors differently.
    """
    verdicts = [(layout, _verdict(tensors, layout, where)) for layout in LAYOUTS]
    fits = [layout for layout, verdict in verdicts if verdict == "fits"]
    doubtful = [layout for layout, verdict in verdicts if verdict == "doubtful"]
    if doubtful or len(fits) > 1:
        found = fits + doubtful
        ways = "; ".join(f"{layout.name}: {layout.roles} ({layout.writer})" for layout in found)
        raise UsageError(
            f"{where}: the keys allow several layouts: "
            f"{', '.join([*(layout.name for layout in found), 'plain'])}. "
            f"Seen at {listed(marked(find_sites(tensors, found[0])))}. {ways}; plain: every one of "
            "them is a layer of its own, used one after the other in every forward pass, as in "
            "Res2Net. Say which with --layout."
        )
    return fits[0] if fits else BY_NAME["plain"]


def check_layout(tensors: Tensors, layout: Layout, where: str) -> None:
    """Refuse a layout that cannot be used, or whose branches are incomplete in the file."""
    if layout.refused:
        raise InputError(f"{where}: layout {layout.name} ({layout.writer}): {layout.refused}.")
    if layout.name == "plain":
        return
    branched = marked(find_sites(tensors, layout))
    if not branched:
        raise InputError(
            f"{where}: expected branches of layout {layout.name}, such as "
            f"{layout.places[0].key.format(layer='bn1', index=0, leaf='running_mean')}, got none. "
            "Leave out --layout, or name another."
        )
    problem = _problem_of(tensors, branched, layout)
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
        if layout.name == "acl-legacy" and _problem_of(tensors, branched, layout):
            return "no"  # a name that ends in _adv proves nothing
        check_layout(tensors, layout, where)
        return "fits"
    # branches are numbered 0, 1 ... without a gap
    sites = {
        layer: site
        for layer, site in branched.items()
        if len(numbers := site.keys() - {None}) >= 2 and numbers == set(range(len(numbers)))
    }
    return _verdict_of_common(tensors, sites, layout, where) if sites else "no"


def _verdict_of_common(
    tensors: Tensors, sites: Mapping[str, Site], layout: Layout, where: str
) -> str:
    """Return the verdict on a list of BatchNorms, which ordinary networks may have, too."""
    ordered = sorted(tensors)
    # the keys inside of each layer
    below = {
        layer: ordered[bisect_left(ordered, f"{layer}.") : bisect_left(ordered, f"{layer}/")]
        for layer in sites
    }
    alone = [_is_alone(below[layer], layer, site) for layer, site in sites.items()]
    unequal = any(_shapes(tensors, site) > 1 for site in sites.values())
    if unequal or layout.name == "slimmable":
        if layout.name == "slimmable" and unequal and all(alone):
            check_layout(tensors, layout, where)
        # convolutions of unequal shapes are the layers of a block
        suspect = unequal and any(alone) and layout.name in ("slimmable", "domain")
        return "doubtful" if suspect else "no"
    if all(alone):
        return "fits"
    parallel = (_has_parallel_list(tensors, below[layer], layer, sites[layer]) for layer in sites)
    return "no" if all(parallel) else "doubtful"


def _is_meant(tensors: Tensors, branched: Mapping[str, Site], layout: Layout) -> bool:
    """Return whether a layout is meant, among several with the same places."""
    several = max(len(site) for site in branched.values())
    instance_norm = any(f"{layer.removesuffix('BN')}IN.weight" in tensors for layer in branched)
    embedded = any(f"{layer}.embed.weight" in tensors for layer in branched)
    conditions = {
        "dubn": not instance_norm,
        "dubin": instance_norm,
        "sandwich": embedded,
        "acl": not embedded and several <= 2,
        "advcl": not embedded and several >= 3,
        "det-advprop": not any(".bn_cls." in key or ".bn_box." in key for key in tensors),
        "det-advprop-heads": any({2, 3} & site.keys() for site in branched.values()),
        "subbn": any(1 in site for site in branched.values()),
    }
    return conditions.get(layout.name, True)


def _problem_of(tensors: Tensors, branched: Mapping[str, Site], layout: Layout) -> str:
    """Return why the branches of a file are incomplete, or an empty string if they are complete."""
    least, most = layout.branches
    positions = set(range(max(least, *map(len, branched.values()))))
    for layer, site in branched.items():
        if None in site:
            return f"{layer} has a plain BatchNorm and branches"
        if missing := positions - site.keys():
            return f"{layer} lacks branch {min(missing)}"
        if len(site) > most:
            return f"{layer} has {len(site)} branches"
        if _shapes(tensors, site) > 1 and not layout.chunks:
            return f"the branches of {layer} have different numbers of channels"
        leaves = {tuple(f"{p}{leaf}" in tensors for leaf in LEAVES[:4]) for p in site.values()}
        if layout.affine == "own" and len(leaves) > 1:
            return f"the branches of {layer} do not hold the same tensors"
    return ""


def _shapes(tensors: Tensors, site: Site) -> int:
    return len({tensors[f"{prefix}running_mean"].shape for prefix in site.values()})


def _is_alone(below: list[str], layer: str, site: Site) -> bool:
    """Return whether a module holds only its branches and the tensors of a BatchNorm."""
    own = {f"{layer}.{leaf}" for leaf in LEAVES}
    return all(key in own or key.startswith(tuple(site.values())) for key in below)


def _has_parallel_list(tensors: Tensors, below: list[str], layer: str, site: Site) -> bool:
    """Return whether a module has a list of convolutions or linear layers beside the BatchNorms."""
    rivals: dict[str, set[str]] = {}
    for key in below:
        if key.endswith(".weight") and tensors[key].ndim >= 2:
            name, number, *_ = [*key.removeprefix(f"{layer}.").split("."), ""]
            rivals.setdefault(name, set()).add(number)
    numbers = {str(position) for position in site if position is not None}
    return any(numbers <= found for found in rivals.values())


def branch_names(count: int) -> tuple[str, ...]:
    """Return `main`, `aux0`, `aux1` ..."""
    return ("main", *(f"aux{i}" for i in range(count - 1)))


def take_apart(
    tensors: Tensors, layout: Layout, roles: Mapping[str, int] | None, where: str
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], tuple[str, ...]]:
    """Separate shared weights from branches, in a layout that was checked.

    Branches without a position in `roles` get the remaining positions in order.

    Returns:
        The shared weights, the tensors of each branch under plain names, and the layers that have
        one BatchNorm for all branches.
    """
    sites = find_sites(tensors, layout)
    branched = marked(sites)
    count = _count(tensors, branched, layout)
    by_position: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    used: set[str] = set()
    for layer, site in sites.items():
        used |= {prefix + leaf for prefix in site.values() for leaf in LEAVES}
        if layer in branched and layout.affine == "shared":
            used |= {f"{layer}.{leaf}" for leaf in AFFINE}
        if layer in branched and layout.affine == "sandwich":
            used.add(f"{layer}.embed.weight")
        for own, leaves in zip(
            by_position, _layer(tensors, layer, site, layout, count, where), strict=True
        ):
            own |= {f"{layer}.{leaf}": tensor for leaf, tensor in leaves.items()}
    positions = _assign_roles(branch_names(count), roles, layout.order, where)
    branches = {name: by_position[position] for name, position in positions.items()}
    _check(branches, where)
    weights = {key: tensor for key, tensor in tensors.items() if key not in used}
    shared = tuple(layer for layer in sites if branched and layer not in branched)
    return weights, branches, shared


def _assign_roles(
    names: tuple[str, ...], roles: Mapping[str, int] | None, order: tuple[int, ...], where: str
) -> dict[str, int]:
    """Return the position of each branch, by name, in the order of the names."""
    if roles is None:
        # a network with plain layers has one branch, whatever the order of a file's
        known = order if len(order) == len(names) else range(len(names))
        return dict(zip(names, known, strict=True))
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


def _count(tensors: Tensors, branched: Mapping[str, Site], layout: Layout) -> int:
    if not branched:
        return 1
    site = next(iter(branched.values()))
    if not layout.chunks:
        return len(site)
    main, split = (tensors[f"{site[position]}running_mean"].numel() for position in (0, 1))
    return 1 + (split // main if main else 0)


def _layer(
    tensors: Tensors, layer: str, site: Site, layout: Layout, count: int, where: str
) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of one layer by position and leaf."""

    def take(prefix: str, leaves: tuple[str, ...] = LEAVES) -> dict[str, torch.Tensor]:
        return {leaf: tensors[prefix + leaf] for leaf in leaves if prefix + leaf in tensors}

    if set(site) == {None}:
        return [take(site[None])] * count
    if layout.chunks:
        main = take(site[0])
        shape = main["running_mean"].shape
        statistics = [main, *_chunks(take(site[1]), count - 1, shape, f"{where}: {layer}")]
    else:
        statistics = [take(site[position]) for position in range(count)]
    if layout.affine == "shared":
        return [take(f"{layer}.", AFFINE) | own for own in statistics]
    if layout.affine == "sandwich":
        embedding = tensors.get(f"{layer}.embed.weight")
        affines = _sandwich(
            f"{where}: {layer}", embedding, statistics[0]["running_mean"].shape, count
        )
        return [own | affine for own, affine in zip(statistics, affines, strict=True)]
    return statistics


def _chunks(
    splits: Tensors, parts: int, shape: torch.Size, where: str
) -> list[dict[str, torch.Tensor]]:
    """Return the equal parts of the vectors of all splits; numbers belong to every part."""
    for leaf, tensor in splits.items():
        if tensor.ndim and (not parts or tensor.numel() != parts * shape.numel()):
            raise InputError(
                f"{where}: {leaf} of the splits: expected {max(parts, 1)} times {shape.numel()} "
                f"channels, got {tensor.numel()}."
            )
    return [
        {leaf: t.reshape(parts, *shape)[part] if t.ndim else t for leaf, t in splits.items()}
        for part in range(parts)
    ]


def _sandwich(
    where: str, embedding: torch.Tensor | None, shape: torch.Size, count: int
) -> list[dict[str, torch.Tensor]]:
    """Return, for each branch, one affine for the shared affine followed by the branch's own."""
    channels = shape[0] if len(shape) == 1 else -1
    if embedding is None or embedding.shape != (count + 1, 2 * channels):
        found = None if embedding is None else tuple(embedding.shape)
        raise InputError(
            f"{where}.embed.weight: expected shape {(count + 1, 2 * channels)}, got {found}."
        )
    gamma, beta = embedding.to(torch.promote_types(embedding.dtype, torch.float32)).chunk(2, 1)
    shared = count
    return [
        {"weight": gamma[shared] * gamma[i], "bias": beta[shared] * gamma[i] + beta[i]}
        for i in range(count)
    ]


def _check(branches: Mapping[str, Tensors], where: str) -> None:
    main = branches["main"]
    for name, tensors in branches.items():
        for key, tensor in tensors.items():
            shape = tuple(tensor.shape)
            if key.endswith(COUNTER):
                if tensor.numel() != 1:
                    raise InputError(f"{where}: {name}: {key}: expected one number, got {shape}.")
                continue
            expected = main[f"{key.rpartition('.')[0]}.running_mean"].shape
            if tensor.ndim != 1 or shape != expected or not tensor.is_floating_point():
                raise InputError(
                    f"{where}: {name}: {key}: expected a vector of {tuple(expected)} floats, got "
                    f"{str(tensor.dtype).removeprefix('torch.')} {shape}."
                )
        odd = sorted(key for key in tensors.keys() ^ main.keys() if not key.endswith(COUNTER))
        if odd:
            raise InputError(
                f"{where}: expected the same tensors in every branch, got '{odd[0]}' in only one "
                f"of main and {name}."
            )
