"""Layouts: where the tensors of each BatchNorm branch are in a file; what users say about a file.

Most are in the table `LAYOUTS`. Users can describe their own in a TOML file:

    name = "my-fork"
    roles = "main = clean, aux0 = attacked"
    affine = "own"                                # or "shared": weight and bias at {layer}

    [[branch]]                                    # in order: main, aux0 ...
    key = "{layer}.norm_clean.{leaf}"

    [[branch]]
    key = "{layer}.norm_attacked.{leaf}"

Numbered branches need one entry, `key = "{layer}.norms.{index}.{leaf}"`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from recal.errors import UsageError, pick, shown
from recal.networks.feeding import Convention
from recal.networks.spec import NOTHING_GIVEN, ModelOverrides
from recal.schema import Record, read_toml

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
MEAN = "running_mean"


@dataclass(frozen=True)
class Place:
    """The keys of the tensors of a branch.

    Attributes:
        key: A key with `{layer}` for the plain path of the layer, `{index}` for the number of a
            numbered branch, and `{leaf}` at its end for weight, bias and so on.
        first: Position of the branch, or of the branch with number 0.
    """

    key: str
    first: int = 0

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression for the key of a running mean."""
        text = re.escape(self.key.removesuffix("{leaf}"))
        text = text.replace(r"\{layer\}", "(?P<layer>.+)").replace(
            r"\{index\}", r"(?P<index>\d{1,3})"
        )
        return re.compile(f"(?P<prefix>{text}){MEAN}")


