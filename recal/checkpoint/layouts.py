"""How checkpoints spell several BatchNorm branches, as one literal table.

The path of a BatchNorm in a file is the plain layer's path and something that names the branch.
To add a layout: one line in the table at the foot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to spell branches.

    Attributes:
        name: What `recal inspect` calls it.
        source: Who writes it.
        auxiliary: Pattern of an auxiliary BN's path; group `layer` is the plain layer's path, group
            `index` numbers the auxiliary branches where there may be several. None: no branches.
        roles: Which images trained which branch, by the convention of those who write it.
    """

    name: str
    source: str
    auxiliary: str | None
    roles: str


def batch_norm_paths(keys: Collection[str]) -> list[str]:
    """Return the paths that own running statistics, in the order of the keys."""
    known = set(keys)
    paths = (key.removesuffix(".running_mean") for key in keys if key.endswith(".running_mean"))
    return [path for path in paths if f"{path}.running_var" in known]


def recognise(keys: Collection[str]) -> tuple[Layout, dict[str, tuple[str, str]]]:
    """Find the layout of a file's keys.

    Returns:
        The layout, and for every BatchNorm's path the plain layer's path and the branch's name.
    """
    paths = batch_norm_paths(keys)
    for layout in LAYOUTS:
        found = {path: _branch_of(path, layout) for path in paths}
        if layout.auxiliary is None or any(branch != "main" for _, branch in found.values()):
            return layout, found
    raise AssertionError("the last layout of the table accepts every file")


def _branch_of(path: str, layout: Layout) -> tuple[str, str]:
    match = re.fullmatch(layout.auxiliary, path) if layout.auxiliary else None
    if match is None:
        return path, "main"
    return match["layer"], f"aux{match.groupdict().get('index') or 0}"


LAYOUTS = (
    Layout(
        name="timm-splitbn",
        source="timm's convert_splitbn_model",
        auxiliary=r"(?P<layer>.+)\.aux_bn\.(?P<index>\d+)",
        roles="main = first part of the batch (weakly augmented), aux0 ... = the parts after it",
    ),
    Layout(
        name="mixbn",
        source="AdvProp ports with MixBatchNorm2d, Fast AdvProp",
        auxiliary=r"(?P<layer>.+)\.aux_bn",
        roles="main = clean half of the batch, aux0 = adversarial half",
    ),
    Layout(name="plain", source="any network", auxiliary=None, roles="one branch"),
)
