"""Targets of one command: one that fails leaves the others going; backends agree."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from recal import (
    build,
    calibrate,
    compare,
    evaluate,
    export_onnx,
    load_checkpoint,
    save_variant,
)
from recal.checkpoint.layouts import ReadingOptions
from recal.datasets.catalogue import wnids
from recal.errors import InputError, UsageError
from recal.evaluation.execution import Batch, ExecutionOptions, choose_execution
from recal.evaluation.prepare import EvaluationRequest, make_plan, prepare_work
from recal.files import sample_checkpoint, sample_images
from recal.networks.names import create_network
from recal.networks.spec import ModelOverrides
from recal.runs.store import read_target_cell
from tests.published_sets import write_suite


def onnx_model(path, nodes, classes=10, side=32, kind=TensorProto.FLOAT):
    """Write a network from images to vectors that ends in `logits`."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input", kind, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [3, classes],
                            np.linspace(-1, 1, 3 * classes).tolist()),
         helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


LINEAR = [
    helper.make_node("ReduceMean", ["input", "axes"], ["pooled"], keepdims=0),
    helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
]
# takes 7 images at a time and fails on other numbers when it runs
FAILING = [
    helper.make_node("ReduceMean", ["input", "axes"], ["pooled"], keepdims=0),
    helper.make_node("Constant", [], ["seven"], value_ints=[7, 3]),
    helper.make_node("Reshape", ["pooled", "seven"], ["shaped"]),
    helper.make_node("MatMul", ["shaped", "weight"], ["logits"]),
]
NAN = [
    helper.make_node("ReduceMean", ["input", "axes"], ["pooled"], keepdims=0),
    helper.make_node("Log", ["pooled"], ["logs"]),
    helper.make_node("MatMul", ["logs", "weight"], ["logits"]),
]


def test_targets_that_fail_are_named_and_the_others_go_on(
    split_checkpoint, class_folders, tmp_path
):
    fails = onnx_model(tmp_path / "fails.onnx", FAILING)
    nan = onnx_model(tmp_path / "nan.onnx", NAN)
    targets = [str(fails), str(split_checkpoint), str(nan)]
    run = evaluate(
        targets, suite="cifar10c", data=class_folders, output=tmp_path / "run",
        corruptions=["contrast"], severities=[1],
        family="cifar", arch="wrn10_1",
    )  # fmt: skip
    found = sorted(failure.partition(": ")[0] for failure in run.failures)
    assert found == [f"{name}, {cell}" for name in ("fails.onnx", "nan.onnx")
                     for cell in ("clean", "contrast-1")]  # fmt: skip
    assert all("NaN or infinite logits, first for image " in f for f in run.failures if "nan" in f)
    assert all("ONNX Runtime" in f for f in run.failures if "fails" in f)
    assert {cell.target for cell in run.summary.cells} == {str(split_checkpoint)}
    alone = evaluate(
        [str(split_checkpoint)], suite="cifar10c", data=class_folders, output=tmp_path / "alone",
        corruptions=["contrast"], severities=[1],
    )  # fmt: skip
    assert alone.summary.cells == run.summary.cells


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"classes": 7}, r"expected a network of 10 classes for suite cifar10, got 7"),
        ({"kind": TensorProto.DOUBLE}, "expected one float input"),
        ({"side": 64}, "the network takes 64x64"),
    ],
)
def test_onnx_files_of_other_classes_or_inputs_are_refused(class_folders, tmp_path, model, message):
    nodes = LINEAR
    if "kind" in model:
        nodes = [helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
                 helper.make_node("ReduceMean", ["x", "axes"], ["pooled"], keepdims=0),
                 LINEAR[1]]  # fmt: skip
    path = onnx_model(tmp_path / "other.onnx", nodes, **model)
    with pytest.raises(InputError, match=message):
        evaluate(
            [str(path)], suite="cifar10", data=class_folders, output=tmp_path / "run",
            family="cifar",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_subset_counts_the_largest_of_its_own_logits(tmp_path):
    """ImageNet-A's way: a network of 1000 classes, images of 200 of them."""
    torch.manual_seed(0)
    network = create_network("wrn10_1", 1000).eval()
    torch.save({"arch": "wrn10_1", "state_dict": network.state_dict()}, tmp_path / "n.pth")
    order = wnids("imagenet")
    kept = [order.index(wnid) for wnid in wnids("imagenet_a")]
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    chosen = wnids("imagenet_a")[5:197:16]
    for wnid, image in zip(chosen, pixels, strict=True):
        (tmp_path / "a" / wnid).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "a" / wnid / "x.png")
    suite = write_suite(
        tmp_path,
        'title="A"\nfamily="cifar"\nclasses=1000\norder="wnids"\nsubset="imagenet_a"\n'
        '[clean]\nfolders=["a"]\nimages=7500',
    )
    run = evaluate(
        [str(tmp_path / "n.pth")], suite=str(suite), data=tmp_path, output=tmp_path / "run",
    )  # fmt: skip
    cell = read_target_cell(run.folder, str(tmp_path / "n.pth"), "clean")
    checkpoint = load_checkpoint(tmp_path / "n.pth")
    spec = checkpoint.spec
    with torch.no_grad():
        images = torch.from_numpy(Batch(pixels).normalised(spec.normalisation))
        logits = build(checkpoint)(images)[:, kept]
    assert cell["label"].tolist() == list(range(5, 197, 16))
    assert cell["prediction"].tolist() == logits.argmax(1).tolist()
    p = torch.softmax(logits.double(), 1)[range(12), cell["label"].astype(int)]
    np.testing.assert_allclose(cell["nll"], -p.log(), rtol=1e-4)
    warnings = " ".join(run.summary.warnings)
    assert "12 of the 200 classes have images" in warnings
    assert "12 images, where the published set has 7,500" in warnings


