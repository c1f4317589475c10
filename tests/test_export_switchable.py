"""One file, several variants: each is itself, and none of the others."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from recal import build, export_onnx, load_checkpoint
from recal.data.normalise import normalise_array
from recal.errors import InputError, UsageError
from recal.export.forms import Patchable, Switchable
from recal.onnx_file.engines import verify_alone
from recal.onnx_file.session import OnnxNetwork
from recal.variant.variant import branch_variant

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint)


def three(checkpoint):
    return {
        "main": branch_variant(checkpoint, "main"),
        "aux0": branch_variant(checkpoint, "aux0"),
        "mixed": branch_variant(checkpoint, "main", statistics="aux0"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", [{}, {"uint8": True}], ids=str)
def test_each_number_gives_its_variant(checkpoint, tmp_path, form):
    path = tmp_path / "s.onnx"
    variants = three(checkpoint)
    proofs = export_onnx(checkpoint, variants, path, PIXELS, form=Switchable(), **form).proofs
    spec = checkpoint.spec
    images = torch.from_numpy(normalise_array(PIXELS, spec.normalisation))
    for name, variant in variants.items():
        with torch.no_grad():
            expected = build(checkpoint, variant)(images).numpy()
        found = OnnxNetwork(path, variant=name).classify(PIXELS, spec.normalisation)
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))
        assert min(rival.distance for rival in proofs[name].rivals.values()) > 0.01
    assert verify_alone(path).record.variants[2].name == "mixed"
    with pytest.raises(UsageError, match="--variant: expected one of aux0, main, mixed"):
        OnnxNetwork(path, variant="nobody")


@pytest.mark.slow
def test_weights_are_shared_and_numbers_out_of_range_fail(checkpoint, tmp_path):
    path = tmp_path / "s.onnx"
    export_onnx(checkpoint, three(checkpoint), path, PIXELS, form=Switchable())
    model = onnx.load(path)
    assert [i.name for i in model.graph.input] == ["input", "variant"]
    outer = [t.name for t in model.graph.initializer]
    assert "conv1.weight" in outer
    assert not [name for name in outer if "running" in name]
    assert b"aux_bn" not in path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options)
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"input": np.zeros((1, 3, 32, 32), np.float32), "variant": np.array(3)})


def test_one_variant_or_odd_ones_are_refused(checkpoint, tmp_path):
    variants, path = three(checkpoint), tmp_path / "s.onnx"
    with pytest.raises(InputError, match="expected two variants or more, got 1"):
        export_onnx(checkpoint, variants["main"], path, PIXELS, form=Switchable())
    with pytest.raises(InputError, match="expected one variant for a file in patchable, got 3"):
        export_onnx(checkpoint, variants, path, PIXELS, form=Patchable())
    other = branch_variant(checkpoint.overridden(mean=(0.5, 0.5, 0.5)), "aux0")
    with pytest.raises(InputError, match="b: expected the preprocessing of the other variants"):
        export_onnx(
            checkpoint, {"a": variants["main"], "b": other}, path, PIXELS, form=Switchable()
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_one_file(recal, split_checkpoint, tmp_path, class_folders):
    status, out, err = recal(
        "export", split_checkpoint, "--switchable", "main,aux0", "-o", "s.onnx"
    )
    assert status == 0, err
    assert "Wrote s.onnx: 2 variants" in out
    picture = class_folders / "test" / "class0" / "0.png"
    found = [
        recal("predict", "s.onnx", picture, "--variant", v, "--format", "csv")[1]
        for v in ("main", "aux0")
    ]
    assert found[0] != found[1]
