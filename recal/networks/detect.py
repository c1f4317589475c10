"""Detecting an architecture from the names and shapes of its tensors, or from a name in a file.

Candidates are proposed from names and then proven: the network is built on the meta device and has
to have exactly these tensors.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from recal.errors import UsageError
from recal.networks.names import (
    HARMLESS_ORIGINS,
    create_network,
    first_convolution,
    is_known,
    respelt,
    split_name,
)
from recal.networks.wrappers import strip_front

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]

COUNTER = ".num_batches_tracked"
STATISTICS = (".running_mean", ".running_var")
# numbers of classes that are tried for one architecture
MOST_COUNTS = 4
RGB = 3
# depth of a ResNet by its stage sizes and whether blocks have three convolutions
DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18, ((3, 4, 6, 3), False): 34, ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101, ((3, 8, 36, 3), True): 152,
}  # fmt: skip


def architecture_of(named: str | None, shapes: Shapes) -> str:
    """Return the architecture that a file names, or that its tensors determine.

    Args:
        named: The name in the file, such as `wrn16_1`, `timm:resnet50` or `resnet50`, or None.
        shapes: Shape of every tensor of the plain network, by name.
    """
    options = readings(named)
    if options:
        # a lone option need not be built
        rivals = options if len(options) > 1 else []
        return next((name for name in rivals if fits(name, shapes)), options[0])
    proven = proven_by(shapes)
    if len(proven) == 1:
        return proven[0]
    told = "names no architecture"
    if named:
        told = f"names an architecture that recal may not use ('{named}')"
    choice = (
        "Give one with --arch, for instance --arch timm:resnet50, --arch wrn16_1 or --arch "
        "python:FILE.py:CALLABLE."
    )
    if proven:
        choice = (
            f"Its tensors fit {' and '.join(proven)}, which compute different things. Give one "
            "with --arch."
        )
    raise UsageError(f"the checkpoint {told}. {choice}")


def proven_by(shapes: Shapes) -> list[str]:
    """Return the architectures that have exactly these tensors, statistics aside."""
    proposed = [name for propose in PROPOSALS for name in propose(shapes)]
    return [name for name in proposed if fits(name, shapes)]


def readings(named: str | None) -> list[str]:
    """Return the known architectures that a name in a file can mean, without any that runs code."""
    if not named:
        return []
    if ":" in named:
        return [named] if named.partition(":")[0] in HARMLESS_ORIGINS and is_known(named) else []
    if is_known(named):
        return [named]  # one of recal's own networks, for which nothing else is imported
    return [name for name in (f"timm:{named}", f"torchvision:{named}") if is_known(name)]


def fits(name: str, shapes: Shapes) -> bool:
    """Return whether a network has exactly these tensors; it is built on the meta device.

    Statistics of BatchNorm may be missing among the tensors, and the first convolution may take
    images of any number of channels.
    """
    expected = plain_shapes(shapes)
    for classes in possible_classes(expected):
        tensors = network_tensors(name, classes, shapes)
        if tensors is None:
            return False
        own = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        stem = next((key for key, shape in own.items() if len(shape) == 4), "")
        if len(given := expected.get(stem, ())) == 4:
            own[stem] = (own[stem][0], given[1], *own[stem][2:])
        absent = own.keys() - expected.keys()
        if expected.keys() - own.keys() or not all(
            key.endswith((*STATISTICS, COUNTER)) for key in absent
        ):
            return False
        if all(own[key] == shape for key, shape in expected.items()):
            return True
    return False


def possible_classes(shapes: Shapes) -> list[int]:
    """Return the numbers of rows of weight matrices, of which one may be the number of classes.

    The last matrix comes first, and then convolutions, which classify in SqueezeNet.
    """
    weights = [shape for key, shape in shapes.items() if key.endswith("weight")]
    rows = [shape[0] for dims in (2, 4) for shape in reversed(weights) if len(shape) == dims]
    return list(dict.fromkeys(rows))[:MOST_COUNTS] or [1000]


def network_tensors(
    name: str, classes: int, names: Iterable[str] = (), *, trusted: bool = False
) -> Mapping[str, torch.Tensor] | None:
    """Return the tensors of a network with fresh weights, as in its state_dict.

    Their spelling follows `names`, those of a file, as in `create_network`.

    They have no values where the network can be built without memory. BatchNorm layers without
    statistics are given some.

    Returns:
        None if the network cannot be built.
    """
    try:
        spelling = respelt(names)
        if split_name(name)[0] in HARMLESS_ORIGINS:
            with suppress(NotImplementedError, RuntimeError):  # of networks that compute when built
                return _harmless_tensors(name, classes, spelling)
        return _tensors(name, classes, spelling, trusted) if trusted else None
    except (UsageError, NotImplementedError, RuntimeError):
        return None


@functools.lru_cache(maxsize=64)
def _harmless_tensors(
    name: str, classes: int, spelling: tuple[str, ...]
) -> Mapping[str, torch.Tensor]:
    import torch

    with torch.device("meta"):
        return _tensors(name, classes, spelling, trusted=False)


def _tensors(
    name: str, classes: int, spelling: tuple[str, ...], trusted: bool
) -> Mapping[str, torch.Tensor]:
    import torch

    from recal.networks.tracking import track_statistics

    with torch.random.fork_rng(devices=[]):
        network = create_network(name, classes, trusted=trusted, names=spelling)
    track_statistics(network)
    return network.state_dict()


def input_channels(name: str, classes: int, shapes: Shapes, *, trusted: bool) -> int:
    """Return the number of channels of the images that a network with these tensors takes.

    It is that of the first convolution, in the order in which the network of this name defines
    them, or in which the file holds them if the network cannot be built on the meta device.
    """
    import torch

    try:
        with torch.device("meta"):
            network = create_network(name, classes, trusted=trusted)
    except (UsageError, NotImplementedError, RuntimeError):
        kernels = [shape for shape in shapes.values() if len(shape) == 4]
        return kernels[0][1] if kernels else RGB
    stem = first_convolution(network)
    if stem is None:
        return RGB
    path = stem[0].removeprefix(strip_front(network.state_dict()).prefix)
    kernel = shapes.get(f"{path}.weight", ())
    return kernel[1] * stem[1].groups if len(kernel) == 4 else stem[1].in_channels


def plain_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes without counters, and with each instance-batch norm as one BatchNorm."""
    result: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        pair, instance_norm, _ = key.rpartition(".IN.")
        beside = bool(instance_norm) and f"{pair}.BN.weight" in shapes
        if key.endswith(COUNTER) or beside:
            continue
        parent, mark, leaf = key.rpartition(".BN.")
        instance = shapes.get(f"{parent}.IN.weight") if mark else None
        if instance is None:
            result[key] = shape
        else:
            result[f"{parent}.{leaf}"] = (shape[0] + instance[0],)
    return result


