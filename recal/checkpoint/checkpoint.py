"""A checkpoint: shared weights and the BatchNorm branches that go with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from recal.checkpoint.fitting import Separated, separate_and_fit
from recal.checkpoint.layouts import AS_FOUND, Layout, ReadingOptions, parse_roles
from recal.checkpoint.lookalikes import find_lookalikes
from recal.checkpoint.reading import WeightFile, read_weight_file
from recal.data.normalise import ChannelOrder
from recal.errors import InputError, RecalError, UsageError, did_you_mean, listed, printable
from recal.networks.activations import layers_with_activation, looks_like_timms
from recal.networks.completion import complete_spec
from recal.networks.feeding import AsAssumed
from recal.networks.quantised import SIMULATES
from recal.networks.spec import ModelOverrides, ModelSpec
from recal.schema import convert

# layers whose scale and shift are computed from a further input of the network
CONDITION = re.compile(r"(^|\.)film\w*\.", re.IGNORECASE)


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
        reading: What the user said about the file and its network, which overrides `facts`.
        file: The tensors of the file as they are stored.
        missing: Plain paths of the layers whose statistics the file does not have. The branches
            have NaN in their place; `calibrate` estimates them.
        shared: Plain paths of the layers that have one BatchNorm for all of several branches.
        notes: Notes for people on what was unwrapped, chosen or left out while reading.
        doubtful: What was assumed while reading and may be wrong.
    """

    path: Path
    layout: Layout
    weights: Mapping[str, torch.Tensor]
    branches: Mapping[str, Mapping[str, torch.Tensor]]
    facts: ModelOverrides
    reading: ReadingOptions = AS_FOUND
    file: WeightFile = field(repr=False)
    missing: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    notes: tuple[str, ...]
    doubtful: tuple[Finding, ...] = ()

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
    def overrides(self) -> ModelOverrides:
        """What the user said about the network, which overrides `facts`."""
        return self.reading.model

    @property
    def layers(self) -> list[str]:
        """Plain paths of the BatchNorm layers, in the order of the file."""
        return _layers(self.branches)

    @property
    def split_layers(self) -> list[str]:
        """Plain paths of the layers that have a BatchNorm for each branch."""
        return [layer for layer in self.layers if layer not in self.shared]

    @property
    def simulates_integers(self) -> bool:
        """Whether the network is one of quantisation-aware training."""
        return any(name.endswith(SIMULATES) for name in self.weights)

    @cached_property
    def lost_activations(self) -> Finding | None:
        """A finding if the network may have been trained without activations, else None.

        That is so where layers of several branches are those of timm's `BatchNormAct2d` in the
        architecture, and neither the user nor the file says whether they were trained as such.
        """
        told = self.overrides.bn_act is not None or self.facts.bn_act is not None
        if len(self.branches) < 2 or told:
            return None
        try:
            carrying = layers_with_activation(self.spec)
        except RecalError:
            carrying = self.layers if looks_like_timms(self.weights) else []
        layers = tuple(layer for layer in self.split_layers if layer in carrying)
        if not layers:
            return None
        return Finding(
            kind="lost-activations",
            layers=layers,
            what=f"several branches (layout {self.layout.name}) in {len(layers)} BatchNorm layers "
            f"that carry the network's activations, as timm's BatchNormAct2d does: "
            f"{listed(layers, 3)}",
            follows="timm before 1.0.31, and code that puts a BatchNorm of its own in their place, "
            "drops these activations. Weights trained so belong to a network without them: give "
            "--no-bn-act, or --bn-act if they were trained with them. Labelled images tell (recal "
            "inspect --data, recal eval).",
        )

    @cached_property
    def doubts(self) -> tuple[Finding, ...]:
        """Assumptions that may be wrong, which commands show as warnings."""
        lost = self.lost_activations
        return (*self.doubtful, *([] if lost is None else [lost]))

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
        mean: Sequence[float] | AsAssumed | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        bn_act: bool | None = None,
        crop_share: float | None = None,
        interpolation: str | None = None,
        crop_mode: str | None = None,
        policy: str | None = None,
        channels: int | None = None,
        channel_order: ChannelOrder | None = None,
    ) -> Checkpoint:
        """Return this checkpoint with another description of its network than the file's.

        Arguments that are None keep what the file, or an earlier call, says. The prefix of the
        names in the file, and which statistics it lacks, are found anew with an architecture.

        Args:
            arch: Name of the architecture: `wrn16_1`, `timm:resnet50`, `python:FILE.py:CALLABLE`.
            classes: Number of classes, K.
            family: Family of policies that suits the network, such as `cifar`.
            mean: Mean of each channel of images in [0, 1]; or `as-assumed` to use what recal
                assumes, even if images show that it does not fit.
            std: Standard deviation of each channel.
            size: Side of the square input, in pixels.
            bn_act: Whether BatchNorm layers apply the activation that timm's `BatchNormAct2d`
                carries; false for a network that was trained without.
            crop_share: Share of the resized side that the crop of test images keeps.
            interpolation: Filter of resizing, such as `bicubic`.
            crop_mode: How test images are resized and cropped: `center`, `squash`, `border` or
                `none`.
            policy: Text of a policy without random ops that prepares test images.
            channels: Number of channels of the images, C.
            channel_order: Order of the channels in the network's input, `rgb` or `bgr`.

        Raises:
            InputError: A value is of the wrong type or out of its range.
            UsageError: Several prefixes of the file lead to this architecture.
        """
        given = {
            "arch": arch, "classes": classes, "family": family,
            "mean": mean, "std": std, "size": size, "crop_share": crop_share,
            "interpolation": interpolation, "crop_mode": crop_mode, "policy": policy,
            "bn_act": bn_act, "channels": channels, "channel_order": channel_order,
        }  # fmt: skip
        overrides = convert(given, ModelOverrides, str(self.path))
        reading = replace(self.reading, model=overrides.over(self.overrides))
        if arch is None:
            return replace(self, reading=reading)
        return _separated(self.path, self.file, reading)

    @cached_property
    def spec(self) -> ModelSpec:
        """Architecture and preprocessing, completed from the overrides, the file and its family.

        Raises:
            UsageError: The architecture or the number of classes cannot be determined.
            InputError: A value is out of its range.
        """
        tensors = {**self.weights, **self.branches["main"]}
        where, convention = str(self.path), self.layout.convention
        return complete_spec(self.overrides, self.facts, tensors, where, convention)


