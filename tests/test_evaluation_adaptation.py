"""Adaptation to the test images, against plain PyTorch and float64."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from recal import build, evaluate, export_onnx, load_checkpoint
from recal.errors import InputError, RecalError, UsageError
from recal.evaluation.adaptation import ALL_CELLS, Adaptation, AdaptedNetwork
from recal.runs.store import read_target_cell
from recal.variant.plain import batch_norms

PART = {"suite": "cifar10c", "corruptions": ["contrast", "pixelate"], "severities": [5]}


def images(seed, n=12):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def adapted_network(checkpoint, **options):
    return AdaptedNetwork(build(load_checkpoint(checkpoint)), Adaptation(**options))


class Blend(torch.nn.Module):
    """BatchNorm in float64 with statistics as the papers write them, from no code of recal's.

    The rule gets the batch's mean and unbiased variance, as PyTorch's running statistics do.
    """

    def __init__(self, layer, rule):
        super().__init__()
        self.layer, self.rule = layer, rule
        self.mean, self.var = layer.running_mean, layer.running_var

    def forward(self, x):
        batch_mean = x.mean(dim=(0, 2, 3))
        squares = (x - batch_mean[:, None, None]).pow(2).sum(dim=(0, 2, 3))
        batch_var = squares / (x.numel() / x.shape[1] - 1)
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
    network = adapted_network(split_checkpoint, kind="batch")
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

    network = adapted_network(split_checkpoint, kind="batch", prior=30)
    reference = blended(split_checkpoint, rule)
    for seed, n in ((0, 12), (1, 5), (2, 1)):
        expected = reference(images(seed, n).double()).float()
        torch.testing.assert_close(network(images(seed, n)), expected, rtol=1e-4, atol=1e-4)
        # prior N is alpha = n / (N + n)
        alpha = adapted_network(split_checkpoint, kind="batch", alpha=n / (30 + n))
        torch.testing.assert_close(alpha(images(seed, n)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("only", ["means", "variances"])
@torch.no_grad()
def test_means_or_variances_alone_are_the_batchs(split_checkpoint, only):
    def rule(layer, mean, var, n):
        return (mean, layer.var) if only == "means" else (layer.mean, var)

    network = adapted_network(split_checkpoint, kind="batch", only=only)
    reference = blended(split_checkpoint, rule)
    for seed in (0, 1):
        expected = reference(images(seed).double()).float()
        torch.testing.assert_close(network(images(seed)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cumulative_statistics_are_the_average_of_the_batches_so_far(split_checkpoint):
    def rule(layer, mean, var, n):
        layer.seen = [*getattr(layer, "seen", []), (mean, var)]
        return tuple(torch.stack(found).mean(0) for found in zip(*layer.seen, strict=True))

    network = adapted_network(split_checkpoint, kind="cumulative")
    reference = blended(split_checkpoint, rule)
    found = [network(images(seed, 12 - seed)) for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        expected = reference(images(seed, 12 - seed).double()).float()
        torch.testing.assert_close(found[seed], expected, rtol=1e-4, atol=1e-4)
    network.reset()
    assert torch.equal(network(images(0)), found[0])


@torch.no_grad()
def test_the_statistics_of_a_cell_are_those_of_one_training_pass_of_its_images(split_checkpoint):
    batches = [images(0), images(1, 5), images(2, 7)]
    plain = build(load_checkpoint(split_checkpoint)).train()
    expected = plain(torch.cat(batches)).split([12, 5, 7])
    network = adapted_network(split_checkpoint, kind="cell")
    network.estimate(batches)
    for batch, wanted in zip(batches, expected, strict=True):
        torch.testing.assert_close(network(batch), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_endless_prior_is_the_network_itself(split_checkpoint):
    network = adapted_network(split_checkpoint, kind="batch", prior=1e12)
    plain = build(load_checkpoint(split_checkpoint))
    torch.testing.assert_close(network(images(0)), plain(images(0)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_moving_average_follows_training_passes_and_begins_anew(split_checkpoint):
    # a training-mode pass moves running statistics, an eval-mode pass predicts by them
    plain = build(load_checkpoint(split_checkpoint))
    for layer in batch_norms(plain).values():
        layer.momentum = 0.3
    network = adapted_network(split_checkpoint, kind="ema", momentum=0.3)
    found = [network(images(seed)) for seed in (0, 1, 2)]
    for seed in (0, 1, 2):
        plain.train()(images(seed))
        expected = plain.eval()(images(seed))
        torch.testing.assert_close(found[seed], expected, rtol=1e-4, atol=1e-4)
    network.reset()
    assert torch.equal(network(images(0)), found[0])


@torch.no_grad()
def test_a_variance_of_one_value_is_refused_where_it_has_to_be_unbiased():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).eval()
    with pytest.raises(InputError, match="expected more than one value per channel"):
        AdaptedNetwork(network, Adaptation(kind="cumulative"))(torch.ones(1, 3))


def test_batches_are_shuffled_and_even_and_hold_every_image_once():
    adaptation = Adaptation(kind="batch", batch=30, seed=5)
    indices, labels = np.arange(100, 200), np.arange(200) % 7
    batches = adaptation.batches(indices, labels)
    assert [len(batch) for batch in batches] == [25] * 4
    assert sorted(np.concatenate(batches)) == indices.tolist()
    assert all(batch.max() - batch.min() > 50 for batch in batches), "sorted by class, as files are"
    assert np.array_equal(batches[1], adaptation.batches(indices, labels)[1])
    assert len(Adaptation(kind="batch", batch=1000).batches(indices, labels)) == 1


def test_images_can_keep_their_order_or_be_sorted_by_class():
    indices, labels = np.arange(100, 200), np.arange(200) % 7
    found = {
        order: np.concatenate(
            Adaptation(kind="ema", order=order, batch=30).batches(indices, labels)
        )
        for order in ("as-is", "by-class")
    }
    assert found["as-is"].tolist() == indices.tolist()
    expected = sorted(indices, key=lambda i: (labels[i], i))
    assert found["by-class"].tolist() == expected


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
        for batch in adaptation.batches(np.arange(40), source.labels):
            x = normalise(torch.from_numpy(pixels[batch]), spec.normalisation, torch.device("cpu"))
            with torch.no_grad():
                p = torch.softmax(network(x).double(), 1)
            truth = -p[range(len(batch)), torch.from_numpy(source.labels[batch])].log()
            np.testing.assert_allclose(cell["nll"][batch], truth, rtol=2e-3, atol=2e-4)


def nll(run, name, cell):
    return read_target_cell(run.folder, name, cell)["nll"]


def test_continual_cells_go_on_where_the_last_one_ended(split_checkpoint, class_folders, tmp_path):
    from recal.corruptions import corrupt
    from recal.data.folders import open_images
    from recal.data.normalise import normalise

    name, sequence = str(split_checkpoint), ("pixelate-5", "contrast-5")
    adaptation = Adaptation(kind="ema", batch=20, continual=sequence, order="as-is")
    options = {"suite": "cifar10c", "data": class_folders, "output": tmp_path / "run"}
    run = evaluate([name], adaptation=adaptation, **options)
    source, checkpoint = open_images(class_folders, "test"), load_checkpoint(split_checkpoint)
    clean = np.stack([source[i] for i in range(40)])
    network, spec = build(checkpoint), checkpoint.spec
    with torch.no_grad():
        for cell in sequence:
            pixels = corrupt(clean, cell[:-2], 5, family="cifar")
            for start in (0, 20):
                part = torch.from_numpy(pixels[start : start + 20])
                x = normalise(part, spec.normalisation, torch.device("cpu"))
                network.train()(x)
                p = network.eval()(x).double().softmax(1).numpy()
                truth = -np.log(p[range(20), source.labels[start : start + 20]])
                found = nll(run, name, cell)[start : start + 20]
                np.testing.assert_allclose(found, truth, rtol=2e-3, atol=2e-4)

    # a cell that is lost is computed with the statistics that the ones before it left
    before = {cell: nll(run, name, cell) for cell in sequence}
    for path in run.folder.rglob("contrast-5.parquet"):
        path.unlink()
    again = evaluate([name], adaptation=adaptation, **options)
    for cell in sequence:
        np.testing.assert_array_equal(nll(again, name, cell), before[cell])
    # in another order they are other cells, and the clean one is the same
    other = replace(adaptation, continual=sequence[::-1])
    reverse = evaluate([name], adaptation=other, **options)
    assert not np.array_equal(nll(reverse, name, "contrast-5"), before["contrast-5"])
    np.testing.assert_array_equal(nll(reverse, name, "clean"), nll(run, name, "clean"))
    assert "2 cells without a reset" in run.summary.targets[0].adaptation


@pytest.mark.parametrize(
    ("options", "sequence", "message"),
    [
        ({"suite": "cifar10c", "severities": [5]}, ("fog-5",), "expected no --corruptions or"),
        ({"suite": "cifar10c"}, ("fog-5", "fogg-5"), "expected one of brightness-1, .* 'fogg-5'"),
        ({"suite": "cifar10c"}, ("fog-5", "fog-5"), "expected each cell once"),
        ({"suite": "cifar10"}, ALL_CELLS, "expected a suite of several cells, got cifar10"),
    ],
)
def test_wrong_sequences_are_refused(split_checkpoint, class_folders, options, sequence, message):
    adaptation = Adaptation(kind="ema", continual=sequence)
    with pytest.raises(UsageError, match=message):
        evaluate([str(split_checkpoint)], data=class_folders, adaptation=adaptation, **options)


def test_a_cells_statistics_can_be_of_some_of_its_images(split_checkpoint, class_folders, tmp_path):
    from recal.data.folders import open_images
    from recal.data.normalise import normalise

    adaptation = Adaptation(kind="cell", samples=8, batch=5, order="as-is")
    name, options = str(split_checkpoint), {"suite": "cifar10", "data": class_folders}
    steps = []
    run = evaluate(
        [name], output=tmp_path / "run", adaptation=adaptation,
        progress=lambda done, total: steps.append((done, total)), **options,
    )  # fmt: skip
    # the images that statistics are estimated on count first
    assert steps[-1] == (48, 48)
    assert steps == sorted(steps)
    assert any(0 < done < 8 for done, _ in steps)
    source, checkpoint = open_images(class_folders, "test"), load_checkpoint(split_checkpoint)
    pixels = torch.from_numpy(np.stack([source[i] for i in range(40)]))
    spec = checkpoint.spec
    x = normalise(pixels, spec.normalisation, torch.device("cpu"))
    network = build(checkpoint)
    for layer in batch_norms(network).values():
        layer.momentum = 1.0
    with torch.no_grad():
        network.train()(x[:8])
        shapes = {}
        for path, layer in batch_norms(network).items():
            layer.register_forward_hook(
                lambda m, i, _o, path=path: shapes.update({path: i[0].shape})
            )
        network(x[:8])
        for path, layer in batch_norms(network).items():
            n = shapes[path].numel() / shapes[path][1]
            layer.running_var *= (n - 1) / n  # the biased variance of these images
        p = network.eval()(x).double().softmax(1).numpy()
    truth = -np.log(p[range(40), source.labels[:40]])
    np.testing.assert_allclose(nll(run, name, "clean"), truth, rtol=2e-3, atol=2e-4)
    assert "8 images of the cell (Benz et al. 2021)" in run.summary.targets[0].adaptation


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
        Adaptation(kind="batch", batch=20, alpha=0.5),
        Adaptation(kind="batch", batch=20, only="means"),
        Adaptation(kind="batch", batch=20, order="by-class"),
        Adaptation(kind="cumulative", batch=20),
        Adaptation(kind="cell", batch=20),
        Adaptation(kind="cell", batch=20, samples=32),
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
    with torch.no_grad():
        AdaptedNetwork(network, Adaptation(kind="ema"))(images(0))
    assert all(torch.equal(before[key], tensor) for key, tensor in checkpoint.weights.items())
    again = build(checkpoint)
    layer = next(iter(batch_norms(again).values()))
    assert not torch.equal(
        layer.running_mean, next(iter(batch_norms(network).values())).running_mean
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "tent"}, "--adapt: expected one of batch, cell, cumulative, ema, got 'tent'"),
        ({"kind": "batch", "batch": 0}, "--batch-size: expected 1 image or more, got 0"),
        ({"kind": "batch", "prior": -1.0}, "--prior: expected a number of at least 0"),
        ({"kind": "batch", "prior": float("nan")}, "--prior: expected a number of at least 0"),
        ({"kind": "ema", "momentum": 0.0}, "--momentum: expected more than 0"),
        ({"kind": "ema", "prior": 3.0}, "--prior: expected --adapt batch, got ema"),
        ({"kind": "cell", "alpha": 0.5}, "--alpha: expected --adapt batch, got cell"),
        ({"kind": "batch", "alpha": 0.5, "prior": 2.0}, "--alpha: expected no --prior with it"),
        ({"kind": "batch", "alpha": 1.5}, "--alpha: expected a number from 0 to 1, got 1.5"),
        ({"kind": "ema", "only": "means"}, "--only: expected --adapt batch, got ema"),
        ({"kind": "batch", "samples": 32}, "--samples: expected --adapt cell, got batch"),
        ({"kind": "cell", "samples": 0}, "--samples: expected 1 image or more, got 0"),
        (
            {"kind": "batch", "order": "random"},
            "--order: expected one of as-is, by-class, shuffled",
        ),
        (
            {"kind": "batch", "continual": ("fog-5",)},
            "--continual: expected --adapt cumulative or ema, got batch",
        ),
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
