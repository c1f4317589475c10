"""Which variant the user means: the one place where a name becomes a variant."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recal.checkpoint.checkpoint import Checkpoint, Finding, read_checkpoint
from recal.checkpoint.folders import is_checkpoint_folder
from recal.checkpoint.layouts import AS_FOUND, ReadingOptions
from recal.errors import InputError, UsageError
from recal.files import require_file
from recal.networks.spec import ModelSpec
from recal.variant.variant import (
    Variant,
    branch_variant,
    check_weights,
    is_variant_file,
    load_variant,
)

Given = str | Path | Checkpoint | Variant


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant, the checkpoint with its weights, and what to call it.

    Attributes:
        name: The name that the user gave.
        label: A short name for tables: the branch, or the stem of the file.
    """

    name: str
    label: str
    checkpoint: Checkpoint
    variant: Variant


def resolve_variant(
    given: str | Path | Variant, checkpoint: Checkpoint, spec: ModelSpec | None = None
) -> Variant:
    """Return the variant of a checkpoint that the user named.

    Args:
        given: A branch of the checkpoint, `CHECKPOINT:BRANCH`, a variant file or a variant.
        checkpoint: The checkpoint that the variant belongs to.
        spec: Architecture and preprocessing, if others than those of the checkpoint or the variant.

    Raises:
        UsageError: The name is neither a file nor a branch.
        InputError: The file is not a variant, or belongs to other weights.
    """
    if isinstance(given, str) and given in checkpoint.branches:
        return branch_variant(checkpoint, given, spec=spec)
    variant = resolve_variants([given], checkpoint)[0].variant
    check_weights(checkpoint, variant)
    return variant if spec is None else replace(variant, spec=spec)


def doubts_about(checkpoint: Checkpoint, variants: Iterable[Variant]) -> tuple[Finding, ...]:
    """Return what is in doubt about a checkpoint and is not settled by its variants' records."""
    settled = checkpoint.lost_activations if not any(v.spec.bn_act for v in variants) else None
    return tuple(doubt for doubt in checkpoint.doubts if doubt is not settled)


def resolve_variants(
    given: Sequence[Given],
    checkpoint: Path | Checkpoint | None = None,
    reading: ReadingOptions = AS_FOUND,
) -> list[ResolvedVariant]:
    """Return the variants that the user named.

    Args:
        given: Each a checkpoint (which stands for its main branch), `CHECKPOINT:BRANCH`, a branch
            of `checkpoint`, a variant file, or a checkpoint or variant in memory. If empty, every
            branch of `checkpoint` is returned.
        checkpoint: Where branches without a file, and weights of variants, are found.
        reading: How checkpoints are read.

    Raises:
        UsageError: A name is neither a file nor a branch, or is given twice.
        InputError: A file is not what it should be, or no checkpoint has a variant's weights.
    """
    resolver = _Resolver(checkpoint, reading)
    given = given or list(resolver.default_checkpoint("no checkpoint is given").branches)
    names = [resolver.name_of(item) for item in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"'{twice}' is given twice. Give each variant once.")
    # checkpoints first, because variants find their weights among them
    found = [
        item if isinstance(item, Variant) else resolver.find(name)
        for item, name in zip(given, names, strict=True)
    ]
    return [
        item if isinstance(item, ResolvedVariant) else resolver.with_weights(name, item)
        for name, item in zip(names, found, strict=True)
    ]


class _Resolver:
    """Finds variants, and remembers the checkpoints that it has read."""

    def __init__(self, checkpoint: Path | Checkpoint | None, reading: ReadingOptions) -> None:
        self._reading = reading
        self._loaded: dict[Path, Checkpoint] = {}
        if isinstance(checkpoint, Checkpoint):
            self._loaded[checkpoint.path] = checkpoint
            checkpoint = checkpoint.path
        self._default = checkpoint

    def default_checkpoint(self, problem: str) -> Checkpoint:
        if self._default is None:
            raise UsageError(f"{problem}. Give one, or --checkpoint, or a recal.toml.")
        return self._load(self._default)

    def name_of(self, given: Given) -> str:
        """Return the name of what is given; a checkpoint in memory is remembered as its file's."""
        if isinstance(given, Variant):
            return given.label
        if isinstance(given, Checkpoint):
            self._loaded[given.path] = given
            return str(given.path)
        return str(given)

    def find(self, name: str) -> ResolvedVariant | Path:
        """Return a branch's variant, or the path of a variant file."""
        path = Path(name)
        is_plain = not path.suffix and "/" not in name and ":" not in name
        if is_plain and self._default and name in self._load(self._default).branches:
            return self._branch(name, self._default, name)
        if is_checkpoint_folder(path):
            return self._branch(name, path, "main")
        if path.is_file():
            return path if is_variant_file(path) else self._branch(name, path, "main")
        base, colon, branch = name.rpartition(":")
        if colon and (Path(base).is_file() or is_checkpoint_folder(Path(base))):
            return self._branch(name, Path(base), branch)
        if path.suffix or "/" in name:
            require_file(Path(base if colon else name), "a checkpoint or a variant")
        problem = (
            f"'{name}': expected a file, CHECKPOINT:BRANCH, or with --checkpoint the name of a "
            "branch, got another name"
        )
        return self._branch(name, self.default_checkpoint(problem).path, name)

    def with_weights(self, name: str, found: Path | Variant) -> ResolvedVariant:
        """Return a variant together with the checkpoint that has its weights."""
        variant = load_variant(found) if isinstance(found, Path) else found
        label = found.stem if isinstance(found, Path) else name
        if self._default is not None:
            self._load(self._default)
        for checkpoint in self._loaded.values():
            if checkpoint.weights_sha256 == variant.weights_sha256:
                variant = replace(variant, spec=variant.spec.overridden(checkpoint.overrides))
                return ResolvedVariant(name, label, checkpoint, variant)
        if len(self._loaded) == 1:
            check_weights(next(iter(self._loaded.values())), variant)
        looked = ", ".join(map(str, self._loaded)) or "no checkpoint at all"
        raise InputError(
            f"{name}: expected its weights ({variant.weights_sha256[:12]}) among the checkpoints, "
            f"got {looked}. Name the checkpoint that it was made for with --checkpoint."
        )

    def _branch(self, name: str, path: Path, branch: str) -> ResolvedVariant:
        checkpoint = self._load(path)
        return ResolvedVariant(name, branch, checkpoint, branch_variant(checkpoint, branch))

    def _load(self, path: Path) -> Checkpoint:
        if path not in self._loaded:
            self._loaded[path] = read_checkpoint(path, self._reading)
        return self._loaded[path]
