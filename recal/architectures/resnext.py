"""ResNeXt-29 for 32x32 images, with the names that AugMix and RobustBench use.

Source: Xie et al., "Aggregated Residual Transformations for Deep Neural Networks",
arXiv 1611.05431.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

BLOCKS = 3
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution, each followed by BN, added to the input."""

    def __init__(self, width_in: int, width: int, groups: int, base: int, stride: int) -> None:
        super().__init__()
        inner = groups * (width * base // 64)
        self.conv_reduce = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand = nn.Conv2d(inner, EXPANSION * width, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(EXPANSION * width)
        self.downsample = None
        if stride != 1 or width_in != EXPANSION * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, EXPANSION * width, 1, stride, bias=False),
                nn.BatchNorm2d(EXPANSION * width),
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
        self.conv_1_3x3 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        width_in = 64
        stages = []
        for stage, width in enumerate((64, 128, 256)):
            blocks = []
            for i in range(BLOCKS):
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
