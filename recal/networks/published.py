"""Networks for images of 32 x 32 pixels that single publications define.

AllConv and DenseNet are those of AugMix (arXiv 1912.02781), ResNet those of adversarial contrastive
learning (ACL, arXiv 2010.13337). Their tensors have the names that the authors' code uses.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from recal.errors import UsageError

RESNETS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


class QuickGelu(nn.Module):
    """GELU approximated by x sigmoid(1.702 x); Hendrycks and Gimpel, arXiv 1606.08415."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a tensor to one of the same shape."""
        return x * torch.sigmoid(1.702 * x)


class AllConv(nn.Module):
    """Convolutions with bias, BN and GELU; max pooling, average pool, linear classifier.

    Source: Springenberg et al., arXiv 1412.6806, in the form of AugMix. A 3x3 convolution without
    padding takes a map of 8x8 to 6x6; each 1x1 convolution after it pads by a pixel. The average is
    over the first 8x8 of the 10x10 places that result.

    Args:
        classes: Number of classes, K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in = 3
        for width in (96, 192):
            for _ in range(3):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers.append(QuickGelu())
                width_in = width
            layers += [nn.MaxPool2d(2), nn.Dropout(0.5)]
        for kernel, padding in ((3, 0), (1, 1), (1, 1)):
            convolution = nn.Conv2d(width_in, width_in, kernel, padding=padding)
            layers += [convolution, nn.BatchNorm2d(width_in), QuickGelu()]
        self.features = nn.Sequential(*layers, nn.AvgPool2d(8))
        self.classifier = nn.Linear(width_in, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, 32, 32) to logits (N, K)."""
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


class DenseLayer(nn.Module):
    """BN, ReLU and a 3x3 convolution, whose result is added as new channels."""

    def __init__(self, width_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C + growth, H, W)."""
        return torch.cat((x, self.conv1(F.relu(self.bn1(x)))), 1)


class Transition(nn.Module):
    """BN, ReLU, a 1x1 convolution that keeps the number of channels, and average pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2)."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet without bottlenecks and without compression; three dense blocks of equal depth.

    Source: Huang et al., arXiv 1608.06993; `densenet40_12` is AugMix's.

    Args:
        depth: 3 n + 4 layers, n in each dense block.
        growth: Channels that each layer adds.
        classes: Number of classes, K.
    """

    def __init__(self, depth: int, growth: int, classes: int) -> None:
        super().__init__()
        if not (7 <= depth <= 304 and (depth - 4) % 3 == 0 and 1 <= growth <= 64):
            raise UsageError(
                f"--arch: a DenseNet's depth is 3 n + 4 and its growth 1 to 64, got "
                f"densenet{depth}_{growth}."
            )
        layers, width = (depth - 4) // 3, 2 * growth
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for number in (1, 2, 3):
            dense = (DenseLayer(width + i * growth, growth) for i in range(layers))
            self.add_module(f"dense{number}", nn.Sequential(*dense))
            width += layers * growth
            if number < 3:
                self.add_module(f"trans{number}", Transition(width))
        self.bn1 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalised images (N, 3, 32, 32) to logits (N, K)."""
        x = self.conv1(x)
        for part in ("dense1", "trans1", "dense2", "trans2", "dense3"):
            x = self.get_submodule(part)(x)
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def stem_resnet(depth: int, classes: int, *, pool: bool = False) -> ResNet:
    """Build torchvision's ResNet with a 3x3 stem of stride 1, as much code for CIFAR does.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: Number of classes, K.
        pool: Whether max pooling follows the stem; no tensor tells.
    """
    if depth not in RESNETS:
        known = ", ".join(map(str, RESNETS))
        raise UsageError(f"--arch: expected a ResNet's depth out of {known}, got {depth}.")
    network = ResNet(*RESNETS[depth], num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if not pool:
        network.maxpool = nn.Identity()
    return network


def acl_resnet(depth: int, classes: int) -> ResNet:
    """Build ACL's ResNet: without pooling after the stem, shortcuts named `conv` and `bn`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: Number of classes, K.
    """
    network = stem_resnet(depth, classes)
    for module in network.modules():
        if isinstance(module, (BasicBlock, Bottleneck)) and module.downsample is not None:
            module.downsample = nn.Sequential(
                OrderedDict(zip(("conv", "bn"), module.downsample, strict=True))
            )
    return network
