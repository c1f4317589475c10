"""Ordinary networks and checkpoints, with plain BatchNorm, from a checkpoint and a variant."""

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from recal.checkpoint.checkpoint import Checkpoint
from recal.checkpoint.reading import METADATA_KEY
from recal.errors import InputError, UsageError, VerificationError, listed
from recal.files import write_whole
from recal.networks.activations import drop_activations
from recal.networks.calling import call_on_images, take_logits
from recal.networks.names import HARMLESS_ORIGINS, create_network, split_name
from recal.networks.quantised import SIMULATES, resized_buffers, stop_observing
from recal.networks.spec import ModelOverrides, ModelSpec
from recal.networks.tracking import track_statistics
from recal.networks.wrappers import strip_front
from recal.schema import to_json
from recal.variant.comparison import compare_networks, load_own
from recal.variant.plain import make_plain
from recal.variant.unused import check_unused, complete
from recal.variant.variant import Variant, branch_variant, check_statistics, check_weights

SHOWN = 10
CLOSE, OUTPUTS_CLOSE = 1e-3, 1e-4
RECALS_OWN = ("", "recal")
FORMATS = (".safetensors", ".pth", ".pt")
COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network that `build` made, beside the one that the architecture's own code makes.

    Attributes:
        network: The network with plain BatchNorm.
        own: The architecture's own network with the variant's tensors, for normalised images;
            `network` itself if nothing was replaced or the two cannot be compared.
    """

    network: nn.Module
    own: nn.Module


def build(checkpoint: Checkpoint, variant: Variant | str = "main") -> nn.Module:
    """Build the network that a variant makes of a checkpoint's weights.

    Norm layers of other classes become plain BatchNorm if that computes the same, and stay as they
    are otherwise. Where layers are replaced, the outputs for random images are compared with those
    of the network that the architecture's own code makes.

    Args:
        checkpoint: The checkpoint with the weights, which is not changed.
        variant: A variant, or the name of a branch. An architecture that was given to
            `load_checkpoint` overrides the variant's; only so can it be the user's own code
            (`python:`), which a name in a file never runs.

    Returns:
        A new module in eval mode, float32, on the CPU, with one plain BatchNorm per layer. It
        expects images that are already normalised, even if the network normalises them itself:
        that layer is set to do nothing.

    Raises:
        InputError: The variant belongs to other weights, weights and architecture do not fit, or
            the network with plain BatchNorm does not compute what the architecture's own does.
        UsageError: There is no such branch or architecture.
    """
    return _built(checkpoint, variant).network


def build_classifier(checkpoint: Checkpoint, variant: Variant | str = "main") -> Built:
    """Build as `build` does, and let the network return logits (N, K) alone.

    The network of the architecture's own code is returned beside it, and treated alike.

    Raises:
        InputError: The network does not run on images alone, or does not tell its logits; or one of
            the errors of `build`.
    """
    built = _built(checkpoint, variant)
    spec = checkpoint.spec if isinstance(variant, str) else variant.spec
    arch = checkpoint.overrides.arch or spec.arch
    for network in dict.fromkeys((built.network, built.own)):
        _take_logits(network, checkpoint, spec, arch)
    return built


def build_runnable(checkpoint: Checkpoint, variant: Variant) -> nn.Module:
    """Build as `build` does a network that runs on images alone, or raise an InputError."""
    network = build(checkpoint, variant)
    arch = checkpoint.overrides.arch or variant.spec.arch
    if split_name(arch)[0] not in HARMLESS_ORIGINS:
        call_on_images(network, variant.spec.input_shape, f"{checkpoint.path} as {arch}")
    return network


def _take_logits(network: nn.Module, checkpoint: Checkpoint, spec: ModelSpec, arch: str) -> None:
    """Let a network of other people's code return logits alone."""
    # the number of classes may be guessed from a matrix that is not the classifier's
    classes = checkpoint.overrides.classes or checkpoint.facts.classes
    if split_name(arch)[0] not in HARMLESS_ORIGINS:
        take_logits(network, spec.input_shape, classes, f"{checkpoint.path} as {arch}")


