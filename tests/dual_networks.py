"""Networks whose BatchNorm has several branches, spelled as each source of checkpoints spells it.

Each norm has an attribute `branch`, the position of the branch that its eval mode uses.
"""

import torch
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn


class TimmSplit(SplitBatchNorm2d):
    """timm's own layer; in eval mode it can only use its first branch, so the test looks inside."""

    branches, branch = 3, 0

    def __init__(self, channels):
        super().__init__(channels, num_splits=self.branches)

    def forward(self, x):
        if self.training or self.branch == 0:
            return super().forward(x)
        return self.aux_bn[self.branch - 1](x)


class MixBN(nn.BatchNorm2d):
    branches, branch = 2, 0

    def __init__(self, channels):
        super().__init__(channels)
        self.aux_bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return super().forward(x) if self.branch == 0 else self.aux_bn(x)


class TwoAdversaries(nn.BatchNorm2d):
    branches, branch = 3, 0

    def __init__(self, channels):
        super().__init__(channels)
        self.aux_bn1 = nn.BatchNorm2d(channels)
        self.aux_bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return (super().forward, self.aux_bn1, self.aux_bn2)[self.branch](x)


class Listed(nn.Module):
    """Branches in a list of the name `attribute`."""

    attribute, branches, branch = "bn", 2, 0

    def __init__(self, channels):
        super().__init__()
        layers = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(self.branches))
        setattr(self, self.attribute, layers)

    def forward(self, x):
        return getattr(self, self.attribute)[self.branch](x)


class DuBN(Listed):
    pass


class DuBIN(nn.Module):
    branches, branch = 2, 0

    def __init__(self, channels):
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = DuBN(channels - self.half)

    def forward(self, x):
        first, second = x[:, : self.half].contiguous(), x[:, self.half :].contiguous()
        self.BN.branch = self.branch
        return torch.cat([self.IN(first), self.BN(second)], 1)


class Named(nn.Module):
    """Branches under the names `names`."""

    names, branch = (), 0

    def __init__(self, channels):
        super().__init__()
        for name in self.names:
            setattr(self, name, nn.BatchNorm2d(channels))

    def forward(self, x):
        return getattr(self, self.names[self.branch])(x)


class OnceForAll(Named):
    names, branches = ("BN_c", "BN_a"), 2


class DetAdvProp(Named):
    names, branches = ("bn_clean", "bn_adv"), 2


class DetAdvPropHeads(Named):
    names, branches = ("bn_clean", "bn_adv", "bn_cls", "bn_box"), 4


class ACL(Listed):
    attribute = "bn_list"


class AdvCL(Listed):
    attribute, branches = "bn_list", 3


class Domain(Listed):
    attribute, branches = "bns", 3


class Sandwich(nn.Module):
    branches, branch = 2, 0

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.bn_list = nn.ModuleList(
            nn.BatchNorm2d(channels, affine=False) for _ in range(self.branches)
        )
        self.embed = nn.Embedding(self.branches + 1, 2 * channels)

    def forward(self, x):
        x = self.bn_list[self.branch](x)
        for row in (self.branches, self.branch):  # the shared affine first, then the branch's own
            gamma, beta = self.embed(torch.tensor([row])).view(2, 1, self.channels, 1, 1)
            x = gamma * x + beta
        return x


class SubBN(nn.Module):
    """The splits are chunks of one wide BatchNorm; `branch` 0 is the aggregate of evaluation."""

    branches, branch = 3, 0

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.bn = nn.BatchNorm2d(channels, affine=False)
        self.split_bn = nn.BatchNorm2d(channels * (self.branches - 1), affine=False)

    def forward(self, x):
        if self.branch == 0:
            x = self.bn(x)
        else:
            # a batch of `splits` equal images: image i goes through chunk i
            splits = self.branches - 1
            n, c, h, w = x.shape
            wide = x[:, None].expand(n, splits, c, h, w).reshape(n, splits * c, h, w)
            x = self.split_bn(wide).view(n, splits, c, h, w)[:, self.branch - 1]
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class SharedAffine(nn.BatchNorm2d):
    branches, branch = 2, 0

    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("adv_running_mean", torch.zeros(channels))
        self.register_buffer("adv_running_var", torch.ones(channels))

    def forward(self, x):
        if self.branch == 0:
            return super().forward(x)
        return nn.functional.batch_norm(
            x, self.adv_running_mean, self.adv_running_var, self.weight, self.bias, eps=self.eps
        )


