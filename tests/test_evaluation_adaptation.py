"""Adaptation to the test images, against plain PyTorch and float64."""

import copy
import json

import numpy as np
import pytest
import torch

from recal import build, evaluate, export_onnx, load_checkpoint
from recal.errors import RecalError, UsageError
from recal.evaluation.adaptation import Adaptation, adapt_layers
from recal.runs.store import read_target_cell
from recal.variant.plain import batch_norms

PART = {"suite": "cifar10c", "corruptions": ["contrast", "pixelate"], "severities": [5]}


def images(seed, n=12):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def adapted_network(checkpoint, **options):
    network = build(load_checkpoint(checkpoint))
    return network, adapt_layers(network, Adaptation(**options))


class Blend(torch.nn.Module):
    """BatchNorm in float64 with statistics as the papers write them, from no code of recal's."""

    def __init__(self, layer, rule):
        super().__init__()
        self.layer, self.rule = layer, rule
        self.mean, self.var = layer.running_mean, layer.running_var

    def forward(self, x):
        batch_mean = x.mean(dim=(0, 2, 3))
        batch_var = (x - batch_mean[:, None, None]).pow(2).mean(dim=(0, 2, 3))
        mean, var = self.rule(self, batch_mean, batch_var, len(x))
        x = (x - mean[:, None, None]) / (var[:, None, None] + self.layer.eps).sqrt()
        return x * self.layer.weight[:, None, None] + self.layer.bias[:, None, None]


def blended(checkpoint, rule):
    network = build(load_checkpoint(checkpoint)).double()
    for path, layer in batch_norms(network).items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Blend(layer, rule))
    return network


