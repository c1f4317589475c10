"""Networks of single publications compute what their formulas say, written out once more."""

import pytest
import torch
from torch.nn import functional as F

from recal.networks.detect import architecture_of
from recal.networks.names import create_network
from tests.dual_networks import randomise

IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def made(request):
    torch.manual_seed(0)
    network = randomise(create_network(request.param, 10)).double().eval()
    return network, network.state_dict()


def norm(state, path, x):
    """Normalise by running statistics, as a formula."""
    mean, var, weight, bias = (
        state[f"{path}.{leaf}"][:, None, None]
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("made", ["allconv"], indirect=True)
def test_allconv_is_convolutions_norms_and_gelu(made):
    network, state = made
    x = IMAGES
    for index, padding in zip((0, 3, 6, 11, 14, 17, 22, 25, 28), (1,) * 6 + (0, 1, 1), strict=True):
        if index in (11, 22):
            x = F.max_pool2d(x, 2)
        weight, bias = (state[f"features.{index}.{leaf}"] for leaf in ("weight", "bias"))
        x = norm(state, f"features.{index + 1}", F.conv2d(x, weight, bias, padding=padding))
        x = x / (1 + (-1.702 * x).exp())
    assert x.shape == (3, 192, 10, 10)
    pooled = x[:, :, :8, :8].mean((2, 3))
    expected = pooled @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("made", ["densenet10_4"], indirect=True)
def test_densenet_adds_channels_layer_by_layer(made):
    network, state = made

    def layer(path, x, padding):
        active = norm(state, f"{path}.bn1", x).clamp(min=0)
        return F.conv2d(active, state[f"{path}.conv1.weight"], padding=padding)

    x = F.conv2d(IMAGES, state["conv1.weight"], padding=1)
    for block in (1, 2, 3):
        for number in (0, 1):
            x = torch.cat([x, layer(f"dense{block}.{number}", x, 1)], 1)
        if block < 3:
            x = layer(f"trans{block}", x, 0).unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    x = norm(state, "bn1", x).clamp(min=0).mean((2, 3))
    expected = x @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(network(IMAGES), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("made", ["acl_resnet18", "acl_resnet50"], indirect=True)
def test_acls_resnet_computes_what_the_one_with_other_names_does(made):
    network, state = made
    depth = 50 if "layer1.0.conv3.weight" in state else 18
    other = create_network(f"cifar_resnet{depth}", 10).double().eval()
    for own, new in (("downsample.conv", "shortcut.0"), ("downsample.bn", "shortcut.1")):
        state = {key.replace(own, new): tensor for key, tensor in state.items()}
    other.load_state_dict({key.replace("fc.", "linear."): t for key, t in state.items()})
    torch.testing.assert_close(network(IMAGES), other(IMAGES), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("made", ["stem_resnet18", "stem_resnet18_pool"], indirect=True)
def test_stem_keeps_the_size_and_max_pooling_has_to_be_told(made, request):
    network, state = made
    sizes = []
    network.layer1.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    network(IMAGES)
    assert sizes == [16 if request.node.callspec.params["made"].endswith("pool") else 32]
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    with pytest.raises(Exception, match="fit stem_resnet18 and stem_resnet18_pool, which compute"):
        architecture_of(None, shapes)


def test_instance_norm_beside_no_batch_norm_is_not_left_out_of_the_comparison():
    """A network with instance norm after its blocks is another one than that without."""
    with torch.device("meta"):
        network = create_network("cifar_resnet18", 10)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert architecture_of(None, shapes) == "cifar_resnet18"
    shapes |= {"layer1.1.IN.weight": (64,), "layer1.1.IN.bias": (64,)}
    with pytest.raises(Exception, match="names no architecture"):
        architecture_of(None, shapes)
