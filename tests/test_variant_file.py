"""Variants: what they hold, their files, and files that lie."""

import contextlib
import dataclasses
import json

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.variant.build import build
from recal.variant.variant import branch_variant, is_variant_file, load_variant, save_variant


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


@pytest.fixture
def variant(checkpoint):
    return branch_variant(checkpoint, "aux0")


def test_branch_variant_takes_affine_and_statistics_apart(checkpoint):
    variant = branch_variant(checkpoint, "aux0", statistics="main")
    assert len(variant.tensors) == 4 * len(checkpoint.layers)
    for key, tensor in variant.tensors.items():
        lender = "aux0" if key.endswith((".weight", ".bias")) else "main"
        assert np.array_equal(tensor, checkpoint.branch(lender)[key])
    assert variant.label == "aux0, statistics of main"
    assert branch_variant(checkpoint, "aux0").label == "aux0"


def test_unknown_branch_is_refused_with_the_nearest(checkpoint):
    with pytest.raises(UsageError, match="Did you mean 'aux0'"):
        branch_variant(checkpoint, "aux1")


def test_file_gives_back_what_was_saved_and_equal_variants_equal_bytes(variant, tmp_path):
    save_variant(variant, tmp_path / "a.safetensors")
    save_variant(variant, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    read = load_variant(tmp_path / "a.safetensors")
    assert read.record == variant.record
    assert read.sha256 == variant.sha256
    assert read.tensors.keys() == variant.tensors.keys()
    assert all(np.array_equal(read.tensors[key], variant.tensors[key]) for key in read.tensors)
    assert is_variant_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["recal"]


def test_hash_tells_variants_apart(checkpoint, variant):
    others = [
        branch_variant(checkpoint, "main"),
        branch_variant(checkpoint, "aux0", statistics="main"),
        dataclasses.replace(variant, spec=structs.replace(variant.spec, size=64)),
    ]
    assert len({variant.sha256, *(other.sha256 for other in others)}) == 4


def test_trust_is_never_written(checkpoint, tmp_path):
    named = branch_variant(checkpoint.overridden(arch="wrn10_1"), "main")
    assert named.spec.trusted
    save_variant(named, tmp_path / "v.safetensors")
    assert b"trusted" not in (tmp_path / "v.safetensors").read_bytes()
    assert not load_variant(tmp_path / "v.safetensors").spec.trusted


def forged(variant, path, tensors=None, **changes):
    record = {**msgspec.to_builtins(variant.record), **changes}
    save_file(tensors or variant.torch_tensors(), path, metadata={"recal": json.dumps(record)})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format: expected 1, got 99"),
        ({"model": {}}, "model: arch, classes, family, mean, std, size missing"),
        ({"model": None}, "model: expected a table, got None"),
        ({"weights_sha256": 5}, "weights_sha256: expected a string, got 5"),
        ({"statistics": []}, "statistics: expected a table"),
        ({"statistics": {}}, "statistics: source is missing. Add one of branch, policy, mix"),
        ({"statistics": {"source": "branch"}}, "statistics: branch missing. Add it"),
        ({"statistics": {"source": "mix", "parts": [5]}}, "statistics: weights missing"),
    ],
)
def test_record_that_is_not_whole_is_refused(changes, message, variant, tmp_path):
    with pytest.raises(InputError, match=message):
        load_variant(forged(variant, tmp_path / "v.safetensors", **changes))


def test_file_that_would_replace_shared_weights_is_refused(checkpoint, variant, tmp_path):
    tensors = {**variant.torch_tensors(), "conv1.weight": torch.zeros(16, 3, 3, 3)}
    with pytest.raises(InputError, match=r"conv1\.weight: expected the vectors of BatchNorm"):
        load_variant(forged(variant, tmp_path / "v.safetensors", tensors))
    in_memory = dataclasses.replace(
        variant, tensors={**variant.tensors, "fc.bias": np.ones(10, np.float32)}
    )
    with pytest.raises(InputError, match=r"also replaces fc\.bias"):
        build(checkpoint, in_memory)


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(16, 1), torch.zeros(16).int()])
def test_vectors_of_another_shape_or_type_are_refused(tensor, variant, tmp_path):
    tensors = {**variant.torch_tensors(), "block1.layer.0.bn1.bias": tensor}
    with pytest.raises(InputError, match=r"block1\.layer\.0\.bn1\.bias"):
        load_variant(forged(variant, tmp_path / "v.safetensors", tensors))


def test_other_files_are_no_variants(split_checkpoint, variant, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert not is_variant_file(split_checkpoint)
    assert not is_variant_file(tmp_path / "none")
    for path, message in (
        (split_checkpoint, "no whole safetensors"),
        (tmp_path / "other.safetensors", "that recal wrote"),
        (tmp_path / "none", "but it does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            load_variant(path)


@settings(max_examples=150)
@given(st.data())
def test_damaged_variant_is_read_or_refused(data):
    content = bytearray(SAVED)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 6000) - 1))] = data.draw(
            st.integers(0, 255)
        )
    TARGET.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        assert load_variant(TARGET).tensors


@pytest.fixture(autouse=True)
def saved_bytes(request, split_checkpoint, tmp_path_factory):
    """One variant's bytes, for the property that hypothesis tests."""
    global SAVED, TARGET
    if "damaged" in request.node.name:
        folder = tmp_path_factory.mktemp("damaged")
        checkpoint = load_checkpoint(split_checkpoint)
        save_variant(branch_variant(checkpoint, "main"), folder / "v")
        SAVED, TARGET = (folder / "v").read_bytes(), folder / "damaged"
        assert load_file(folder / "v")


SAVED, TARGET = b"", None
