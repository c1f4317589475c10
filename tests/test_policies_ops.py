"""Whatever a policy file may say of an op, the op does it to any image."""

import pickle
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recal.data.folders import open_images
from recal.data.sampling import keyed_draws
from recal.errors import InputError
from recal.policies.ops import DETERMINISTIC, OPS, Between, check_arguments
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedImages, PreparedTogether

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 44, 3), dtype=np.uint8)
LARGEST = 64  # sides and shifts, to be quick


def values(hint):
    """Everything that an annotation allows, but for large images."""
    if hint is bool:
        return st.booleans()
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(typing.get_args(hint))
    kind, bounds = typing.get_args(hint)
    assert isinstance(bounds, Between)
    if kind is float:
        return st.floats(bounds.low, bounds.high)
    one = st.integers(bounds.low, min(bounds.high, 255 if bounds.items else LARGEST))
    return st.lists(one, min_size=3, max_size=3) if bounds.items else one


@st.composite
def ops(draw):
    name = draw(st.sampled_from(sorted(OPS)))
    hints = typing.get_type_hints(OPS[name], include_extras=True)
    hints.pop("return")
    return name, {key: draw(values(hint)) for key, hint in hints.items()}


def fits(name, arguments):
    # what depends on the image's size is said when the op meets it
    if name == "cutout":
        return arguments["size"] < 40
    if name == "random_crop":
        return arguments["size"] <= 40 and arguments["padding"] < 40
    return True


@settings(max_examples=150, deadline=None)
@given(op=ops(), seed=st.integers(0, 2**32 - 1))
def test_every_allowed_argument_gives_an_rgb_image(op, seed):
    name, arguments = op
    if not fits(name, arguments):
        return
    check_arguments(OPS[name], arguments, name)
    with keyed_draws(seed):
        out = OPS[name](**arguments)(Image.fromarray(PIXELS))
    assert out.mode == "RGB"
    side = arguments.get("size")
    if name == "resize":
        assert min(out.size) == side
    elif side is not None and name != "cutout":
        assert out.size == (side, side)
    else:
        assert out.size == (44, 40)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0, 2, 10])
def test_randaugment_reaches_either_end_of_its_magnitudes(magnitude, increasing):
    common = {"translate": 14, "fill": [1, 2, 3]}
    transforms = [
        OPS["rand_augment"](n=8, magnitude=magnitude, mstd=0.5, increasing=increasing, **common),
        OPS["aug_mix"](magnitude=magnitude, **common),
        OPS["auto_augment"](policy="v0", mstd=5.0, **common),
    ]
    for key in range(60):
        for transform in transforms:
            with keyed_draws(key):
                assert transform(Image.fromarray(PIXELS)).size == (44, 40)


def test_ops_that_draw_nothing_are_known_as_such():
    arguments = {"size": 30}
    for name in DETERMINISTIC:
        results = []
        for key in range(2):
            with keyed_draws(key):
                results.append(np.asarray(OPS[name](**arguments)(Image.fromarray(PIXELS))))
        assert np.array_equal(*results)


def test_autoaugment_as_learned_on_cifar10_is_torchvisions():
    import torch
    from torchvision.transforms import AutoAugmentPolicy, v2

    op = dict(load_policy("cifar", "autoaugment").ops)["auto_augment"]
    for key in range(20):
        torch.manual_seed(key)
        mine = OPS["auto_augment"](**op)(Image.fromarray(PIXELS))
        torch.manual_seed(key)
        peer = v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=op["fill"])(Image.fromarray(PIXELS))
        assert np.array_equal(np.asarray(mine), np.asarray(peer))


def test_prepared_images_survive_being_sent_to_a_process(class_folders):
    source = open_images(class_folders, "train")
    policies = [load_policy("cifar", name) for name in ("strong", "half_strong")]
    alone, together = (
        PreparedImages(source, policies[0], 1, 32),
        PreparedTogether(source, policies, 1, 32),
    )
    for images in (alone, together):
        sent = pickle.loads(pickle.dumps(images))
        for index in (0, 7):
            here, there = (
                i.read(index) if isinstance(i, PreparedImages) else i.read_all(index)
                for i in (images, sent)
            )
            assert np.array_equal(here, there)


def test_an_image_too_small_for_a_policy_is_refused_by_name(tmp_path):
    Image.fromarray(PIXELS[:9, :9]).save(tmp_path / "small.png")
    images = PreparedImages(open_images(tmp_path, "train"), load_policy("cifar", "weak"), 0, 32)
    with pytest.raises(InputError, match=r"small\.png: .*policy 'weak' .*got 9x9 pixels"):
        images.read(0)