def _layers(branches: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    suffix = ".running_mean"
    return [name.removesuffix(suffix) for name in branches["main"] if name.endswith(suffix)]


def load_checkpoint(
    path: str | Path,
    *,
    layout: str | Layout | None = None,
    roles: str | Mapping[str, int] | None = None,
    ema: bool = False,
    prefix: str | None = None,
    arch: str | None = None,
) -> Checkpoint:
    """Read a checkpoint and recognise its branches.

    Args:
        path: A .pth or .safetensors file. No code in it is run.
        layout: Name of a layout or a .toml file that describes one; None to detect it.
        roles: Which position is which branch, as `main=1,aux0=0` or a dictionary.
        ema: Whether to take the moving average of the weights instead of the weights.
        prefix: What the names of the network's tensors begin with, such as `encoder_q`; None to
            find it by comparison with the network.
        arch: Architecture as for `Checkpoint.overridden`; needed here for files without any
            statistics, whose BatchNorm layers the names alone do not tell.

    Raises:
        InputError: The file is not a checkpoint, has no BatchNorm, or has a layout that cannot be
            used.
        UsageError: The layout or the prefix cannot be determined, or those given do not fit.
    """
    model = convert({"arch": arch}, ModelOverrides, "load_checkpoint")
    reading = ReadingOptions(layout=layout, roles=roles, ema=ema, prefix=prefix, model=model)
    return read_checkpoint(Path(path), reading)


def read_checkpoint(path: Path, options: ReadingOptions) -> Checkpoint:
    """Read a checkpoint as `load_checkpoint` does, with its arguments as one object."""
    return _separated(path, read_weight_file(path, ema=options.ema), options)


def _separated(path: Path, file: WeightFile, options: ReadingOptions) -> Checkpoint:
    """Return the checkpoint that the tensors of a file make with what the user says about it."""
    found = separate_and_fit(file.tensors, options, file.facts, str(path))
    if not found.branches["main"]:
        raise InputError(
            f"{path}: expected a network with BatchNorm, got {len(file.tensors)} tensors and no "
            "running_mean among them. If its BatchNorm layers lack statistics alone, name the "
            "network with --arch, and calibrate it. recal can do nothing for networks without "
            "BatchNorm."
        )
    notes = [*file.notes, *found.notes]
    front, facts = found.front, file.facts
    if front.normaliser:
        notes.append(
            f"normalisation in front ({', '.join(front.normaliser)}) taken as mean and std"
        )
        facts = ModelOverrides(mean=front.mean, std=front.std).over(facts)
    if any(key.endswith(SIMULATES) for key in found.weights):
        notes.append(
            "quantisation-aware training: its observers are switched off, and ranges of simulated "
            "integers stay as stored"
        )
    if found.shared:
        notes.append(f"one BatchNorm for all branches at {listed(found.shared)}")
    if options.roles is not None:
        roles = parse_roles(options.roles)
        notes.append("roles as given: " + ", ".join(f"{k} = {v}" for k, v in roles.items()))
    return Checkpoint(
        path=path, layout=found.layout, weights=found.weights, branches=found.branches,
        facts=facts, reading=options, file=file, missing=found.missing, shared=found.shared,
        notes=tuple(notes), doubtful=tuple(_doubts(found, options, file)),
    )  # fmt: skip


def _doubts(found: Separated, options: ReadingOptions, file: WeightFile) -> Iterator[Finding]:
    told = options.layout is not None or options.roles is not None
    if found.layout.doubt and not told and len(found.branches) > 1:
        yield Finding(
            kind="roles",
            what=f"the roles are in doubt: {found.layout.doubt}",
            follows="Branches are named by position. Score them on clean images (recal inspect "
            "--data) and, if need be, swap them with --roles main=1,aux0=0.",
        )
    if found.missing and options.model.arch is None:
        yield Finding(
            kind="assumed-batch-norm",
            layers=found.missing,
            what=f"{listed(found.missing)} store no statistics and are taken for BatchNorm",
            follows="If they are group or layer norm, which keep none, recal can do nothing for "
            "this network. Name it with --arch.",
        )
    groups = find_lookalikes({**found.weights, **found.branches["main"]})
    if groups and found.layout.name == "plain" and options.layout is None:
        first, places = groups[0], f"{len(groups)} place{'s' * (len(groups) > 1)}"
        entries = ", ".join(f'[[branch]] key = "{key}"' for key in first.keys)
        yield Finding(
            kind="unknown-branches",
            layers=tuple(path for group in groups for path in group.paths),
            what=f"{' and '.join(first.paths)} look like branches of one layer, of which an image "
            f"passes one (at {places})",
            follows="recal takes them for layers used one after the other. Describe branches in a "
            f"file, {entries}, and give it with --layout mine.toml; otherwise say --layout plain.",
        )
    if file.statistics_of is not None:
        yield Finding(
            kind="foreign-statistics",
            what=f"the statistics belong to the weights under '{file.statistics_of}', because "
            "those used here have none of their own",
            follows="Calibrate them (recal calibrate), or the accuracy may be far below what these "
            "weights can reach.",
        )
    if file.unused and options.model.arch is None:
        yield Finding(
            kind="left-out",
            what=f"the settings {listed(file.unused)} of the network in config.json are not "
            "applied",
            follows="If they change what it computes, give the network with --arch "
            "python:FILE.py:CALLABLE.",
        )
    matrices = [name for name in found.left if name.endswith(".weight")]
    if matrices and options.model.arch is None:
        yield Finding(
            kind="left-out",
            layers=tuple(matrices),
            what=f"weights outside of the prefix '{found.front.prefix}' are left out: "
            f"{listed(matrices)}",
            follows="If they are a part of the network, such as its classifier, give a network "
            "that has them with --arch python:FILE.py:CALLABLE.",
        )
    conditions = [key for key in found.weights if CONDITION.search(key)]
    if len(found.branches) > 1 and conditions:
        yield Finding(
            kind="branch-input",
            layers=tuple(conditions),
            what=f"{listed(conditions)} show a network with a further input (FiLM), which goes "
            "with the branch",
            follows="In once-for-all training, main belongs with lambda 0 and aux0 with lambda "
            "above 0. Use each branch with a class of its own as --arch (docs/checkpoints.md has "
            "examples): with one class for both, one of them gives wrong outputs.",
        )
