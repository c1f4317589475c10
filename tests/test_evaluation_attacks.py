"""Suites of attacks, against plain PyTorch and the packages that people use."""

import numpy as np
import pytest
import torch
from torch import nn

from recal import build, evaluate, export_onnx, load_checkpoint
from recal.attacks.attack import AutoAttack, Pgd
from recal.attacks.gradient import attack_images, random_starts
from recal.errors import InputError, UsageError
from recal.report.blocks import MARKUPS
from recal.report.runs import summary_blocks
from recal.runs.store import read_target_cell
from recal.suites.suite import read_suite

LINF = Pgd(norm="linf", radius=8, step=2, steps=4, random_start=False)
L2 = Pgd(norm="l2", radius=127.5, step=25.5, steps=4, random_start=False)


class Normalised(nn.Module):
    def __init__(self, checkpoint, branch="main"):
        super().__init__()
        self.network = build(checkpoint, branch)
        self.mean, self.std = (
            torch.tensor(x)[:, None, None] for x in (checkpoint.spec.mean, checkpoint.spec.std)
        )

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


def pgd(model, x, y, attack, starts=None):
    """The attack as the paper has it, one image at a time in float64."""
    found = []
    radius, step = attack.radius / 255, attack.step / 255
    for image, label, start in zip(x, y, x * 0 if starts is None else starts, strict=True):
        now = np.clip(image.numpy() + start.numpy(), 0, 1)
        for _ in range(attack.steps):
            point = torch.tensor(now, dtype=x.dtype, requires_grad=True)
            nn.functional.cross_entropy(model(point[None]), label[None]).backward()
            g = point.grad.numpy()
            if attack.norm == "linf":
                change = np.clip(now + step * np.sign(g) - image.numpy(), -radius, radius)
            else:
                change = now + step * g / np.sqrt((g**2).sum()) - image.numpy()
                change *= min(1, radius / np.sqrt((change**2).sum()))
            now = np.clip(image.numpy() + change, 0, 1)
        found.append(torch.tensor(now))
    return torch.stack(found)


def pixels(n=6, seed=0):
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, (n, 3, 32, 32)) / 255.0).float()


@pytest.fixture
def model(split_checkpoint):
    return Normalised(load_checkpoint(split_checkpoint)).eval()


@pytest.mark.parametrize("attack", [LINF, L2])
@pytest.mark.parametrize("start", [False, True])
def test_the_attack_is_the_papers(model, attack, start):
    model, x, y = model.double(), pixels().double(), torch.arange(6)
    starts = random_starts(
        Pgd(**{**options(attack), "random_start": start}), 3, np.arange(6), (3, 32, 32)
    )
    starts = None if starts is None else starts.double()
    found = attack_images(model, x, y, attack, starts)
    torch.testing.assert_close(found, pgd(model, x, y, attack, starts), rtol=0, atol=1e-9)
    lengths = (found - x).abs().amax((1, 2, 3))
    if attack.norm == "l2":
        lengths = (found - x).flatten(1).norm(dim=1)
    assert (lengths <= attack.radius / 255 + 1e-9).all()
    assert (found >= 0).all()
    assert (found <= 1).all()


def options(attack):
    names = ("norm", "radius", "step", "steps", "random_start")
    return {name: getattr(attack, name) for name in names}