# of images of random colours and a network of random statistics, which no normalisation fits
@pytest.mark.filterwarnings("ignore:.*under no usual normalisation:recal.errors.RecalWarning")
def test_odd_preparation_and_guessing_are_warned_of(split_checkpoint, class_folders, tmp_path):
    options = {"suite": "cifar10", "data": class_folders}
    run = evaluate(
        [str(split_checkpoint)], output=tmp_path / "a", mean=(0.1,) * 3, std=(0.1,) * 3,
        **options,
    )  # fmt: skip
    warnings = run.summary.warnings
    assert any("mean 0.1,0.1,0.1 and std 0.1,0.1,0.1 do not fit" in line for line in warnings)
    # 40 images of random colours: a network of random weights guesses
    assert any("is that of guessing (10.0%)" in line for line in warnings)
    # images as they are, and -1 to 1, are conventions whatever the images
    for mean, std in (((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)):
        reading = ReadingOptions(model=ModelOverrides(mean=mean, std=std))
        work = prepare_work([str(split_checkpoint)], EvaluationRequest(reading=reading, **options))
        assert not any("do not fit" in line for line in work.images.warnings)


@pytest.mark.slow
def test_backends_predict_alike_on_9999_of_10000_images(tmp_path):
    """On real images, clean and corrupted, by a trained network and its other branch."""
    names = ["main", "aux0"]
    options = {
        "suite": "sample", "data": sample_images(), "checkpoint": sample_checkpoint(),
        "corruptions": ["contrast", "gaussian_noise"], "severities": [3],
    }  # fmt: skip
    runs = [
        evaluate(names, backend=backend, output=tmp_path / backend, **options)
        for backend in ("onnxruntime", "torch")
    ]
    different = total = 0
    for name in names:
        for cell in ("clean", "contrast-3", "gaussian_noise-3"):
            a, b = (read_target_cell(run.folder, name, cell) for run in runs)
            different += int((a["prediction"] != b["prediction"]).sum())
            total += len(a["prediction"])
            np.testing.assert_allclose(a["nll"], b["nll"], atol=1e-3)
    assert total >= 10_000
    assert different <= total / 10_000


def test_numbers_do_not_depend_on_batches_or_threads(split_checkpoint, class_folders, tmp_path):
    cells = []
    for batch_size, threads in ((7, 1), (40, 3), (1, 2)):
        run = evaluate(
            [str(split_checkpoint)], suite="cifar10", data=class_folders, batch_size=batch_size,
            threads=threads, output=tmp_path / f"{batch_size}",
        )  # fmt: skip
        cells.append(read_target_cell(run.folder, str(split_checkpoint), "clean"))
    for other in cells[1:]:
        assert all(np.array_equal(cells[0][name], other[name]) for name in cells[0])


@pytest.mark.slow
def test_an_exported_file_of_fixed_batch_and_of_pixels_is_evaluated(
    split_checkpoint, class_folders, tmp_path
):
    checkpoint = load_checkpoint(split_checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    names = [str(split_checkpoint)]
    for name, form in (("b", {"batch": 3}), ("u", {"uint8": True})):
        names.append(str(tmp_path / f"{name}.onnx"))
        export_onnx(checkpoint, "main", tmp_path / f"{name}.onnx", pixels, **form)
    run = evaluate(names, suite="cifar10", data=class_folders, output=tmp_path / "run")
    first, *others = (read_target_cell(run.folder, name, "clean") for name in names)
    for other in others:
        np.testing.assert_allclose(first["nll"], other["nll"], rtol=1e-3)


def test_plan_counts_and_writes_nothing(split_checkpoint, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = EvaluationRequest(
        suite="cifar10c", data=class_folders, corruptions=["contrast", "fog"], limit=20
    )
    work = prepare_work([str(split_checkpoint), f"{split_checkpoint}:aux0"], request)
    plan = make_plan(work, processes=4)
    assert (plan.targets, plan.cells, plan.images, plan.forwards) == (2, 11, 220, 440)
    assert set(plan.rates) == {"clean", "contrast", "fog"}
    by_hand = 20 / plan.rates["clean"] + 100 / plan.rates["contrast"] + 100 / plan.rates["fog"]
    assert plan.seconds == pytest.approx(by_hand / 4)
    assert not list(tmp_path.iterdir())


def test_execution_is_chosen_by_size_and_device():
    small, large = (choose_execution(ExecutionOptions(), size) for size in (32, 224))
    assert (small.backend, small.batch_size, large.batch_size) == ("onnxruntime", 256, 64)

    def chosen(**options):
        return choose_execution(ExecutionOptions(**options), 32)

    assert chosen(device="cuda").backend == "torch"
    assert chosen(autocast=torch.bfloat16).backend == "torch"
    assert chosen(batch_size=5, threads=3).threads == 3
    with pytest.raises(UsageError, match="expected --backend torch"):
        chosen(backend="onnxruntime", autocast=torch.bfloat16)


def test_a_network_that_cannot_be_built_is_tried_once_and_the_others_go_on(
    split_checkpoint, class_folders, tmp_path, monkeypatch
):
    from recal.evaluation import backends
    from recal.variant.build import build_classifier

    tried = []

    def build_or_not(checkpoint, variant):
        tried.append(variant)
        if len(tried) == 1:
            raise RuntimeError("no such operator\nand more")
        return build_classifier(checkpoint, variant)

    monkeypatch.setattr(backends, "build_classifier", build_or_not)
    run = evaluate(
        [str(split_checkpoint), f"{split_checkpoint}:aux0"], suite="cifar10c", data=class_folders,
        corruptions=["contrast"], severities=[1, 2], output=tmp_path / "run",
    )  # fmt: skip
    assert len(tried) == 2
    assert len(run.failures) == 3
    assert "the network cannot be built (no such operator)" in run.failures[0]
    assert {cell.target for cell in run.summary.cells} == {f"{split_checkpoint}:aux0"}


def test_targets_in_memory_are_those_of_their_files(split_checkpoint, class_folders, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    variant = calibrate(checkpoint, mode="clean", data=class_folders, batch_size=30)
    save_variant(variant, tmp_path / "clean.safetensors")
    options = {"data": class_folders, "suite": "cifar10"}
    named = evaluate(
        [str(split_checkpoint), str(tmp_path / "clean.safetensors")], output=tmp_path / "a",
        **options,
    )  # fmt: skip
    given = evaluate([checkpoint, variant], output=tmp_path / "b", **options)
    alone = evaluate(variant, checkpoint=checkpoint, output=tmp_path / "c", **options)
    one = evaluate(Path(split_checkpoint), output=tmp_path / "d", **options)
    accuracies = [row.clean_accuracy for row in named.summary.targets]
    assert [row.clean_accuracy for row in given.summary.targets] == accuracies
    assert alone.summary.targets[0].clean_accuracy == accuracies[1]
    assert one.summary.targets[0].clean_accuracy == accuracies[0]
    # another run's cells of the same networks are the same
    again = evaluate([checkpoint, variant], output=named.folder, **options)
    assert len(list((again.folder / "cells").rglob("*.parquet"))) == 2
    assert compare(given).pairs[0].images == 40
    assert "tensor" not in repr(variant) + repr(given)
    with pytest.raises(InputError, match=r"main, clean statistics: expected its weights"):
        evaluate(variant, output=tmp_path / "e", **options)
    with pytest.raises(TypeError, match="expected a module with batches, got str"):
        evaluate(str(split_checkpoint), [])