def _built(checkpoint: Checkpoint, variant: Variant | str) -> Built:
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant)
    check_weights(checkpoint, variant)
    variant, absent = complete(checkpoint, variant)
    arch = checkpoint.overrides.arch
    spec = variant.spec.overridden(ModelOverrides(arch=arch)) if arch else variant.spec
    tensors = variant.torch_tensors()
    forged = sorted(tensors.keys() & checkpoint.weights.keys())
    if forged:
        raise InputError(
            f"{checkpoint.path}: expected a variant of BatchNorm tensors alone, got one that also "
            f"replaces {listed(forged, SHOWN)}."
        )
    given = {**checkpoint.weights, **tensors}
    where = f"{checkpoint.path} as {spec.arch}"
    origin = split_name(spec.arch)[0]
    if origin in HARMLESS_ORIGINS:
        _check_without_memory(checkpoint, spec, given, where)
    network = _create(checkpoint, spec, given)
    if checkpoint.facts.mean is None:
        _check_normalisation(network, spec, where)
    plain = make_plain(network, checkpoint.layout, checkpoint.weights)
    expected = network.state_dict()
    _check_fit(given, expected, plain.names, where, resized_buffers(network))
    # counters are absent from old files and from variants, and without effect in eval mode
    state = {key: given.get(plain.names.get(key, ""), own) for key, own in expected.items()}
    network.load_state_dict(state, strict=True)
    stop_observing(network)
    network = network.float().requires_grad_(False).eval()
    if absent:
        check_unused(network, absent, spec.input_shape, where)
    if plain.replaced and origin not in RECALS_OWN:
        own = load_own(_create(checkpoint, spec, given), checkpoint.layout, given)
        if own is not None and compare_networks(
            network, own, spec.input_shape, plain.replaced, where
        ):
            return Built(network=network, own=own)
    return Built(network=network, own=network)


def _create(checkpoint: Checkpoint, spec: ModelSpec, names: Collection[str]) -> nn.Module:
    """Create the network with the same random values each time, for what no file stores."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would change GPUs' too
        network = _network(spec, names).cpu()
    track_statistics(network)
    if not spec.bn_act:
        drop_activations(network, checkpoint.split_layers, names)
    return network


def _network(spec: ModelSpec, names: Collection[str]) -> nn.Module:
    """Create a network of the specification's architecture for tensors of these names."""
    return create_network(
        spec.arch, spec.classes, channels=spec.channels, trusted=spec.trusted, names=names
    )


def _check_normalisation(network: nn.Module, spec: ModelSpec, where: str) -> None:
    """Refuse preprocessing that differs from the network's own normalisation, which it replaces."""
    front = strip_front(network.state_dict())
    for key, own, told in (("mean", front.mean, spec.mean), ("std", front.std, spec.std)):
        if own is not None and (
            len(own) != len(told) or any(abs(a - b) > CLOSE for a, b in zip(own, told, strict=True))
        ):
            numbers = ",".join(f"{value:.4g}" for value in own)
            raise InputError(
                f"{where}: expected the network's own {key}, because recal normalises in its "
                f"place, got {told}. Say --{key} {numbers}."
            )


def _check_without_memory(
    checkpoint: Checkpoint, spec: ModelSpec, given: Mapping[str, torch.Tensor], where: str
) -> None:
    """Refuse an architecture that does not fit before it takes memory, which may be any amount."""
    try:
        with torch.device("meta"):
            network = _network(spec, given)
            track_statistics(network)
        names = make_plain(network, checkpoint.layout, checkpoint.weights).names
    except (NotImplementedError, RuntimeError):
        return  # some networks compute while they are built, which needs memory
    _check_fit(given, network.state_dict(), names, where)


def _check_fit(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    where: str,
    resized: Collection[str] = (),
) -> None:
    known = set(names.values())
    missing, unexpected = (
        listed(sorted(key for key in keys if not key.endswith(COUNTER)), SHOWN)
        for keys in (known - given.keys(), given.keys() - known)
    )
    if missing or unexpected:
        remedy = (
            "Give the right one with --arch; if names in the file have a prefix that the network's "
            "have not, also --prefix."
        )
        if any(key.endswith(SIMULATES) for key in given.keys() - known):
            remedy = (
                "The file is of quantisation-aware training: name a callable of yours as --arch "
                "(python:FILE.py:CALLABLE) that returns the network as prepare_qat made it."
            )
        raise InputError(
            f"{where}: weights and architecture do not fit: missing {missing or 'none'}; "
            f"unexpected {unexpected or 'none'}. {remedy}"
        )
    for key, name in names.items():
        fixed = not name.endswith(COUNTER) and key not in resized
        if fixed and expected[key].shape != given[name].shape:
            raise InputError(
                f"{where}: {name}: expected shape {tuple(expected[key].shape)}, "
                f"got {tuple(given[name].shape)}. Give the right --arch or --classes."
            )