PLAIN = Place("{layer}.{leaf}")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to name the tensors of branches.

    Attributes:
        name: Name for `recal inspect` and `--layout`.
        writer: The software that writes this layout.
        source: Paper or code that defines the layout.
        roles: Which images trained which branch, by the convention of the software.
        places: The keys of the branches. A BatchNorm under an ordinary key is shared by all
            branches.
        affine: Where weight and bias are: `own` (in each branch), `shared` (at `{layer}`) or
            `sandwich` (rows of an embedding, of which the last is shared).
        chunks: Whether positions from 1 on are equal parts of one vector.
        branches: Smallest and largest number of branches in a file of this layout.
        order: Positions of main, aux0 ...; empty if they are in order of position.
        common: Whether ordinary networks use these names, too, so that shapes and neighbours have
            to decide.
        doubt: Why the roles may be others; empty if they are certain.
        refused: Why files of this layout cannot be used; empty if they can.
        convention: Mean and std that its authors use, where the file names none; None if unknown.
        automatic: Whether the layout can be detected from keys; otherwise only `--layout` selects
            it.
    """

    name: str
    writer: str
    source: str
    roles: str
    places: tuple[Place, ...]
    affine: Literal["own", "shared", "sandwich"] = "own"
    chunks: bool = False
    branches: tuple[int, int] = (2, 99)
    order: tuple[int, ...] = ()
    common: bool = False
    doubt: str = ""
    refused: str = ""
    convention: Convention | None = None
    automatic: bool = True


# prefix of the keys of each branch, by position; None is a plain BatchNorm for all branches
Site = dict[int | None, str]


def find_sites(keys: Iterable[str], layout: Layout) -> dict[str, Site]:
    """Return the prefixes of the branches of each BatchNorm layer, by plain path of the layer."""
    keys = dict.fromkeys(keys)  # a set in the order of the file
    sites: dict[str, Site] = {}
    for key in keys:
        if not key.endswith(MEAN) or f"{key.removesuffix(MEAN)}running_var" not in keys:
            continue
        for place in layout.places:
            match = place.pattern.fullmatch(key)
            if match is not None:
                position = place.first + int(match.groupdict().get("index") or 0)
                sites.setdefault(match["layer"], {})[position] = match["prefix"]
                break
        else:
            # a leaf at the top level may look like a layer, too
            match = PLAIN.pattern.fullmatch(key)
            if match is not None:
                sites.setdefault(match["layer"], {})[None] = match["prefix"]
    # A layer with only a main branch is plain, and shared by all branches, if that branch has an
    # ordinary key (`bn1`), or a key that ordinary networks use, too (`conv1.bn`, beside SubBN).
    may_be_plain = PLAIN in layout.places or layout.chunks
    return dict(
        (site[0].removesuffix("."), {None: site[0]})
        if may_be_plain and set(site) == {0}
        else (layer, site)
        for layer, site in sites.items()
    )


def marked(sites: Mapping[str, Site]) -> dict[str, Site]:
    """Return the layers that have branches."""
    return {layer: site for layer, site in sites.items() if set(site) != {None}}


_FIRST_OF_BATCH = "main = first part of the batch (clean or weakly augmented), aux0 ... = the rest"
_CLEAN_FIRST = "main = clean images, aux0 = adversarial ones"
# images in [0, 1] as they are, in code for CIFAR-10 and CIFAR-100
_UNNORMALISED = Convention(mean=(0.0,) * 3, std=(1.0,) * 3, families=("cifar",))
_HALVES = Convention(mean=(0.5,) * 3, std=(0.5,) * 3)

LAYOUTS = (
    Layout(
        name="timm-splitbn",
        writer="timm, SplitBatchNorm2d",
        source="timm/layers/split_batchnorm.py",
        roles=_FIRST_OF_BATCH,
        places=(Place("{layer}.aux_bn.{index}.{leaf}", 1), PLAIN),
    ),
    Layout(
        name="mixbn",
        writer="AdvProp ports with MixBatchNorm2d, Fast AdvProp",
        source="arXiv 1911.09665; github.com/tingxueronghua/pytorch-classification-advprop",
        roles="main = clean half of the batch, aux0 = adversarial half",
        places=(Place("{layer}.aux_bn.{leaf}", 1), PLAIN),
        convention=_HALVES,
    ),
    Layout(
        name="two-adversaries",
        writer="AdvProp forks with two adversaries",
        source="forks of pytorch-classification-advprop",
        roles="main = clean images, aux0 and aux1 = one adversary each",
        places=(Place("{layer}.aux_bn{index}.{leaf}", 0), PLAIN),
        convention=_HALVES,
    ),
    Layout(
        name="dubn",
        writer="AugMax, DuBN",
        source="arXiv 2110.13771; github.com/VITA-Group/AugMax",
        roles="main = clean and AugMix images, aux0 = AugMax images",
        places=(Place("{layer}.bn.{index}.{leaf}"),),
        common=True,
        convention=_UNNORMALISED,
    ),
    Layout(
        name="dubin",
        writer="AugMax, DuBIN: instance norm on the first channels, DuBN on the rest",
        source="arXiv 2110.13771; github.com/VITA-Group/AugMax",
        roles="main = clean and AugMix images, aux0 = AugMax images; {layer}.IN is shared",
        places=(Place("{layer}.bn.{index}.{leaf}"),),
        common=True,
        convention=_UNNORMALISED,
    ),
    Layout(
        name="once-for-all",
        writer="Once-for-all adversarial training",
        source="arXiv 2010.11828; github.com/VITA-Group/Once-for-All-Adversarial-Training",
        roles=_CLEAN_FIRST,
        places=(Place("{layer}.BN_c.{leaf}", 0), Place("{layer}.BN_a.{leaf}", 1)),
        convention=_UNNORMALISED,
    ),
    Layout(
        name="sandwich",
        writer="Sandwich-BN, SaAuxBN",
        source="arXiv 2102.11382; github.com/VITA-Group/Sandwich-Batch-Normalization",
        roles=_CLEAN_FIRST,
        places=(Place("{layer}.bn_list.{index}.{leaf}"),),
        affine="sandwich",
    ),
    Layout(
        name="acl",
        writer="Adversarial contrastive learning (ACL)",
        source="arXiv 2010.13337; github.com/VITA-Group/Adversarial-Contrastive-Learning",
        roles="main = normal images, aux0 = PGD",
        places=(Place("{layer}.bn_list.{index}.{leaf}"),),
        branches=(1, 2),
        doubt="ACL puts normal images first, another adversarial-training repository PGD images "
        "(layout acl-reversed), under the same names",
    ),
    Layout(
        name="acl-legacy",
        writer="ACL's first checkpoints, and networks with bn1_adv beside bn1",
        source="github.com/VITA-Group/Adversarial-Contrastive-Learning",
        roles="main = normal images, aux0 = PGD",
        places=(Place("{layer}_adv.{leaf}", 1), PLAIN),
    ),
    Layout(
        name="advcl",
        writer="AdvCL",
        source="arXiv 2111.01124; github.com/LijieFan/AdvCL",
        roles="main = normal images, aux0 = PGD, aux1 = PGD on the cross-entropy",
        places=(Place("{layer}.bn_list.{index}.{leaf}"),),
        branches=(3, 99),
        convention=_UNNORMALISED,
    ),
    Layout(
        name="acl-reversed",
        writer="an adversarial-training repository with ACL's names and reversed roles",
        source="the same keys as acl, only by --layout",
        roles="main = normal images (number 1), aux0 = PGD (number 0)",
        places=(Place("{layer}.bn_list.{index}.{leaf}"),),
        branches=(2, 2),
        order=(1, 0),
        automatic=False,
        convention=_UNNORMALISED,
    ),
    Layout(
        name="domain",
        writer="Domain-specific BN",
        source="arXiv 1906.03950; github.com/woozch/DSBN",
        roles="main = first domain (source), aux0 ... = the other domains",
        places=(Place("{layer}.bns.{index}.{leaf}"),),
        common=True,
    ),
    Layout(
        name="subbn",
        writer="SubBatchNorm (SlowFast, PyTorchVideo, mmaction2)",
        source="slowfast/models/batchnorm_helper.py",
        roles="main = statistics aggregated over the splits, which evaluation uses, aux0 ... = the "
        "splits",
        places=(Place("{layer}.split_bn.{leaf}", 1), Place("{layer}.bn.{leaf}", 0)),
        affine="shared",
        chunks=True,
    ),
    Layout(
        name="shared-affine",
        writer="dual BN with shared affine",
        source="on what such branches share: arXiv 2210.04886",
        roles=_CLEAN_FIRST,
        places=(Place("{layer}.adv_{leaf}", 1), PLAIN),
        affine="shared",
    ),
    Layout(
        name="det-advprop",
        writer="Det-AdvProp ports, one adversary",
        source="arXiv 2103.13886",
        roles=_CLEAN_FIRST,
        places=(Place("{layer}.bn_clean.{leaf}", 0), Place("{layer}.bn_adv.{leaf}", 1)),
    ),
    Layout(
        name="det-advprop-heads",
        writer="Det-AdvProp ports, an adversary for each of the detector's two losses",
        source="arXiv 2103.13886",
        roles="thirds of the batch: clean, against classification, against boxes",
        places=(
            Place("{layer}.bn_clean.{leaf}", 0),
            Place("{layer}.bn_adv.{leaf}", 1),
            Place("{layer}.bn_cls.{leaf}", 2),
            Place("{layer}.bn_box.{leaf}", 3),
        ),
        refused="its branches belong to the losses of a detector with several heads, which is no "
        "classifier. Keep the clean branch in the training code and save a plain state_dict",
    ),
    Layout(
        name="slimmable",
        writer="Slimmable networks",
        source="arXiv 1812.08928; github.com/JiahuiYu/slimmable_networks",
        roles="one BatchNorm for each width of the network",
        places=(Place("{layer}.bn.{index}.{leaf}"),),
        common=True,
        refused="its branches are widths with their own channel counts, so that each goes with "
        "other slices of the weights. Cut out one width with its own code and save a plain "
        "state_dict (or, if these are layers used one after the other, say --layout plain)",
    ),
    Layout(
        name="plain",
        writer="any network",
        source="",
        roles="one branch",
        places=(PLAIN,),
        branches=(1, 1),
    ),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}


def choose_layout(name: str) -> Layout:
    """Return a layout by name, or the one that a TOML file describes."""
    if name.endswith(".toml"):
        return _read_layout(Path(name))
    return BY_NAME[pick(name, BY_NAME, "--layout (or a .toml file)")]


class BranchEntry(Record, frozen=True, kw_only=True):
    """A `[[branch]]` of a layout file: the pattern of its keys, from `{layer}` to `{leaf}`."""

    key: str

    def __post_init__(self) -> None:
        key = self.key
        if not key.startswith("{layer}") or not key.endswith("{leaf}") or key.count("{") > 3:
            raise ValueError(
                f"key: expected a pattern such as {{layer}}.norm_clean.{{leaf}}, got {shown(key)}."
            )


class LayoutFile(Record, frozen=True, kw_only=True):
    """A layout that a user describes in a TOML file, as at the top of this module.

    Attributes:
        name: Name of the layout; by default that of the file.
        roles: Which images trained which branch.
        affine: Whether each branch has its `own` weight and bias, or `{layer}` has `shared` ones.
        branch: The branches in order: main, aux0 ..., or one entry for all numbered branches.
    """

    name: str = ""
    roles: str = "by position"
    affine: Literal["own", "shared"] = "own"
    branch: tuple[BranchEntry, ...]

    def __post_init__(self) -> None:
        if not self.branch:
            raise ValueError("branch: expected at least one.")


def _read_layout(path: Path) -> Layout:
    file = read_toml(path, LayoutFile)
    places = [Place(entry.key, first) for first, entry in enumerate(file.branch)]
    return Layout(
        name=file.name or path.stem,
        writer=str(path),
        source=str(path),
        roles=file.roles,
        # the more specific of two patterns has to be tried first
        places=tuple(sorted(places, key=lambda place: -len(place.key))),
        affine=file.affine,
        branches=(1, 99),
        automatic=False,
    )


def parse_roles(text: str | Mapping[str, int]) -> dict[str, int]:
    """Return the position of each branch, read from `main=1,aux0=0` or a dictionary."""
    pairs = (
        [tuple(part.partition("=")[::2]) for part in text.split(",")]
        if isinstance(text, str)
        else list(text.items())
    )
    try:
        return {str(name).strip(): int(position) for name, position in pairs}
    except ValueError as error:
        raise UsageError(f"--roles: expected main=1,aux0=0, got '{text}'.") from error


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What the user says about a checkpoint, to complete or override what the file says.

    Attributes:
        layout: Name of a layout or a .toml file that describes one; None to detect it.
        roles: Which position is which branch, as `main=1,aux0=0` or a dictionary.
        ema: Whether to take the moving average of the weights instead of the weights.
        prefix: What the names of the network's tensors begin with, such as `encoder_q`; None to
            find it.
        model: Architecture and preprocessing.
    """

    layout: str | Layout | None = None
    roles: str | Mapping[str, int] | None = None
    ema: bool = False
    prefix: str | None = None
    model: ModelOverrides = NOTHING_GIVEN


AS_FOUND = ReadingOptions()
