"""Targets: the networks that are evaluated, from branches, variant files and ONNX files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recal.checkpoint.checkpoint import Checkpoint
from recal.checkpoint.layouts import ReadingOptions
from recal.errors import InputError, UsageError
from recal.evaluation.adaptation import SAW_TEST_DATA, Adaptation
from recal.networks.spec import ModelSpec
from recal.onnx_file.predict import network_spec
from recal.onnx_file.session import OnnxNetwork
from recal.schema import to_json
from recal.variant.resolve import resolve_variants
from recal.variant.variant import Variant

Given = str | Path | Checkpoint | Variant


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A network to be evaluated; `sha256` identifies it and its preprocessing."""

    name: str
    label: str
    sha256: str
    spec: ModelSpec


@dataclass(frozen=True, kw_only=True)
class VariantTarget(_Target):
    """A variant and the checkpoint with its weights."""

    checkpoint: Checkpoint
    variant: Variant


@dataclass(frozen=True, kw_only=True)
class OnnxTarget(_Target):
    """An ONNX file."""

    path: Path


Target = VariantTarget | OnnxTarget


def resolve_targets(
    given: Sequence[Given], checkpoint: Path | Checkpoint | None, reading: ReadingOptions
) -> list[Target]:
    """Return the targets that the user named.

    Args:
        given: Each an .onnx file, or what `recal.variant.resolve` takes: a checkpoint,
            `CHECKPOINT:BRANCH`, a branch of `checkpoint`, a variant file, or a checkpoint or
            variant in memory. If empty, every branch of `checkpoint` is a target.
        checkpoint: Where branches without a file, and weights of variants, are found.
        reading: How checkpoints are read. Architecture and preprocessing in it also override those
            of variants and ONNX files.

    Raises:
        UsageError: A name is neither a file nor a branch, or is given twice.
        InputError: A file is not what it should be, or no checkpoint has a variant's weights.
    """
    files = [str(item) for item in given if _is_onnx(item)]
    twice = [name for name in files if files.count(name) > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' is given twice. Give each target once.")
    others = [item for item in given if not _is_onnx(item)]
    variants = [] if files and not others else resolve_variants(others, checkpoint, reading)
    found = iter(
        VariantTarget(**vars(item), sha256=item.variant.sha256, spec=item.variant.spec)
        for item in variants
    )
    targets: list[Target] = [
        _onnx_target(str(item), reading) if _is_onnx(item) else next(found)
        for item in given or variants
    ]
    # the name of the file where labels are equal, and its whole path where names are too
    for longer in (lambda target: Path(target.name).name, lambda target: target.name):
        labels = [target.label for target in targets]
        targets = [
            replace(target, label=longer(target)) if labels.count(target.label) > 1 else target
            for target in targets
        ]
    return targets


def adapted(targets: Sequence[Target], adaptation: Adaptation) -> list[Target]:
    """Return targets that are to be adapted: with another identity, and labels that say so.

    Raises:
        UsageError: One is an ONNX file, whose statistics are folded into its weights.
    """
    for target in targets:
        if isinstance(target, OnnxTarget):
            raise UsageError(
                f"{target.name}: expected a checkpoint or variant to adapt, got an ONNX file."
            )
    return [
        replace(
            target,
            label=f"{target.label} ({SAW_TEST_DATA})",
            sha256=hashlib.sha256(f"{target.sha256} {adaptation.identity}".encode()).hexdigest(),
        )
        for target in targets
    ]


def _is_onnx(given: object) -> bool:
    return isinstance(given, (str, Path)) and Path(given).suffix == ".onnx"


def _onnx_target(name: str, reading: ReadingOptions) -> OnnxTarget:
    path = Path(name)
    network = OnnxNetwork(path)
    spec = network_spec(network, reading.model, str(path))
    if network.size not in (None, spec.size):
        raise InputError(f"{path}: expected an input of {spec.size} pixels, got {network.size}.")
    digest = hashlib.sha256(path.read_bytes())
    digest.update(to_json(spec.computed).encode())
    return OnnxTarget(name=name, label=path.name, sha256=digest.hexdigest(), spec=spec, path=path)