@pytest.mark.parametrize("attack", [LINF, L2])
def test_torchattacks_changes_images_alike(model, attack):
    torchattacks = pytest.importorskip("torchattacks", exc_type=ImportError)
    kind = torchattacks.PGD if attack.norm == "linf" else torchattacks.PGDL2
    peer = kind(
        model, eps=attack.radius / 255, alpha=attack.step / 255, steps=attack.steps,
        random_start=False,
    )  # fmt: skip
    x, y = pixels(), torch.arange(6)
    found, expected = attack_images(model, x, y, attack, None), peer(x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(model(found).argmax(1), model(expected).argmax(1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_belong_to_an_image_and_fill_the_ball(norm):
    attack = Pgd(norm=norm, radius=8, step=2, steps=1)
    whole = random_starts(attack, 5, np.arange(100), (3, 8, 8))
    part = random_starts(attack, 5, np.array([70, 3]), (3, 8, 8))
    assert torch.equal(part, whole[[70, 3]])
    assert not torch.equal(random_starts(attack, 6, np.arange(100), (3, 8, 8)), whole)
    lengths = whole.abs().amax((1, 2, 3)) if norm == "linf" else whole.flatten(1).norm(dim=1)
    assert (lengths <= 8 / 255 * (1 + 1e-6)).all()
    shares = whole.flatten() * 255 / 16 + 0.5 if norm == "linf" else lengths * 255 / 8
    # uniform: quantiles of the sample are those of the distribution
    for q in (0.1, 0.5, 0.9):
        assert abs(shares.quantile(q).item() - q) < (0.02 if norm == "linf" else 0.15)


SUITE = """
title = "Two attacks"
family = "cifar"
classes = 10

[attack.weak]
method = "pgd"
norm = "linf"
radius = 1
step = 1
steps = 1
random_start = false

[attack.strong]
method = "pgd"
norm = "l2"
radius = 127.5
step = 25.5
steps = 3
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "two.toml").write_text(SUITE, encoding="utf-8")
    return str(tmp_path / "two.toml")


def run(checkpoint, suite, data, tmp_path, **given):
    targets = [f"{checkpoint}:main", f"{checkpoint}:aux0"]
    # one thread: waiting for others takes most of the time on a busy machine
    return evaluate(targets, suite=suite, data=data, output=tmp_path / "run", threads=1, **given)


def test_every_target_predicts_the_images_of_every_attack(
    split_checkpoint, class_folders, tmp_path, suite
):
    from recal.data.folders import open_images

    found = run(split_checkpoint, suite, class_folders, tmp_path, seed=4, batch_size=16)
    source, checkpoint = open_images(class_folders, "test"), load_checkpoint(split_checkpoint)
    x = torch.from_numpy(np.stack([source[i] for i in range(40)])).permute(0, 3, 1, 2) / 255
    y = torch.from_numpy(source.labels)
    models = {name: Normalised(checkpoint, name).eval() for name in ("main", "aux0")}
    for name, attack in read_suite(tmp_path / "two.toml").attack.items():
        starts = random_starts(attack, 4, np.arange(40), (3, 32, 32))
        for attacked, network in models.items():
            images = attack_images(network, x, y, attack, starts)
            for target, other in models.items():
                cell = f"{name}.{attacked}-1"
                columns = read_target_cell(found.folder, f"{split_checkpoint}:{target}", cell)
                with torch.no_grad():
                    truth = nn.functional.cross_entropy(other(images), y, reduction="none")
                np.testing.assert_allclose(columns["nll"], truth, rtol=1e-3, atol=1e-4)
    text = MARKUPS["plain"].text(summary_blocks(found.summary))
    assert "main predicts" in text
    assert "weak: PGD, L-inf radius 1/255, 1 step of 1/255, no random start, seed 4. Under" in text
    rows = {(row.target.rpartition(":")[2], row.part) for row in found.summary.parts}
    assert ("aux0", "strong.main") in rows
    # the cell of one attack alone is the same, whatever else is attacked and in which batches
    before = {p.name: p for p in found.folder.rglob("*.parquet")}
    assert len(before) == 5
    one = evaluate(
        [f"{split_checkpoint}:main", f"{split_checkpoint}:aux0"], suite=suite, data=class_folders,
        output=tmp_path / "one", seed=4, batch_size=7, attacked=["aux0"], threads=1,
    )  # fmt: skip
    assert {row.part for row in one.summary.parts} == {"weak.aux0", "strong.aux0"}
    name = f"{split_checkpoint}:main"
    np.testing.assert_allclose(
        read_target_cell(one.folder, name, "strong.aux0-1")["nll"],
        read_target_cell(found.folder, name, "strong.aux0-1")["nll"],
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_a_cell_that_was_interrupted_keeps_its_batches(
    split_checkpoint, class_folders, tmp_path, suite, monkeypatch
):
    from recal.evaluation import backends

    attacked, real = [], backends.attack_images

    def counting(logits, images, labels, attack, starts):
        if len(attacked) == 3:
            raise KeyboardInterrupt
        attacked.append(len(images))
        return real(logits, images, labels, attack, starts)

    given = {"batch_size": 10, "attacked": ["main"]}
    monkeypatch.setattr(backends, "attack_images", counting)
    with pytest.raises(KeyboardInterrupt):
        run(split_checkpoint, suite, class_folders, tmp_path, **given)
    assert len([*(tmp_path / "run").rglob("*.batch")]) == 6  # three batches of two targets
    attacked[:] = []
    monkeypatch.setattr(backends, "attack_images", lambda *a: (attacked.append(1), real(*a))[1])
    again = run(split_checkpoint, suite, class_folders, tmp_path, **given)
    assert len(attacked) == 1 + 4
    assert not [*again.folder.rglob("*.batch")]
    whole = run(split_checkpoint, suite, class_folders, tmp_path / "other", **given)
    for cell in ("weak.main-1", "strong.main-1"):
        for target in ("main", "aux0"):
            name = f"{split_checkpoint}:{target}"
            np.testing.assert_array_equal(
                read_target_cell(again.folder, name, cell)["nll"],
                read_target_cell(whole.folder, name, cell)["nll"],
            )


def test_what_attacks_do_not_go_with_is_refused(split_checkpoint, class_folders, tmp_path, suite):
    given = (split_checkpoint, suite, class_folders, tmp_path)
    with pytest.raises(UsageError, match="--backend onnxruntime: expected a suite without attacks"):
        run(*given, backend="onnxruntime")
    with pytest.raises(UsageError, match=r"--attacked: expected some of the targets .*, got aux7"):
        run(*given, attacked=["aux7"])
    with pytest.raises(UsageError, match="--attacked: expected a suite of attacks, got cifar10"):
        run(split_checkpoint, "cifar10", class_folders, tmp_path, attacked=["main"])


@pytest.mark.slow
def test_onnx_files_are_refused_by_name(split_checkpoint, class_folders, tmp_path, suite):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_checkpoint(split_checkpoint), "main", tmp_path / "m.onnx", images)
    with pytest.raises(UsageError, match=r"m.onnx: expected a checkpoint or variant .* Give the"):
        evaluate([str(tmp_path / "m.onnx")], suite=suite, data=class_folders, output=tmp_path / "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SUITE.replace('"linf"', '"l1"'), "expected one of linf, l2, got 'l1'"),
        (SUITE.replace("radius = 1\n", ""), "radius missing"),
        (SUITE.replace("[attack.weak]", "[attack.'a/b']"), "expected names of letters and digits"),
        (SUITE.replace("steps = 3", "steps = 3\nrestart = 2"), "got 'restart'"),
    ],
)
def test_slips_in_attacks_are_errors(tmp_path, text, message):
    (tmp_path / "two.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_suite(tmp_path / "two.toml")


@pytest.mark.slow
def test_autoattack_is_the_packages(model):
    package = pytest.importorskip("pyautoattack", exc_type=ImportError)
    from recal.attacks.autoattack import autoattack_images

    attack = AutoAttack(norm="linf", radius=8, attacks=("apgd-ce", "apgd-t"))
    x = pixels(3)
    with torch.no_grad():
        y = model(x).argmax(1)
    state = torch.get_rng_state()
    peer = package.AutoAttack(model, norm="Linf", eps=8 / 255, seed=3)
    peer.attacks_to_run = ["apgd-ce", "apgd-t"]
    expected, _ = peer.run_standard_evaluation(x, y, batch_size=3)
    torch.set_rng_state(state)
    assert torch.equal(autoattack_images(model, x, y, attack, 3), expected)
    assert torch.equal(torch.get_rng_state(), state)