class Slimmable(nn.Module):
    branches, branch = 2, 0

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm2d(c) for c in (channels // 2, channels))

    def forward(self, x):
        return self.bn[1](x)


class Network(nn.Module):
    """Two convolutions with a norm each, the second beside a shortcut with a norm."""

    def __init__(self, norm, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = norm(8)
        self.body = nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), norm(6), nn.ReLU())
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        x = self.body(torch.relu(self.norm1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class SiblingBlock(nn.Module):
    """A block whose own class holds both branches of each of its layers."""

    branch = 0

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.bn1, self.bn1_adv = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.bn2, self.bn2_adv = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        x = torch.relu((self.bn1_adv if self.branch else self.bn1)(self.conv1(x)))
        return torch.relu((self.bn2_adv if self.branch else self.bn2)(self.conv2(x)))


class SiblingNetwork(nn.Module):
    """ACL's first spelling: bn1_adv beside bn1."""

    branches = 2

    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = SiblingBlock(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


class PlainSiblingNetwork(SiblingNetwork):
    """The same with one BatchNorm a layer."""

    def __init__(self, classes=5):
        super().__init__(classes)
        del self.block.bn1_adv, self.block.bn2_adv


class ScaleBlock(nn.Module):
    """A Res2Net-like block: its `bns` are layers used one after the other, no branches."""

    def __init__(self, channels=8):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.bns = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x):
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = torch.relu(bn(conv(x)))
        return x


class ScaleNetwork(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer = ScaleBlock()
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.layer(self.stem(x)).mean((2, 3)))


class Normalised(nn.Module):
    """A network with a normalisation layer in front, as attacks use it."""

    def __init__(self, network):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))
        self.model = network

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


NORMS = {
    "timm-splitbn": TimmSplit,
    "mixbn": MixBN,
    "two-adversaries": TwoAdversaries,
    "dubn": DuBN,
    "dubin": DuBIN,
    "once-for-all": OnceForAll,
    "sandwich": Sandwich,
    "acl": ACL,
    "advcl": AdvCL,
    "domain": Domain,
    "subbn": SubBN,
    "shared-affine": SharedAffine,
    "det-advprop": DetAdvProp,
}


def randomise(network, seed=0):
    """Give every tensor of a network values of its own, so that no two branches agree by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or name.endswith((".mean", ".std")):
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                scale = 1.0 if tensor.ndim < 2 else 0.3
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    return network.eval()


def use_branch(network, branch):
    """Make every norm use the branch of this position."""
    for module in network.modules():
        if hasattr(module, "branch"):
            module.branch = branch
    return network


def plain(num_classes=5):
    return Network(nn.BatchNorm2d, num_classes)


def plain_siblings(num_classes=5):
    return PlainSiblingNetwork(num_classes)


def siblings(num_classes=5):
    return SiblingNetwork(num_classes)


def scales(num_classes=5):
    return ScaleNetwork(num_classes)


def normalised(num_classes=5):
    return Normalised(plain(num_classes))


def dual(layout):
    """Return a callable that makes the network of a layout, for use as an architecture."""
    return lambda num_classes=5: Network(NORMS[layout], num_classes)


once_for_all, sandwich, mixbn = dual("once-for-all"), dual("sandwich"), dual("mixbn")
timm_splitbn, subbn, dubn, dubin = dual("timm-splitbn"), dual("subbn"), dual("dubn"), dual("dubin")
shared_affine, domain, acl = dual("shared-affine"), dual("domain"), dual("acl")
