"""Whatever a policy file may say of an op, the op does it to any image."""

import pickle
import typing

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recal.data.folders import open_images
from recal.data.sampling import keyed_draws
from recal.errors import InputError
from recal.policies.families import load_family
from recal.policies.ops import (
    AnyOp,
    AugMix,
    AutoAugment,
    CenterCrop,
    Cutout,
    Pad,
    Prepare,
    RandAugment,
    RandomCrop,
    Resize,
)
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedImages, PreparedTogether
from recal.schema import convert

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 44, 3), dtype=np.uint8)
CIFAR = load_family("cifar").preparation
NETWORK = msgspec.structs.replace(CIFAR, crop_mode="center")
LARGEST = 64  # sides and shifts, to be quick


def values(kind):
    """Everything that an annotation allows, but for large images."""
    if kind is bool:
        return st.booleans()
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if msgspec.UnsetType in typing.get_args(kind):
        return st.just(msgspec.UNSET) | values(typing.get_args(kind)[0])
    kind, meta = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return st.tuples(*map(values, typing.get_args(kind)))
    if kind is float:
        return st.floats(meta.ge, meta.le)
    return st.integers(meta.ge, meta.le if meta.le == 255 else min(meta.le, LARGEST))


@st.composite
def ops(draw):
    kind = draw(st.sampled_from(typing.get_args(AnyOp)))
    fields = msgspec.structs.fields(kind)
    return kind(**{field.name: draw(values(field.type)) for field in fields})


def fits(op):
    # what depends on the image's size is said when the op meets it
    if isinstance(op, Cutout):
        return (op.size or 16) < 40
    if isinstance(op, RandomCrop):
        return (op.size or 32) <= 40 and op.padding < 40
    return True


@settings(max_examples=150)
@given(op=ops(), seed=st.integers(0, 2**32 - 1))
def test_every_allowed_argument_gives_an_rgb_image(op, seed):
    if not fits(op):
        return
    assert convert(msgspec.to_builtins(op), AnyOp, "op") == op
    with keyed_draws(seed):
        out = op.transform(NETWORK)(Image.fromarray(PIXELS))
    assert out.mode == "RGB"
    side = getattr(op, "size", None)
    if isinstance(op, Prepare) or side is msgspec.UNSET:
        side = 32
    if isinstance(op, Resize):
        assert min(out.size) == side
    elif side is not None and not isinstance(op, Cutout):
        assert out.size == (side, side)
    else:
        assert out.size == (44, 40)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("magnitude", [0, 2, 10])
def test_randaugment_reaches_either_end_of_its_magnitudes(magnitude, increasing):
    common = {"translate": 14, "fill": (1, 2, 3)}
    ops = [
        RandAugment(n=8, magnitude=magnitude, mstd=0.5, increasing=increasing, **common),
        AugMix(magnitude=magnitude, **common),
        AutoAugment(policy="v0", mstd=5.0, **common),
    ]
    transforms = [op.transform(CIFAR) for op in ops]
    for key in range(60):
        for transform in transforms:
            with keyed_draws(key):
                assert transform(Image.fromarray(PIXELS)).size == (44, 40)


def test_ops_that_draw_nothing_are_known_as_such():
    fixed = {op for op in typing.get_args(AnyOp) if not op.random}
    assert fixed == {Prepare, Pad, Resize, CenterCrop}
    for op in fixed - {Prepare}:
        results = []
        for key in range(2):
            with keyed_draws(key):
                results.append(np.asarray(op(size=30).transform(CIFAR)(Image.fromarray(PIXELS))))
        assert np.array_equal(*results)


def test_autoaugment_as_learned_on_cifar10_is_torchvisions():
    import torch
    from torchvision.transforms import AutoAugmentPolicy, v2

    (op,) = (op for op in load_policy("cifar", "autoaugment").ops if isinstance(op, AutoAugment))
    for key in range(20):
        torch.manual_seed(key)
        mine = op.transform(CIFAR)(Image.fromarray(PIXELS))
        torch.manual_seed(key)
        peer = v2.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=list(op.fill))(
            Image.fromarray(PIXELS)
        )
        assert np.array_equal(np.asarray(mine), np.asarray(peer))


def test_prepared_images_survive_being_sent_to_a_process(class_folders):
    source = open_images(class_folders, "train")
    policies = [load_policy("cifar", name) for name in ("strong", "half_strong")]
    alone, together = (
        PreparedImages(source, policies[0], 1, CIFAR),
        PreparedTogether(source, policies, 1, CIFAR),
    )
    for images in (alone, together):
        sent = pickle.loads(pickle.dumps(images))
        for index in (0, 7):
            here, there = (
                i.read(index) if isinstance(i, PreparedImages) else i.batch_all([index])
                for i in (images, sent)
            )
            assert np.array_equal(here, there)


def test_an_image_too_small_for_a_policy_is_refused_by_name(tmp_path):
    Image.fromarray(PIXELS[:9, :9]).save(tmp_path / "small.png")
    images = PreparedImages(open_images(tmp_path, "train"), load_policy("cifar", "weak"), 0, CIFAR)
    with pytest.raises(InputError, match=r"small\.png: .*policy 'weak' .*got 9x9 pixels"):
        images.read(0)
