"""Exported files are the variant, are proven so, and are the same bytes each time."""

import json

import numpy as np
import onnx
import pytest
import torch

from recal import build, export_onnx, load_checkpoint
from recal.bn.variant import branch_variant
from recal.deploy import export
from recal.deploy.graph import to_onnx, with_tensors
from recal.deploy.images import comparison_images
from recal.deploy.runtime import OnnxNetwork, normalise_array
from recal.errors import InputError, VerificationError

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


def test_file_gives_the_logits_of_its_branch_and_no_other(checkpoint, tmp_path):
    inputs = normalise_array(PIXELS, *(getattr(checkpoint.spec(), k) for k in ("mean", "std")))
    for branch in ("main", "aux0"):
        path = tmp_path / f"{branch}.onnx"
        proof = export_onnx(checkpoint, branch, path, PIXELS)
        with torch.no_grad():
            expected = build(checkpoint, branch)(torch.from_numpy(inputs)).numpy()
        found = OnnxNetwork(path).logits(inputs)
        np.testing.assert_allclose(found, expected, atol=proof.tolerance)
        assert proof.images == 70
        assert list(proof.rivals) == [{"main": "aux0", "aux0": "main"}[branch]]
        assert min(proof.rivals.values()) > 10 * proof.tolerance


def test_file_is_plain_self_contained_and_reproducible(checkpoint, tmp_path):
    for name in ("a", "b"):
        export_onnx(checkpoint, "aux0", tmp_path / f"{name}.onnx", PIXELS)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]
    for word in (b"aux_bn", str(tmp_path).encode(), b"/site-packages", b".py", b"/home", b"/root"):
        assert word not in content, word
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["input"]
    assert [o.name for o in model.graph.output] == ["logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    # only what has no convolution before it stays: bn1 of each of the 3 blocks, and the last
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 4


def test_metadata_say_what_the_file_is(checkpoint, tmp_path):
    export_onnx(checkpoint, "main", tmp_path / "m.onnx", PIXELS, mean=(0.5, 0.5, 0.5))
    metadata = OnnxNetwork(tmp_path / "m.onnx").metadata
    assert metadata["model"]["mean"] == [0.5, 0.5, 0.5]
    assert metadata["model"]["arch"] == "wrn10_1"
    assert metadata["weights_sha256"] == checkpoint.weights_sha256
    assert metadata["statistics"] == {"source": "branch", "branch": "main"}
    assert metadata["parity"]["images"] == 70
    json.dumps(metadata)


def test_a_file_that_is_not_its_variant_is_refused_and_not_written(
    checkpoint, tmp_path, monkeypatch
):
    good = tmp_path / "m.onnx"
    export_onnx(checkpoint, "main", good, PIXELS)
    before = good.read_bytes()

    def exports_the_wrong_branch(_network, size, *, fold):
        return to_onnx(build(checkpoint, "aux0"), size, fold=fold)

    monkeypatch.setattr(export, "to_onnx", exports_the_wrong_branch)
    with pytest.raises(VerificationError, match="got a difference of"):
        export_onnx(checkpoint, "main", good, PIXELS)
    assert good.read_bytes() == before, "the good file that was there stays"
    with pytest.raises(VerificationError):
        export_onnx(checkpoint, "main", tmp_path / "new.onnx", PIXELS)
    assert not (tmp_path / "new.onnx").exists()


def test_nan_logits_pass_no_proof(checkpoint, tmp_path):
    broken = branch_variant(checkpoint, "main", checkpoint.spec())
    broken.tensors["bn1.weight"] = torch.full_like(broken.tensors["bn1.weight"], float("nan"))
    with pytest.raises(VerificationError):
        export_onnx(checkpoint, broken, tmp_path / "m.onnx", PIXELS)


def test_unfolded_graph_takes_other_branches_by_name(checkpoint):
    inputs = normalise_array(PIXELS, (0.5,) * 3, (0.25,) * 3)
    base = to_onnx(build(checkpoint, "main"), 32, fold=False)
    variant = branch_variant(checkpoint, "aux0", checkpoint.spec())
    swapped = with_tensors(base, dict(variant.tensors))
    with torch.no_grad():
        expected = build(checkpoint, "aux0")(torch.from_numpy(inputs)).numpy()
    found = OnnxNetwork(swapped.SerializeToString()).logits(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    with pytest.raises(InputError, match="expected an initialiser 'nobody'"):
        with_tensors(base, {"nobody": torch.zeros(3)})


def test_training_mode_is_refused(checkpoint):
    network = build(checkpoint)
    network.block2.train()
    with pytest.raises(InputError, match="got block2 in training mode"):
        to_onnx(network, 32, fold=True)


def test_onnx_inputs_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"\x08\x07 no model")
    with pytest.raises(InputError, match=r"no\.onnx: expected an ONNX network"):
        OnnxNetwork(tmp_path / "no.onnx")
    with pytest.raises(InputError, match="got nothing there"):
        OnnxNetwork(tmp_path / "none.onnx")


def test_bundled_images_take_the_size_of_the_network(checkpoint):
    pixels, what = comparison_images(checkpoint.spec(size=64), None, 5)
    assert pixels.shape == (5, 64, 64, 3)
    assert what == "5 bundled Fashion-MNIST images"
