"""Residual networks for 32x32 images, with the names that adversarial-training code uses.

`conv1`, `bn1`, `layer1.0.{conv1,bn1,conv2,bn2,shortcut}`, ..., `linear`.

Source: He et al., arXiv 1512.03385 (section 4.2 for depths 6 n + 2) and, for pre-activation,
1603.05027.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from recal.errors import UsageError

BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _conv(width_in: int, width_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False)


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
        width_out = 4 * width if shape == "bottleneck" else width
        if shape == "bottleneck":
            self.conv1, self.bn1 = _conv(width_in, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = _conv(width, width_out, 1), nn.BatchNorm2d(width_out)
        else:
            self.conv1, self.bn1 = _conv(width_in, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.deep = shape == "bottleneck"
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
        deep = shape == "bottleneck"
        width_out = 4 * width if deep else width
        self.bn1, self.bn2 = nn.BatchNorm2d(width_in), nn.BatchNorm2d(width)
        if deep:
            self.conv1, self.conv2 = _conv(width_in, width, 1), _conv(width, width, 3, stride)
            self.bn3, self.conv3 = nn.BatchNorm2d(width), _conv(width, width_out, 1)
        else:
            self.conv1, self.conv2 = _conv(width_in, width, 3, stride), _conv(width, width, 3)
        self.deep = deep
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
                width_in = (width << stage) * (4 if shape == "bottleneck" else 1)
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
    """Build ResNet-18, 34, 50, 101, 152 (width 64) or ResNet-(6 n + 2) (width 16).

    Raises:
        UsageError: The depth is none of these.
    """
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

    Args:
        depth: Number of weighted layers.
        classes: Number of classes, K.
        final_bn: Whether BN and ReLU come before the pool, as in RobustBench; not in other code.

    Raises:
        UsageError: The depth is none of these.
    """
    blocks = {**BASIC, **BOTTLENECK}.get(depth)
    if blocks is None:
        known = ", ".join(str(d) for d in (*BASIC, *BOTTLENECK))
        raise UsageError(f"--arch: expected a depth out of {known}, got preactresnet{depth}.")
    shape = "basic" if depth in BASIC else "bottleneck"
    return CifarResNet(blocks, shape, 64, classes, preact=True, final_bn=final_bn)
