"""Images are prepared inside a graph as timm prepares them, within one level nearly everywhere."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from recal.data.normalise import Normalisation
from recal.onnx_file.editing import accept_uint8
from recal.onnx_file.preparing import preparation_alone, prepare_in_graph
from recal.onnx_file.reading import check_model
from recal.onnx_file.session import open_session, run_session
from recal.policies.preparation import Preparation

SHAPES = ((90, 120), (120, 91), (40, 40), (41, 39), (30, 77), (131, 33), (64, 65), (1, 5), (20, 20))
MEAN = (0.5, 0.4, 0.3, 0.2, 0.1)
FILL = (128, 102, 76)


def smooth(height, width, channels=3, seed=0):
    """Return a smooth picture, uint8 (height, width, channels)."""
    rng = np.random.default_rng(seed)
    planes = [
        Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).resize((width, height))
        for _ in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def graph(network):
    """Return a model that prepares images and gives the mean of each channel."""
    shape = ["batch", network.channels, network.size, network.size]
    nodes = [helper.make_node("ReduceMean", ["input", "axes"], ["logits"], keepdims=0)]
    made = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape[:2])],
        [numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    accept_uint8(model, Normalisation(MEAN[: network.channels], (1.0,) * network.channels))
    prepare_in_graph(model, network)
    check_model(model, "graph")
    return model


def prepared(model, pixels):
    session = open_session(preparation_alone(model).SerializeToString(), "graph")
    return run_session(session, {"input": pixels})[0].transpose(0, 2, 3, 1)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_levels_are_those_of_timm(mode, interpolation):
    from timm.data import create_transform

    network = Preparation(
        size=32, crop_share=0.9, interpolation=interpolation, crop_mode=mode, fill=FILL
    )
    model = graph(network)
    transform = create_transform(
        (3, 32, 32), crop_pct=0.9, interpolation=interpolation, crop_mode=mode, mean=MEAN[:3],
        std=(1.0,) * 3, normalize=False,
    )  # fmt: skip
    differing = []
    for height, width in SHAPES:
        picture = smooth(height, width)
        theirs = transform(Image.fromarray(picture))
        expected = np.rint(np.asarray(theirs, np.float64))
        off = np.abs(prepared(model, picture[None])[0] - expected.transpose(1, 2, 0))
        assert off.max() <= 2, (height, width)
        assert (off > 1).mean() < 0.002, (height, width)
        differing.append((off > 0).mean())
        (means,) = run_session(
            open_session(model.SerializeToString(), "graph"), {"input": picture[None]}
        )
        np.testing.assert_allclose(
            means[0], expected.mean(axis=(1, 2)) / 255 - MEAN[:3], atol=0.5 / 255
        )
    assert np.mean(differing) < 0.03


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_squares_of_the_network_and_of_published_sets_are_used_whole(mode):
    network = Preparation(size=40, crop_share=0.8, crop_mode=mode, published=32)
    model = graph(network)
    rng = np.random.default_rng(0)
    for side in (40, 32):
        pixels = rng.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
        expected = [Image.fromarray(image).resize((40, 40), Image.BICUBIC) for image in pixels]
        off = np.abs(prepared(model, pixels).astype(int) - np.stack(expected))
        assert off.max() <= (0 if side == 40 else 1)
    picture = smooth(48, 48)[None]
    assert np.abs(prepared(model, picture).astype(int) - picture[:, 4:44, 4:44]).max() > 3


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_is_prepared_alike(channels):
    network = Preparation(size=32, crop_share=0.9, crop_mode="center", channels=channels)
    picture = smooth(90, 120, channels)
    found = prepared(graph(network), picture[None])[0]
    for plane in range(channels):
        small = Image.fromarray(picture[..., plane]).resize((46, 35), Image.BICUBIC)
        # surpluses of 14 and 3 pixels are halved to even
        expected = np.asarray(small).astype(int)[2:34, 7:39]
        assert np.abs(found[..., plane] - expected).max() <= 1
