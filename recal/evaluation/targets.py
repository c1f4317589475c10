"""Targets: what is evaluated, out of branches, variant files and ONNX files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.checkpoint.checkpoint import Checkpoint, load_checkpoint
from recal.errors import InputError, UsageError
from recal.files import require_file
from recal.onnx_file.predict import network_spec
from recal.onnx_file.session import OnnxNetwork
from recal.variant.file import is_variant_file
from recal.variant.variant import Variant, branch_variant, load_variant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.networks.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Target:
    """One network to evaluate.

    Attributes:
        name: As the user gave it.
        label: Short, for tables.
        spec: Architecture and preprocessing.
        sha256: Identity of the network and its preprocessing.
        checkpoint: The weights; None for an ONNX file.
        variant: The BatchNorm tensors; None for an ONNX file.
        onnx: The ONNX file, or None.
    """

    name: str
    label: str
    spec: ModelSpec
    sha256: str
    checkpoint: Checkpoint | None = None
    variant: Variant | None = None
    onnx: Path | None = None


def resolve_targets(
    given: Sequence[str | Path | Checkpoint | Variant],
    checkpoint: Path | Checkpoint | None,
    asked: Mapping[str, Any],
    reading: Mapping[str, Any] | None = None,
) -> list[Target]:
    """Turn what the user named into targets.

    Args:
        given: Each a checkpoint, `CHECKPOINT:BRANCH`, a branch of `checkpoint`, a variant file or
            an .onnx file; or a checkpoint or variant in memory. None at all stands for every branch
            of `checkpoint`.
        checkpoint: Where branches without a file, and weights of variants, are found.
        asked: Fields of `ModelSpec` that go before those of the files.
        reading: Options of `load_checkpoint`, for every checkpoint.

    Raises:
        UsageError: A name is neither a file nor a branch, or stands twice.
        InputError: A file is not what it should be, or a variant's weights are in no checkpoint.
    """
    resolver = _Resolver(checkpoint, asked, reading or {})
    if not given:
        if resolver.default is None:
            raise UsageError("no checkpoint named. Give one, or --checkpoint, or a recal.toml.")
        given = list(resolver.load(resolver.default).branches)
    names = [resolver.name_of(item) for item in given]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"target '{twice[0]}' stands twice. Name each once.")
    # checkpoints first, because variants find their weights among them
    parsed = [
        item if isinstance(item, Variant) else resolver.parse(name)
        for item, name in zip(given, names, strict=True)
    ]
    targets = [
        found if isinstance(found, Target) else resolver.variant_target(name, found)
        for name, found in zip(names, parsed, strict=True)
    ]
    return _with_distinct_labels(targets)


class _Resolver:
    """Remembers the checkpoints of one command."""

    def __init__(
        self,
        checkpoint: Path | Checkpoint | None,
        asked: Mapping[str, Any],
        reading: Mapping[str, Any],
    ) -> None:
        self.asked = asked
        self.reading = reading
        self.loaded: dict[Path, Checkpoint] = {}
        if isinstance(checkpoint, Checkpoint):
            self.loaded[checkpoint.path] = checkpoint
            checkpoint = checkpoint.path
        self.default = checkpoint

    def name_of(self, given: str | Path | Checkpoint | Variant) -> str:
        """Return a target's name; a checkpoint in memory is remembered as its file's."""
        if isinstance(given, Variant):
            return given.label
        if isinstance(given, Checkpoint):
            self.loaded[given.path] = given
            return str(given.path)
        return str(given)

    def load(self, path: Path) -> Checkpoint:
        if path not in self.loaded:
            self.loaded[path] = load_checkpoint(path, **self.reading)
        return self.loaded[path]

    def parse(self, name: str) -> Target | Path:
        """Return a target, or the path of a variant file."""
        path = Path(name)
        if path.suffix == ".onnx":
            return self.onnx_target(name, path)
        if path.is_file():
            return path if is_variant_file(path) else self.branch_target(name, path, "main")
        base, colon, branch = name.rpartition(":")
        if colon and Path(base).is_file():
            return self.branch_target(name, Path(base), branch)
        if path.suffix or "/" in name:
            require_file(Path(base if colon else name), "a checkpoint, variant or .onnx file")
        if self.default is None:
            raise UsageError(
                f"'{name}': expected a file, CHECKPOINT:BRANCH, or with --checkpoint the name of a "
                "branch, got none of them."
            )
        return self.branch_target(name, self.default, name)

    def branch_target(self, name: str, path: Path, branch: str) -> Target:
        checkpoint = self.load(path)
        variant = branch_variant(checkpoint, branch, checkpoint.spec(**self.asked))
        return _variant_target(name, branch, checkpoint, variant)

    def variant_target(self, name: str, found: Path | Variant) -> Target:
        variant = load_variant(found) if isinstance(found, Path) else found
        if self.default is not None:
            self.load(self.default)
        for checkpoint in self.loaded.values():
            if checkpoint.weights_sha256 == variant.weights_sha256:
                variant = replace(variant, spec=variant.spec.overridden(self.asked))
                label = found.stem if isinstance(found, Path) else name
                return _variant_target(name, label, checkpoint, variant)
        looked = ", ".join(str(path) for path in self.loaded) or "no checkpoint at all"
        raise InputError(
            f"{name}: expected its weights ({variant.weights_sha256[:12]}) among the checkpoints, "
            f"got {looked}. Name the checkpoint that it was made for with --checkpoint."
        )

    def onnx_target(self, name: str, path: Path) -> Target:
        network = OnnxNetwork(path)
        spec = network_spec(network, self.asked, str(path))
        if network.size not in (None, spec.size):
            raise InputError(
                f"{path}: expected an input of {spec.size} pixels, got {network.size}."
            )
        digest = hashlib.sha256(path.read_bytes())
        digest.update(repr(spec).encode())
        return Target(name=name, label=path.name, spec=spec, sha256=digest.hexdigest(), onnx=path)


def _variant_target(name: str, label: str, checkpoint: Checkpoint, variant: Variant) -> Target:
    return Target(
        name=name, label=label, spec=variant.spec, sha256=variant.sha256,
        checkpoint=checkpoint, variant=variant,
    )  # fmt: skip


def _with_distinct_labels(targets: Sequence[Target]) -> list[Target]:
    """Label by the file, where labels are alike, and by all of its path, where files are, too."""
    for longer in (lambda target: Path(target.name).name, lambda target: target.name):
        labels = [target.label for target in targets]
        targets = [
            replace(target, label=longer(target)) if labels.count(target.label) > 1 else target
            for target in targets
        ]
    return list(targets)