def convert(checkpoint: Checkpoint, variant: Variant | str, output: Path) -> tuple[str, ...]:
    """Write a variant as a plain checkpoint, and load it again if the architecture is known.

    Tensors keep their stored types.

    Args:
        checkpoint: The checkpoint with the weights.
        variant: A variant, or the name of a branch.
        output: The file: .safetensors, with a record of architecture and preprocessing, or .pth, a
            bare state_dict as torchvision's own code expects it.

    Returns:
        Notes for people, such as how it was checked.

    Raises:
        UsageError: The file's suffix is another, or there is no such branch or architecture.
        InputError: Variant, weights and architecture do not fit.
        VerificationError: The file does not give the variant's outputs.
    """
    suffix = output.suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"-o: expected a name in {', '.join(FORMATS)}, got '{output.name}'.")
    state = dict(checkpoint.weights)
    state |= {f"{layer}.num_batches_tracked": torch.tensor(0) for layer in checkpoint.layers}
    if isinstance(variant, str):
        check_statistics(checkpoint, variant)
        state |= checkpoint.branch(variant)
    else:
        check_weights(checkpoint, variant)
        state |= complete(checkpoint, variant)[0].torch_tensors()
    state = {key: tensor.clone().contiguous() for key, tensor in state.items()}
    spec, notes = _spec(checkpoint, variant)
    if spec is not None:
        network = _network(spec, state)
        spare = {key for key in state.keys() - network.state_dict().keys() if key.endswith(COUNTER)}
        if state.keys() - spare == network.state_dict().keys():  # norm layers without a counter
            state = {key: tensor for key, tensor in state.items() if key not in spare}
        notes.append(_check(checkpoint, variant, network, state, spec))
        notes.append(f"it expects images in [0, 1], {spec.size} pixels, {spec.feeding}")
    if suffix == ".safetensors":
        write_whole(output, save(state, metadata={METADATA_KEY: to_json(spec or {})}))
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(output, buffer.getvalue())
    return tuple(notes)


def _spec(checkpoint: Checkpoint, variant: Variant | str) -> tuple[ModelSpec | None, list[str]]:
    if isinstance(variant, Variant):
        return variant.spec.overridden(checkpoint.overrides), []
    try:
        return checkpoint.spec, []
    except UsageError as error:
        if checkpoint.overrides.arch is not None:
            raise
        return None, [f"not loaded again, because {error}"]


@torch.inference_mode()
def _check(
    checkpoint: Checkpoint,
    variant: Variant | str,
    network: nn.Module,
    state: dict[str, torch.Tensor],
    spec: ModelSpec,
) -> str:
    """Load the state with strict=True into a network and compare with what recal builds."""
    built = build_classifier(checkpoint, variant).network
    if not spec.bn_act:  # of a plain file, every layer's is dropped
        drop_activations(network, checkpoint.layers, state)
    try:
        network.load_state_dict(state, strict=True)
        stop_observing(network)
    except RuntimeError:
        return (
            f"{spec.arch} is not plain (it has several branches, a normalisation layer, lacks "
            "instance norm, or keeps no statistics), so it does not load the file itself; build() "
            "makes it plain"
        )
    network = network.float().eval()
    _take_logits(network, checkpoint, spec, spec.arch)
    images = torch.randn(2, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    expected = built(images)
    gap = float((network(images) - expected).abs().max())
    if not gap <= OUTPUTS_CLOSE * max(1.0, float(expected.abs().max())):
        raise VerificationError(
            f"{checkpoint.path}: the plain checkpoint differs from the variant by {gap:.3g}."
        )
    without = "" if spec.bn_act else " once the activations of its BatchNorm layers are removed,"
    return f"{spec.arch} loads it with strict=True and{without} computes what the variant does"
