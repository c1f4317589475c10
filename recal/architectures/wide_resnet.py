"""Pre-activation wide residual networks for 32x32 images, as AugMix and RobustBench spell them.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """BN, ReLU and a 3x3 convolution, twice, added to the input."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.convShortcut = (
            None if width_in == width_out else nn.Conv2d(width_in, width_out, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        # where the width changes, the shortcut too starts from the activated input
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return shortcut + out  # type: ignore[no-any-return]


class NetworkBlock(nn.Module):
    """A stage: residual blocks of one width, the first of which may stride."""

    def __init__(self, blocks: int, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                BasicBlock(width_in if i == 0 else width_out, width_out, stride if i == 0 else 1)
                for i in range(blocks)
            )
        )

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
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
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
