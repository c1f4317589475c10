"""Fitting the tensors of a file to a network: the prefix of its names, statistics that are missing.

The network is the one that the user or the file names, or that the tensors determine. Its names
are compared with those of the file. Where no network is known, the tensors are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from recal.checkpoint.branches import AFFINE, Tensors, check_layout, recognise, take_apart
from recal.checkpoint.layouts import Layout, ReadingOptions, choose_layout, parse_roles
from recal.checkpoint.prefixes import outside, take_below, whole_prefix, without_wrappers
from recal.errors import RecalError, UsageError, listed
from recal.networks.detect import (
    ANCHORS,
    STATISTICS,
    Shapes,
    network_tensors,
    plain_shapes,
    possible_classes,
    proven_by,
    readings,
)
from recal.networks.spec import ModelOverrides
from recal.networks.wrappers import Front, strip_front

SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Separated:
    """The tensors of one network, separated into shared weights and branches under plain names.

    Attributes:
        layout: How the file names the tensors of its branches.
        weights: All tensors that belong to no BatchNorm layer.
        branches: For each branch, `main` first, the tensors of its layers.
        shared: Layers with one BatchNorm for all branches.
        missing: Layers without statistics in the file; the branches hold NaN in their place.
        front: What was in front of the names.
        notes: Notes for people on names.
        left: Names of the tensors outside of a prefix that was found.
    """

    layout: Layout
    weights: dict[str, torch.Tensor]
    branches: dict[str, dict[str, torch.Tensor]]
    shared: tuple[str, ...]
    missing: tuple[str, ...] = ()
    front: Front
    notes: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def shapes(self) -> Shapes:
        """Shapes of the plain network with the main branch, without statistics to be given."""
        tensors = {**self.weights, **self.branches["main"]}
        return plain_shapes({k: tuple(t.shape) for k, t in tensors.items() if not t.is_meta})


class Fit(NamedTuple):
    """A network that the tensors below a prefix are, and its own tensors under plain names."""

    prefix: str
    tensors: Tensors


def separate_and_fit(
    tensors: Tensors, options: ReadingOptions, facts: ModelOverrides, where: str
) -> Separated:
    """Separate the tensors of one network in a file, and find which statistics it lacks.

    Args:
        tensors: The tensors of the file by name.
        options: What the user says about the file.
        facts: What the file says about its network.
        where: The file, for messages.

    Raises:
        UsageError: The layout cannot be determined, several prefixes fit, or an option does not.
        InputError: The layout cannot be used.
    """
    tensors, wrappers = without_wrappers(tensors)
    notes = [f"'{listed(wrappers)}' removed from names"] if wrappers else []
    known = options.model.over(facts)
    if options.prefix is not None:
        front = take_below(tensors, whole_prefix(tensors, options.prefix, where))
        found, fit = _separate_best(front, options, known, where)
        how = "as given"
    else:
        front, how = strip_front(tensors), "removed from every name"
        found, fit = _separate_best(front, options, known, where)
        if fit is not None and fit.prefix:
            front = take_below(tensors, front.prefix + fit.prefix)
            found, fit = _separate_best(front, options, known, where)
            how = f"found, below which {known.arch or 'the network'} fits"
    left = outside(tensors, front)
    if front.prefix:
        notes.append(f"prefix '{front.prefix}' {how}")
    if left:
        notes.append(f"left, outside of the prefix: {listed(left, SHOWN)}")
    if fit is not None:
        found = _with_all_statistics(found, fit.tensors)
    return replace(found, notes=tuple(notes), left=() if options.prefix is not None else left)


def _separate_best(
    front: Front, options: ReadingOptions, known: ModelOverrides, where: str
) -> tuple[Separated, Fit | None]:
    """Separate tensors by themselves, or with the statistics that they may lack if that fits."""
    found, fit, problem = None, None, None
    try:
        found = _separate(front, options, where)
        fit = _fit(found, options, known, where)
        if fit is not None and not _missing(found, fit):
            return found, fit
    except RecalError as error:
        problem = error
    if (filled := _with_places(front.tensors)) is not None:
        with suppress(RecalError):
            other = _separate(replace(front, tensors=filled), options, where)
            other_fit = _fit(other, options, known, where)
            if other_fit is not None:
                return other, other_fit
    if found is None or isinstance(problem, SeveralNetworksError):
        assert problem is not None
        raise problem
    return found, fit


def _separate(front: Front, options: ReadingOptions, where: str) -> Separated:
    layout, roles = options.layout, options.roles
    if layout is None:
        layout = recognise(front.tensors, where)
    elif isinstance(layout, str):
        layout = choose_layout(layout)
    check_layout(front.tensors, layout, where)
    positions = None if roles is None else parse_roles(roles)
    weights, branches, shared = take_apart(front.tensors, layout, positions, where)
    return Separated(layout=layout, weights=weights, branches=branches, shared=shared, front=front)


class SeveralNetworksError(UsageError):
    """Several prefixes of a file lead to the same network."""


def _fit(
    found: Separated, options: ReadingOptions, known: ModelOverrides, where: str
) -> Fit | None:
    """Return the network that the tensors are, below at most one prefix; None if none is known."""
    shapes = found.shapes
    fits: list[Fit] = []
    for name, prefix in _candidates(options.model.arch, known.arch, shapes):
        below = shapes if prefix is None else _below(shapes, prefix)
        classes = known.classes or possible_classes(below)[0]
        tensors = network_tensors(name, classes, shapes, trusted=options.model.arch is not None)
        plain = None if tensors is None else _plain(tensors, found.layout)
        if plain is not None:
            prefixes = _prefixes(shapes, _shapes(plain)) if prefix is None else [prefix]
            fits += [Fit(prefix, plain) for prefix in prefixes]
        if fits and prefix is None:
            break  # the first name in the file that fits
    prefixes = list(dict.fromkeys(fit.prefix for fit in fits))
    if len(prefixes) > 1:
        raise SeveralNetworksError(
            f"{where}: expected one network, got several that fit below {listed(prefixes, SHOWN)}. "
            f"Say which with --prefix, such as --prefix {prefixes[0].removesuffix('.')}."
        )
    return fits[0] if fits else None


def _candidates(
    given: str | None, named: str | None, shapes: Shapes
) -> Iterator[tuple[str, str | None]]:
    """Yield names of architectures, with the prefix below which they fit if that is known."""
    names = [given] if given else readings(named)
    if names:
        yield from ((name, None) for name in names)
        return
    prefixes = [
        key.removesuffix(end)
        for key in shapes
        for end in ANCHORS
        if key == end or key.endswith(f".{end}")
    ]
    for prefix in dict.fromkeys(prefixes):
        if proven := proven_by(_below(shapes, prefix)):
            yield proven[0], prefix
            if not prefix:
                return


def _prefixes(shapes: Shapes, expected: Shapes) -> list[str]:
    """Return the prefixes below which the tensors are those of a network, statistics aside."""
    anchor = next((key for key in expected if not key.endswith(STATISTICS)), None)
    if anchor is None:
        return []
    ends = [k.removesuffix(anchor) for k in shapes if k == anchor or k.endswith(f".{anchor}")]
    differing: dict[str, int] = {}
    for prefix in ends:
        below = _below(shapes, prefix)
        absent = expected.keys() - below.keys()
        if below.keys() <= expected.keys() and all(key.endswith(STATISTICS) for key in absent):
            differing[prefix] = sum(shape != expected[key] for key, shape in below.items())
    return [prefix for prefix, count in differing.items() if count == min(differing.values())]


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return plain_shapes(
        {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    )


def _plain(tensors: Tensors, layout: Layout) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a network under plain names, with one branch if it has several."""
    try:
        weights, branches, _ = take_apart(strip_front(tensors).tensors, layout, None, "network")
    except RecalError:
        return None
    return {**weights, **branches["main"]}