@torch.no_grad()
def test_no_prior_is_training_modes_normalisation(split_checkpoint):
    network, _ = adapted_network(split_checkpoint, kind="batch")
    plain = build(load_checkpoint(split_checkpoint)).train()
    for seed in (0, 1):
        batch = images(seed)
        # training mode normalises by the batch; running statistics move, but are not used
        torch.testing.assert_close(network(batch), plain(batch), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_prior_blends_mean_and_variance_linearly(split_checkpoint):
    def rule(layer, mean, var, n):
        share = 30 / (30 + n)
        return share * layer.mean + (1 - share) * mean, share * layer.var + (1 - share) * var

    network, _ = adapted_network(split_checkpoint, kind="batch", prior=30)
    reference = blended(split_checkpoint, rule)
    for seed, n in ((0, 12), (1, 5), (2, 1)):
        expected = reference(images(seed, n).double()).float()
        torch.testing.assert_close(network(images(seed, n)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_endless_prior_is_the_network_itself(split_checkpoint):
    network, _ = adapted_network(split_checkpoint, kind="batch", prior=1e12)
    plain = build(load_checkpoint(split_checkpoint))
    torch.testing.assert_close(network(images(0)), plain(images(0)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_average_moves_before_each_prediction_and_begins_anew(split_checkpoint):
    def rule(layer, mean, var, n):
        layer.mean = 0.7 * layer.mean + 0.3 * mean
        layer.var = 0.7 * layer.var + 0.3 * var
        return layer.mean, layer.var

    network, layers = adapted_network(split_checkpoint, kind="ema", momentum=0.3)
    reference = blended(split_checkpoint, rule)
    found = [network(images(seed)) for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        expected = reference(images(seed).double()).float()
        torch.testing.assert_close(found[seed], expected, rtol=1e-4, atol=1e-4)
    for layer in layers:
        layer.reset()
    assert torch.equal(network(images(0)), found[0])


def test_batches_are_shuffled_and_even_and_hold_every_image_once():
    adaptation = Adaptation(kind="batch", batch=30, seed=5)
    indices = np.arange(100, 200)
    batches = adaptation.batches(indices)
    assert [len(batch) for batch in batches] == [25] * 4
    assert sorted(np.concatenate(batches)) == indices.tolist()
    assert all(batch.max() - batch.min() > 50 for batch in batches), "sorted by class, as files are"
    assert np.array_equal(batches[1], adaptation.batches(indices)[1])
    assert len(Adaptation(kind="batch", batch=1000).batches(indices)) == 1


@pytest.mark.slow
def test_cells_are_predicted_by_their_own_batches(split_checkpoint, class_folders, tmp_path):
    from recal.corruptions import corrupt
    from recal.data.folders import open_images
    from recal.data.normalise import normalise

    adaptation = Adaptation(kind="batch", batch=16, seed=3)
    run = evaluate(
        [str(split_checkpoint)], data=class_folders, output=tmp_path, adaptation=adaptation,
        seed=3, **PART,
    )  # fmt: skip
    source = open_images(class_folders, "test")
    clean = np.stack([source[i] for i in range(40)])
    checkpoint = load_checkpoint(split_checkpoint)
    spec = checkpoint.spec
    pictures = {
        "clean": clean,
        "contrast-5": corrupt(clean, "contrast", 5, family="cifar", seed=3),
        "pixelate-5": corrupt(clean, "pixelate", 5, family="cifar", seed=3),
    }
    for name, pixels in pictures.items():
        cell = read_target_cell(run.folder, str(split_checkpoint), name)
        assert cell["index"].tolist() == list(range(40)), "in dataset order, whatever the batches"
        network = build(checkpoint).train()
        for batch in adaptation.batches(np.arange(40)):
            x = normalise(torch.from_numpy(pixels[batch]), spec.mean, spec.std, torch.device("cpu"))
            with torch.no_grad():
                p = torch.softmax(network(x).double(), 1)
            truth = -p[range(len(batch)), torch.from_numpy(source.labels[batch])].log()
            np.testing.assert_allclose(cell["nll"][batch], truth, rtol=2e-3, atol=2e-4)


def test_an_average_begins_anew_in_each_cell(split_checkpoint, class_folders, tmp_path):
    options = {"data": class_folders, "adaptation": Adaptation(kind="ema", batch=10)}
    name = str(split_checkpoint)
    together = evaluate([name], output=tmp_path / "a", **PART, **options)
    alone = evaluate(
        [name], output=tmp_path / "b", **{**PART, "corruptions": ["pixelate"]}, **options
    )
    a, b = (read_target_cell(run.folder, name, "pixelate-5") for run in (together, alone))
    np.testing.assert_array_equal(a["nll"], b["nll"])


def test_what_saw_test_data_says_so_and_shares_no_cell(split_checkpoint, class_folders, tmp_path):
    options = {"suite": "cifar10", "data": class_folders, "output": tmp_path / "run"}
    name, cells = str(split_checkpoint), set()
    kinds = [
        None,
        Adaptation(kind="batch", batch=20),
        Adaptation(kind="batch", batch=20, prior=4),
        Adaptation(kind="batch", batch=20, seed=1),
        Adaptation(kind="ema", batch=20),
        Adaptation(kind="ema", batch=20, momentum=0.5),
    ]
    for adaptation in kinds:
        run = evaluate([name], adaptation=adaptation, **options)
        found = set(run.folder.rglob("*.parquet")) - cells
        assert len(found) == 1, adaptation
        cells |= found
        (row,) = run.summary.targets
        assert (row.adaptation is not None) == (adaptation is not None)
        assert ("(saw test data)" in row.label) == (adaptation is not None)
    request = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert "momentum 0.5" in request["targets"][0]["adaptation"]


def test_the_callers_checkpoint_is_not_changed(split_checkpoint, class_folders, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    before = copy.deepcopy(dict(checkpoint.weights))
    network = build(checkpoint)
    adapt_layers(network, Adaptation(kind="ema"))
    with torch.no_grad():
        network(images(0))
    assert all(torch.equal(before[key], tensor) for key, tensor in checkpoint.weights.items())
    again = build(checkpoint)
    layer = next(iter(batch_norms(again).values()))
    assert not torch.equal(
        layer.running_mean, next(iter(batch_norms(network).values())).running_mean
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tent"}, "--adapt: expected one of batch, ema, got 'tent'"),
        ({"kind": "batch", "batch": 0}, "--batch-size: expected 1 image or more, got 0"),
        ({"kind": "batch", "prior": -1.0}, "--prior: expected a number of at least 0"),
        ({"kind": "batch", "prior": float("nan")}, "--prior: expected a number of at least 0"),
        ({"kind": "ema", "momentum": 0.0}, "--momentum: expected more than 0"),
        ({"kind": "ema", "prior": 3.0}, "--prior: expected --adapt batch, got ema"),
    ],
)
def test_wrong_adaptations_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Adaptation(**options)


@pytest.mark.slow
def test_onnx_files_and_onnxruntime_are_refused(split_checkpoint, class_folders, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_checkpoint(split_checkpoint), "main", tmp_path / "m.onnx", pixels)
    options = {"suite": "cifar10", "data": class_folders, "output": tmp_path / "run"}
    adaptation = Adaptation(kind="batch")
    with pytest.raises(RecalError, match="expected a checkpoint or variant to adapt, got an ONNX"):
        evaluate([str(tmp_path / "m.onnx")], adaptation=adaptation, **options)
    with pytest.raises(UsageError, match="--adapt: expected --backend torch"):
        evaluate([str(split_checkpoint)], adaptation=adaptation, backend="onnxruntime", **options)
