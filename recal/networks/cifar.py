"""Networks for images of 32 x 32 pixels: WRN, ResNet, pre-activation ResNet and ResNeXt-29.

Their tensors have the names that RobustBench uses. `respell` gives wide ResNets those of AugMix.
"""

import torch
from torch import nn
from torch.nn import functional as F

from recal.errors import UsageError

EXPANSION = 4  # width after a bottleneck, in widths inside
SHORTCUT, OTHER_SHORTCUT = "convShortcut", "conv_shortcut"
BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(width_in: int, width_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice, added to the input."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = _conv(width_in, width_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = _conv(width_out, width_out, 3)
        if width_in != width_out:
            self.add_module(SHORTCUT, _conv(width_in, width_out, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        # if the width changes, the shortcut starts from the activated input, too
        convolution = self._modules.get(SHORTCUT) or self._modules.get(OTHER_SHORTCUT)
        shortcut = x if convolution is None else convolution(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return shortcut + out  # type: ignore[no-any-return]


class NetworkBlock(nn.Module):
    """A stage: residual blocks of one width, the first of which may stride."""

    def __init__(self, blocks: int, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        shapes = [(width_in, width_out, stride)] + [(width_out, width_out, 1)] * (blocks - 1)
        self.layer = nn.Sequential(*(BasicBlock(*shape) for shape in shapes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        return self.layer(x)  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """WRN-depth-widen: 3x3 stem, three stages, BN, ReLU, average pool, linear classifier.

    Args:
        depth: 6 n + 4 convolutions along the longest path.
        widen: Multiplier of the widths 16, 32, 64.
        classes: Number of classes, K.
    """

    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        if not (10 <= depth <= 400 and (depth - 4) % 6 == 0 and 1 <= widen <= 64):
            raise UsageError(
                f"--arch: a wide ResNet's depth is 6 n + 4 and its width 1 to 64, got "
                f"wrn{depth}_{widen}."
            )
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = _conv(3, widths[0], 3)
        self.block1 = NetworkBlock(blocks, widths[0], widths[1], 1)
        self.block2 = NetworkBlock(blocks, widths[1], widths[2], 2)
        self.block3 = NetworkBlock(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, 32, 32) to logits (N, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def respell(network: nn.Module) -> None:
    """Name the shortcuts of a wide ResNet as the code of AugMix, AugMax and AFA does."""
    for block in network.modules():
        if isinstance(block, BasicBlock) and SHORTCUT in block._modules:
            block._modules[OTHER_SHORTCUT] = block._modules.pop(SHORTCUT)


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels: a shortcut without weights."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.pad = (width_out - width_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """Convolutions each followed by BN, and a shortcut; ReLU after the sum."""

    def __init__(self, width_in: int, width: int, stride: int, shape: str) -> None:
        super().__init__()
        self.deep = shape == "bottleneck"
        width_out = EXPANSION * width if self.deep else width
        if self.deep:
            self.conv1, self.bn1 = _conv(width_in, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = _conv(width, width_out, 1), nn.BatchNorm2d(width_out)
        else:
            self.conv1, self.bn1 = _conv(width_in, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or width_in != width_out:
            self.shortcut = (
                PadShortcut(width_in, width_out)
                if shape == "thin"
                else nn.Sequential(_conv(width_in, width_out, 1, stride), nn.BatchNorm2d(width_out))
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """BN and ReLU before each convolution; the shortcut starts after the first of them."""

    def __init__(self, width_in: int, width: int, stride: int, shape: str) -> None:
        super().__init__()
        self.deep = shape == "bottleneck"
        width_out = EXPANSION * width if self.deep else width
        self.bn1, self.bn2 = nn.BatchNorm2d(width_in), nn.BatchNorm2d(width)
        if self.deep:
            self.conv1, self.conv2 = _conv(width_in, width, 1), _conv(width, width, 3, stride)
            self.bn3, self.conv3 = nn.BatchNorm2d(width), _conv(width, width_out, 1)
        else:
            self.conv1, self.conv2 = _conv(width_in, width, 3, stride), _conv(width, width, 3)
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(_conv(width_in, width_out, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if self.deep:
            out = self.conv3(F.relu(self.bn3(out)))
        return out + shortcut  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """3x3 stem, stages of blocks, average pool, linear classifier.

    Args:
        blocks: Number of blocks of each stage; each stage after the first halves the size and
            doubles the width.
        shape: `basic`, `bottleneck` or `thin` (basic, with shortcuts without weights).
        width: Width of the first stage.
        classes: Number of classes, K.
        preact: Whether BN and ReLU come before the convolutions.
        final_bn: With `preact`, whether BN and ReLU (`bn`) come before the pool.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        shape: str,
        width: int,
        classes: int,
        *,
        preact: bool = False,
        final_bn: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = _conv(3, width, 3)
        self.bn1: nn.Module | None = None if preact else nn.BatchNorm2d(width)
        block = PreActBlock if preact else Block
        width_in = width
        self.stages = len(blocks)
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(block(width_in, width << stage, stride, shape))
                width_in = (width << stage) * (EXPANSION if shape == "bottleneck" else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(width_in) if final_bn else None
        self.linear = nn.Linear(width_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, K)."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = F.relu(self.bn1(x))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        if self.bn is not None:
            x = F.relu(self.bn(x))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def cifar_resnet(depth: int, classes: int) -> CifarResNet:
    """Build ResNet-18, 34, 50, 101, 152 (width 64) or ResNet-(6 n + 2) (width 16)."""
    if depth in BASIC:
        return CifarResNet(BASIC[depth], "basic", 64, classes)
    if depth in BOTTLENECK:
        return CifarResNet(BOTTLENECK[depth], "bottleneck", 64, classes)
    if depth % 6 != 2 or not 8 <= depth <= 1202:
        raise UsageError(
            f"--arch: expected a depth of {', '.join(map(str, (*BASIC, *BOTTLENECK)))} or 6 n + 2, "
            f"got cifar_resnet{depth}."
        )
    return CifarResNet(((depth - 2) // 6,) * 3, "thin", 16, classes)


def preact_resnet(depth: int, classes: int, *, final_bn: bool) -> CifarResNet:
    """Build a pre-activation ResNet-18, 34, 50, 101 or 152.

    With `final_bn`, BN and ReLU come before the pool, as in RobustBench but not in other code.
    """
    blocks = {**BASIC, **BOTTLENECK}.get(depth)
    if blocks is None:
        known = ", ".join(map(str, (*BASIC, *BOTTLENECK)))
        raise UsageError(f"--arch: expected a depth out of {known}, got preactresnet{depth}.")
    shape = "basic" if depth in BASIC else "bottleneck"
    return CifarResNet(blocks, shape, 64, classes, preact=True, final_bn=final_bn)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, each followed by BN, added to the input."""

    def __init__(self, width_in: int, width: int, groups: int, base: int, stride: int) -> None:
        super().__init__()
        inner = groups * (width * base // 64)
        self.conv_reduce = _conv(width_in, inner, 1)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        width_out = EXPANSION * width
        self.conv_expand = _conv(inner, width_out, 1)
        self.bn_expand = nn.BatchNorm2d(width_out)
        self.downsample = None
        if stride != 1 or width_in != width_out:
            self.downsample = nn.Sequential(
                _conv(width_in, width_out, 1, stride), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        out = self.bn_expand(self.conv_expand(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNeXt29(nn.Module):
    """3x3 stem, three stages of three blocks, average pool, linear classifier.

    Args:
        groups: Cardinality.
        base: Width of a group in the first stage.
        classes: Number of classes, K.
    """

    def __init__(self, groups: int, base: int, classes: int) -> None:
        super().__init__()
        if not (1 <= groups <= 64 and 4 <= base <= 256):
            raise UsageError(
                f"--arch: expected 1 to 64 groups of width 4 to 256, got resnext29_{groups}x{base}."
            )
        self.conv_1_3x3 = _conv(3, 64, 3)
        self.bn_1 = nn.BatchNorm2d(64)
        width_in = 64
        stages = []
        for stage, width in enumerate((64, 128, 256)):
            blocks = []
            for i in range(3):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(width_in, width, groups, base, stride))
                width_in = EXPANSION * width
            stages.append(nn.Sequential(*blocks))
        self.stage_1, self.stage_2, self.stage_3 = stages
        self.classifier = nn.Linear(width_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, H, W) to logits (N, K)."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