def _shapes(tensors: Tensors) -> Shapes:
    return plain_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()})


def _missing(found: Separated, fit: Fit) -> bool:
    below = _below(found.shapes, fit.prefix)
    return any(key not in below for key in _shapes(fit.tensors))


def _with_places(tensors: Tensors) -> dict[str, torch.Tensor] | None:
    """Add statistics without values to whatever has weight and bias of BatchNorm and no statistics.

    Returns:
        None if there is no such layer.
    """
    filled: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        filled[key] = tensor
        layer, _, leaf = key.rpartition(".")
        bias = tensors.get(f"{layer}.bias")
        if leaf == "weight" and tensor.ndim == 1 and bias is not None and layer:
            for name in STATISTICS:
                if f"{layer}{name}" not in tensors:
                    filled[f"{layer}{name}"] = torch.empty(tensor.shape, device="meta")
    return filled if len(filled) > len(tensors) else None


def _with_all_statistics(found: Separated, network: Tensors) -> Separated:
    """Give the layers of a network that have no statistics NaN in their place."""
    mean = STATISTICS[0]
    weights = dict(found.weights)
    branches = {name: dict(tensors) for name, tensors in found.branches.items()}
    main = found.branches["main"]
    # a part of the channels of a layer may have instance norm
    layers = {
        f"{layer}.BN" if f"{layer}.BN.weight" in main else layer: tensor.shape
        for layer, tensor in _suffixed(network, mean)
    }
    others = [layer for layer, tensor in _suffixed(main, mean) if tensor.is_meta]
    for layer in others:
        if layer not in layers:  # another kind of norm layer
            weights |= {key: main[key] for leaf in AFFINE if (key := f"{layer}.{leaf}") in main}
            for tensors in branches.values():
                for key in [key for key in tensors if key.rpartition(".")[0] == layer]:
                    del tensors[key]
    missing = [
        layer for layer in layers if f"{layer}{mean}" not in main or main[f"{layer}{mean}"].is_meta
    ]
    for layer in missing:
        affine = [key for leaf in AFFINE if (key := f"{layer}.{leaf}") in weights]
        moved = {key: weights.pop(key) for key in affine}
        # branches with the same channels, which are fewer than the network's beside instance norm
        own = main.get(f"{layer}.weight", moved.get(f"{layer}.weight"))
        places = torch.full(layers[layer] if own is None else own.shape, torch.nan)
        for name in branches:
            branches[name] |= moved | {f"{layer}{leaf}": places.clone() for leaf in STATISTICS}
    return replace(found, weights=weights, branches=branches, missing=tuple(missing))


def _suffixed(tensors: Tensors, suffix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in tensors.items():
        if key.endswith(suffix):
            yield key.removesuffix(suffix), tensor