def _stages(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage, from keys of their first convolutions."""
    matches = (re.fullmatch(pattern, key) for key in shapes)
    blocks = Counter(int(match[1]) for match in matches if match)
    return tuple(blocks[stage] for stage in sorted(blocks))


def _wide_resnets(shapes: Shapes) -> list[str]:
    blocks = _stages(shapes, r"block(\d)\.layer\.\d+\.conv1\.weight")
    inner = shapes.get("block1.layer.0.conv1.weight")
    if len(blocks) != 3 or not inner or inner[0] % 16:
        return []
    return [f"wrn{6 * blocks[0] + 4}_{inner[0] // 16}"]


def _cifar_resnets(shapes: Shapes) -> list[str]:
    blocks = _stages(shapes, r"layer(\d)\.\d+\.conv1\.weight")
    if not blocks or "linear.weight" not in shapes:
        return []
    deep = "layer1.0.conv3.weight" in shapes
    if len(blocks) == 3:
        return [f"cifar_resnet{6 * blocks[0] + 2}"]
    depth = DEPTHS.get((blocks, deep))
    if depth is None:
        return []
    if "bn1.weight" in shapes or "bn1.BN.weight" in shapes:
        return [f"cifar_resnet{depth}"]
    return [f"preactresnet{depth}{'_bn' if 'bn.weight' in shapes else ''}"]


def _resnexts(shapes: Shapes) -> list[str]:
    inner = shapes.get("stage_1.0.conv_conv.weight")
    if not inner or len(inner) != 4 or not inner[1]:
        return []
    return [f"resnext29_{inner[0] // inner[1]}x{inner[1]}"]


def _augmix_networks(shapes: Shapes) -> list[str]:
    """Propose AllConv and DenseNet of AugMix's repository."""
    if shapes.get("features.0.weight") == (96, 3, 3, 3):
        return ["allconv"]
    layers = _stages(shapes, r"dense(\d)\.\d+\.conv1\.weight")
    growth = shapes.get("dense1.0.conv1.weight", (0,))[0]
    return [f"densenet{3 * layers[0] + 4}_{growth}"] if len(layers) == 3 else []


def _stem_resnets(shapes: Shapes) -> list[str]:
    """Propose torchvision's ResNets with a 3x3 stem, and ACL's, whose shortcuts have own names."""
    deep = "layer1.0.conv3.weight" in shapes
    depth = DEPTHS.get((_stages(shapes, r"layer(\d)\.\d+\.conv1\.weight"), deep))
    if depth is None or "fc.weight" not in shapes or shapes.get("conv1.weight") != (64, 3, 3, 3):
        return []
    if "layer2.0.downsample.conv.weight" in shapes:
        return [f"acl_resnet{depth}"]
    return [f"stem_resnet{depth}", f"stem_resnet{depth}_pool"]


def _imagenet_resnets(shapes: Shapes) -> list[str]:
    blocks = _stages(shapes, r"layer(\d)\.\d+\.conv1\.weight")
    deep = "layer1.0.conv3.weight" in shapes
    depth = DEPTHS.get((blocks, deep))
    if depth is None or "fc.weight" not in shapes:
        return []
    inner = shapes.get("layer1.0.conv2.weight", (64, 64))
    width, per_group = (*inner, 0)[:2]
    if not deep or width == per_group == 64:
        return [f"torchvision:resnet{depth}"]
    if width == per_group == 128:
        return [f"torchvision:wide_resnet{depth}_2"]
    groups = width // per_group if per_group else 0
    return [f"torchvision:resnext{depth}_{groups}x{per_group}d"]


def _efficientnets(shapes: Shapes) -> list[str]:
    """Propose both of timm's kinds, which differ in padding and epsilon; the user has to choose."""
    head = shapes.get("conv_head.weight", (0,))[0]
    sizes = [i for i, width in enumerate(HEADS) if width == head]
    names = [f"timm:{kind}efficientnet_b{i}" for i in sizes for kind in ("", "tf_")]
    return names + (["timm:mobilenetv2_100"] if head == HEADS[0] else [])


def _torchvision_features(shapes: Shapes) -> list[str]:
    if "features.conv0.weight" in shapes:
        return [f"torchvision:densenet{depth}" for depth in (121, 161, 169, 201)]
    if "features.0.weight" in shapes:
        return [f"torchvision:vgg{depth}_bn" for depth in (11, 13, 16, 19)]
    last = shapes.get("classifier.1.weight", (0, 0))
    sizes = [i for i, width in enumerate(HEADS[:8]) if (width,) == last[1:]]
    names = [f"torchvision:efficientnet_b{i}" for i in sizes]
    return names + (["torchvision:mobilenet_v2"] if 0 in sizes else [])


# width of the last convolution of EfficientNet-B0, B1, ... (arXiv 1905.11946)
HEADS = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560, 2816)

# the ends of names by which proposals recognise a network, whatever prefix is in front
ANCHORS = (
    "block1.layer.0.conv1.weight", "layer1.0.conv1.weight", "stage_1.0.conv_conv.weight",
    "conv_head.weight", "features.conv0.weight", "features.0.weight", "features.0.0.weight",
)  # fmt: skip

PROPOSALS: tuple[Callable[[Shapes], list[str]], ...] = (
    _wide_resnets,
    _cifar_resnets,
    _resnexts,
    _augmix_networks,
    _stem_resnets,
    _imagenet_resnets,
    _efficientnets,
    _torchvision_features,
)
